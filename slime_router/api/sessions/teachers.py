"""What worker groups think of a row, as the formats of rows have it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_router.rows.rows import Row
from slime_router.trajectory.measures.scores import Scores, TeacherScore
from slime_router.types import WeightVersion


def teachers(row: Row, start: int) -> dict[str, Any]:
    """The fields of a row, for its tokens from `start` on, each by group; none without scores.

    A position that was not scored has NaN, and the id -1.
    """
    found = _scores(row)
    if not found:
        return {}
    fields: dict[str, Any] = {
        "teacher_logprobs": {group: score.logprobs[start:] for group, score in found.items()},
        **teacher_versions(row),
    }
    if any(score.top_ids.shape[1] for score in found.values()):
        fields["teacher_top_ids"] = {g: score.top_ids[start:] for g, score in found.items()}
        tops = {group: score.top_logprobs[start:] for group, score in found.items()}
        fields["teacher_top_logprobs"] = tops
    return fields


def teacher_versions(row: Row) -> dict[str, dict[str, WeightVersion | None]]:
    """The weights that each group had; none without scores."""
    found = _scores(row)
    if not found:
        return {}
    return {"teacher_versions": {group: score.version for group, score in found.items()}}


def teacher_columns(rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
    """`teacher_logprobs.GROUP` and the others, of all tokens of all rows."""
    columns: dict[str, NDArray[Any]] = {}
    for group in dict.fromkeys(name for row in rows for name in _scores(row)):
        known = [_scores(row).get(group) for row in rows]
        width = max(score.top_ids.shape[1] for score in known if score is not None)
        parts = [
            _nothing(len(row.tokens), width) if score is None else _widened(score, width)
            for row, score in zip(rows, known, strict=True)
        ]
        columns[f"teacher_logprobs.{group}"] = np.concatenate([each.logprobs for each in parts])
        if width:
            tops = np.concatenate([each.top_logprobs for each in parts])
            columns[f"teacher_top_ids.{group}"] = np.concatenate([each.top_ids for each in parts])
            columns[f"teacher_top_logprobs.{group}"] = tops
    return columns


def _scores(row: Row) -> Scores:
    """The scores of the row's last turn; empty without a turn."""
    return row.turns[-1].turn.scores if row.turns else {}


def _widened(score: TeacherScore, width: int) -> TeacherScore:
    """With `width` likeliest tokens at each position: those that it lacks are -1 and NaN."""
    missing = width - score.top_ids.shape[1]
    if not missing:
        return score
    more = ((0, 0), (0, missing))
    return replace(
        score,
        top_ids=np.pad(score.top_ids, more, constant_values=-1),
        top_logprobs=np.pad(score.top_logprobs, more, constant_values=np.nan),
    )


def _nothing(count: int, width: int) -> TeacherScore:
    shape = (count, width)
    return TeacherScore(
        np.full(count, np.nan, np.float32),
        np.full(shape, -1, np.int32),
        np.full(shape, np.nan, np.float32),
        None,
    )
