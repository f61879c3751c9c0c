"""The radix tree: token paths that were sent or sampled, found again by their text.

Text and tokens do not cut at the same places, so there are two structures over the same paths:

* Nodes. A `Node` is a run of token ids below its parent; the path from the root to a node is one
  token sequence. Samples with equal text and other ids are different nodes. Runs never split.
* Places (`text_index.py`). Every node ends at a place in the text. Nodes whose paths read the same
  end at the same place.

What is filed at once and is new from its first run on becomes one node, whose earlier runs are kept
aside (`Node.inner`): most turns are continued at their ends alone. They become nodes and places
when a walk through the text comes to the end of the first of them (`Place.fold`).

A look-up walks the text once, meets the places on its way, and takes the deepest node at which the
text may safely be cut.

Who may reuse a node: `owners` is None if nothing up to there was sampled; otherwise it is the
sessions that passed through it. A session reuses only its own nodes, a call without a session any.
Recency is a counter.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from slime_router.cache.node import Node
from slime_router.cache.text_index import Place, TextIndex
from slime_router.types import NO_TOKENS, Piece
from slime_router.values import value

_UNNAMED = frozenset((None,))

IsAnchor = Callable[[str, int], bool]
_Entry: TypeAlias = "tuple[int, int, Node]"  # a stamp, the order among equal ones


_NOWHERE: Place[str, Node] = Place("", None, 0)  # of nodes that were taken out


@value(frozen=True, slots=True)
class Match:
    """The deepest reusable node: `text[:text_len]` reads as `node.path_ids()`."""

    node: Node
    text_len: int


@value(frozen=True, slots=True)
class SizeInfo:
    """What the tree holds."""

    tokens: int
    nodes: int
    places: int


class RadixTree:
    """Token paths by scope. Look-ups change nothing but recency."""

    def __init__(self) -> None:
        self._indexes: dict[str, TextIndex[str, Node]] = {}
        self._roots: dict[str, Node] = {}
        self._tokens = 0
        self._nodes = 0
        self._clock = 0
        self._idle: list[_Entry] = []  # a heap: the leaves that may go, by their last use or before
        self._aside: list[_Entry] = []  # those of them that `drop_older` is still to look at
        self._order = 0

    def __repr__(self) -> str:
        return f"<RadixTree {self._tokens} tokens, {self._nodes} nodes, {len(self._roots)} scopes>"

    def __len__(self) -> int:
        return self._nodes

    @property
    def tokens(self) -> int:
        """How many tokens are held."""
        return self._tokens

    @property
    def size(self) -> SizeInfo:
        """Counts, kept up to date."""
        places = sum(index.size for index in self._indexes.values())
        return SizeInfo(self._tokens, self._nodes, places)

    def root(self, scope: str) -> Node:
        """The empty path of a scope."""
        if scope not in self._roots:
            index = self._indexes[scope] = TextIndex("", self._unfold)
            root = Node(scope, None, index.root, NO_TOKENS, 0, is_sampled=False)
            self._roots[scope] = root
        return self._roots[scope]

    def match_prefix(
        self,
        scope: str,
        text: str,
        session_id: str | None,
        is_anchor: IsAnchor,
        likely: Node | None = None,
        same_len: int = 0,
    ) -> Match:
        """The deepest node that reads as a prefix of `text` and at which `text` may be cut.

        `is_anchor(text, index)`: unsampled text may be cut there. Ends of sampled spans and control
        tokens always may. Ties go to the most recent. Quicker with `likely`, as in `deepest_first`.
        """
        root, near = self.root(scope), None if likely is None else likely.place
        for place in self._indexes[scope].deepest_first(text, near, same_len):
            may_cut = place.depth < len(text) and is_anchor(text, place.depth)
            for node in reversed(place.marks):
                if (may_cut or node.is_anchor) and node.may_be_reused_by(session_id):
                    self._touch(node)
                    return Match(node, place.depth)
        return Match(root, 0)

    def match_text(self, scope: str, text: str, session_id: str | None) -> Node | None:
        """The most recent node whose path reads exactly `text`."""
        return next(self.alike(scope, text, session_id), None)

    def alike(self, scope: str, text: str, session_id: str | None) -> Iterator[Node]:
        """The nodes whose paths read exactly `text`, the most recent first."""
        index = self._indexes.get(scope)
        for place in () if index is None else index.along(text):
            if place.depth == len(text):
                yield from (n for n in reversed(place.marks) if n.may_be_reused_by(session_id))

    def insert(
        self,
        node: Node,
        pieces: Sequence[Piece],
        *,
        owner: str | None,
        anchors: Sequence[bool],
        epoch: int,
        turn: str | None = None,
    ) -> Node:
        """Append `pieces` below `node`; returns the last node. Known runs are shared.

        `anchors[i]` says that any text may be cut after `pieces[i]`, `turn` what sampled those that
        were. The whole path from the root is at least as new as `epoch` then.
        """
        if node.parent is None and pieces:
            node = self.root(node.scope)  # an empty one may have been forgotten
        alone = _UNNAMED if owner is None else frozenset((owner,))
        text, start = _foldable_text(pieces), 0
        for number, (piece, is_anchor) in enumerate(zip(pieces, anchors, strict=True)):
            above, end = node.place, start + len(piece.text)
            index = self._indexes[node.scope]
            place = index.below(above, text, start, end) if text else index.below(above, piece.text)
            is_owned = piece.is_sampled or node.owners is not None
            is_folded = place.depth > above.depth + len(piece.text)  # all of the rest is new
            if is_folded:
                child = self._folded(node, place, pieces[number:], anchors[number:])
                is_owned = is_owned or any(each.is_sampled for each in pieces[number:])
            else:
                child = self._child(node, place, piece)
                child.is_anchor = child.is_anchor or is_anchor
            if is_owned:
                child.add_owner(alone)
            if turn is not None and child.is_sampled:
                child.turn = turn
            node, start = child, end
            if is_folded:
                break
        node.refresh(epoch)
        self._touch(node)
        return node

    def _child(self, parent: Node, place: Place[str, Node], piece: Piece) -> Node:
        """The child of `parent` that is `piece`; it is the most recent at `place` now."""
        for node in place.marks:
            if (
                node.parent is parent
                and node.is_sampled == piece.is_sampled
                and np.array_equal(node.ids, piece.ids)
            ):
                if place.marks[-1] is not node:
                    place.marks = (*(n for n in place.marks if n is not node), node)
                return node
        return self._added(parent, place, piece, parent.end + len(piece.ids))

    def _added(self, parent: Node, place: Place[str, Node], piece: Piece, end: int) -> Node:
        is_sampled = piece.is_sampled
        node = Node(parent.scope, parent, place, piece.ids, end, is_sampled=is_sampled)
        place.marks = (*place.marks, node)
        parent.child_count += 1
        self._tokens += end - parent.end
        self._nodes += 1
        return node

    def _folded(
        self,
        parent: Node,
        place: Place[str, Node],
        pieces: Sequence[Piece],
        anchors: Sequence[bool],
    ) -> Node:
        """The new child of `parent` that stands for all of `pieces`, whose text ends at `place`."""
        end = parent.end + sum([len(piece.ids) for piece in pieces])
        node = self._added(parent, place, pieces[-1], end)
        *inner, (_, node.is_anchor) = zip(pieces, anchors, strict=True)
        node.inner = tuple([(len(p.text), p.ids, p.is_sampled, anchor) for p, anchor in inner])
        place.fold = parent.place.depth + len(pieces[0].text)
        self._nodes += len(inner)
        return node

    def _unfold(self, place: Place[str, Node]) -> list[Node]:
        """Make nodes of the runs that the node at `place` was filed with; returns them."""
        node = next(node for node in place.marks if node.inner)
        steps: list[Node] = []
        above, index, start = node.parent, self._indexes[node.scope], 0
        assert above is not None
        text, inner = place.text_since(above.place), node.inner
        place.fold, node.inner = 0, ()
        for length, ids, is_sampled, is_anchor in inner:
            at = index.below(above.place, text, start, start + length)
            step = Node(node.scope, above, at, ids, above.end + len(ids), is_sampled=is_sampled)
            step.is_anchor, step.epoch, step.child_count = is_anchor, node.epoch, 1
            if is_sampled or above.owners is not None:
                step.owners = node.owners
            if is_sampled:
                step.turn = node.turn
            at.marks = (*at.marks, step)
            steps.append(step)
            above, start = step, start + length
        node.parent = above
        return steps

    def path(self, node: Node) -> list[Node]:
        """The nodes from below the root to this one."""
        nodes: list[Node] = []
        while node.parent is not None:
            if node.place.fold:
                self._unfold(node.place)
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    def pin(self, node: Node) -> None:
        """Keep `node`, and so its whole path, until `unpin`."""
        node.pins += 1

    def unpin(self, node: Node) -> None:
        """Give a pin back."""
        assert node.pins > 0, "unpin without pin"
        node.pins -= 1
        self._offer(node)

    def may_evict(self, budget_tokens: int) -> bool:
        """Whether `evict` has something left to look at: it may all be in use."""
        return self._tokens > budget_tokens and bool(self._idle)

    def evict(self, budget_tokens: int, *, max_nodes: int) -> int:
        """Drop the least recently used leaves until at most `budget_tokens` are held.

        Looks at up to `max_nodes` in one call, so that the caller can let others run in between;
        `may_evict` says whether to call again.

        Returns:
            How many nodes were dropped.
        """
        dropped = 0
        for _ in range(max_nodes):
            if not self.may_evict(budget_tokens):
                break
            stamp, order, node = heapq.heappop(self._idle)
            if not self._is_idle_leaf(node):
                node.is_queued = False
            elif stamp != node.stamp:  # used since: there may be older ones
                heapq.heappush(self._idle, (node.stamp, order, node))
            else:
                if node.inner and self._tokens - node.len_after_first() <= budget_tokens:
                    self._unfold(node.place)  # its first runs may stay
                dropped += 1 + len(node.inner)
                self._offer(self._remove(node))
        return dropped

    def drop_older(
        self, epoch: int, *, is_kept: Callable[[Node], bool], max_nodes: int
    ) -> Generator[int, None, None]:
        """Drop the idle leaves that are older than `epoch` and not kept, and ancestors left bare.

        Looks at up to `max_nodes` in one step, and yields how many of them were dropped: between
        two steps others may use the tree, but not evict.
        """
        waiting = self._aside = self._idle
        self._idle = []
        try:
            while waiting:
                dropped = 0
                for _ in range(min(max_nodes, len(waiting))):
                    _, order, node = waiting.pop()
                    if not self._is_idle_leaf(node):
                        node.is_queued = False
                    elif node.epoch >= epoch or is_kept(node):
                        heapq.heappush(self._idle, (node.stamp, order, node))
                    else:
                        dropped += 1 + len(node.inner)
                        self._offer(self._remove(node), to=waiting)
                yield dropped
        finally:
            self._aside = []
            if waiting:  # cut short
                self._idle += waiting
                heapq.heapify(self._idle)

    @staticmethod
    def _is_idle_leaf(node: Node) -> bool:
        return not node.child_count and not node.pins and node in node.place.marks

    def _touch(self, node: Node) -> None:
        self._clock += 1
        node.stamp = self._clock
        self._offer(node)

    def _offer(self, node: Node, *, to: list[_Entry] | None = None) -> None:
        """Put an idle leaf up for eviction; forget the root of an empty scope.

        A leaf is put up once: its entry may be older than its stamp, never newer.
        """
        if node.parent is None:
            if not node.child_count and not node.pins and self._roots.get(node.scope) is node:
                del self._roots[node.scope], self._indexes[node.scope]
            return
        if node.is_queued or not self._is_idle_leaf(node):
            return
        node.is_queued = True
        self._order += 1
        entry = (node.stamp, self._order, node)
        if to is None:
            heapq.heappush(self._idle, entry)
        else:
            to.append(entry)

    def _remove(self, node: Node) -> Node:
        """Take a leaf out, which is in no queue any more; returns its parent."""
        parent, place = node.parent, node.place
        assert parent is not None
        parent.child_count -= 1
        place.marks = tuple(n for n in place.marks if n is not node)
        self._tokens -= node.end - parent.end
        self._nodes -= 1 + len(node.inner)
        if node.inner:  # else the fold is that of another node, which ends here, too
            place.fold = 0
        self._indexes[node.scope].prune(place)
        node.parent, node.place, node.ids = None, _NOWHERE, NO_TOKENS  # turns may still name it
        node.inner = ()
        return parent

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots, in no particular order."""
        for index in self._indexes.values():
            for place in index.places():
                if place.fold:
                    yield from self._unfold(place)  # above it: the walk does not come there
                yield from place.marks

    def check_integrity(self) -> None:
        """Walk everything and compare it with what is counted.

        Raises:
            AssertionError: what is broken.
        """
        queued = {id(leaf) for _, _, leaf in (*self._idle, *self._aside)}
        assert len(queued) == len(self._idle) + len(self._aside), "a leaf is queued twice"
        assert all(stamp <= leaf.stamp for stamp, _, leaf in self._idle), "an entry is too new"
        children: dict[int, int] = {}
        tokens = count = 0
        nodes = [node for i in self._indexes.values() for p in i.places() for node in p.marks]
        for node in nodes:
            above = node.check()
            tokens, count = tokens + node.end - above.end, count + 1 + len(node.inner)
            children[id(above)] = children.get(id(above), 0) + 1
            assert node.is_queued == (id(node) in queued), "a queue is not as its leaf says"
            assert node.is_queued or not self._is_idle_leaf(node), "an idle leaf is forgotten"
        assert (tokens, count) == (self._tokens, self._nodes), "counts differ from the tree"
        for node in (*nodes, *self._roots.values()):
            assert node.child_count == children.get(id(node), 0), "a child count is wrong"
        for index in self._indexes.values():
            index.check_integrity()


def _foldable_text(pieces: Sequence[Piece]) -> str:
    """The text of all `pieces`; "" where the last has none, so that it ends where another does."""
    return "".join([piece.text for piece in pieces]) if pieces and pieces[-1].text else ""
