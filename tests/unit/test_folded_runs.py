"""Runs that are filed at once are one node at first: nothing but the count of places can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from slime_router.cache.node import Node
from slime_router.cache.radix_tree import RadixTree
from slime_router.types import Piece, token_ids

PIECES = (
    Piece("ask", token_ids([1, 2])),
    Piece("", token_ids([3])),
    Piece("now", token_ids([4])),
    Piece("said", token_ids([5, 6]), is_sampled=True),
    Piece("!", token_ids([7]), is_sampled=True),
)
ANCHORS = (False, True, True, False, True)
TEXT = "asknowsaid!"
CUTS = range(len(TEXT) + 1)


def tree(is_folded: bool, owner: str | None = "s", pieces: tuple[Piece, ...] = PIECES) -> Any:
    """The pieces filed at once, or one after the other, which leaves nothing to fold."""
    made = RadixTree()
    anchors = ANCHORS[: len(pieces)]
    end = made.root("")
    steps = [slice(None)] if is_folded else [slice(i, i + 1) for i in range(len(pieces))]
    for part in steps:
        end = made.insert(end, pieces[part], owner=owner, anchors=anchors[part], epoch=3, turn="t")
    assert bool(end.inner) == is_folded
    return made, end


def same(act: Callable[[RadixTree, Node], Any], **given: Any) -> Any:
    """What `act` finds where the pieces are folded, which is what it finds where they are not."""
    found = []
    for is_folded in (True, False):
        made, end = tree(is_folded, **given)
        made.check_integrity()
        result = act(made, end)
        made.check_integrity()
        held = (made.tokens, len(made))
        found.append((result, held, sorted(map(look, made.nodes())), made.size))
        made.check_integrity()
    assert found[0] == found[1]
    return found[0][0]


def look(node: Node) -> Any:
    """All that can be seen of a node but recency."""
    return (
        (node.path_ids().tolist(), node.ids.tolist(), node.end, node.place.depth, node.scope),
        (node.is_sampled, node.is_anchor, sorted(map(str, node.owners or ()))),
        (str(node.turn), node.epoch, node.child_count, node.pins),
        [mark.path_ids().tolist() for mark in node.place.marks],
    )


@pytest.mark.parametrize("may_cut", [True, False])
@pytest.mark.parametrize("session", [None, "s", "other"])
@pytest.mark.parametrize("more", ["", "?"])
@pytest.mark.parametrize("is_likely", [True, False])
def test_a_text_that_departs_anywhere_is_found_up_to_there(may_cut, session, more, is_likely):
    for cut in CUTS:

        def match(made: RadixTree, end: Node, cut: int = cut) -> Any:
            text, likely = TEXT[:cut] + more, end if is_likely else None
            found = made.match_prefix("", text, session, lambda *_: may_cut, likely)
            return found.text_len, look(found.node)

        same(match)


@pytest.mark.parametrize("session", [None, "s", "other"])
def test_paths_that_read_a_part_of_it_are_found(session):
    for cut in CUTS:
        text = TEXT[:cut]

        def alike(made: RadixTree, _: Node, text: str = text) -> Any:
            return [look(node) for node in made.alike("", text, session)]

        same(alike)


@pytest.mark.parametrize("owner", [None, "s", "other"])
def test_another_path_that_departs_anywhere_shares_what_comes_before(owner):
    """... whole runs where they are the same, and else only the places."""
    for cut in CUTS:
        for known in range(len(PIECES) + 1):
            start = sum(len(piece.text) for piece in PIECES[:known])
            other = (*PIECES[:known], Piece(TEXT[start:cut] + "x", token_ids([9]), is_sampled=True))

            def insert(made: RadixTree, _: Node, other: Any = other) -> Any:
                anchors = (*ANCHORS, True)[: len(other)]
                root = made.root("")
                end = made.insert(root, other, owner=owner, anchors=anchors, epoch=4, turn="u")
                return look(end)

            same(insert)


def test_the_same_again_is_the_same_node():
    def again(made: RadixTree, end: Node) -> Any:
        root = made.root("")
        twin = made.insert(root, PIECES, owner="o", anchors=ANCHORS, epoch=4, turn="u")
        assert twin is end

    same(again)


@pytest.mark.parametrize("text", ["", "more"])
def test_what_follows_it_leaves_it_folded(text):
    def follow(made: RadixTree, end: Node) -> Any:
        after = [Piece(text, token_ids([8]))]
        was = bool(end.inner)
        last = made.insert(end, after, owner="s", anchors=[False], epoch=4)
        assert bool(end.inner) == was
        made.check_integrity()
        return last.path_ids().tolist()

    assert same(follow) == [*range(1, 9)]


@pytest.mark.parametrize("by", ["evict", "drop_older"])
def test_it_is_whole_after_what_followed_it_without_text_is_gone(by):
    """... for it ends at the same place, which still says where the first run ends."""

    def follow(made: RadixTree, end: Node) -> Any:
        made.insert(end, [Piece("", token_ids([8]))], owner="s", anchors=[True], epoch=3)
        made.pin(end)
        if by == "evict":
            made.evict(0, max_nodes=100)
        else:
            assert sum(made.drop_older(4, is_kept=lambda _: False, max_nodes=9)) == 1
        made.check_integrity()
        found = made.match_prefix("", "asknowsaid?", "s", lambda *_: True)
        return look(found.node), [look(node) for node in made.path(end)]

    _, runs = same(follow)
    assert len(runs) == len(PIECES)


@pytest.mark.parametrize("budget", range(8))
def test_no_more_is_evicted_of_it_than_needed(budget):
    def evict(made: RadixTree, _: Node) -> int:
        dropped = 0
        while made.may_evict(budget):
            dropped += made.evict(budget, max_nodes=2)
        return dropped

    same(evict)


def test_one_that_was_evicted_reads_nothing():
    def evict(made: RadixTree, end: Node) -> Any:
        made.evict(0, max_nodes=100)
        return end.path_ids().tolist(), len(end.inner)

    assert same(evict) == ([], 0)


@pytest.mark.parametrize("epoch", [3, 4])
@pytest.mark.parametrize("kept", ["s", "nobody"])
def test_old_ones_are_dropped_whole(epoch, kept):
    def drop(made: RadixTree, _: Node) -> int:
        return sum(made.drop_older(epoch, is_kept=lambda n: kept in (n.owners or ()), max_nodes=9))

    dropped = same(drop, pieces=PIECES[3:])
    assert dropped == (2 if epoch == 4 and kept == "nobody" else 0)


@pytest.mark.parametrize("length", range(3, len(PIECES) + 1))
@pytest.mark.parametrize("owner", [None, "s"])
def test_any_number_of_runs_can_be_one(length, owner):
    found = same(lambda t, e: [look(n) for n in t.path(e)], owner=owner, pieces=PIECES[:length])
    assert len(found) == length


def test_a_last_run_without_text_ends_where_another_does():
    """It is not folded: which of the two is found there is a matter of order."""
    made = RadixTree()
    pieces = (*PIECES[:3], Piece("", token_ids([9]), is_sampled=True))
    end = made.insert(made.root(""), pieces, owner=None, anchors=ANCHORS[:4], epoch=0)
    assert not end.inner
    assert made.match_text("", "asknow", None) is end
    made.check_integrity()
