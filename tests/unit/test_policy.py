"""The policies: whom they choose, whom they leave, what they forget."""

from __future__ import annotations

from functools import cache
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.choices import PolicyName
from slime_router.pool.policy import KEY_WORTH, Affinity, Recent, make_policy
from slime_router.pool.worker import Need, Worker
from slime_router.types import TokenIds, token_ids
from tests.loads import load

NAMES: tuple[PolicyName, ...] = get_args(PolicyName)


def fleet(count: int) -> list[Worker]:
    return [load(Worker(f"http://w{n}"), last_lease=n - count) for n in range(count)]


@cache
def prompt(seed: int, length: int = 4_000) -> TokenIds:
    return token_ids(np.random.default_rng(seed).integers(0, 150_000, length))


class Router:
    """Does with a policy what the pool does; an answer comes when `end` is called."""

    def __init__(self, name: PolicyName, seed: int = 1) -> None:
        self.policy = make_policy(name, seed=seed)
        self.leases = 0

    def send(self, workers: list[Worker], need: Need) -> Worker:
        worker = self.policy.choose(workers, need)
        assert isinstance(worker, Worker)
        self.leases += 1
        worker.leased(self.leases, self.policy.sent(worker, need))
        return worker

    def end(self, worker: Worker) -> None:
        worker.returned()
        worker.computed(worker.pending_tokens)

    def ask(self, workers: list[Worker], need: Need) -> Worker:
        worker = self.send(workers, need)
        self.end(worker)
        return worker


needs = st.builds(
    lambda seed, length, key, scope: Need(prompt(seed, length), scope, key),
    st.integers(0, 2),
    st.sampled_from([0, 30, 200]),
    st.sampled_from([None, "", "a", "b", "\udc80"]),
    st.sampled_from(["", "lora"]),
)
steps = st.lists(st.tuples(needs, st.sets(st.integers(0, 3), min_size=1), st.booleans()))


@pytest.mark.parametrize("name", NAMES)
@given(steps=steps, seed=st.integers(0, 3))
def test_only_an_offered_worker_is_chosen_and_a_seed_repeats_all(name, steps, seed):
    def run() -> list[str]:
        router, workers, urls = Router(name, seed), fleet(4), []
        for need, offered, ends in steps:
            candidates = [workers[i] for i in sorted(offered)]
            worker = router.send(candidates, need)
            assert worker in candidates
            urls.append(worker.url)
            if ends:
                router.end(worker)
                router.policy.held(worker, need.scope, need.ids)
            else:
                router.policy.forget(worker)
        return urls

    assert run() == run()


@pytest.mark.parametrize("name", NAMES)
def test_a_key_goes_back_to_its_worker(name):
    """Also where the others have less to do, and the prompt is another one."""
    router, workers = Router(name), fleet(8)
    first = router.ask(workers, Need(prompt(0), key="mine"))
    for n in range(1, 20):
        load(first, in_flight=1, last_lease=first.last_lease)
        assert router.ask(workers, Need(prompt(n, 50), key="mine")) is first
        load(first, last_lease=first.last_lease)


@pytest.mark.parametrize("name", NAMES)
def test_a_key_leaves_a_worker_that_does_not_keep_up_and_stays_where_it_went(name):
    router, workers = Router(name), fleet(4)
    first = router.ask(workers, Need(prompt(0, 50), key="mine"))
    load(first, in_flight=50, last_lease=first.last_lease)
    second = router.ask(workers, Need(prompt(0, 50), key="mine"))
    assert second is not first
    assert router.ask(workers, Need(prompt(0, 50), key="mine")) is second


@pytest.mark.parametrize("name", NAMES)
def test_a_key_leaves_a_worker_whose_own_queue_stands(name):
    router, workers = Router(name), fleet(4)
    first = router.ask(workers, Need(prompt(0, 50), key="mine"))
    first.reported(queued=50)
    assert router.ask(workers, Need(prompt(0, 50), key="mine")) is not first


@pytest.mark.parametrize("name", NAMES)
def test_a_key_does_not_wait_for_a_worker_that_is_not_there(name):
    router, workers = Router(name), fleet(4)
    first = router.ask(workers, Need(prompt(0), key="mine"))
    others = [worker for worker in workers if worker is not first]
    assert router.ask(others, Need(prompt(0), key="mine")) in others


@pytest.mark.parametrize("name", ["cache_aware", "least_inflight", "round_robin"])
def test_an_idle_fleet_is_spread(name):
    """Requests one after the other go round, longest idle first, where nothing ties them."""
    router, workers = Router(name), fleet(3)
    assert [router.ask(workers, Need(prompt(n))) for n in range(6)] == workers * 2


def test_round_robin_looks_at_no_load():
    router, workers = Router("round_robin"), fleet(3)
    load(workers[1], in_flight=100, last_lease=workers[1].last_lease)
    assert [router.ask(workers, Need()) for _ in range(3)] == workers


def test_two_at_random_spare_the_busiest():
    router, workers = Router("power_of_two"), fleet(3)
    load(workers[0], in_flight=5, last_lease=workers[0].last_lease)
    chosen = {router.ask(workers, Need()).url for _ in range(50)}
    assert chosen == {"http://w1", "http://w2"}
    assert router.ask(workers[:1], Need()) is workers[0]


def test_random_reaches_all():
    router, workers = Router("random"), fleet(3)
    assert {router.ask(workers, Need()).url for _ in range(50)} == {w.url for w in workers}


def test_consistent_hashing_is_the_same_in_every_router_and_moves_few_keys():
    keys = [Need(key=f"k{n}") for n in range(300)]
    one, two, workers = Router("consistent_hashing"), Router("consistent_hashing"), fleet(6)
    homes = [one.ask(workers, need) for need in keys]
    assert [two.ask(workers[::-1], need) for need in reversed(keys)] == homes[::-1]
    assert all(30 <= homes.count(worker) <= 75 for worker in workers)
    left = workers[:-1]
    moved = [a for a, need in zip(homes, keys, strict=True) if one.ask(left, need) is not a]
    assert moved == [worker for worker in homes if worker is workers[-1]]


# What the default policy knows of caches


def test_a_conversation_goes_where_its_beginning_is():
    router, workers = Router("cache_aware"), fleet(8)
    ids = prompt(0)
    home = router.ask(workers, Need(ids[:2_000]))
    router.policy.held(home, "", ids[:3_000])
    need = Need(ids)
    assert router.policy.choose(workers, need) is home
    assert router.policy.sent(home, need) == 4_000 - 2_944, "46 whole blocks are held"


def test_a_group_of_one_prompt_computes_it_once():
    router, workers = Router("cache_aware"), fleet(8)
    chosen = [router.send(workers, Need(prompt(0), key=f"sample {n}")) for n in range(8)]
    assert set(chosen) == {chosen[0]}
    assert chosen[0].pending_tokens < 4_000 + 8 * 64


def test_groups_of_other_prompts_go_elsewhere():
    router, workers = Router("cache_aware"), fleet(8)
    groups = [{router.send(workers, Need(prompt(g))).url for _ in range(8)} for g in range(8)]
    assert len(set.union(*groups)) == 8


def test_a_worker_with_too_much_to_do_is_left_though_it_holds_the_prompt():
    router, workers = Router("cache_aware"), fleet(4)
    home = router.ask(workers, Need(prompt(0)))
    assert router.policy.choose(workers, Need(prompt(0))) is home
    load(home, pending=50_000, last_lease=home.last_lease)
    assert router.policy.choose(workers, Need(prompt(0))) is not home
    load(home, in_flight=200, last_lease=home.last_lease)
    assert router.policy.choose(workers, Need(prompt(0))) is not home


@pytest.mark.parametrize(("in_flight", "is_left"), [(0, True), (20, False)])
def test_a_prompt_is_computed_again_on_an_idle_worker_sooner_than_on_a_busy_one(in_flight, is_left):
    """To compute it delays all that the worker has in flight."""
    router, workers = Router("cache_aware"), fleet(2)
    home = router.ask(workers, Need(prompt(0, 2_000)))
    for worker in workers:
        load(worker, in_flight=in_flight, last_lease=worker.last_lease)
    load(home, in_flight=in_flight, pending=6_500, last_lease=home.last_lease)
    assert (router.policy.choose(workers, Need(prompt(0, 2_000))) is not home) is is_left


def test_scopes_do_not_share_a_cache():
    router, workers = Router("cache_aware"), fleet(4)
    home = router.ask(workers, Need(prompt(0), "lora"))
    assert router.policy.choose(workers, Need(prompt(0), "lora")) is home
    assert router.policy.choose(workers, Need(prompt(0))) is not home


def test_what_a_worker_held_is_forgotten_also_what_ends_afterwards():
    """A generation that ran when its worker was flushed or removed leaves nothing behind."""
    router, workers = Router("cache_aware"), fleet(4)
    home = router.ask(workers, Need(prompt(0)))
    router.policy.forget(home)
    router.policy.held(home, "", prompt(0))
    assert router.policy.choose(workers, Need(prompt(0))) is not home
    assert router.policy.sent(home, Need(prompt(0))) == 4_000


def test_an_output_is_held_where_it_ends_a_block():
    router, workers = Router("cache_aware"), fleet(1)
    home = router.ask(workers, Need(prompt(0)))
    before = repr(router.policy)
    router.policy.held(home, "", prompt(0), [1])
    assert repr(router.policy) == before
    router.policy.held(home, "", prompt(0), [1] * 64)
    assert repr(router.policy) != before


def test_the_prefix_of_one_chat_outweighs_the_key_of_another():
    assert KEY_WORTH < 4_000
    router, workers = Router("cache_aware"), fleet(2)
    home = router.ask(workers, Need(prompt(0)))
    other = router.ask(workers, Need(prompt(1), key="mine"))
    assert other is not home
    assert router.ask(workers, Need(prompt(0), key="mine")) is home


def test_keys_used_longest_ago_go_first():
    affinity, [one, two] = Affinity(max_keys=2), fleet(2)
    affinity.keep("a", one)
    affinity.keep("b", one)
    affinity.keep("a", two)
    affinity.keep("c", one)
    affinity.keep(None, two)
    assert [affinity.last(key) for key in ("a", "b", "c", None)] == [two, None, one, None]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9_000))), st.integers(1, 5))
def test_tokens_given_of_late_count_half_after_each_half_life(given_tokens, half_life):
    recent, workers = Recent(half_life), fleet(3)
    for index, tokens in given_tokens:
        recent.add(workers[index], tokens)
    for n, worker in enumerate(workers):
        ages = range(len(given_tokens) - 1, -1, -1)
        counted = [
            tokens * 0.5 ** (age / half_life)
            for age, (index, tokens) in zip(ages, given_tokens, strict=True)
            if index == n
        ]
        assert recent.tokens(worker) == pytest.approx(sum(counted))
        recent.forget(worker)
        assert recent.tokens(worker) == 0


def test_a_new_chat_spares_a_worker_that_was_given_much_of_late():
    """Nothing is in flight, but what it computed comes back, and would be pushed out."""
    router, workers = Router("cache_aware"), fleet(2)
    busy = router.ask(workers, Need(prompt(0)))
    other = router.ask(workers, Need(prompt(1, 400)))
    assert other is not busy
    assert router.ask(workers, Need(prompt(2, 400))) is other, "though it waited longer: busy"


def test_a_chat_stays_where_it_began_though_others_of_its_key_went_elsewhere():
    """What was given of late counts for the key's last worker as for all: it draws no chat away."""
    router, workers = Router("cache_aware"), fleet(2)
    home, elsewhere = workers
    for n in range(100):
        router.policy.sent(workers[n % 2], Need(prompt(n, 400)))
    chat = Need(prompt(500, 400), key="mine")
    router.policy.sent(home, chat)
    router.policy.sent(elsewhere, Need(prompt(501, 400), key="mine"))
    assert router.policy.choose(workers, chat) is home


def test_two_are_drawn_and_the_less_busy_of_them_is_chosen():
    workers = [load(Worker(f"http://w{n}"), in_flight=n) for n in range(3)]
    chosen = {make_policy("power_of_two", seed=seed).choose(workers, Need()) for seed in range(50)}
    assert chosen == set(workers[:2])  # the busiest never, the idle one not always


@pytest.mark.parametrize(("in_flight", "is_left"), [(23, False), (24, True)])
def test_hashing_passes_over_whoever_no_longer_keeps_up(in_flight, is_left):
    """The mean of 23 and 1 is 12: a quarter more, and 8, is 23."""
    workers, need = fleet(2), Need(key="key")
    policy = make_policy("consistent_hashing")
    home = policy.choose(workers, need)
    for worker in workers:
        load(worker, in_flight=in_flight if worker is home else 1)
    assert (policy.choose(workers, need) is not home) is is_left
