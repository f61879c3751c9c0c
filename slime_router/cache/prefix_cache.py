"""The prefix cache: the radix tree, its budget and its lock.

One event loop runs everything, so a section without an `await` is atomic as it is: look-up and
insertion are short, synchronous, and take no lock. The lock guards the sections that let others run
in between: eviction and the clean-up after weight updates (writers), and the dump of the tree
(readers). It is aiorwlock's: many readers or one writer, the writer first, safe to cancel.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from aiorwlock import RWLock

from slime_router.cache.node import Node
from slime_router.cache.radix_tree import IsAnchor, Match, RadixTree, SizeInfo
from slime_router.types import Piece

SLICE_NODES = 128  # handled before others get to run; less than a millisecond
SPARE_TURNS = 1024  # remembered beyond two per node
TIDIED_TURNS = 4  # looked at per insertion


@dataclass(slots=True)
class CacheCounts:
    """What the cache has done since the start, in tokens and nodes."""

    hits: int = 0
    misses: int = 0
    hit_tokens: int = 0
    evicted_nodes: int = 0
    stale_nodes: int = 0  # dropped because the weights have moved on since
    failed_insertions: int = 0
    lost_paths: int = 0  # insertions left out because the path above was evicted


class PrefixCache:
    """Finds and keeps token paths within a budget.

    `is_anchor(text, index)` and `is_control(token_id)` are the tokenizer's: where unsampled text
    may be cut, and which tokens are control tokens.
    """

    def __init__(
        self, budget_tokens: int, *, is_anchor: IsAnchor, is_control: Callable[[int], bool]
    ) -> None:
        self._budget_tokens = budget_tokens
        self._is_anchor = is_anchor
        self._is_control = is_control
        self._tree = RadixTree()
        self._lock = RWLock()
        self._turn_nodes: OrderedDict[str, Node] = OrderedDict()
        self.counts = CacheCounts()

    def __repr__(self) -> str:
        return f"<PrefixCache {self._tree!r} of {self._budget_tokens}>"

    @property
    def size(self) -> SizeInfo:
        """What is held."""
        return self._tree.size

    @property
    def budget_tokens(self) -> int:
        """How many tokens may be held."""
        return self._budget_tokens

    def match_prefix(
        self,
        scope: str,
        text: str,
        session_id: str | None,
        likely: Node | None = None,
        same_len: int = 0,
    ) -> Match:
        """The deepest node that reads as a prefix of `text`, at a sound anchor; pinned.

        It is found sooner if `likely`, which `turn_node` gave, reads so; its first `same_len`
        characters are known to. The caller owes an `unpin`.
        """
        if likely is not None and likely.scope != scope:
            likely = None
        match = self._tree.match_prefix(scope, text, session_id, self._is_anchor, likely, same_len)
        self._tree.pin(match.node)
        if match.text_len:
            self.counts.hits += 1
            self.counts.hit_tokens += match.node.end
        else:
            self.counts.misses += 1
        return match

    def match_text(self, scope: str, text: str, session_id: str | None = None) -> Node | None:
        """The most recent path that reads exactly `text`, cut anywhere.

        Of a named session its own only, and those that nobody sampled.
        """
        return self._tree.match_text(scope, text, session_id)

    def count_text(self, scope: str, text: str, session_id: str | None = None) -> int:
        """How many paths `match_text` could choose from."""
        return sum(1 for _ in self._tree.alike(scope, text, session_id))

    def turn_node(self, turn_id: str) -> Node | None:
        """The node at which a turn ends; None when it was evicted."""
        node = self._turn_nodes.get(turn_id)
        if node is not None and node not in node.place.marks:
            del self._turn_nodes[turn_id]
            return None
        return node

    def pin_turn(self, turn_id: str) -> Node | None:
        """The node at which a turn ends, pinned; None when it was evicted."""
        node = self.turn_node(turn_id)
        if node is None:
            return None
        self._tree.pin(node)
        self.counts.hits += 1
        self.counts.hit_tokens += node.end
        return node

    def path(self, node: Node) -> list[Node]:
        """The runs of tokens from the first one to this one."""
        return self._tree.path(node)

    def unpin(self, node: Node) -> None:
        """Give back the pin of `match_prefix` or `pin_turn`."""
        self._tree.unpin(node)

    def insert(
        self,
        node: Node,
        prompt: Sequence[Piece],
        output: Sequence[Piece],
        *,
        session_id: str | None,
        turn_id: str,
        epoch: int,
    ) -> None:
        """File what a turn sent and sampled below `node`. Synchronous; see `enforce_budget`.

        `epoch` counts the weight updates before it; see `drop_older`.
        """
        pieces = (*prompt, *output)
        anchors = [p.ids.size > 0 and self._is_control(p.ids.item(-1)) for p in pieces]
        if output:
            anchors[-1] = True  # the end of a whole sampled span
        end = self._tree.insert(
            node, pieces, owner=session_id, anchors=anchors, epoch=epoch, turn=turn_id
        )
        if output:
            self._turn_nodes[turn_id] = end
        self._tidy_turns()

    def _tidy_turns(self) -> None:
        """Forget, a few per insertion, turns whose node is gone or ends a later turn as well.

        One prompt with one reply, again and again, is one node with ever more turns.
        """
        turns = self._turn_nodes
        for _ in range(TIDIED_TURNS):
            if len(turns) <= 2 * len(self._tree) + SPARE_TURNS:
                return
            turn_id, node = next(iter(turns.items()))
            if node in node.place.marks and node.turn == turn_id:
                turns.move_to_end(turn_id)
            else:
                del turns[turn_id]

    async def enforce_budget(self) -> None:
        """Evict, in slices, until the tree is within its budget or all that is left is in use.

        Cancelling it leaves the tree intact and the lock free; the next call continues.
        """
        if self._tree.tokens <= self._budget_tokens:
            return
        async with self._lock.writer:
            while self._tree.may_evict(self._budget_tokens):
                self.counts.evicted_nodes += self._tree.evict(
                    self._budget_tokens, max_nodes=SLICE_NODES
                )
                await asyncio.sleep(0)  # others may match and insert here: the tree is intact

    async def drop_older(self, epoch: int, is_kept: Callable[[Node], bool]) -> None:
        """Drop, in slices, what no turn of `epoch` or later went through and is not in use.

        `is_kept(node)` makes a node stay anyway, and the path to it with it. Cancelling it
        leaves the tree intact and the lock free.
        """
        async with self._lock.writer:
            for dropped in self._tree.drop_older(epoch, is_kept=is_kept, max_nodes=SLICE_NODES):
                self.counts.stale_nodes += dropped
                await asyncio.sleep(0)  # others may match and insert here: the tree is intact

    async def dump(self, limit: int) -> list[dict[str, Any]]:
        """Up to `limit` nodes as JSON, for people. Nothing is evicted while it runs."""
        async with self._lock.reader:
            nodes = []
            for count, node in enumerate(list(islice(self._tree.nodes(), limit))):
                nodes.append(_node_json(node))
                if count % SLICE_NODES == SLICE_NODES - 1:
                    await asyncio.sleep(0)
            return nodes

    def check_integrity(self) -> None:
        """Raises AssertionError where the tree is broken."""
        self._tree.check_integrity()


def _node_json(node: Node) -> dict[str, Any]:
    assert node.parent is not None
    return {
        "scope": node.scope,
        "start": node.parent.end,
        "end": node.end,
        "tokens": node.ids.tolist(),
        "text": node.place.text_since(node.parent.place),
        "is_sampled": node.is_sampled,
        "is_anchor": node.is_anchor,
        "turn": node.turn,
        "epoch": node.epoch,
        "children": node.child_count,
        "pins": node.pins,
    }
