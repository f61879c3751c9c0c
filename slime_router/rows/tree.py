"""One token tree for all rows of a session: what they have in common stands there once.

    expand(grow(rows)) == rows

Two rows share a token where all before it is shared, the token is the same, and the same turn
sampled it, or nobody did. So equal tokens that two turns sampled stay apart: each has a
log-probability of its own, and each is trained.

Masks and the likeliest tokens belong to the turn that sampled a token, so rows that share it agree.
Experts belong to a forward pass: where rows that share a token had several, the tree has those of
the first row that has any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from slime_router.beginnings import common_prefix_len
from slime_router.errors import Conflict
from slime_router.rows.masks import LOWEST_LOGPROB
from slime_router.rows.rows import Row
from slime_router.trajectory.measures.distribution import Distribution, distribution, no_masks
from slime_router.trajectory.measures.top_logprobs import TopLogprobs, laid_out
from slime_router.types import TokenIds, WeightVersion

ROOT = -1  # the parent of what begins a row
_DIGITS = 15  # of a digest: so many fit into 64 bits
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TreeNode:
    """The tokens `[start, end)`, one after another; `parent` is the node before them, or ROOT."""

    start: int
    end: int
    parent: int
    turn_id: str | None  # the turn that sampled all of them


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """What is kept for some tokens of a tree: `values[i]`, of shape `[width]`, for `places[i]`."""

    places: NDArray[np.int32]
    values: NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class TokenTree:
    """The packed tree. Arrays have one entry per token; a node stands before its children.

    positions: place of the token in its rows, from 0
    parents:   index of the token before it, or ROOT
    loss_mask: 1 where a row trains the token
    logprobs:  0.0 where nobody sampled, `LOWEST_LOGPROB` where one is missing; None where no row
               has any
    leaves:    for each row the node that it ends with
    distribution, top_logprobs, routed_experts, indexer_topk: None where no row has any
    """

    tokens: TokenIds
    positions: NDArray[np.int32]
    parents: NDArray[np.int32]
    loss_mask: NDArray[np.int8]
    logprobs: NDArray[np.float64] | None
    weight_versions: tuple[WeightVersion | None, ...]
    nodes: tuple[TreeNode, ...]
    leaves: tuple[int, ...]
    distribution: Distribution | None
    top_logprobs: TopLogprobs | None
    routed_experts: Positions | None
    indexer_topk: Positions | None


def grow(rows: Sequence[Row]) -> TokenTree:
    """The tree of these rows.

    Raises:
        Conflict: the experts of rows have different shapes.
    """
    root = _Branch(None, 0, 0, [])
    ends = [_add(root, row) for row in rows]
    branches: list[tuple[_Branch, int]] = []  # each with its parent's index
    waiting = [(branch, ROOT) for branch in _latest_first(root)]
    while waiting:
        branch, parent = waiting.pop()
        waiting += [(child, len(branches)) for child in _latest_first(branch)]
        branches.append((branch, parent))
    return _packed(branches, ends)


@dataclass(slots=True, eq=False)
class _Branch:
    """A run of tokens without a fork in it, sampled by one turn or by nobody.

    It is the tokens `[start, end)` of each of its rows, which share all before it, too.
    """

    turn_id: str | None
    start: int
    end: int
    rows: list[Row]  # the first one first
    children: dict[tuple[str | None, int], _Branch] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def tokens(self) -> TokenIds:
        return self.rows[0].tokens[self.start : self.end]

    @property
    def loss_mask(self) -> NDArray[np.int8]:
        """1 where one of its rows trains the token."""
        mask = np.zeros(len(self), np.int8)
        for row in self.rows:
            mask |= row.loss_mask[self.start : self.end]
        return mask

    def first(self, of: Callable[[Row], T | None]) -> T | None:
        """What the first of its rows that has it has."""
        return next((found for row in self.rows if (found := of(row)) is not None), None)

    @property
    def seen(self) -> NDArray[Any]:
        """The tokens as they are compared."""
        return _seen(self.rows[0], self.start, self.end)

    def split(self, place: int) -> None:
        """Give all from that place of its rows on to a child."""
        rest = _Branch(self.turn_id, place, self.end, list(self.rows), self.children)
        self.end = place
        self.children = {(rest.turn_id, int(rest.seen[0])): rest}


def _latest_first(branch: _Branch) -> list[_Branch]:
    return list(branch.children.values())[::-1]


def _add(root: _Branch, row: Row) -> _Branch:
    """Adds a row; returns the branch that it ends with."""
    branch = root
    for turn_id, start, end in _pieces(row):
        while start < end:
            seen = _seen(row, start, end)
            key = turn_id, int(seen[0])
            known = branch.children.get(key)
            if known is None:
                known = branch.children[key] = _Branch(turn_id, start, end, [])
            elif (same := common_prefix_len(known.seen, seen)) < len(known):
                known.split(start + same)
            known.rows.append(row)
            branch, start = known, known.end
    return branch


def _seen(row: Row, start: int, end: int) -> NDArray[Any]:
    """Tokens of a row as they are compared: other pictures are other tokens, below zero."""
    tokens = row.tokens[start:end]
    if not row.pictures:  # as mostly
        return tokens
    seen = tokens.astype(np.int64)
    for place, digest in row.pictures:
        if start <= place < end:
            seen[place - start] = -int(digest[:_DIGITS], 16) - 1
    return seen


def _pieces(row: Row) -> Iterator[tuple[str | None, int, int]]:
    """The row in runs of one sampler each."""
    at = 0
    for each in row.turns:
        yield None, at, each.start
        yield each.turn.id, each.start, each.end
        at = each.end
    yield None, at, len(row.tokens)


def _packed(branches: Sequence[tuple[_Branch, int]], ends: Sequence[_Branch]) -> TokenTree:
    index_of = {id(branch): index for index, (branch, _) in enumerate(branches)}
    nodes: list[TreeNode] = []
    parents, versions, at = [np.zeros(0, np.int32)], list[WeightVersion | None](), 0
    for branch, parent in branches:
        nodes.append(TreeNode(at, at + len(branch), parent, branch.turn_id))
        before = np.arange(at - 1, at + len(branch) - 1, dtype=np.int32)
        before[0] = ROOT if parent == ROOT else nodes[parent].end - 1
        parents.append(before)
        versions += branch.rows[0].weight_versions[branch.start : branch.end]
        at += len(branch)
    own = [branch for branch, _ in branches]
    places = [np.arange(each.start, each.end, dtype=np.int32) for each in own]
    return TokenTree(
        tokens=np.concatenate([np.zeros(0, np.int32), *(each.tokens for each in own)]),
        positions=np.concatenate([np.zeros(0, np.int32), *places]),
        parents=np.concatenate(parents),
        loss_mask=np.concatenate([np.zeros(0, np.int8), *(each.loss_mask for each in own)]),
        logprobs=_logprobs(own),
        weight_versions=tuple(versions),
        nodes=tuple(nodes),
        leaves=tuple(index_of[id(branch)] for branch in ends),
        distribution=_masks(own),
        top_logprobs=_tops(own, nodes),
        routed_experts=_positions(own, lambda row: row.routed_experts),
        indexer_topk=_positions(own, lambda row: row.indexer_topk),
    )


def _first(branches: Sequence[_Branch], of: Callable[[Row], T | None]) -> list[T | None] | None:
    """What the first row of each branch that has it has; None where no row has any."""
    found = [branch.first(of) for branch in branches]
    return None if all(each is None for each in found) else found


def _logprobs(branches: Sequence[_Branch]) -> NDArray[np.float64] | None:
    if (found := _first(branches, lambda row: row.logprobs)) is None:
        return None
    parts: list[NDArray[np.float64]] = [
        np.full(len(branch), 0.0 if branch.turn_id is None else LOWEST_LOGPROB)
        if known is None
        else known[branch.start : branch.end]
        for branch, known in zip(branches, found, strict=True)
    ]
    return np.concatenate(parts)


def _masks(branches: Sequence[_Branch]) -> Distribution | None:
    if (found := _first(branches, lambda row: row.distribution)) is None:
        return None
    parts = [
        no_masks(len(branch)) if known is None else known.first(branch.end).last(branch.start)
        for branch, known in zip(branches, found, strict=True)
    ]
    return distribution(
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.logprobs for part in parts]),
    )


def _tops(branches: Sequence[_Branch], nodes: Sequence[TreeNode]) -> TopLogprobs | None:
    if (found := _first(branches, lambda row: row.top_logprobs)) is None:
        return None
    spans = [
        (node.start, node.end, None if tops is None else tops.between(branch.start, branch.end))
        for branch, node, tops in zip(branches, nodes, found, strict=True)
    ]
    return laid_out(spans, nodes[-1].end)


def _positions(
    branches: Sequence[_Branch], of: Callable[[Row], NDArray[Any] | None]
) -> Positions | None:
    """Of each token, what the first of its rows has that has any; a row has none for its last."""
    places, values, at = [], [], 0
    for branch in branches:
        place = branch.start
        for row in branch.rows:
            kept = of(row)
            if kept is not None and (part := kept[place : branch.end]).size:
                first = at + place - branch.start
                places.append(np.arange(first, first + len(part), dtype=np.int32))
                values.append(part)
                place += len(part)
        at += len(branch)
    if len({each.shape[1] for each in values}) > 1:
        raise Conflict("The rows have experts of different shapes, which no one tree holds.")
    return Positions(np.concatenate(places), np.concatenate(values)) if values else None
