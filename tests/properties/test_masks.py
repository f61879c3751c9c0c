"""Sampling masks: over random sessions, offsets, lengths and ids line up in every format.

The model looks up each token of a row in the turn that sampled it.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_router.journal.codec import packed_turn, unpacked_turn
from slime_router.rows.masks import LOWEST_LOGPROB
from slime_router.rows.rows import Row, build_rows
from slime_router.trajectory.measures.distribution import distribution
from slime_router.types import token_ids
from tests.examples import examples
from tests.properties.measures import Measure
from tests.properties.test_rows import Model, options, sessions
from tests.turns import Book
from tests.unit.test_journal import same

Told = tuple[list[list[int]], list[float]]  # the mask and the logprob of each token
logprobs = st.floats(-9, 0, width=32)


@st.composite
def masked_sessions(draw: st.DrawFn) -> Book:
    """Some turns have masks of all their tokens, some of a part; others say why they have none."""
    book = draw(sessions(has_gaps=draw(st.booleans())))
    for name, turn in book.turns.items():
        kind = draw(st.sampled_from(["all", "all", "part", "none", "unknown"]))
        count = len(turn.output_ids)
        if kind in ("none", "unknown"):
            book.turns[name] = replace(turn, uncaptured="" if kind == "none" else "refused")
            continue
        known = count if kind == "all" else draw(st.integers(0, count))
        masks = [
            [int(token), *draw(st.lists(st.integers(3, 9), unique=True, max_size=3))]
            for token in turn.output_ids[:known]
        ] + [[]] * (count - known)
        values = [draw(logprobs) for _ in range(known)] + [float("nan")] * (count - known)
        book.turns[name] = replace(
            turn,
            uncaptured="" if known == count else "refused",
            distribution=distribution(
                np.array([len(mask) for mask in masks], np.int32),
                token_ids([token for mask in masks for token in mask]),
                np.array(values, np.float32),
            ),
        )
    return book


def expected(book: Book, row: Row) -> Told | None:
    """By looking each token up; None where no turn of the row has masks."""
    if all(book.turns[name].distribution is None for name in row.turn_ids):
        return None
    model, masks, values = Model(book), [], []
    samplers = model.samplers(row)
    for position in range(len(row.tokens)):
        mask: list[int] = []
        value = 0.0
        if position in samplers:
            name = samplers[position]
            turn, index = book.turns[name], position - len(book.prompts[name])
            known = turn.distribution
            if known is not None:
                mask = known.ids[known.offsets[index] : known.offsets[index + 1]].tolist()
            plain = None if turn.uncaptured else model.logprob(name, position)
            value = LOWEST_LOGPROB if plain is None else float(np.float32(plain))
            if known is not None and mask:
                value = float(known.logprobs[index])
        masks.append(mask)
        values.append(value)
    return masks, values


def told(offsets: Any, ids: Any, values: Any) -> Told:
    assert len(offsets) == len(values) + 1
    assert (offsets[0], offsets[-1]) == (0, len(ids))
    cut = [list(map(int, ids[start:end])) for start, end in pairwise(offsets)]
    return cut, [float(np.float32(value)) for value in values]


def of_fields(fields: dict[str, Any]) -> Told | None:
    if fields.get("mask_offsets") is None:
        return None
    return told(fields["mask_offsets"], fields["mask_ids"], fields["sampling_logprobs"])


def of_columns(columns: dict[str, Any], count: int) -> list[Told | None]:
    if "mask_offsets" not in columns:
        return [None] * count
    offsets, values = columns["mask_offsets"], columns["sampling_logprobs"]
    assert len(offsets) == len(columns["tokens"]) + 1
    found: list[Told | None] = []
    for start, end in pairwise(columns["offsets"].tolist()):
        part = offsets[start : end + 1]
        ids = columns["mask_ids"][part[0] : part[-1]]
        is_there = not np.isnan(values[start:end]).all()
        found.append(told(part - part[0], ids, values[start:end]) if is_there else None)
    return found


MASKS = Measure(("mask_offsets", "mask_ids", "sampling_logprobs"), of_fields, of_columns)


@settings(max_examples=examples(60), deadline=None)
@given(masked_sessions(), options)
def test_masks_line_up_with_their_tokens_in_every_format(book, chosen):
    rowset = build_rows(book, list(book.turns), chosen)
    wanted = [expected(book, row) for row in rowset.rows]
    for name, found in MASKS.every_format(rowset).items():
        assert found == wanted, name
    for name, found in MASKS.of_responses(rowset).items():
        for row, part, whole in zip(rowset.rows, found, wanted, strict=True):
            start = len(row.tokens) - row.response_length
            cut = None if whole is None else (whole[0][start:], whole[1][start:])
            assert part == cut, name


@settings(max_examples=examples(60), deadline=None)
@given(masked_sessions(), options)
def test_a_row_is_truncated_where_it_trains_a_turn_of_unknown_masks(book, chosen):
    rowset = build_rows(book, list(book.turns), chosen)
    counted: dict[str, int] = {}
    for row in rowset.rows:
        learnt = [each.turn for each in row.turns if row.loss_mask[each.start : each.end].any()]
        reasons = [turn.uncaptured for turn in learnt if turn.uncaptured]
        assert bool(row.uncaptured) == bool(reasons)
        if reasons:
            counted["refused"] = counted.get("refused", 0) + 1
    assert rowset.stats.truncated_sampling == counted


@settings(max_examples=examples(50), deadline=None)
@given(masked_sessions())
def test_masks_survive_a_journal(book):
    for turn in book.turns.values():
        assert same(unpacked_turn(packed_turn(turn)), turn)


def test_the_masks_of_the_last_tokens_begin_at_their_own():
    whole = distribution(
        np.array([2, 1, 0, 2], np.int32),
        token_ids([10, 11, 20, 40, 41]),
        np.array([-1, -2, np.nan, -4], np.float32),
    )
    assert not any(each.flags.writeable for each in (whole.offsets, whole.ids, whole.logprobs))
    part = whole.last(1)
    part.check(3)
    assert part.offsets.tolist() == [0, 1, 1, 3]
    assert (part.ids.tolist(), part.lengths.tolist()) == ([20, 40, 41], [1, 0, 2])
    assert part.logprobs[::2].tolist() == [-2, -4]
