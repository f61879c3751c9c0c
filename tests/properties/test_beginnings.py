"""Sequences that begin alike are found again, and none is kept that nobody can find."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_router import beginnings
from slime_router.beginnings import Beginnings, common_prefix_len
from tests.examples import examples

SEQUENCES = st.lists(st.integers(0, 1), max_size=40).map(bytes)
ALIKE = st.lists(st.sampled_from([b"abcd", b"ABCD", b"1234"]), min_size=1, max_size=2).map(b"".join)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(beginnings, "ENDS", tuple(4 * 2**number for number in range(20)))
    monkeypatch.setattr(beginnings, "WINDOW_LEN", 3)


@settings(deadline=None, max_examples=examples(200))
@given(
    st.lists(st.tuples(st.sampled_from("ab"), SEQUENCES, st.integers(1, 9)), max_size=30),
    st.integers(0, 60),
)
def test_what_is_kept_has_a_limit_and_can_be_found(kept, limit):
    known = Beginnings[bytes](limit)
    for group, data, size in kept:
        known.keep(group, memoryview(data), data, size)
        known.check_integrity()
        found = known.likely(group, memoryview(data))
        assert found == (data if len(data) >= 4 and size <= limit else None)


@settings(deadline=None, max_examples=examples(200))
@given(st.lists(st.tuples(st.booleans(), ALIKE), min_size=20, max_size=60), st.integers(1, 4))
def test_what_is_looked_up_between_stays_longer(steps, limit):
    known = Beginnings[bytes](limit)
    for is_kept, data in steps:
        if is_kept:
            known.keep("", memoryview(data), data, 1)
        else:
            known.likely("", memoryview(data))
        known.check_integrity()


def test_one_can_go_after_a_younger_one_that_shared_a_window_with_it():
    known = Beginnings[str](2)
    known.keep("", memoryview(b"abcdefgh"), "old", 1)
    known.keep("", memoryview(b"abcd"), "young", 1)
    assert known.likely("", memoryview(b"abcdefgh")) == "old"
    for data in (b"ijklmnop", b"qrstuvwx"):
        known.keep("", memoryview(data), "other", 1)
        known.check_integrity()
    assert len(known) == 2
    assert known.likely("", memoryview(b"abcdefgh")) is None


@settings(deadline=None, max_examples=examples(200))
@given(st.lists(SEQUENCES, min_size=1, max_size=20), st.integers(0, 40))
def test_what_goes_on_from_the_last_one_finds_it(kept, more):
    known = Beginnings[bytes](10**6)
    for data in kept:
        known.keep("", memoryview(data), data, 1)
    last = max(kept[-1:], key=len)
    grown = last + bytes([2] * more)
    if len(last) >= 4:
        assert known.likely("", memoryview(grown)) == last
        assert known.likely("other", memoryview(grown)) is None


def test_one_that_goes_on_takes_the_place_of_the_one_before():
    known = Beginnings[str](10**6)
    known.keep("", memoryview(b"abcdefgh"), "first", 1)
    known.keep("", memoryview(b"abcdefghijkl"), "second", 1)
    assert len(known) == 1
    known.keep("", memoryview(b"abcdEFGHIJKL"), "a branch", 1)
    assert len(known) == 2
    assert known.likely("", memoryview(b"abcdefgh!")) == "second"
    assert known.likely("", memoryview(b"abcdEFGH!")) == "a branch"


@given(st.lists(st.integers(0, 2), max_size=9), st.lists(st.integers(0, 2), max_size=9))
def test_what_two_arrays_have_in_common(left, right):
    slowly = 0
    while slowly < min(len(left), len(right)) and left[slowly] == right[slowly]:
        slowly += 1
    assert common_prefix_len(np.array(left, np.int32), np.array(right, np.int32)) == slowly
