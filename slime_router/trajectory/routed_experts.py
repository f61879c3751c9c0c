"""Routed experts: which experts a mixture-of-experts model sent each token to (replay, "R3")."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Misfit: TypeAlias = Literal["missing", "gap", "width"]


@dataclass(frozen=True, slots=True)
class RoutedExperts:
    """The experts of the positions `[start, start + len(ids))` of a turn's held tokens.

    `ids` has shape `[positions, layers * top_k]`; the last held token was never a model's input,
    so a turn of H held tokens has positions up to H - 1. The dtype is the smallest that holds them.
    """

    start: int
    ids: NDArray[Any]


@dataclass(frozen=True, slots=True)
class ExpertsSpan:
    """The positions `[start, end)` of a row, to be taken from the experts of one of its turns."""

    experts: RoutedExperts | None
    start: int
    end: int


def decode(text: str, *, held_len: int, start: int, width: int | None) -> RoutedExperts:
    """The experts of a turn, from the worker's base64 of little-endian int32.

    They cover the positions `[start, held_len - 1)` that the worker was asked for, or all of
    `[0, held_len - 1)` where it does not know how to begin later; `width` (layers * top_k), where
    it is known, tells which.

    Raises:
        ValueError: what does not fit.
    """
    if not 0 <= start < held_len - 1:
        raise ValueError(f"no positions from {start} in {held_len} held tokens")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as exc:
        raise ValueError(f"routed experts are not base64: {exc}") from exc
    if not data or len(data) % 4:
        raise ValueError(f"routed experts are {len(data)} bytes, not a number of int32")
    values = np.frombuffer(data, "<i4")
    positions = held_len - 1 - start
    if width is None and len(values) % positions == 0:
        width = len(values) // positions
    if width is not None and len(values) == (held_len - 1) * width:
        start, positions = 0, held_len - 1
    if width is None or len(values) != positions * width:
        raise ValueError(
            f"{len(values)} routed experts for {positions} positions of width {width or 'unknown'}"
        )
    return RoutedExperts(start, _shrink(values.reshape(positions, width)))


def decode_whole(text: str, *, held_len: int, start: int) -> RoutedExperts:
    """What a turn adds to the positions of its base, from base64 of int32 of all positions.

    A worker gives what an indexer chose for `[0, held_len - 1)`; those from `start` on are kept.

    Raises:
        ValueError: what does not fit.
    """
    whole = decode(text, held_len=held_len, start=0, width=None)
    if not 0 <= start < len(whole.ids):
        raise ValueError(f"no positions from {start} in {held_len} held tokens")
    return RoutedExperts(start, _shrink(whole.ids[start:].astype(np.int32)))


def _shrink(values: NDArray[np.int32]) -> NDArray[Any]:
    """A read-only copy in the smallest dtype that holds all values."""
    lowest, highest = int(values.min()), int(values.max())
    dtype: type[np.integer[Any]] = np.int32
    if lowest >= 0 and highest <= 255:
        dtype = np.uint8
    elif lowest >= -32768 and highest <= 32767:
        dtype = np.int16
    result = values.astype(dtype)
    result.setflags(write=False)
    return result


def find_misfit(parts: Sequence[ExpertsSpan]) -> Misfit | None:
    """Why these cannot be lined up; None where they can.

    missing: a turn has no experts
    gap:     a turn's experts begin after the start of its span, or end before it does
    width:   two turns differ in layers * top_k
    """
    widths = set()
    for part in parts:
        experts = part.experts
        if experts is None:
            return "missing"
        if experts.start > part.start or experts.start + len(experts.ids) < part.end:
            return "gap"
        widths.add(experts.ids.shape[1])
    return "width" if len(widths) > 1 else None


def line_up(parts: Sequence[ExpertsSpan]) -> NDArray[Any]:
    """One read-only array of shape `[end of the last part, layers * top_k]`.

    The parts follow each other from position 0 and `find_misfit(parts)` is None. What a turn has
    before its span is the turn's before.
    """
    ids: NDArray[Any] = np.concatenate(
        [
            part.experts.ids[part.start - part.experts.start : part.end - part.experts.start]
            for part in parts
            if part.experts is not None
        ]
    )
    ids.setflags(write=False)
    return ids
