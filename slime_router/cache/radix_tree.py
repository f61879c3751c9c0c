"""The radix tree: token paths that were sent or sampled, found again by their text.

Text and tokens do not cut at the same places, so there are two structures over the same paths:

* Nodes. A `Node` is a run of token ids below its parent; the path from the root to a node is one
  token sequence. Samples with equal text and other ids are different nodes. Runs never split.
* Places (`text_index.py`). Every node ends at a place in the text. Nodes whose paths read the same
  end at the same place.

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

from slime_router.cache.text_index import Place, TextIndex
from slime_router.types import NO_TOKENS, Piece, TokenIds
from slime_router.values import value

MAX_OWNERS = 2**16  # sessions that passed through one node
_UNNAMED = frozenset((None,))

IsAnchor = Callable[[str, int], bool]
Owners: TypeAlias = "set[str | None] | frozenset[str | None]"
_Entry: TypeAlias = "tuple[int, int, Node]"  # a stamp, the order among equal ones


class Node:
    """A run of token ids below `parent`, reading the text between the two places."""

    __slots__ = (
        "child_count", "end", "epoch", "ids", "is_anchor", "is_queued", "is_sampled", "owners",
        "parent", "pins", "place", "scope", "stamp", "turn",
    )  # fmt: skip

    def __init__(
        self,
        scope: str,
        parent: Node | None,
        place: Place[str, Node],
        ids: TokenIds,
        *,
        is_sampled: bool,
        is_anchor: bool,
    ) -> None:
        self.scope = scope
        self.parent = parent
        self.place = place
        self.ids = ids
        self.end: int = len(ids) + (parent.end if parent else 0)  # tokens from the root
        self.is_sampled = is_sampled
        self.is_anchor = is_anchor  # safe to cut after it, whatever text follows
        self.owners: Owners | None = None
        self.turn: str | None = None  # of the newest turn that sampled this run
        self.epoch = 0  # of the newest turn that passed through; never newer than the parent's
        self.child_count = 0
        self.pins = 0
        self.stamp = 0
        self.is_queued = False  # for eviction

    def path(self) -> list[Node]:
        """The nodes from below the root to this one."""
        nodes, node = [], self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    def path_ids(self) -> TokenIds:
        """All token ids from the root to the end of this node; shape `[end]`, read-only."""
        runs = [node.ids for node in self.path()]
        ids = np.concatenate(runs) if runs else NO_TOKENS
        ids.setflags(write=False)
        return ids

    def may_be_reused_by(self, session_id: str | None) -> bool:
        """Whether a call of this session may send these tokens."""
        return session_id is None or self.owners is None or session_id in self.owners


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
            index = self._indexes[scope] = TextIndex("")
            root = Node(scope, None, index.root, NO_TOKENS, is_sampled=False, is_anchor=True)
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
    ) -> Node:
        """Append `pieces` below `node`; returns the last node. Known runs are shared.

        `anchors[i]` says that any text may be cut after `pieces[i]`. The whole path from the root
        is at least as new as `epoch` then.
        """
        if node.parent is None and pieces:
            node = self.root(node.scope)  # an empty one may have been forgotten
        alone = _UNNAMED if owner is None else frozenset((owner,))
        for piece, is_anchor in zip(pieces, anchors, strict=True):
            place = self._indexes[node.scope].below(node.place, piece.text)
            child = self._child(node, place, piece)
            child.is_anchor = child.is_anchor or is_anchor
            if piece.is_sampled or node.owners is not None:
                child.owners = _with_owner(child.owners, alone)
            node = child
        _refresh(node, epoch)
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
        node = Node(
            parent.scope, parent, place, piece.ids, is_sampled=piece.is_sampled, is_anchor=False
        )
        place.marks = (*place.marks, node)
        parent.child_count += 1
        self._tokens += node.end - parent.end
        self._nodes += 1
        return node

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
                dropped += 1
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
                        dropped += 1
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
        self._tokens -= len(node.ids)
        self._nodes -= 1
        self._indexes[node.scope].prune(place)
        node.parent, node.place, node.ids = None, _NOWHERE, NO_TOKENS  # turns may still name it
        return parent

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots, in no particular order."""
        for index in self._indexes.values():
            for place in index.places():
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
        for node in self.nodes():
            tokens, count = tokens + len(node.ids), count + 1
            children[id(node.parent)] = children.get(id(node.parent), 0) + 1
            _check_node(node)
            assert node.is_queued == (id(node) in queued), "a queue is not as its leaf says"
            assert node.is_queued or not self._is_idle_leaf(node), "an idle leaf is forgotten"
        assert (tokens, count) == (self._tokens, self._nodes), "counts differ from the tree"
        for node in (*self.nodes(), *self._roots.values()):
            assert node.child_count == children.get(id(node), 0), "a child count is wrong"
        for index in self._indexes.values():
            index.check_integrity()


def _with_owner(owners: Owners | None, alone: frozenset[str | None]) -> Owners:
    """The owners and the one in `alone`, which all nodes that are its own share."""
    if owners is None:
        return alone
    if owners >= alone:
        return owners
    more = owners if isinstance(owners, set) else set(owners)
    if len(more) >= MAX_OWNERS:
        more.pop()  # it may be encoded again for that session where no turn is found for it
    more |= alone
    return more


def _refresh(node: Node | None, epoch: int) -> None:
    """Make the path up to `node` at least as new as `epoch`; above a newer node all is newer."""
    while node is not None and node.epoch < epoch:
        node.epoch = epoch
        node = node.parent


def _check_node(node: Node) -> None:
    parent = node.parent
    assert parent is not None
    assert node.end == parent.end + len(node.ids)
    assert not node.ids.flags.writeable, "ids could be changed from outside"
    assert parent.parent is None or parent in parent.place.marks, "a parent was evicted"
    node.place.text_since(parent.place)  # raises where the child's place is not below its parent's
    assert node.pins >= 0
    assert node.epoch <= parent.epoch, "a child is newer than its parent"
    if parent.owners is not None or node.is_sampled:
        assert node.owners, "sampled tokens without an owner"
    else:
        assert node.owners is None, "unsampled tokens with an owner"
