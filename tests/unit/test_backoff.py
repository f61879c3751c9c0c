"""Delays between tries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.pool.backoff import Backoff


def middle() -> float:
    return 0.5


def test_delays_grow_up_to_the_longest():
    backoff = Backoff(initial_s=1.0, factor=2.0, max_s=5.0)
    assert [backoff.delay_s(retry, middle) for retry in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]


@pytest.mark.parametrize(("drawn", "expected"), [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)])
def test_jitter_goes_both_ways(drawn, expected):
    assert Backoff(initial_s=1.0, jitter=0.2).delay_s(0, lambda: drawn) == pytest.approx(expected)


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True), st.floats(1, 100))
def test_no_retry_however_late_waits_longer_than_allowed(retry, drawn, factor):
    backoff = Backoff(factor=factor)
    delay_s = backoff.delay_s(retry, lambda: drawn)
    assert 0 < delay_s <= backoff.max_s * (1 + backoff.jitter)
