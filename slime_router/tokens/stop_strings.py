"""What a chat client sees of the output tokens: text, without the stop and without half characters.

Held tokens keep everything that was sampled; only the text ends before the stop. During a stream,
text that may turn out to be the beginning of a stop string is held back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from slime_router.tokens.decoder import FindBytes
from slime_router.types import Finish, Sampling


class TextDecoder(Protocol):
    """An incremental decoder: complete characters out, the rest at the end."""

    def push(self, ids: Iterable[int]) -> str:
        """The text that is complete now."""

    def run_len(self, find: FindBytes, ids: Sequence[int]) -> int:
        """How many of `ids` come before the first thing found; 0 while something is held back."""

    def flush(self) -> str:
        """What was held back."""


class VisibleText:
    """Turns the output ids of one generation into the text of the reply.

    `hidden` ids have no text anywhere; `kept` ones have text even as the stop.
    """

    def __init__(
        self,
        decoder: TextDecoder,
        sampling: Sampling,
        *,
        hidden: frozenset[int] = frozenset(),
        kept: Collection[int] = (),
    ) -> None:
        self._decoder = decoder
        self._hidden = hidden
        self._kept = kept
        self._stops = () if sampling.keep_stop else sampling.stop
        self._longest_stop = max(map(len, self._stops), default=0)
        self._keeps_stop = sampling.keep_stop
        self._pending = ""

    def run_len(self, find: FindBytes, ids: Sequence[int], *, are_last: bool) -> int:
        """How many of `ids` come before the first thing found in the text that they will show.

        0 where this is not known. `are_last`: the reply ends with them.
        """
        if self._pending or not self._hidden.isdisjoint(ids[:-1] if are_last else ids):
            return 0
        return self._decoder.run_len(find, ids)

    def push(self, ids: Sequence[int], finish: Finish | None) -> str:
        """The text that `ids` add; at the end (`finish`) all that is left."""
        if finish is None and not self._stops and self._hidden.isdisjoint(ids):
            return self._decoder.push(ids)
        if finish is not None and self._is_stop(ids, finish.matched):
            ids = ids[:-1]
        if self._hidden and not self._hidden.isdisjoint(ids):
            ids = [token_id for token_id in ids if token_id not in self._hidden]
        if finish is None:
            self._pending += self._decoder.push(ids)
            end = len(self._pending) - self._held_back()
            text, self._pending = self._pending[:end], self._pending[end:]
            return text
        matched = finish.matched
        self._pending += self._decoder.push(ids) + self._decoder.flush()
        end = len(self._pending)
        if isinstance(matched, str) and matched in self._stops:
            found = self._pending.find(matched)
            end = found if found >= 0 else end
        return self._pending[:end]

    def _is_stop(self, ids: Sequence[int], matched: int | str | None) -> bool:
        """Whether the last of `ids` is the stop, which is not shown."""
        if not ids or not isinstance(matched, int) or ids[-1] != matched:
            return False
        return not self._keeps_stop and matched not in self._kept

    def _held_back(self) -> int:
        """Length of the longest end of the pending text that could begin a stop string."""
        for length in range(min(self._longest_stop, len(self._pending)), 0, -1):
            tail = self._pending[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
