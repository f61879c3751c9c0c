"""The trajectory store: every recorded turn, exact, and found again by what was said.

A turn holds only what is new: the prompt tokens after those of its base, and its output.

    held(turn) == concat(held(base)[:base_len], turn.prompt_ids, turn.output_ids)

Where `base_len == len(held(base))` the turn extends its base; else it branches off inside it. Order
is a sequence number, never the clock. Turns are dropped least recently used first, and never while
another turn stands on them; each drop is counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from slime_router.types import (
    NO_TOKENS,
    Finish,
    Message,
    TokenIds,
    VersionSpan,
    WeightVersion,
)

Logprobs = NDArray[np.float32] | NDArray[np.float64]


def logprob_array(values: Sequence[float | None]) -> Logprobs:
    """Log-probabilities of shape `[tokens]`, NaN for a missing one, bit for bit as they came.

    SGLang computes them in float32, so half the memory keeps them exactly; where a worker gives
    more digits, float64 does.
    """
    exact = np.array(values, np.float64)  # None becomes NaN
    with np.errstate(over="ignore"):
        small = exact.astype(np.float32)
    is_exact = ((small == exact) | np.isnan(exact)).all()
    result = small if is_exact else exact
    result.setflags(write=False)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One generation as it was sampled."""

    id: str
    base: str | None  # the turn whose held tokens the prompt begins with
    base_len: int  # how many of them
    prompt_ids: TokenIds  # the prompt after those
    output_ids: TokenIds
    logprobs: Logprobs | None  # of output_ids; None when they were not asked for
    weight_versions: tuple[VersionSpan, ...]
    finish: Finish
    keys: tuple[bytes, ...] = ()  # the conversation with the reply appended
    reply: Message | None = None
    session_id: str | None = None
    scope: str = ""
    date: str | None = None  # pinned for the conversation
    seq: int = 0  # set by the store

    @property
    def held_len(self) -> int:
        """Prompt and output tokens in all."""
        return self.base_len + len(self.prompt_ids) + len(self.output_ids)

    @property
    def stop_id(self) -> int | None:
        """The stop token that ends the held tokens, where one was sampled."""
        matched = self.finish.matched
        is_last = self.finish.type == "stop" and bool(len(self.output_ids))
        return matched if is_last and isinstance(matched, int) else None

    def output_versions(self) -> list[WeightVersion | None]:
        """The weight version of each output token, None where the worker gave none."""
        versions: list[WeightVersion | None] = [None] * len(self.output_ids)
        for span in self.weight_versions:
            start, end = max(span.start, 0), min(span.end, len(versions))
            versions[start:end] = [span.version] * max(end - start, 0)
        return versions


@dataclass(frozen=True, slots=True)
class Trace:
    """Tokens with what training needs of each; all of one length."""

    ids: TokenIds
    loss_mask: NDArray[np.int8]  # 1 where a model sampled the token
    logprobs: NDArray[np.float64]  # NaN where there is none
    weight_versions: tuple[WeightVersion | None, ...]


class TrajectoryStore:
    """Turns by id and by conversation."""

    def __init__(self, budget_tokens: int) -> None:
        self._budget_tokens = budget_tokens
        self._turns: dict[str, Turn] = {}
        self._dependents: dict[str, int] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()  # turns nobody stands on, oldest first
        self._by_key: dict[tuple[bytes, str | None], dict[str, None]] = {}
        self._undelivered: set[str] = set()
        self._seq = 0
        self._tokens = 0
        self.dropped_turns = 0

    def __repr__(self) -> str:
        return f"<TrajectoryStore {len(self._turns)} turns, {self._tokens} tokens>"

    def __len__(self) -> int:
        return len(self._turns)

    def __contains__(self, turn_id: str) -> bool:
        return turn_id in self._turns

    @property
    def tokens(self) -> int:
        """Tokens held, each delta counted once."""
        return self._tokens

    def get(self, turn_id: str) -> Turn | None:
        """The turn, or None where it was never recorded or was dropped."""
        return self._turns.get(turn_id)

    def is_delivered(self, turn_id: str) -> bool:
        """Whether the client read the reply to its end, as far as the router can know."""
        return turn_id in self._turns and turn_id not in self._undelivered

    def mark_undelivered(self, turn_id: str) -> None:
        """The client left before it had the whole reply."""
        if turn_id in self._turns:
            self._undelivered.add(turn_id)

    def add(self, turn: Turn) -> Turn:
        """Record a turn whole; returns it with its sequence number.

        Raises:
            KeyError: its base is not in the store.
            ValueError: its arrays do not belong together, or its id is taken.
        """
        if turn.id in self._turns:
            raise ValueError(f"turn {turn.id} is recorded already")
        if turn.logprobs is not None and len(turn.logprobs) != len(turn.output_ids):
            raise ValueError(f"{len(turn.logprobs)} logprobs for {len(turn.output_ids)} tokens")
        base_room = 0 if turn.base is None else self._turns[turn.base].held_len
        if not 0 <= turn.base_len <= base_room:
            raise ValueError(f"turn {turn.id} reuses more than its base holds")
        self._seq += 1
        turn = replace(turn, seq=self._seq)
        self._turns[turn.id] = turn
        self._idle[turn.id] = None
        self._tokens += len(turn.prompt_ids) + len(turn.output_ids)
        if turn.base is not None:
            self._dependents[turn.base] = self._dependents.get(turn.base, 0) + 1
            self._idle.pop(turn.base, None)
        for key in self._index_keys(turn):
            self._by_key.setdefault(key, {})[turn.id] = None
        self._enforce_budget()
        return turn

    def find(self, key: bytes, session_id: str | None) -> Turn | None:
        """The newest turn of this conversation; a named session finds its own turns only."""
        turns = self._by_key.get((key, session_id))
        if not turns:
            return None
        turn_id = next(reversed(turns))
        if turn_id in self._idle:
            self._idle.move_to_end(turn_id)
        return self._turns[turn_id]

    def held_ids(self, turn_id: str, length: int | None = None) -> TokenIds:
        """The first `length` held tokens of a turn (all by default); read-only.

        Raises:
            KeyError: no such turn.
        """
        runs = [
            np.concatenate((turn.prompt_ids, turn.output_ids))[:count]
            for turn, count in self._spans(turn_id, length)
        ]
        ids = np.concatenate(runs) if runs else NO_TOKENS.copy()
        ids.setflags(write=False)
        return ids

    def trace(self, turn_id: str, length: int | None = None) -> Trace:
        """The held tokens with loss mask, logprobs and weight versions.

        Raises:
            KeyError: no such turn.
        """
        ids = self.held_ids(turn_id, length)
        loss_mask = np.zeros(len(ids), np.int8)
        logprobs = np.full(len(ids), np.nan)
        versions: list[WeightVersion | None] = [None] * len(ids)
        for turn, count in self._spans(turn_id, length):
            start = turn.base_len + len(turn.prompt_ids)
            end = min(start + len(turn.output_ids), turn.base_len + count)
            if end <= start:
                continue
            loss_mask[start:end] = 1
            if turn.logprobs is not None:
                logprobs[start:end] = turn.logprobs[: end - start]
            versions[start:end] = turn.output_versions()[: end - start]
        return Trace(ids, loss_mask, logprobs, tuple(versions))

    def _spans(self, turn_id: str, length: int | None) -> Iterator[tuple[Turn, int]]:
        """The turns that make up a prefix of held tokens, oldest first, and how much of each."""
        spans: list[tuple[Turn, int]] = []
        turn: Turn | None = self._turns[turn_id]
        assert turn is not None
        needed = turn.held_len if length is None else length
        while turn is not None and needed > 0:
            if needed > turn.base_len:
                spans.append((turn, needed - turn.base_len))
                needed = turn.base_len
            turn = self._turns[turn.base] if turn.base is not None else None
        return reversed(spans)

    @staticmethod
    def _index_keys(turn: Turn) -> Iterator[tuple[bytes, str | None]]:
        for key in turn.keys:
            yield key, None
            if turn.session_id is not None:
                yield key, turn.session_id

    def _enforce_budget(self) -> None:
        while self._tokens > self._budget_tokens and len(self._idle) > 1:
            turn_id, _ = self._idle.popitem(last=False)
            self._drop(self._turns[turn_id])

    def _drop(self, turn: Turn) -> None:
        del self._turns[turn.id]
        self._undelivered.discard(turn.id)
        self._tokens -= len(turn.prompt_ids) + len(turn.output_ids)
        self.dropped_turns += 1
        for key in self._index_keys(turn):
            turns = self._by_key[key]
            turns.pop(turn.id, None)
            if not turns:
                del self._by_key[key]
        if turn.base is not None:
            self._dependents[turn.base] -= 1
            if not self._dependents[turn.base]:
                del self._dependents[turn.base]
                self._idle[turn.base] = None
                self._idle.move_to_end(turn.base, last=False)  # it is older than what stood on it

    def check_integrity(self) -> None:
        """Recount everything.

        Raises:
            AssertionError: what is broken.
        """
        dependents: dict[str, int] = {}
        tokens = 0
        for turn in self._turns.values():
            tokens += len(turn.prompt_ids) + len(turn.output_ids)
            if turn.base is not None:
                assert turn.base in self._turns, "a base was dropped under its turn"
                dependents[turn.base] = dependents.get(turn.base, 0) + 1
            for key in self._index_keys(turn):
                assert turn.id in self._by_key[key], "a turn is not found by its conversation"
        assert tokens == self._tokens, "the count of tokens is wrong"
        assert dependents == self._dependents, "the counts of dependents are wrong"
        assert set(self._idle) == self._turns.keys() - dependents.keys(), "idle turns are wrong"
        assert self._undelivered <= self._turns.keys()
        assert all(turns.keys() <= self._turns.keys() for turns in self._by_key.values())
