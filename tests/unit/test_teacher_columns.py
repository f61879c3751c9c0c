"""Scores of several rows in one column: rows that lack some have -1 and NaN there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from slime_router.api.sessions.teachers import teacher_columns
from slime_router.trajectory.measures.scores import TeacherScore


def row(count: int, width: int | None) -> Any:
    """A row of `count` tokens, with `width` likeliest at each; not scored at all with None."""
    if width is None:
        return SimpleNamespace(tokens=[0] * count, turns=())
    shape = (count, width)
    score = TeacherScore(
        np.zeros(count, np.float32),
        np.arange(count * width, dtype=np.int32).reshape(shape),
        np.zeros(shape, np.float32),
        "v",
    )
    turn = SimpleNamespace(turn=SimpleNamespace(scores={"big": score}))
    return SimpleNamespace(tokens=[0] * count, turns=(turn,))


def test_rows_with_fewer_likeliest_tokens_are_filled_up_to_the_widest():
    columns = teacher_columns([row(2, 1), row(1, None), row(1, 3)])
    ids = [[0, -1, -1], [1, -1, -1], [-1, -1, -1], [0, 1, 2]]
    assert columns["teacher_top_ids.big"].tolist() == ids
    tops = columns["teacher_top_logprobs.big"]
    assert np.isnan(tops).tolist() == [[each < 0 for each in place] for place in ids]
    assert np.isnan(columns["teacher_logprobs.big"]).tolist() == [False, False, True, False]


def test_without_likeliest_tokens_there_are_no_columns_of_them():
    assert set(teacher_columns([row(2, 0), row(1, None)])) == {"teacher_logprobs.big"}
