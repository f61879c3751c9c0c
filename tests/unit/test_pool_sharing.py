"""What the pools of one router's processes tell each other: loads, and where keys went."""

from __future__ import annotations

import pytest

from slime_router.choices import PolicyName
from slime_router.pool.policy import MAX_MOVED, Affinity, make_policy
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Need, Worker
from slime_router.types import token_ids
from tests.loads import load

A, B = "http://a:1", "http://b:2"
STICKY: tuple[PolicyName, ...] = ("least_inflight", "cache_aware")


def ask(pool: WorkerPool, key: str) -> str:
    with pool.lease(Need(key=key, ids=token_ids([1, 2, 3]))) as lease:
        return lease.worker.url


@pytest.mark.parametrize("policy", STICKY)
def test_a_key_goes_where_another_process_sent_it(policy: PolicyName) -> None:
    here, there = (WorkerPool([A, B], policy=make_policy(policy)) for _ in range(2))
    homes = {key: ask(here, key) for key in ("one", "two", "three")}
    assert here.sharing.take_moved_keys() == homes
    assert here.sharing.take_moved_keys() == {}  # it was taken
    for key, url in homes.items():
        assert ask(here, key) == url
    assert here.sharing.take_moved_keys() == {}  # nothing has moved
    there.sharing.learn_keys({**homes, "four": "http://gone:1"})
    assert {key: ask(there, key) for key in homes} == homes
    assert there.sharing.take_moved_keys() == {}  # what was learned is not handed back


def test_a_policy_that_needs_no_memory_has_nothing_to_tell() -> None:
    pool = WorkerPool([A, B], policy=make_policy("consistent_hashing"))
    home = ask(pool, "key")
    assert pool.sharing.take_moved_keys() == {}
    pool.sharing.learn_keys({"key": B if home == A else A})
    assert ask(pool, "key") == home


def test_a_key_may_be_any_text_of_a_client() -> None:
    pool = WorkerPool([A, B], policy=make_policy("consistent_hashing"))
    assert ask(pool, "\ud83d") == ask(pool, "\ud83d")


def test_what_other_processes_have_in_flight_counts() -> None:
    pool = WorkerPool([A, B])
    a, b = pool.list()
    pool.sharing.note_elsewhere(1, {A: 5, B: 1})
    pool.sharing.note_elsewhere(2, {B: 2})
    assert (a.busy_with, b.busy_with) == (5, 3)
    assert ask(pool, "x") == B
    pool.sharing.note_elsewhere(2, {B: 9})
    assert ask(pool, "y") == A
    pool.sharing.note_elsewhere(1, {})
    assert (a.busy_with, b.busy_with) == (0, 9)
    assert pool.total_in_flight == 0


def test_the_contexts_of_the_fleet() -> None:
    """One that is down and never reported its own says nothing about what fits."""
    pool = WorkerPool([A, B])
    a, b = pool.list()
    assert pool.context_lens() == [None, None]
    a.reported(context_len=4096)
    assert pool.context_lens() == [4096, None]
    pool.mark_down(b)
    assert pool.context_lens() == [4096]
    pool.mark_up(b)
    b.reported(context_len=2048)
    pool.mark_down(a)
    assert pool.context_lens() == [4096, 2048]


def test_whether_a_worker_refuses_is_news_once() -> None:
    pool = WorkerPool([A, B])
    a, b = pool.list()
    heard: list[bool] = []
    pool.subscribe(lambda: heard.append(a.is_there))
    assert pool.refuses(a, True)
    assert not pool.refuses(a, True)
    assert heard == [False]
    assert {ask(pool, str(number)) for number in range(3)} == {b.url}
    assert pool.refuses(a, False)
    assert heard == [False, True]


def test_a_flushed_worker_holds_nothing() -> None:
    pool = WorkerPool([A], policy=make_policy("cache_aware"))
    [a] = pool.list()
    need = Need(ids=token_ids(range(4096)))
    for is_flushed, pending in ((False, 4096), (False, 0), (True, 4096), (False, 0)):
        if is_flushed:
            pool.flushed(a)
        with pool.lease(need):
            assert a.pending_tokens == pending


def test_what_a_worker_sampled_is_in_its_cache_while_it_is_up() -> None:
    pool = WorkerPool([A], policy=make_policy("cache_aware"))
    [a] = pool.list()
    ask(pool, "first")  # since then the policy knows it
    texts = [token_ids(range(start, start + 4096)) for start in (0, 5000, 10_000)]
    pool.held(a, "", texts[0])
    pool.mark_down(a)
    pool.held(a, "", texts[1])
    pool.mark_up(a)
    ask(pool, "second")
    pool.held(a, "", texts[2])
    for ids, pending in zip(texts, (4096, 4096, 0), strict=True):
        with pool.lease(Need(ids=ids)):
            assert a.pending_tokens == pending


def test_moved_keys_are_kept_up_to_a_limit() -> None:
    affinity, worker = Affinity(), Worker(A)
    for number in range(MAX_MOVED + 3):
        affinity.keep(str(number), worker)
    moved = affinity.take_moved()
    assert len(moved) == MAX_MOVED
    assert set(moved.values()) == {worker}
    affinity.keep("0", worker)
    assert affinity.take_moved() == {}
    other = Worker(B)
    affinity.keep("0", other)
    assert affinity.take_moved() == {"0": other}


@pytest.mark.parametrize(("in_flight", "home"), [(23, A), (24, B)])
def test_a_key_leaves_its_worker_when_that_no_longer_keeps_up(in_flight: int, home: str) -> None:
    """The mean of 23 and 1 is 12: a quarter more, and 8, is 23."""
    pool = WorkerPool([A, B])
    assert ask(pool, "key") == A
    a, b = pool.list()
    load(a, in_flight=in_flight, last_lease=1)
    load(b, in_flight=1)
    assert ask(pool, "key") == home
