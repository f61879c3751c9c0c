"""What worker groups think of a row, as the formats of rows have it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_router.rows.rows import Row
from slime_router.trajectory.measures.scores import TeacherScore
from slime_router.trajectory.session import Session
from slime_router.types import WeightVersion


def teachers(session: Session, row: Row, start: int) -> dict[str, Any]:
    """The fields of a row, for its tokens from `start` on, each by group; none without scores.

    A position that was not scored has NaN, and the id -1.
    """
    found = _scores(session, row)
    if not found:
        return {}
    fields: dict[str, Any] = {
        "teacher_logprobs": {group: score.logprobs[start:] for group, score in found.items()},
        **teacher_versions(session, row),
    }
    if any(score.top_ids.shape[1] for score in found.values()):
        fields["teacher_top_ids"] = {g: score.top_ids[start:] for g, score in found.items()}
        tops = {group: score.top_logprobs[start:] for group, score in found.items()}
        fields["teacher_top_logprobs"] = tops
    return fields


def teacher_versions(session: Session, row: Row) -> dict[str, dict[str, WeightVersion | None]]:
    """The weights that each group had; none without scores."""
    found = _scores(session, row)
    if not found:
        return {}
    return {"teacher_versions": {group: score.version for group, score in found.items()}}


def teacher_columns(session: Session, rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
    """`teacher_logprobs.GROUP` and the others, of all tokens of all rows."""
    columns: dict[str, NDArray[Any]] = {}
    for group, scores in session.scores.items():
        known = [scores.get(row.row_id) for row in rows]
        width = next((score.top_ids.shape[1] for score in known if score is not None), None)
        if width is None:
            continue
        parts = [
            _nothing(len(row.tokens), width) if score is None else score
            for row, score in zip(rows, known, strict=True)
        ]
        columns[f"teacher_logprobs.{group}"] = np.concatenate([each.logprobs for each in parts])
        if width:
            tops = np.concatenate([each.top_logprobs for each in parts])
            columns[f"teacher_top_ids.{group}"] = np.concatenate([each.top_ids for each in parts])
            columns[f"teacher_top_logprobs.{group}"] = tops
    return columns


def _scores(session: Session, row: Row) -> dict[str, TeacherScore]:
    found = {group: scores.get(row.row_id) for group, scores in session.scores.items()}
    return {group: score for group, score in found.items() if score is not None}


def _nothing(count: int, width: int) -> TeacherScore:
    shape = (count, width)
    return TeacherScore(
        np.full(count, np.nan, np.float32),
        np.full(shape, -1, np.int32),
        np.full(shape, np.nan, np.float32),
        None,
    )
