"""Lineage: what a turn is to its session, and which turn led to it. Known from what is held.

    main        a conversation of the session's agent
    retry       the same prompt was sent again, and another reply was used
    subagent    of a conversation that began while a call of another turn had no result yet
    compaction  a reply without calls that stands in the prompt of a new conversation with the same
                head; nothing continues the old conversation after that

What an agent says of a turn itself wins. A sub-agent's later turns are its own, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from slime_router.beginnings import common_prefix_len
from slime_router.rows.forest import TurnNode
from slime_router.types import TokenIds, TurnKind

SHINGLE = 8  # tokens that two texts must share in one piece to count as the same words
QUOTED_SHARE = 0.5  # of a summary's shingles that the next conversation must have
MIN_HEAD_LEN = 16  # tokens that begin both conversations; or half of the shorter one
MAX_OPEN_CALLS = 64  # turns looked at for one sub-agent
_STEP = np.uint64(0x9E3779B97F4A7C15)

Shingles: TypeAlias = NDArray[np.uint64]  # one word for each run of SHINGLE tokens


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a turn is, and the turn that it continues, serves or summarizes."""

    kind: TurnKind
    parent_turn: str | None = None


def trace_lineage(
    nodes: Sequence[TurnNode],
    retries: Collection[str],
    prompt_of: Callable[[TurnNode], TokenIds],
) -> dict[str, Lineage]:
    """The lineage of each node, which are given oldest first; `retries` are ids of turns."""
    roots = [node for node in nodes if node.parent is None]
    callers = _callers(nodes, prompt_of) if len(roots) > 1 else {}
    summaries = _Summaries(nodes, roots, prompt_of).of_roots() if len(roots) > 1 else {}
    compactions = {node.turn.id for node in summaries.values()}
    on_behalf: set[str] = set()  # turns of sub-agents
    found: dict[str, Lineage] = {}
    for node in nodes:
        turn = node.turn
        before = node.parent or summaries.get(turn.id)
        caller = callers.get(turn.id) if before is None else None
        said = turn.said_kind
        inherits = caller is not None or (before is not None and before.turn.id in on_behalf)
        if said == "subagent" or (inherits and said != "main"):
            on_behalf.add(turn.id)
        kind: TurnKind = "subagent" if turn.id in on_behalf else "main"
        if turn.id in retries:
            kind = "retry"
        if turn.id in compactions:
            kind = "compaction"
        parent = before or caller
        found[turn.id] = Lineage(said or kind, None if parent is None else parent.turn.id)
    return found


def _callers(
    nodes: Sequence[TurnNode], prompt_of: Callable[[TurnNode], TokenIds]
) -> dict[str, TurnNode]:
    """For each root that began while calls were open: whose call it serves.

    Of several, the one that the root's prompt quotes most; else the oldest.
    """
    answered_by: dict[str, TurnNode] = {}
    for node in nodes:
        if node.parent is not None:
            answered_by.setdefault(node.parent.turn.id, node)
    waiting: dict[str, TurnNode] = {}
    found: dict[str, TurnNode] = {}
    for node in nodes:
        if node.parent is not None:
            waiting.pop(node.parent.turn.id, None)
        elif waiting:
            candidates = list(waiting.values())[:MAX_OPEN_CALLS]
            if len(candidates) > 1:
                words = shingles(prompt_of(node))
                candidates.sort(key=lambda each: -_shared(each, words))
            found[node.turn.id] = candidates[0]
        if node.turn.calls and node.turn.id in answered_by:
            waiting[node.turn.id] = node
    return found


def _shared(node: TurnNode, words: Shingles) -> int:
    return int(np.isin(shingles(node.turn.output_ids), words).sum())


class _Summaries:
    """Finds the replies that went on as the beginning of another conversation."""

    def __init__(
        self,
        nodes: Sequence[TurnNode],
        roots: Sequence[TurnNode],
        prompt_of: Callable[[TurnNode], TokenIds],
    ) -> None:
        self._roots = roots
        self._prompt_of = prompt_of
        self._root_of: dict[str, TurnNode] = {}
        self._last_seq: dict[str, int] = {}  # of the turns of each root
        continued = {node.parent.turn.id for node in nodes if node.parent is not None}
        for node in nodes:
            root = node if node.parent is None else self._root_of[node.parent.turn.id]
            self._root_of[node.turn.id] = root
            self._last_seq[root.turn.id] = node.turn.seq
        self._candidates = [
            node
            for node in nodes
            if node.turn.id not in continued
            and not node.turn.calls
            and len(node.turn.output_ids) >= SHINGLE
        ]
        words = [shingles(node.turn.output_ids) for node in self._candidates]
        self._lengths = np.array([len(each) for each in words], np.int64)
        joined = np.concatenate([np.zeros(0, np.uint64), *words])
        order = np.argsort(joined, kind="stable")
        self._words = joined[order]
        self._owners = np.repeat(np.arange(len(words)), self._lengths)[order]

    def of_roots(self) -> dict[str, TurnNode]:
        """The summary that each root goes on from, by the root's id."""
        quoted: dict[bytes, Mapping[TurnNode, float]] = {}
        found: dict[str, TurnNode] = {}
        for root in self._roots[1:] if self._candidates else ():
            if root.prompt_key not in quoted:
                quoted[root.prompt_key] = dict(self._quoted_in(self._prompt_of(root)))
            shares = quoted[root.prompt_key]
            fitting = [node for node in shares if self._goes_on(node, root)]
            if fitting:
                found[root.turn.id] = max(fitting, key=lambda n: (shares[n], n.turn.seq))
        return found

    def _quoted_in(self, prompt: TokenIds) -> Iterable[tuple[TurnNode, float]]:
        """The candidates that share much with a prompt, and how much."""
        words = np.unique(shingles(prompt))
        start = np.searchsorted(self._words, words, "left")
        end = np.searchsorted(self._words, words, "right")
        marks = np.zeros(len(self._words) + 1, np.int64)
        np.add.at(marks, start, 1)
        np.add.at(marks, end, -1)
        is_quoted = np.cumsum(marks[:-1]) > 0
        counts = np.bincount(self._owners[is_quoted], minlength=len(self._lengths))
        for index in np.flatnonzero(counts >= self._lengths * QUOTED_SHARE).tolist():
            yield self._candidates[index], float(counts[index] / self._lengths[index])

    def _goes_on(self, summary: TurnNode, root: TurnNode) -> bool:
        old = self._root_of[summary.turn.id]
        if summary.turn.seq > root.turn.seq or self._last_seq[old.turn.id] > root.turn.seq:
            return False
        prompt = self._prompt_of(root)
        heads = (self._prompt_of(old), self._prompt_of(self._roots[0]))
        return any(_have_same_head(prompt, head) for head in heads)


def _have_same_head(left: TokenIds, right: TokenIds) -> bool:
    needed = min(MIN_HEAD_LEN, (min(len(left), len(right)) + 1) // 2)
    return common_prefix_len(left, right) >= needed


def shingles(ids: TokenIds) -> Shingles:
    """One word for each run of SHINGLE tokens; equal runs have equal words."""
    count = max(len(ids) - SHINGLE + 1, 0)
    words = np.zeros(count, np.uint64)
    for offset in range(SHINGLE if count else 0):
        words *= _STEP
        words += ids[offset : offset + count].astype(np.uint64) + np.uint64(1)
    return words
