"""The radix tree against a model: a plain list of token paths, searched from end to end."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from slime_router.cache.node import Node
from slime_router.cache.radix_tree import RadixTree
from slime_router.cache.text_index import common_prefix_len
from slime_router.types import Piece, token_ids
from tests.examples import examples

SCOPES = ("", "lora")
SESSIONS = (None, "s", "t")

scopes = st.sampled_from(SCOPES)
sessions = st.sampled_from(SESSIONS)
texts = st.text("ab ", max_size=8)
pieces = st.builds(
    lambda text, ids, is_sampled: Piece(text, token_ids(ids), is_sampled),
    st.text("ab ", max_size=3),
    st.lists(st.integers(0, 2), max_size=2),
    st.booleans(),
)
numbers = st.integers(0, 1000)
epochs = st.integers(0, 4)
parts = st.floats(0, 1)


def is_anchor(text: str, index: int) -> bool:
    """Any rule will do that depends on the text before `index` and one character after it."""
    return zlib.crc32(text[: index + 1].encode()) % 3 == 0


words = st.text("ab", max_size=9)


@settings(max_examples=examples(200))
@given(words, words, words)
@example("ab", "abb", "")  # the text begins as the edge does, but not where it is compared
def test_what_an_edge_shares_with_a_text_is_counted(edge, before, after):
    shared = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(edge, after, strict=False)))
    assert common_prefix_len(edge, before + after, len(before)) == shared


@dataclass
class Known:
    """What the model knows of a node."""

    node: Node
    scope: str
    parent: Known | None
    text: str  # from the root
    ids: tuple[int, ...]  # from the root
    step: tuple[Any, ...]  # text, ids and is_sampled of its own piece
    owners: set[str | None] | None = None
    is_anchor: bool = False
    pins: int = 0
    order: int = 0  # when a path was last filed through it
    stamp: int = 0  # when it was last an end of a path, or a match
    epoch: int = 0

    def may_be_reused_by(self, session_id: str | None) -> bool:
        return session_id is None or self.owners is None or session_id in self.owners


class TreeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixTree()
        self.known = [
            Known(self.tree.root(scope), scope, None, "", (), (), is_anchor=True)
            for scope in SCOPES
        ]
        self.slices: list[tuple[Any, tuple[int, ...]]] = []
        self.clock = 0

    # The model

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def of(self, node: Node) -> Known:
        return next(known for known in self.known if known.node is node)

    def below_root(self) -> list[Known]:
        return [known for known in self.known if known.parent is not None]

    def idle(self) -> list[Known]:
        parents = [id(known.parent) for known in self.known]
        return [k for k in self.below_root() if id(k) not in parents and not k.pins]

    def deepest(self, candidates: list[Known]) -> Known | None:
        return max(candidates, key=lambda k: (len(k.text), k.order), default=None)

    def dump(self) -> list[Any]:
        """All that the tree holds but recency."""
        return sorted(
            (
                node.scope,
                [(n.place.depth, n.ids.tolist(), n.is_sampled) for n in self.tree.path(node)],
                node.place.text_since(self.tree.root(node.scope).place),
                sorted(map(str, node.owners or ())),
                (node.is_anchor, node.pins, node.child_count, node.epoch, str(node.turn)),
                [id(mark) for mark in node.place.marks],
            )
            for node in self.tree.nodes()
        )

    # Steps

    @rule(
        number=numbers,
        run=st.lists(st.tuples(pieces, st.booleans()), max_size=4),
        owner=sessions,
        epoch=epochs,
    )
    def insert(
        self, number: int, run: list[tuple[Piece, bool]], owner: str | None, epoch: int
    ) -> None:
        """Known runs are shared, a new one is filed apart from its twins.

        All of the path is as new as the insertion, or newer.
        """
        known = self.known[number % len(self.known)]
        anchors = [anchor for _, anchor in run]
        end = self.tree.insert(
            known.node, [p for p, _ in run], owner=owner, anchors=anchors, epoch=epoch
        )
        for (piece, anchor), node in zip(
            run, self.tree.path(end)[len(self.tree.path(known.node)) :], strict=True
        ):
            known = self.child(known, piece, node)
            known.is_anchor |= anchor
            known.order = self.tick()
            parent_owners = known.parent.owners if known.parent else None
            if piece.is_sampled or parent_owners is not None:
                known.owners = (known.owners or set()) | {owner}
        known.stamp = self.tick()
        assert end is known.node
        above: Known | None = known
        while above is not None:
            above.epoch = max(above.epoch, epoch)
            above = above.parent

    def child(self, parent: Known, piece: Piece, node: Node) -> Known:
        step = (piece.text, tuple(piece.ids.tolist()), piece.is_sampled)
        for known in self.known:
            if known.parent is parent and known.step == step:
                assert known.node is node, "a known run is filed twice"
                return known
        assert all(known.node is not node for known in self.known), "twins share a node"
        text, ids = parent.text + piece.text, parent.ids + step[1]
        known = Known(node, parent.scope, parent, text, ids, step)
        self.known.append(known)
        return known

    @rule(scope=scopes, text=texts, session=sessions, likely=st.integers(0, 30))
    def match_prefix(self, scope: str, text: str, session: str | None, likely: int) -> None:
        """The deepest reusable node at which the text may be cut; the newest of twins.

        Whichever node it is likely to be below.
        """
        before = self.dump()
        nodes = [known.node for known in self.below_root() if known.scope == scope]
        hint = nodes[likely] if likely < len(nodes) else None
        match = self.tree.match_prefix(scope, text, session, is_anchor, hint)
        assert self.dump() == before, "a look-up changed the tree"
        wanted = self.deepest(
            [
                known
                for known in self.below_root()
                if known.scope == scope
                and known.text
                and text.startswith(known.text)
                and known.may_be_reused_by(session)
                and (known.is_anchor or self.may_cut(text, len(known.text)))
            ]
        )
        if wanted is None:
            assert match.node is self.tree.root(scope)
            assert match.text_len == 0
            return
        assert match.node is wanted.node
        assert match.text_len == len(wanted.text)
        wanted.stamp = self.tick()
        self.read(wanted)

    def may_cut(self, text: str, index: int) -> bool:
        return index < len(text) and is_anchor(text, index)

    @rule(scope=scopes, text=texts, session=sessions)
    def match_text(self, scope: str, text: str, session: str | None) -> None:
        """The newest reusable path that reads exactly the text."""
        before = self.dump()
        node = self.tree.match_text(scope, text, session)
        assert self.dump() == before, "a look-up changed the tree"
        wanted = self.deepest(
            [
                known
                for known in self.below_root()
                if known.scope == scope
                and known.text == text != ""
                and known.may_be_reused_by(session)
            ]
        )
        assert node is (wanted.node if wanted else None)

    @rule(number=numbers)
    def read_any(self, number: int) -> None:
        self.read(self.known[number % len(self.known)])

    def read(self, known: Known) -> None:
        ids = known.node.path_ids()
        assert tuple(ids.tolist()) == known.ids
        assert ids.dtype == np.int32
        assert known.node.end == len(known.ids)
        with pytest.raises(ValueError, match="read-only"):
            ids[:] = 7
        self.slices.append((ids, known.ids))

    @rule(number=numbers)
    def pin(self, number: int) -> None:
        known = self.known[number % len(self.known)]
        self.tree.pin(known.node)
        known.pins += 1

    @rule(number=numbers)
    def unpin(self, number: int) -> None:
        pinned = [known for known in self.known if known.pins]
        if pinned:
            known = pinned[number % len(pinned)]
            self.tree.unpin(known.node)
            known.pins -= 1

    @rule(budget=st.integers(0, 20), max_nodes=st.integers(1, 4))
    def evict(self, budget: int, max_nodes: int) -> None:
        """The least recently used leaf goes first, until all is within budget or in use."""
        dropped, in_all, looks = 0, len(self.idle()) + len(self.below_root()), 0
        while self.tree.may_evict(budget):
            step = self.tree.evict(budget, max_nodes=max_nodes)
            assert step <= max_nodes
            self.tree.check_integrity()
            dropped, looks = dropped + step, looks + max_nodes
            assert looks <= 3 * max_nodes * (in_all + 1), "eviction does not come to an end"
        alive = {id(node) for node in self.tree.nodes()}
        for _ in range(dropped):
            assert self.tokens() > budget, "more was evicted than needed"
            # Of equally old leaves any may go first; an empty run frees nothing.
            oldest = min(self.idle(), key=lambda k: (k.stamp, id(k.node) in alive, len(k.step[1])))
            assert id(oldest.node) not in alive, "not the least recently used was evicted"
            self.known.remove(oldest)
        assert self.tokens() <= budget or not self.idle()

    @rule(epoch=epochs, kept=st.sampled_from((*SESSIONS, "nobody")), max_nodes=st.integers(1, 4))
    def drop_older(self, epoch: int, kept: str | None, max_nodes: int) -> None:
        """All that is older goes, but what is pinned or kept and the paths to it."""

        def is_kept(node: Node) -> bool:
            return kept in (node.owners or ())

        steps = list(self.tree.drop_older(epoch, is_kept=is_kept, max_nodes=max_nodes))
        assert all(dropped <= max_nodes for dropped in steps)
        count = 0
        while old := [k for k in self.idle() if k.epoch < epoch and not is_kept(k.node)]:
            count += len(old)
            for known in old:
                self.known.remove(known)
        assert sum(steps) == count

    def tokens(self) -> int:
        return sum(len(known.step[1]) for known in self.below_root())

    # What always holds

    @invariant()
    def the_tree_is_whole(self) -> None:
        self.tree.check_integrity()

    @invariant()
    def the_model_agrees(self) -> None:
        assert {id(n) for n in self.tree.nodes()} == {id(k.node) for k in self.below_root()}
        assert self.tree.size.tokens == self.tokens()
        assert self.tree.size.nodes == len(self.below_root())
        for known in self.below_root():
            node = known.node
            assert (node.owners, node.is_anchor, node.pins, node.epoch) == (
                known.owners,
                known.is_anchor,
                known.pins,
                known.epoch,
            )

    @invariant()
    def slices_stay_true(self) -> None:
        for ids, wanted in self.slices:
            assert tuple(ids.tolist()) == wanted


class TwinsMachine(RuleBasedStateMachine):
    """Two trees that are given the same: in one of them whatever was folded is unfolded at once."""

    def __init__(self) -> None:
        super().__init__()
        self.trees = (RadixTree(), RadixTree())
        self.ends = [tuple(tree.root(scope) for tree in self.trees) for scope in SCOPES]

    def end(self, number: int) -> tuple[Node, ...]:
        return self.ends[number % len(self.ends)]

    def in_both(self, act: Callable[[int, RadixTree], Any]) -> Any:
        """What comes of it, which is the same in both."""
        folded, unfolded = (act(index, tree) for index, tree in enumerate(self.trees))
        assert folded == unfolded
        return folded

    @rule(
        number=numbers,
        run=st.lists(st.tuples(pieces, st.booleans()), min_size=1, max_size=6),
        owner=sessions,
        epoch=epochs,
    )
    def insert(
        self, number: int, run: list[tuple[Piece, bool]], owner: str | None, epoch: int
    ) -> None:
        above, given, anchors = self.end(number), [p for p, _ in run], [a for _, a in run]
        turn = f"turn {len(self.ends)}"
        ends = tuple(
            tree.insert(node, given, owner=owner, anchors=anchors, epoch=epoch, turn=turn)
            for tree, node in zip(self.trees, above, strict=True)
        )
        self.trees[1].path(ends[1])
        assert not any(node.inner for node in self.trees[1].nodes())
        self.ends.append(ends)

    @rule(number=numbers, part=parts, more=st.text("ab ", max_size=2), session=sessions)
    def look_up(self, number: int, part: float, more: str, session: str | None) -> None:
        self.look_for(self.text(number, part) + more, number, None, session)

    @rule(number=numbers, more=texts, session=sessions, hint=numbers)
    def look_up_below(self, number: int, more: str, session: str | None, hint: int) -> None:
        self.look_for(self.text(number, 1.0) + more, number, hint, session)

    def look_for(self, text: str, number: int, hint: int | None, session: str | None) -> None:
        scope = self.end(number)[0].scope

        def match(index: int, tree: RadixTree) -> Any:
            likely = None if hint is None else self.end(hint)[index]
            if likely is not None and (likely.scope != scope or likely.parent is None):
                likely = None
            found = tree.match_prefix(scope, text, session, is_anchor, likely)
            return found.text_len, look(found.node)

        self.in_both(match)

    @rule(number=numbers, part=parts, session=sessions)
    def read_alike(self, number: int, part: float, session: str | None) -> None:
        scope, text = self.end(number)[0].scope, self.text(number, part)
        self.in_both(lambda _, tree: [look(node) for node in tree.alike(scope, text, session)])

    def text(self, number: int, part: float) -> str:
        """A part of what a path reads, from its beginning on."""
        end = self.end(number)[0]
        root = self.trees[0].root(end.scope)
        text = end.place.text_since(root.place) if end.parent is not None else ""
        return text[: round(part * len(text))]

    @rule(number=numbers)
    def look_at_an_end(self, number: int) -> None:
        self.in_both(lambda index, _: look(self.end(number)[index]))

    @rule(number=numbers)
    def walk(self, number: int) -> None:
        self.in_both(lambda index, tree: [look(n) for n in tree.path(self.end(number)[index])])

    @rule(number=numbers)
    def pin(self, number: int) -> None:
        self.in_both(lambda index, tree: tree.pin(self.end(number)[index]))

    @rule(number=numbers)
    def unpin(self, number: int) -> None:
        if self.end(number)[0].pins:
            self.in_both(lambda index, tree: tree.unpin(self.end(number)[index]))

    @rule(budget=st.integers(0, 20))
    def evict(self, budget: int) -> None:
        def evict(_: int, tree: RadixTree) -> int:
            dropped = 0
            while tree.may_evict(budget):
                dropped += tree.evict(budget, max_nodes=3)
            return dropped

        self.in_both(evict)

    @rule(epoch=epochs, kept=st.sampled_from((*SESSIONS, "nobody")))
    def drop_older(self, epoch: int, kept: str | None) -> None:
        def is_kept(node: Node) -> bool:
            return kept in (node.owners or ())

        self.in_both(lambda _, tree: sum(tree.drop_older(epoch, is_kept=is_kept, max_nodes=2)))

    @rule()
    def dump(self) -> None:
        self.in_both(lambda _, tree: sorted(look(node) for node in tree.nodes()))
        self.in_both(lambda _, tree: tree.size)

    @invariant()
    def they_are_whole_and_hold_the_same(self) -> None:
        for tree in self.trees:
            tree.check_integrity()
        self.in_both(lambda _, tree: (tree.tokens, len(tree)))


def look(node: Node) -> Any:
    """All that can be seen of a node but recency."""
    place = node.place
    return (
        (node.scope, node.path_ids().tolist(), node.ids.tolist(), node.end, place.depth),
        (node.is_sampled, node.is_anchor, sorted(map(str, node.owners or ()))),
        (str(node.turn), node.epoch, node.child_count, node.pins),
        [mark.path_ids().tolist() for mark in place.marks],
    )


TestTwins = TwinsMachine.TestCase
TestTwins.settings = settings(max_examples=examples(100), stateful_step_count=30)

TestRadixTree = TreeMachine.TestCase
TestRadixTree.settings = settings(
    max_examples=examples(100),
    stateful_step_count=40,
)
