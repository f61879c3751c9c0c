"""The circuit breaker: when a worker is left alone, tried, and trusted again."""

from __future__ import annotations

import pytest

from slime_router.pool.failures import Breaker, BreakerSettings


def breaker(**settings: object) -> Breaker:
    given = {"failure_threshold": 3, "success_threshold": 2, "open_s": 10.0, "window_s": 5.0}
    return Breaker(BreakerSettings(**{**given, **settings}))  # type: ignore[arg-type]  # a test's


def opened(at: float = 0.0, **settings: object) -> Breaker:
    made = breaker(**settings)
    for _ in range(3):
        made.failed(at)
    assert made.state(at) == "open"
    return made


def test_failures_in_a_row_open_it():
    made = breaker()
    for time in (0.0, 1.0):
        made.failed(time)
        assert made.allows(time)
    made.failed(2.0)
    assert made.state(2.0) == "open"
    assert not made.allows(2.0)


def test_a_success_in_between_forgives():
    """One bad request in a hundred is not a reason to lose a worker."""
    made = breaker()
    for time in range(20):
        made.failed(float(time))
        made.failed(float(time))
        made.succeeded(float(time))
    assert made.state(20.0) == "closed"


def test_failures_far_apart_do_not_open_it():
    made = breaker()
    for time in (0.0, 3.0, 6.0, 9.0, 12.0):
        made.failed(time)
    assert made.state(12.0) == "closed"
    made.failed(13.0)
    assert made.state(13.0) == "open"


@pytest.mark.parametrize(("last", "state"), [(5.0, "open"), (5.1, "closed")])
def test_the_window_ends_with_its_last_second(last, state):
    made = breaker(window_s=5.0)
    made.failed(0.0)
    made.failed(1.0)
    made.failed(last)
    assert made.state(last) == state


def test_half_open_it_lets_one_request_through_at_a_time():
    made = opened()
    assert made.state(9.9) == "open"
    assert made.state(10.0) == "half_open"
    assert made.allows(10.0)
    assert made.begin(10.0) is True
    assert not made.allows(10.0)
    made.end_trial()
    assert made.allows(10.0)


def test_successes_close_it():
    made = opened()
    for time in (10.0, 11.0):
        assert made.state(time) == "half_open"
        made.succeeded(time)
    assert made.state(11.0) == "closed"
    made.failed(12.0)
    assert made.state(12.0) == "closed", "old failures are forgotten"


def test_a_failed_trial_opens_it_anew():
    made = opened()
    made.succeeded(10.0)
    made.failed(11.0)
    assert made.state(20.9) == "open"
    assert made.state(21.0) == "half_open"
    made.succeeded(21.0)
    assert made.state(21.0) == "half_open", "successes before it do not count"


def test_what_was_under_way_when_it_opened_changes_nothing():
    made = opened()
    made.failed(5.0)
    made.succeeded(6.0)
    made.succeeded(7.0)
    assert made.state(9.9) == "open"
    assert made.state(10.0) == "half_open"


def test_a_request_that_began_before_it_opened_is_no_trial():
    made = breaker()
    assert made.begin(0.0) is False
    for _ in range(3):
        made.failed(0.0)
    assert made.begin(10.0) is True
    assert not made.allows(10.0), "the trial is still under way"


def test_a_trial_that_ends_after_it_closed_leaves_room_for_the_next_one():
    made = opened()
    assert made.begin(10.0) is True
    made.close()
    assert made.begin(11.0) is False
    made.end_trial()
    for _ in range(3):
        made.failed(12.0)
    assert made.allows(22.0)


def test_it_says_how_long_until_the_next_trial():
    made = breaker()
    assert made.tries_in_s(5.0) == 0.0
    made = opened(at=2.0)
    assert made.tries_in_s(5.0) == 7.0


def test_a_worker_that_was_started_anew_is_trusted():
    made = opened()
    made.close()
    assert made.state(0.0) == "closed"
    made.failed(1.0)
    assert made.state(1.0) == "closed", "old failures are forgotten"


@pytest.mark.parametrize("count", [1, 100])
def test_switched_off_it_never_opens(count):
    made = breaker(is_enabled=False)
    for _ in range(count):
        made.failed(0.0)
    assert made.allows(0.0)
