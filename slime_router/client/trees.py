"""Token trees: all rows of a session, with what they share once. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slime_router.client.columns import checked_masks, checked_tops, frozen
from slime_router.client.errors import BadReply
from slime_router.client.rows import (
    UNREADABLE,
    Export,
    Row,
    WeightVersion,
    export_of,
    masks_of,
    positions_of,
    row_of,
    tops_of,
)

ROOT = -1  # the parent of what begins a row
_OF_SESSION = ("session_id", "group_id", "rollout_id", "reward", "metadata")


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeNode:
    """The tokens `[start, end)`; `parent` is the node before them, or ROOT.

    `turn_id` names the turn that sampled all of them; None: nobody did.
    """

    start: int
    end: int
    parent: int
    turn_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tree:
    """The rows of one session as one tree. Arrays have one entry per token.

    A node stands before its children. `positions` counts from the beginning of a row, `parents`
    has the index of the token before, or ROOT. `loss_mask` is 1 where a row trains the token.
    `turns` says of each turn what is said in rows, without its place.
    `masks` and `tops` have the fields of rows, of all tokens of the tree; empty where there are
    none. `experts` has, by name, an array of all that is kept, and for each token its index there,
    or -1.
    """

    session: Mapping[str, Any]
    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    parents: NDArray[np.int32]
    loss_mask: NDArray[np.uint8]
    logprobs: NDArray[np.float64] | None
    weight_versions: tuple[WeightVersion | None, ...]
    nodes: tuple[TreeNode, ...]
    masks: Mapping[str, NDArray[Any]]
    tops: Mapping[str, NDArray[Any]]
    experts: Mapping[str, tuple[NDArray[Any], NDArray[np.int32]]]
    turns: Mapping[str, Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]  # `node` is the one that a row ends with
    stats: Mapping[str, Any]

    def path(self, node: int) -> list[int]:
        """The nodes from the beginning of a row to this one."""
        found = []
        while node != ROOT:
            found.append(node)
            node = self.nodes[node].parent
        return found[::-1]


def read_tree(data: bytes) -> Tree:
    """The tree that the router wrote.

    Raises:
        BadReply: it is not one, or its parts do not fit together.
    """
    try:
        return _tree(json.loads(data))
    except UNREADABLE as error:
        raise BadReply(f"The tree is unreadable: {error!r}") from error


def expand(tree: Tree) -> Export:
    """The rows of a tree, as `Session.rows` has them.

    Where rows share a token, its experts are those of the first of them that has any.

    Raises:
        BadReply: the parts of the tree do not fit together.
    """
    try:
        return export_of(str(tree.session["session_id"]), [*_rows(tree)], tree.stats)
    except UNREADABLE as error:
        raise BadReply(f"The tree is not that of its rows: {error!r}") from error


def _tree(values: Mapping[str, Any]) -> Tree:
    logprobs = values["logprobs"]
    tree = Tree(
        session={name: values[name] for name in _OF_SESSION},
        tokens=np.array(values["tokens"], np.int32),
        positions=np.array(values["positions"], np.int32),
        parents=np.array(values["parents"], np.int32),
        loss_mask=np.array(values["loss_mask"], np.uint8),
        logprobs=None if logprobs is None else np.array(logprobs, np.float64),
        weight_versions=tuple(values["weight_versions"]),
        nodes=tuple(TreeNode(**node) for node in values["nodes"]),
        masks=masks_of(values),
        tops=tops_of(values),
        experts={
            name: (experts, _places(values[f"{name}_places"], len(values["tokens"])))
            for name, experts in positions_of(values).items()
        },
        turns={turn["turn_id"]: turn for turn in values["turns"]},
        rows=tuple(values["rows"]),
        stats=values["stats"],
    )
    at = 0
    for index, node in enumerate(tree.nodes):
        if node.start != at or node.end <= at or not ROOT <= node.parent < index:
            raise ValueError(f"node {index} is out of order")
        at = node.end
    arrays = (tree.tokens, tree.positions, tree.parents, tree.loss_mask, tree.weight_versions)
    lengths = {len(each) for each in arrays} | ({len(logprobs)} if logprobs is not None else set())
    if lengths != {at}:
        raise ValueError(f"the nodes have {at} tokens, the arrays {sorted(lengths)}")
    return tree


def _rows(tree: Tree) -> Iterator[Row]:
    is_new = np.ones(len(tree.tokens), bool)  # each token is trained in its first row
    for values in tree.rows:
        path = tree.path(values["node"])
        spans = [np.arange(tree.nodes[index].start, tree.nodes[index].end) for index in path]
        places = np.concatenate([np.zeros(0, np.int64), *spans])
        loss_mask = tree.loss_mask[places] * is_new[places]
        is_new[places] = False
        logprobs = tree.logprobs if values["has_logprobs"] else None
        yield row_of(
            {**tree.session, **values, "turns": [*_turns(tree, path)]},
            frozen(tree.tokens[places]),
            frozen(loss_mask.astype(np.uint8)),
            None if logprobs is None else frozen(logprobs[places]),
            tuple(tree.weight_versions[place] for place in places.tolist()),
            _more(tree, values, places),
        )


def _more(
    tree: Tree, values: Mapping[str, Any], places: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Masks, likeliest tokens and experts of a row, as far as it has them."""
    found: dict[str, NDArray[Any]] = {}
    if values.get("has_masks") and tree.masks:
        offsets, picked = _picked(tree.masks["mask_offsets"], places)
        logprobs = tree.masks["sampling_logprobs"][places]
        found |= checked_masks(offsets, tree.masks["mask_ids"][picked], logprobs)
    if values.get("has_top_logprobs") and tree.tops:
        offsets, picked = _picked(tree.tops["top_offsets"], places)
        ids, logprobs = tree.tops["top_ids"][picked], tree.tops["top_logprobs"][picked]
        found |= checked_tops(offsets, ids, logprobs)
    for name, (kept, index_of) in tree.experts.items():
        if values.get(f"has_{name}"):
            index = index_of[places[:-1]]  # the last token of a row was never an input
            if (index < 0).any():
                raise ValueError(f"row {values['row_id']} lacks {name}")
            found[name] = frozen(kept[index])
    return found


def _picked(
    offsets: NDArray[np.int64], places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """New offsets of the tokens at these places, and where what they have stands."""
    starts = offsets[places]
    lengths = offsets[places + 1] - starts
    own = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return own, np.arange(own[-1]) + np.repeat(starts - own[:-1], lengths)


def _places(places: Sequence[int], tokens: int) -> NDArray[np.int32]:
    """For each token the index at which its own stands, or -1."""
    index_of = np.full(tokens, -1, np.int32)
    index_of[np.array(places, np.int64)] = np.arange(len(places), dtype=np.int32)
    return index_of


def _turns(tree: Tree, path: Sequence[int]) -> Iterator[Mapping[str, Any]]:
    """The turns of a path, each with its place."""
    at = 0
    spans: dict[str, tuple[int, int]] = {}
    for index in path:
        node = tree.nodes[index]
        end = at + node.end - node.start
        if node.turn_id is not None:
            start, _ = spans.get(node.turn_id, (at, at))
            spans[node.turn_id] = (start, end)
        at = end
    for turn_id, (start, end) in spans.items():
        yield {**tree.turns[turn_id], "start": start, "end": end}
