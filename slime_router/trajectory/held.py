"""The held tokens of a turn, put together from the deltas of the turns that it builds on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from slime_router.trajectory.turn import Trace, Turn
from slime_router.types import NO_TOKENS, TokenIds, WeightVersion


def held_ids(turns: Mapping[str, Turn], turn_id: str, length: int | None = None) -> TokenIds:
    """The first `length` held tokens of a turn (all by default); read-only.

    Raises:
        KeyError: no such turn.
    """
    runs = []
    for turn, count in _spans(turns, turn_id, length):
        runs += [turn.prompt_ids[:count], turn.output_ids[: max(count - len(turn.prompt_ids), 0)]]
    ids = np.concatenate(runs) if runs else NO_TOKENS.copy()
    ids.setflags(write=False)
    return ids


def trace(turns: Mapping[str, Turn], turn_id: str, length: int | None = None) -> Trace:
    """The held tokens with loss mask, logprobs and weight versions.

    Raises:
        KeyError: no such turn.
    """
    ids = held_ids(turns, turn_id, length)
    loss_mask = np.zeros(len(ids), np.int8)
    logprobs = np.full(len(ids), np.nan)
    versions: list[WeightVersion | None] = [None] * len(ids)
    for turn, count in _spans(turns, turn_id, length):
        start = turn.base_len + len(turn.prompt_ids)
        end = min(start + len(turn.output_ids), turn.base_len + count)
        if end <= start:
            continue
        loss_mask[start:end] = 1
        if turn.logprobs is not None:
            logprobs[start:end] = turn.logprobs[: end - start]
        versions[start:end] = turn.output_versions()[: end - start]
    return Trace(ids, loss_mask, logprobs, tuple(versions))


def _spans(
    turns: Mapping[str, Turn], turn_id: str, length: int | None
) -> Iterator[tuple[Turn, int]]:
    """The turns that make up a prefix of held tokens, oldest first, and how much of each."""
    spans: list[tuple[Turn, int]] = []
    turn: Turn | None = turns[turn_id]
    assert turn is not None
    needed = turn.held_len if length is None else length
    while turn is not None and needed > 0:
        if needed > turn.base_len:
            spans.append((turn, needed - turn.base_len))
            needed = turn.base_len
        turn = turns[turn.base] if turn.base is not None else None
    return reversed(spans)
