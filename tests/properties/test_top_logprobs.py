"""The likeliest tokens: over random sessions, offsets, ids and logprobs line up in every format.

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
from slime_router.rows.rows import Row, build_rows
from slime_router.trajectory.measures.top_logprobs import of_nested
from tests.examples import examples
from tests.properties.measures import Measure
from tests.properties.test_masks import masked_sessions
from tests.properties.test_rows import Model, options
from tests.turns import Book
from tests.unit.test_journal import same

NAMES = ("top_offsets", "top_ids", "top_logprobs")

Told = list[list[tuple[int, float]]]  # by token of the row
pairs = st.tuples(st.floats(-9, 0, width=32), st.integers(3, 9))


@st.composite
def taught_sessions(draw: st.DrawFn) -> Book:
    """Some turns have the likeliest tokens of all their tokens, others of some or of none."""
    book = draw(masked_sessions())
    for name, turn in book.turns.items():
        width = draw(st.integers(0, 3))
        lists = [draw(st.lists(pairs, max_size=width)) for _ in turn.output_ids]
        if width:
            book.turns[name] = replace(turn, top_logprobs=of_nested(lists))
    return book


def expected(book: Book, row: Row) -> Told | None:
    """By looking each token up; None where no token of the row has any."""
    samplers = Model(book).samplers(row)
    found: Told = []
    for position in range(len(row.tokens)):
        name = samplers.get(position)
        tops = None if name is None else book.turns[name].top_logprobs
        if name is None or tops is None:
            found.append([])
            continue
        index = position - len(book.prompts[name])
        place = slice(tops.offsets[index], tops.offsets[index + 1])
        found.append(
            list(zip(tops.ids[place].tolist(), tops.logprobs[place].tolist(), strict=True))
        )
    return found if any(found) else None


def of_fields(fields: dict[str, Any]) -> Told | None:
    if fields.get("top_offsets") is None:
        return None
    offsets, ids, values = (fields[name] for name in NAMES)
    assert (offsets[0], offsets[-1], len(values)) == (0, len(ids), len(ids))
    told = list(zip(map(int, ids), (float(np.float32(value)) for value in values), strict=True))
    found = [told[start:end] for start, end in pairwise(map(int, offsets))]
    return found if any(found) else None


def of_columns(columns: dict[str, Any], count: int) -> list[Told | None]:
    if "top_offsets" not in columns:
        return [None] * count
    offsets, ids, values = (columns[name] for name in NAMES)
    assert len(offsets) == len(columns["tokens"]) + 1
    found = []
    for start, end in pairwise(columns["offsets"].tolist()):
        part = offsets[start : end + 1]
        place = slice(part[0], part[-1])
        found.append(
            of_fields(dict(zip(NAMES, (part - part[0], ids[place], values[place]), strict=True)))
        )
    return found


TOPS = Measure(NAMES, of_fields, of_columns)


@settings(max_examples=examples(60), deadline=None)
@given(taught_sessions(), options)
def test_they_line_up_with_their_tokens_in_every_format(book, chosen):
    rowset = build_rows(book, list(book.turns), chosen)
    wanted = [expected(book, row) for row in rowset.rows]
    for name, found in TOPS.every_format(rowset).items():
        assert found == wanted, name
    for name, found in TOPS.of_responses(rowset).items():
        for row, part, whole in zip(rowset.rows, found, wanted, strict=True):
            start = len(row.tokens) - row.response_length
            cut = None if whole is None or not any(whole[start:]) else whole[start:]
            assert part == cut, name


@settings(max_examples=examples(50), deadline=None)
@given(taught_sessions())
def test_they_survive_a_journal(book):
    for turn in book.turns.values():
        assert same(unpacked_turn(packed_turn(turn)), turn)
