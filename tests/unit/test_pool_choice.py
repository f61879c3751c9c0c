"""The pool's choice: who may take a request, and what is said where nobody may."""

from __future__ import annotations

from typing import Any

import pytest

from slime_router.errors import BadRequest, NotFound, NoWorker
from slime_router.pool.backoff import Backoff
from slime_router.pool.failures import BreakerSettings
from slime_router.pool.policy import make_policy
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Need, Worker
from slime_router.types import token_ids

A, B, C = "http://a:1", "http://b:2", "http://c:3"
ONE_FAILURE = BreakerSettings(failure_threshold=1, success_threshold=1, open_s=10.0)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def timed(*urls: str, **settings: Any) -> tuple[WorkerPool, Clock]:
    clock = Clock()
    return WorkerPool(urls, clock=clock, **settings), clock


def leased(pool: WorkerPool, *args: Any, **named: Any) -> Worker:
    with pool.lease(*args, **named) as lease:
        return lease.worker


def refusal(pool: WorkerPool, *args: Any, **named: Any) -> NoWorker:
    with pytest.raises(NoWorker) as caught:
        pool.lease(*args, **named)
    assert not pool.has_candidates(*(args or (Need(),))) or named.get("kind")
    return caught.value


def test_a_request_goes_to_the_kind_that_it_names_and_else_to_none_that_only_prefills():
    pool = WorkerPool()
    prefill, decode, regular = (
        pool.add(A, kind="prefill"), pool.add(B, kind="decode"), pool.add(C)
    )  # fmt: skip
    assert {leased(pool) for _ in range(4)} == {decode, regular}
    for kind, worker in (("prefill", prefill), ("decode", decode), ("regular", regular)):
        assert {leased(pool, kind=kind) for _ in range(2)} == {worker}
    pool.remove(B)
    assert "decode" in refusal(pool, kind="decode").message
    pool.remove(C)
    assert "decode or regular" in refusal(pool).message


@pytest.mark.parametrize("target", ["1", B, "HTTP://B:2/", "id"])
def test_a_request_that_names_its_worker_goes_there_or_nowhere(target):
    pool = WorkerPool([A, B, C])
    worker = pool.list()[1]
    need = Need(target=worker.id if target == "id" else target)
    assert {leased(pool, need) for _ in range(3)} == {worker}
    pool.mark_down(worker)
    assert refusal(pool, need).is_temporary
    assert not pool.has_candidates(need)
    pool.remove(B)
    if target == "1":
        assert leased(pool, need).url == C  # it is the second now
    else:
        with pytest.raises(NotFound):
            pool.lease(need)


@pytest.mark.parametrize("target", ["3", "-1", "1.0", "", "1" * 5000])
def test_a_number_beyond_the_list_names_no_worker(target):
    with pytest.raises((NotFound, BadRequest)):
        WorkerPool([A, B, C]).lease(Need(target=target))


def test_where_none_can_be_reached_the_next_probe_is_named():
    pool = WorkerPool([A, B], probe_s=2.5)
    for worker in pool.list():
        pool.mark_down(worker, "it refuses connections")
    said = refusal(pool)
    assert (said.is_temporary, said.is_paused, said.retry_after_s) == (True, False, 2.5)
    assert not pool.can_serve()


def test_where_no_worker_fits_waiting_does_not_help():
    pool = WorkerPool([A, B])
    a, b = pool.list()
    assert pool.judge(a, "it has another vocabulary")
    assert not pool.judge(a, "it has another vocabulary")
    assert leased(pool) is b
    pool.mark_down(b)
    assert refusal(pool).is_temporary  # the other may come up
    pool.mark_up(b)
    pool.judge(b, "it is an embedding model")
    said = refusal(pool)
    assert not said.is_temporary
    assert "it has another vocabulary" in said.message
    assert pool.judge(b, None)
    assert leased(pool) is b


def test_a_pause_is_named_as_one():
    pool = WorkerPool([A, B])
    a, b = pool.list()
    pool.rest(a, is_paused=True, is_asleep=False)
    assert leased(pool) is b
    pool.rest(b, is_paused=False, is_asleep=True)
    said = refusal(pool)
    assert (said.is_temporary, said.is_paused) == (True, True)


def test_only_workers_with_weights_that_are_new_enough_serve():
    new: set[str] = {A}
    pool = WorkerPool([A, B], may_serve=lambda worker: worker.url in new)
    assert {leased(pool).url for _ in range(3)} == {A}
    new.clear()
    said = refusal(pool)
    assert (said.is_temporary, said.is_paused, said.retry_after_s) == (True, False, None)


def test_an_open_breaker_says_when_it_lets_the_next_request_through():
    pool, clock = timed(A, B, breaker=ONE_FAILURE)
    a, b = pool.list()
    pool.failed(a)
    assert (pool.breaker_state(a), pool.breaker_state(b)) == ("open", "closed")
    assert {leased(pool) for _ in range(3)} == {b}
    clock.now += 4.0
    pool.failed(b)
    said = refusal(pool)
    assert (said.is_temporary, said.retry_after_s) == (True, 6.0)  # the first of them
    clock.now += 6.0
    assert leased(pool) is a


def test_a_half_open_breaker_lets_one_request_through_at_a_time():
    """While that is under way, nobody can say when the next may go: time alone does not help."""
    pool, clock = timed(A, breaker=ONE_FAILURE)
    [a] = pool.list()
    pool.failed(a)
    clock.now += 10.5
    heard: list[str] = []
    trial = pool.lease()
    pool.subscribe(lambda: heard.append("changed"))
    assert pool.breaker_state(a) == "half_open"
    assert refusal(pool).retry_after_s is None
    trial.answered()
    assert heard == ["changed"]  # whoever waits may try now
    trial.close()
    trial.close()
    assert heard == ["changed"]  # its trial had ended
    with pool.lease():
        refusal(pool)
        pool.succeeded(a)
        assert pool.breaker_state(a) == "closed"
    assert leased(pool) is a


def test_a_worker_that_failed_or_is_busy_is_asked_after_the_others():
    pool, clock = timed(A, B, cooldown=Backoff(initial_s=8.0, jitter=0.0))
    a, b = pool.list()
    for worker in (a, b):
        worker.greeted()
    pool.failed(a)
    assert {leased(pool) for _ in range(3)} == {b}
    assert leased(pool, exclude={B}) is a  # there is no other
    clock.now += 9.0
    assert {leased(pool) for _ in range(3)} == {a, b}
    pool.busy(b)
    assert {leased(pool) for _ in range(3)} == {a}
    pool.failed(a)
    assert {leased(pool) for _ in range(3)} == {a, b}, "both failed"
    for worker in (a, b):
        pool.succeeded(worker)
    assert {leased(pool) for _ in range(3)} == {a, b}
    assert pool.cooldown_s(Need()) == 0.0


def test_a_request_waits_as_long_as_the_first_of_its_workers_does():
    pool, clock = timed(A, B, cooldown=Backoff(initial_s=8.0, jitter=0.0))
    a, b = pool.list()
    pool.failed(a)
    clock.now += 1.0
    pool.failed(b)
    assert pool.cooldown_s(Need()) == 7.0
    assert pool.cooldown_s(Need(target=B)) == 8.0
    assert pool.cooldown_s(Need(target="nonsense")) == 0.0


def test_a_worker_has_the_fleets_key_unless_it_has_its_own():
    pool = WorkerPool([A], api_key="fleet")
    own = pool.add(B, api_key="own")
    assert [worker.registration.api_key for worker in (pool.get(A), own)] == ["fleet", "own"]


def test_leases_are_counted_one_by_one_and_closed_once():
    pool = WorkerPool([A, B])
    first, second = pool.lease(), pool.lease()
    assert pool.total_in_flight == 2
    assert {first.worker.last_lease, second.worker.last_lease} == {1, 2}
    for _ in range(3):
        first.close()
    assert (pool.total_in_flight, pool.loads) == (1, {A: 0, B: 1})
    second.close()
    assert pool.total_in_flight == 0


def test_a_draining_worker_leaves_with_its_last_request_and_whoever_watches_it_hears_of_it():
    pool = WorkerPool([A, B])
    lease = pool.lease()
    heard: list[int] = []
    pool.subscribe(lambda: heard.append(len(pool)))
    assert pool.drain(A) is lease.worker
    assert lease.worker in pool
    assert {leased(pool).url for _ in range(3)} == {B}
    lease.close()
    assert lease.worker not in pool
    assert heard[-1] == 1
    assert pool.drain(B).url == B
    assert (len(pool), heard[-1]) == (0, 0)


def test_a_removed_worker_is_watched_until_its_last_request_ends():
    pool = WorkerPool([A])
    one, other = pool.lease(), pool.lease()
    pool.remove(A)
    heard: list[int] = []
    pool.subscribe(lambda: heard.append(pool.total_in_flight))
    one.close()
    assert heard == []
    other.close()
    assert heard == [0]


def test_an_answered_request_frees_its_tokens_once():
    pool = WorkerPool([A], policy=make_policy("cache_aware"))
    lease = pool.lease(Need(ids=token_ids(range(4096))))
    worker = lease.worker
    assert worker.pending_tokens == 4096
    lease.answered()
    assert worker.pending_tokens == 0
    lease.close()
    assert worker.pending_tokens == 0


def test_a_worker_that_went_down_counts_as_new_when_it_is_back():
    """Its process is another one: nothing is in its cache, and it has not failed yet."""
    pool, _ = timed(A, B, breaker=ONE_FAILURE, policy=make_policy("cache_aware"))
    a, b = pool.list()
    need = Need(ids=token_ids(range(4096)))
    pool.held(a, "", need.ids)
    assert leased(pool, need) is a
    heard: list[bool] = []
    pool.subscribe(lambda: heard.append(a.is_up))
    pool.failed(a)
    pool.mark_down(a, "it refuses connections")
    assert (heard, a.reason) == ([False], "it refuses connections")
    assert {leased(pool, need) for _ in range(3)} == {b}
    pool.mark_up(a)
    assert (heard, pool.breaker_state(a)) == ([False, True], "closed")
    pool.mark_up(a)
    assert len(heard) == 2  # it was up before
    with pool.lease(need, exclude={B}) as lease:
        assert lease.worker.pending_tokens == 4096  # all of it is to be computed again


def test_a_removed_worker_is_forgotten_by_the_policy():
    pool = WorkerPool([A], policy=make_policy("cache_aware"))
    need = Need(ids=token_ids(range(4096)))
    [a] = pool.list()
    pool.held(a, "", need.ids)
    pool.remove(A)
    pool.held(a, "", need.ids)  # its last request ends
    assert pool.breaker_state(a) == "closed"
    again = pool.add(A)
    with pool.lease(need):
        assert again.pending_tokens == 4096


def test_only_a_worker_that_was_greeted_and_is_not_left_alone_is_healthy():
    pool, clock = timed(A, breaker=ONE_FAILURE)
    [a] = pool.list()
    assert not pool.can_serve()
    a.greeted()
    pool.rest(a, is_paused=True, is_asleep=False)
    assert pool.is_healthy(a)  # it serves once it is resumed
    assert pool.can_serve()
    assert not pool.has_candidates(Need())
    pool.rest(a, is_paused=False, is_asleep=False)
    assert pool.has_candidates(Need())
    pool.failed(a)
    assert not pool.is_healthy(a)
    clock.now += 10.0
    assert pool.is_healthy(a)  # half open
    pool.busy(a)
    assert pool.breaker_state(a) == "closed"  # that it is busy is an answer
    pool.mark_down(a)
    assert not pool.is_healthy(a)


def test_a_version_is_news_once_and_a_newer_one_is_not_overwritten():
    worker = Worker(A)
    assert worker.observed("v1", known=None)
    assert not worker.observed("v1", known="v1")
    assert not worker.observed("v0", known=None)  # asked before v1 came
    assert worker.weight_version == "v1"
    assert worker.observed("v2", known="v1")
    assert worker.weight_version == "v2"


def test_only_a_worker_that_was_stopped_has_lost_its_pause():
    """One that cannot be reached for a moment is still paused when it is back."""
    pool = WorkerPool([A])
    [a] = pool.list()
    for was_stopped in (False, True):
        pool.rest(a, is_paused=True, is_asleep=False)
        a.greeted()
        pool.mark_down(a, was_stopped=was_stopped)
        pool.mark_up(a)
        assert (a.is_resting, a.was_greeted) == (not was_stopped, not was_stopped)


@pytest.mark.parametrize("said", ["succeeded", "busy", "failed"])
def test_what_a_removed_worker_still_answers_counts_for_nothing(said):
    pool = WorkerPool()
    worker = pool.add("http://a:1")
    pool.remove(worker.url)
    getattr(pool, said)(worker)
    assert pool.list() == ()


@pytest.mark.parametrize("target", [None, "0", A, B, "nonsense"])
@pytest.mark.parametrize("state", ["ready", "down", "resting", "full", "removed", "excluded"])
def test_who_can_take_a_request_is_who_would_get_it(state, target):
    pool = WorkerPool([A, B], max_in_flight=1)
    worker = pool.get(A)
    match state:
        case "down":
            pool.mark_down(worker)
        case "resting":
            pool.rest(worker, is_paused=True, is_asleep=False)
        case "full":
            pool.lease(Need(target=A))
        case "removed":
            pool.remove(A)
    need, exclude = Need(target=target), [A] if state == "excluded" else []
    can_take = pool.can_take(worker, need, exclude, None)
    if target != "0" and state != "ready":
        assert not can_take
    if target is None:
        pool.mark_down(pool.get(B))  # nobody else is left
    try:
        chosen = pool.lease(need, exclude).worker
    except (NoWorker, NotFound):
        chosen = None
    assert can_take is (chosen is worker)
