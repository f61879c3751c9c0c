"""Columns of rows, cut apart row by row. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


def cut(column: Array, offsets: Array) -> list[Array]:
    """Row `i` of a column is `[offsets[i], offsets[i + 1])`."""
    bounds = offsets.tolist()
    if bounds != sorted(bounds) or bounds[0] != 0 or bounds[-1] != len(column):
        raise ValueError("the offsets do not fit the columns")
    return [column[start:end] for start, end in pairwise(bounds)]


def cut_positions(columns: Mapping[str, Array], name: str, count: int) -> Sequence[Array | None]:
    """What is kept for each position, row by row; None for a row that has none."""
    if name not in columns:
        return [None] * count
    parts = cut(columns[name], columns[f"{name}_offsets"])
    return [each if len(each) else None for each in parts]


def cut_masks(columns: Mapping[str, Array], offsets: Array) -> Iterator[dict[str, Array]]:
    """The masks row by row; empty for a row that has none."""
    bounds = list(pairwise(offsets.tolist()))
    if "mask_offsets" not in columns:
        yield from ({} for _ in bounds)
        return
    ends, ids, logprobs = (
        columns[name] for name in ("mask_offsets", "mask_ids", "sampling_logprobs")
    )
    if len(ends) != offsets[-1] + 1 or len(logprobs) != offsets[-1]:
        raise ValueError("the masks do not fit the tokens")
    for start, end in bounds:
        begin = ends[start]
        yield checked_masks(
            ends[start : end + 1] - begin, ids[begin : ends[end]], logprobs[start:end]
        )


def checked_masks(offsets: Array, ids: Array, logprobs: Array) -> dict[str, Array]:
    """The masks of one row, by its fields; empty where it has none.

    Raises:
        ValueError: they do not belong together.
    """
    if np.isnan(logprobs).all() and not len(ids):
        return {}
    if offsets[-1] != len(ids) or (np.diff(offsets) < 0).any() or len(offsets) != len(logprobs) + 1:
        raise ValueError("the masks do not fit together")
    return {
        "mask_offsets": frozen(offsets),
        "mask_ids": frozen(ids),
        "sampling_logprobs": frozen(logprobs),
    }


def cut_tops(columns: Mapping[str, Array], offsets: Array) -> Iterator[dict[str, Array]]:
    """The likeliest tokens row by row; empty for a row that has none."""
    bounds = list(pairwise(offsets.tolist()))
    if "top_offsets" not in columns:
        yield from ({} for _ in bounds)
        return
    ends, ids, logprobs = (columns[name] for name in ("top_offsets", "top_ids", "top_logprobs"))
    if len(ends) != offsets[-1] + 1:
        raise ValueError("the top logprobs do not fit the tokens")
    for start, end in bounds:
        place = slice(ends[start], ends[end])
        yield checked_tops(ends[start : end + 1] - ends[start], ids[place], logprobs[place])


def checked_tops(offsets: Array, ids: Array, logprobs: Array) -> dict[str, Array]:
    """The likeliest tokens of one row, by its fields; empty where it has none.

    Raises:
        ValueError: they do not belong together.
    """
    if offsets[-1] != len(ids) or (np.diff(offsets) < 0).any() or len(ids) != len(logprobs):
        raise ValueError("the top logprobs do not fit together")
    if not len(ids):
        return {}
    return {
        "top_offsets": frozen(offsets),
        "top_ids": frozen(ids),
        "top_logprobs": frozen(logprobs),
    }


def masks_from(
    start: int, offsets: Array | None, ids: Array | None, logprobs: Array | None
) -> dict[str, Any]:
    """The masks of the tokens from `start` on, as lists; empty where there are none."""
    if offsets is None or ids is None or logprobs is None:
        return {}
    return {
        "mask_offsets": (offsets[start:] - offsets[start]).tolist(),
        "mask_ids": ids[offsets[start] :].tolist(),
        "sampling_logprobs": logprobs[start:].tolist(),
    }


def tops_from(
    start: int, offsets: Array | None, ids: Array | None, logprobs: Array | None
) -> dict[str, Any]:
    """The likeliest tokens at those from `start` on, likewise."""
    if offsets is None or ids is None or logprobs is None:
        return {}
    return {
        "top_offsets": (offsets[start:] - offsets[start]).tolist(),
        "top_ids": ids[offsets[start] :].tolist(),
        "top_logprobs": logprobs[offsets[start] :].tolist(),
    }


def frozen(array: Array) -> Array:
    """The array, read-only from now on."""
    array.setflags(write=False)
    return array
