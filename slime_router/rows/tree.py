"""One token tree for all rows of a session: what they have in common stands there once.

    expand(grow(rows)) == rows

Two rows share a token where all before it is shared, the token is the same, and the same turn
sampled it, or nobody did. So equal tokens that two turns sampled stay apart: each has a
log-probability of its own, and each is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from slime_router.rows.masks import LOWEST_LOGPROB
from slime_router.rows.rows import Row
from slime_router.trajectory.prefixes import common_prefix_len
from slime_router.types import TokenIds, WeightVersion

ROOT = -1  # the parent of what begins a row


@dataclass(frozen=True, slots=True)
class TreeNode:
    """The tokens `[start, end)`, one after another; `parent` is the node before them, or ROOT."""

    start: int
    end: int
    parent: int
    turn_id: str | None  # the turn that sampled all of them


@dataclass(frozen=True, slots=True, eq=False)
class TokenTree:
    """The packed tree. Arrays have one entry per token; a node stands before its children.

    positions: place of the token in its rows, from 0
    parents:   index of the token before it, or ROOT
    loss_mask: 1 where a row trains the token
    logprobs:  0.0 where nobody sampled, `LOWEST_LOGPROB` where one is missing; None where no row
               has any
    leaves:    for each row the node that it ends with
    """

    tokens: TokenIds
    positions: NDArray[np.int32]
    parents: NDArray[np.int32]
    loss_mask: NDArray[np.int8]
    logprobs: NDArray[np.float64] | None
    weight_versions: tuple[WeightVersion | None, ...]
    nodes: tuple[TreeNode, ...]
    leaves: tuple[int, ...]


def grow(rows: Sequence[Row]) -> TokenTree:
    """The tree of these rows."""
    root = _Branch(None, *_nothing())
    ends = [_add(root, row) for row in rows]
    branches: list[tuple[_Branch, int, int]] = []  # each with its parent's index and its depth
    waiting = [(branch, ROOT, 0) for branch in _latest_first(root)]
    while waiting:
        branch, parent, depth = waiting.pop()
        waiting += [
            (child, len(branches), depth + len(branch.tokens)) for child in _latest_first(branch)
        ]
        branches.append((branch, parent, depth))
    return _packed(branches, ends, has_logprobs=any(row.logprobs is not None for row in rows))


@dataclass(slots=True, eq=False)
class _Branch:
    """A run of tokens without a fork in it, sampled by one turn or by nobody."""

    turn_id: str | None
    tokens: TokenIds
    loss_mask: NDArray[np.int8]
    logprobs: NDArray[np.float64] | None
    versions: tuple[WeightVersion | None, ...]
    children: dict[tuple[str | None, int], _Branch] = field(default_factory=dict)

    def split(self, length: int) -> None:
        """Give all after the first `length` tokens to a child."""
        rest = _Branch(
            self.turn_id,
            self.tokens[length:],
            self.loss_mask[length:],
            None if self.logprobs is None else self.logprobs[length:],
            self.versions[length:],
            self.children,
        )
        self.tokens, self.loss_mask = self.tokens[:length], self.loss_mask[:length]
        self.logprobs = None if self.logprobs is None else self.logprobs[:length]
        self.versions = self.versions[:length]
        self.children = {(rest.turn_id, int(rest.tokens[0])): rest}


def _nothing() -> tuple[TokenIds, NDArray[np.int8], None, tuple[WeightVersion | None, ...]]:
    return np.zeros(0, np.int32), np.zeros(0, np.int8), None, ()


def _latest_first(branch: _Branch) -> list[_Branch]:
    return list(branch.children.values())[::-1]


def _add(root: _Branch, row: Row) -> _Branch:
    """Adds a row; returns the branch that it ends with."""
    branch = root
    for turn_id, start, end in _pieces(row):
        while start < end:
            known = branch.children.get((turn_id, int(row.tokens[start])))
            if known is None:
                known = branch.children[turn_id, int(row.tokens[start])] = _Branch(
                    turn_id,
                    row.tokens[start:end],
                    row.loss_mask[start:end].copy(),
                    None if row.logprobs is None else row.logprobs[start:end],
                    row.weight_versions[start:end],
                )
            else:
                common = common_prefix_len(known.tokens, row.tokens[start:end])
                if common < len(known.tokens):
                    known.split(common)
                known.loss_mask |= row.loss_mask[start : start + common]
                if known.logprobs is None and row.logprobs is not None:
                    known.logprobs = row.logprobs[start : start + common]
            branch, start = known, start + len(known.tokens)
    return branch


def _pieces(row: Row) -> Iterator[tuple[str | None, int, int]]:
    """The row in runs of one sampler each."""
    at = 0
    for each in row.turns:
        yield None, at, each.start
        yield each.turn.id, each.start, each.end
        at = each.end
    yield None, at, len(row.tokens)


def _packed(
    branches: Sequence[tuple[_Branch, int, int]], ends: Sequence[_Branch], *, has_logprobs: bool
) -> TokenTree:
    index_of = {id(branch): index for index, (branch, _, _) in enumerate(branches)}
    nodes: list[TreeNode] = []
    positions, parents = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    logprobs = [np.zeros(0)]
    versions: list[WeightVersion | None] = []
    start = 0
    for branch, parent, depth in branches:
        length = len(branch.tokens)
        nodes.append(TreeNode(start, start + length, parent, branch.turn_id))
        positions.append(np.arange(depth, depth + length, dtype=np.int32))
        before = np.arange(start - 1, start + length - 1, dtype=np.int32)
        before[0] = ROOT if parent == ROOT else nodes[parent].end - 1
        parents.append(before)
        unknown = 0.0 if branch.turn_id is None else LOWEST_LOGPROB
        known = branch.logprobs
        logprobs.append(np.full(length, unknown) if known is None else known)
        versions += branch.versions
        start += length
    nothing = _nothing()
    return TokenTree(
        tokens=np.concatenate([nothing[0], *(branch.tokens for branch, _, _ in branches)]),
        positions=np.concatenate(positions),
        parents=np.concatenate(parents),
        loss_mask=np.concatenate([nothing[1], *(branch.loss_mask for branch, _, _ in branches)]),
        logprobs=np.concatenate(logprobs) if has_logprobs else None,
        weight_versions=tuple(versions),
        nodes=tuple(nodes),
        leaves=tuple(index_of[id(branch)] for branch in ends),
    )
