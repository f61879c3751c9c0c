"""Routed experts: read from the worker, and lined up along a row."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import pytest

from slime_router.trajectory.routed_experts import (
    ExpertsSpan,
    RoutedExperts,
    decode,
    find_misfit,
    line_up,
)
from tests.turns import Book

P = [1, 2, 3]


def encode(values: Sequence[int]) -> str:
    return base64.b64encode(np.array(values, "<i4").tobytes()).decode()


def positions(start: int, end: int, width: int = 2) -> RoutedExperts:
    """The experts of position n are n, n, ..."""
    numbers = np.arange(start, end, dtype=np.uint8)
    return RoutedExperts(start, np.repeat(numbers[:, None], width, axis=1))


# ------------------------------------------------------------------ decode


def test_a_first_turn_covers_all_but_its_last_token():
    """Little-endian int32, position by position; nothing later can change it."""
    experts = decode(encode([1, 2, 3, 4, 5, 6]), held_len=4, start=0, width=None)
    assert experts.start == 0
    assert experts.ids.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert not experts.ids.flags.writeable


def test_a_later_turn_begins_where_it_was_asked_to():
    experts = decode(encode([1, 2, 3, 4]), held_len=6, start=3, width=2)
    assert (experts.start, experts.ids.tolist()) == (3, [[1, 2], [3, 4]])


def test_a_worker_that_cannot_begin_later_is_told_by_the_count():
    experts = decode(encode(range(10)), held_len=6, start=3, width=2)
    assert (experts.start, experts.ids.shape) == (0, (5, 2))


def test_without_a_known_width_the_start_is_believed():
    experts = decode(encode(range(6)), held_len=6, start=3, width=None)
    assert (experts.start, experts.ids.shape) == (3, (2, 3))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 255], np.uint8),
        ([0, 256], np.int16),
        ([0, 32767], np.int16),
        ([0, 32768], np.int32),
        ([-1, 7], np.int16),
        ([-32768, 7], np.int16),
        ([-32769, 7], np.int32),
    ],
)
def test_the_smallest_dtype_that_holds_them_is_used(values, dtype):
    """86."""
    experts = decode(encode(values), held_len=2, start=0, width=2)
    assert experts.ids.dtype == dtype
    assert experts.ids.tolist() == [values]


@pytest.mark.parametrize(
    ("text", "held_len", "start", "width", "message"),
    [
        ("?", 4, 0, None, "not base64"),
        ("é", 4, 0, None, "not base64"),
        ("", 4, 0, None, "0 bytes"),
        ("AAA=", 4, 0, None, "2 bytes"),
        (encode(range(5)), 4, 0, None, "5 routed experts for 3 positions of width unknown"),
        (encode(range(6)), 4, 0, 3, "6 routed experts for 3 positions of width 3"),
        (encode(range(6)), 6, 3, 2, "6 routed experts for 2 positions of width 2"),
        (encode(range(6)), 4, 3, None, "no positions"),
        (encode(range(6)), 4, -1, None, "no positions"),
    ],
)
def test_what_does_not_fit_is_said(text, held_len, start, width, message):
    """86: a wrong count is an error, never a shifted array."""
    with pytest.raises(ValueError, match=message):
        decode(text, held_len=held_len, start=start, width=width)


# ------------------------------------------------------------------ line_up


def test_parts_follow_each_other_and_overlaps_are_cut_off():
    """86: what a later turn has again is the earlier turn's."""
    early = RoutedExperts(0, np.full((3, 2), 9, np.uint8))
    parts = [ExpertsSpan(early, 0, 3), ExpertsSpan(positions(1, 6), 3, 6)]
    assert find_misfit(parts) is None
    lined_up = line_up(parts)
    assert lined_up[:, 0].tolist() == [9, 9, 9, 3, 4, 5]
    assert not lined_up.flags.writeable


def test_a_part_may_end_before_its_experts_do():
    """The row goes on with another turn, which begins in the middle of this one."""
    lined_up = line_up(
        [
            ExpertsSpan(positions(0, 9), 0, 2),
            ExpertsSpan(positions(2, 9), 2, 4),
            ExpertsSpan(positions(3, 8), 4, 6),
        ]
    )
    assert lined_up[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_parts_of_different_dtypes_keep_their_values():
    big = RoutedExperts(1, np.array([[300]], np.int16))
    small = RoutedExperts(0, np.array([[255]], np.uint8))
    lined_up = line_up([ExpertsSpan(small, 0, 1), ExpertsSpan(big, 1, 2)])
    assert lined_up.tolist() == [[255], [300]]


@pytest.mark.parametrize(
    ("experts", "misfit"),
    [
        (None, "missing"),
        (positions(4, 6), "gap"),
        (positions(3, 5), "gap"),
        (positions(3, 6, width=3), "width"),
        (positions(3, 6), None),
        (positions(0, 9), None),
    ],
)
def test_parts_that_do_not_fit_are_told(experts, misfit):
    """86."""
    parts = [ExpertsSpan(positions(0, 3), 0, 3), ExpertsSpan(experts, 3, 6)]
    assert find_misfit(parts) == misfit


# ------------------------------------------------------------------ rows


@pytest.fixture
def book() -> Book:
    return Book()


def test_a_row_has_the_experts_of_all_tokens_but_the_last(book: Book):
    """86: the second turn begins at the last held token of the first."""
    book.add("a", P, [10, 11], experts=positions(0, 4))
    book.add("b", [*P, 10, 11, 4], [12, 13], experts=positions(4, 7))
    result = book.rows()
    (row,) = result.rows
    assert row.routed_experts is not None
    assert row.routed_experts.tolist() == [[n, n] for n in range(len(row.tokens) - 1)]
    assert result.stats.routed_experts_missing == {}


@pytest.mark.parametrize(
    ("experts", "reason"),
    [(None, "missing"), (positions(5, 7), "gap"), (positions(4, 7, width=3), "width")],
)
def test_a_row_whose_experts_do_not_fit_has_none_and_is_counted(book: Book, experts, reason):
    book.add("a", P, [10, 11], experts=positions(0, 4))
    book.add("b", [*P, 10, 11, 4], [12, 13], experts=experts)
    result = book.rows()
    assert result.rows[0].routed_experts is None
    assert result.stats.routed_experts_missing == {reason: 1}


def test_a_row_without_any_is_counted_where_its_session_wants_them(book: Book):
    book.add("a", P, [10, 11])
    assert book.rows().stats.routed_experts_missing == {}
    stats = book.rows(wanted=frozenset({"routed_experts"})).stats
    assert (stats.routed_experts_missing, stats.indexer_topk_missing) == ({"missing": 1}, {})


def test_behind_a_drift_the_experts_are_the_later_turns(book: Book):
    """The given-up token was an input of the first turn only."""
    marked = RoutedExperts(0, np.concatenate((positions(0, 4).ids, [[99, 99]])))
    book.add("a", P, [10, 11, 12], experts=marked)
    book.add("b", [*P, 10, 14, 15], [13], experts=positions(2, 6))
    (row,) = book.rows().rows
    assert row.turn_ids == ("a", "b")
    assert row.routed_experts is not None
    assert row.routed_experts[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_behind_a_drift_a_turn_that_begins_too_late_leaves_a_gap(book: Book):
    book.add("a", P, [10, 11, 12], experts=positions(0, 5))
    book.add("b", [*P, 10, 14, 15], [13], experts=positions(5, 6))
    result = book.rows()
    assert result.rows[0].routed_experts is None
    assert result.stats.routed_experts_missing == {"gap": 1}


def test_each_row_of_a_tree_has_its_own_experts(book: Book):
    book.add("a", P, [10], experts=positions(0, 3))
    book.add("x", [*P, 10, 4], [11], experts=positions(3, 5))
    book.add("y", [*P, 10, 5], [12])
    result = book.rows()
    assert [row.routed_experts is None for row in result.rows] == [False, True]
    assert result.stats.routed_experts_missing == {"missing": 1}
