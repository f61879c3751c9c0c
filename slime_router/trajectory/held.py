"""The held tokens of a turn, put together from the deltas of the turns that it builds on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

import numpy as np

from slime_router.trajectory.turn import Trace, Turn
from slime_router.types import NO_TOKENS, TokenIds, WeightVersion

KEPT_TOKENS = 2**22  # 16 MiB


class HeldTokens:
    """What the turns hold. What was asked for lately is kept whole.

    So the next turn of a long conversation costs one copy, not a walk through all turns before it.
    """

    def __init__(self, turns: Mapping[str, Turn]) -> None:
        self._turns = turns
        self._kept_tokens = KEPT_TOKENS
        self._kept: OrderedDict[str, TokenIds] = OrderedDict()  # the least recently used first
        self._tokens = 0

    def __repr__(self) -> str:
        return f"<HeldTokens {len(self._kept)} turns, {self._tokens} tokens>"

    def ids(self, turn_id: str, length: int | None = None) -> TokenIds:
        """The first `length` held tokens of a turn (all by default); read-only.

        Raises:
            KeyError: no such turn.
        """
        turn = self._turns[turn_id]
        needed = turn.held_len if length is None else length
        while needed <= turn.base_len and turn.base is not None:
            turn = self._turns[turn.base]
        kept = self._kept.get(turn.id)
        if kept is None:
            kept = self._join(turn)
            self._keep(turn.id, kept)
        else:
            self._kept.move_to_end(turn.id)
        return kept[:needed]

    def forget(self, turn_id: str) -> None:
        """The turn is gone."""
        self._tokens -= len(self._kept.pop(turn_id, NO_TOKENS))

    def check_integrity(self) -> None:
        """Compare what is kept with the deltas.

        Raises:
            AssertionError: what is broken.
        """
        for turn_id, ids in self._kept.items():
            runs = [
                np.concatenate((turn.prompt_ids, turn.output_ids))[:count]
                for turn, count in _spans(self._turns, turn_id, None)
            ]
            assert np.array_equal(ids, np.concatenate([NO_TOKENS, *runs])), "kept tokens are wrong"
        assert self._tokens == sum(map(len, self._kept.values())), "kept tokens are miscounted"
        assert self._tokens <= self._kept_tokens, "too much is kept"

    def trace(self, turn_id: str, length: int | None = None) -> Trace:
        """The held tokens with loss mask, logprobs and weight versions.

        Raises:
            KeyError: no such turn.
        """
        ids = self.ids(turn_id, length)
        loss_mask = np.zeros(len(ids), np.int8)
        logprobs = np.full(len(ids), np.nan)
        versions: list[WeightVersion | None] = [None] * len(ids)
        for turn, count in _spans(self._turns, turn_id, length):
            start = turn.base_len + len(turn.prompt_ids)
            end = min(start + len(turn.output_ids), turn.base_len + count)
            if end <= start:
                continue
            loss_mask[start:end] = 1
            if turn.logprobs is not None:
                logprobs[start:end] = turn.logprobs[: end - start]
            versions[start:end] = turn.output_versions()[: end - start]
        return Trace(ids, loss_mask, logprobs, tuple(versions))

    def _join(self, turn: Turn) -> TokenIds:
        """All held tokens, from the nearest turn that is kept whole."""
        runs = [turn.output_ids, turn.prompt_ids]  # the last first
        needed = turn.base_len
        while needed > 0:
            assert turn.base is not None, "a turn builds on nothing"
            turn = self._turns[turn.base]
            kept = self._kept.get(turn.id)
            if kept is not None:
                runs.append(kept[:needed])
                break
            if needed > turn.base_len:
                own = needed - turn.base_len
                runs += [
                    turn.output_ids[: max(own - len(turn.prompt_ids), 0)],
                    turn.prompt_ids[:own],
                ]
                needed = turn.base_len
        ids: TokenIds = np.concatenate(runs[::-1])
        ids.setflags(write=False)
        return ids

    def _keep(self, turn_id: str, ids: TokenIds) -> None:
        if len(ids) > self._kept_tokens:
            return
        self._kept[turn_id] = ids
        self._tokens += len(ids)
        while self._tokens > self._kept_tokens:
            self._tokens -= len(self._kept.popitem(last=False)[1])


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
