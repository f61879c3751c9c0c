"""What other models think of a row: the scores of worker groups. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from slime_router.client.columns import frozen

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Teacher:
    """One worker group's view of the tokens of a row.

    `logprobs` has shape `[tokens]`, and is NaN before the response. `top_ids` and `top_logprobs`
    have shape `[tokens, k]`, with -1 and NaN there; k may be 0. `version` is that of its weights.
    """

    logprobs: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]
    version: str | int | None


def teachers_of(values: Mapping[str, Any]) -> dict[str, Mapping[str, Teacher]]:
    """The field `teachers` of a row, as JSON has it; empty for a row that nobody scored.

    Raises:
        ValueError: the parts do not fit together.
    """
    ids, tops = (values.get(f"teacher_{name}", {}) for name in ("top_ids", "top_logprobs"))
    found = {
        group: _teacher(
            np.array(logprobs, np.float32),  # null: NaN
            np.array(ids[group], np.int32) if group in ids else None,
            np.array(tops[group], np.float32) if group in tops else None,
            values["teacher_versions"][group],
        )
        for group, logprobs in values.get("teacher_logprobs", {}).items()
    }
    return {"teachers": found} if found else {}


def cut_teachers(
    columns: Mapping[str, Array], offsets: Array, rows: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Mapping[str, Teacher]]]:
    """The same row by row; `rows` say which groups have scored which row."""
    for values, (start, end) in zip(rows, pairwise(offsets.tolist()), strict=True):
        found = {}
        for group, version in values.get("teacher_versions", {}).items():
            logprobs, ids, tops = (
                columns[name][start:end] if (name := f"teacher_{kind}.{group}") in columns else None
                for kind in ("logprobs", "top_ids", "top_logprobs")
            )
            found[group] = _teacher(logprobs, ids, tops, version)
        yield {"teachers": found} if found else {}


def _teacher(
    logprobs: Array | None, ids: Array | None, tops: Array | None, version: str | int | None
) -> Teacher:
    if logprobs is None:
        raise ValueError("a teacher without logprobs")
    count = len(logprobs)
    ids = np.zeros((count, 0), np.int32) if ids is None else ids.reshape(count, -1)
    tops = np.zeros((count, 0), np.float32) if tops is None else tops.reshape(count, -1)
    if ids.shape != tops.shape:
        raise ValueError("a teacher's ids and logprobs do not fit together")
    return Teacher(
        logprobs=frozen(logprobs), top_ids=frozen(ids), top_logprobs=frozen(tops), version=version
    )


def teachers_from(start: int, teachers: Mapping[str, Teacher]) -> dict[str, Any]:
    """The fields of a sample whose response begins at `start`, each by group; none without any."""
    if not teachers:
        return {}
    fields: dict[str, Any] = {
        "teacher_logprobs": {name: t.logprobs[start:].tolist() for name, t in teachers.items()},
        "teacher_versions": {name: each.version for name, each in teachers.items()},
    }
    if any(each.top_ids.shape[1] for each in teachers.values()):
        ids = {name: each.top_ids[start:].tolist() for name, each in teachers.items()}
        tops = {name: each.top_logprobs[start:].tolist() for name, each in teachers.items()}
        fields |= {"teacher_top_ids": ids, "teacher_top_logprobs": tops}
    return fields
