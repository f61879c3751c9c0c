"""The cooldown: how long a worker that failed or is busy is asked after all others."""

from __future__ import annotations

from slime_router.pool.backoff import Backoff
from slime_router.pool.failures import BUSY_S, Cooldown


def cooldown() -> Cooldown:
    return Cooldown(Backoff(initial_s=1.0, factor=2.0, max_s=60.0, jitter=0.5))


def test_nobody_is_spared_without_a_reason():
    made = cooldown()
    assert not made.spares(0.0)
    assert made.left_s(0.0) == 0.0


def test_a_failed_worker_is_spared_until_its_time_is_over():
    made = cooldown()
    made.failed(10.0)
    assert made.spares(10.9)
    assert not made.spares(11.0)
    assert made.left_s(10.25) == 0.75
    assert made.left_s(12.0) == 0.0


def test_each_failure_in_a_row_takes_longer():
    made, now, delays = cooldown(), 10.0, []
    for _ in range(4):
        made.failed(now)
        delays.append(made.left_s(now))
        now += delays[-1]
    assert delays == [1.0, 2.0, 4.0, 8.0], "without jitter"


def test_failures_of_requests_that_it_had_at_the_same_time_count_once():
    made = cooldown()
    for now in (10.0, 10.5, 10.9):
        made.failed(now)
    assert made.left_s(10.0) == 1.0
    made.failed(11.0)
    assert made.left_s(11.0) == 2.0


def test_a_busy_worker_is_spared_but_nobody_has_to_wait_for_it():
    made = cooldown()
    made.busy(10.0)
    assert made.spares(10.0 + BUSY_S / 2)
    assert not made.spares(10.0 + BUSY_S)
    assert made.left_s(10.0) == 0.0


def test_the_longer_reason_counts():
    made = cooldown()
    made.failed(10.0)
    made.failed(11.0)  # for two seconds
    made.busy(11.0)
    assert made.spares(12.9)
    made.busy(12.5)
    assert made.spares(13.4)
    made.failed(13.0)
    assert made.spares(16.9)
    late = cooldown()
    late.busy(10.5)
    late.failed(10.0)
    assert late.spares(11.4)


def test_a_success_ends_it_and_the_next_failure_is_a_first_one():
    made = cooldown()
    made.failed(10.0)
    made.failed(11.0)
    made.succeeded()
    assert not made.spares(11.0)
    assert made.left_s(11.0) == 0.0
    made.failed(11.0)
    assert made.left_s(11.0) == 1.0
