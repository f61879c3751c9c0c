"""The radix tree and retrieval: what other token stores got wrong, each as a case."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.cache.node import Node
from slime_router.cache.radix_tree import RadixTree
from slime_router.cache.text_index import TextIndex
from slime_router.generation.weight_versions import WeightVersions
from slime_router.trajectory.turn import Trace
from slime_router.types import Finish, GenerateCall, Piece, token_ids
from tests.effort import opcodes
from tests.stack import Sample, Stack, pins

H_AVING = [39, 374, 380, 38]  # how the tiny tokenizer writes it
HAV_ING = [39, 32, 53, 40, 45, 38]  # how a model may
STOP = 514  # <|im_end|>


def piece(text: str, *ids: int, is_sampled: bool = False) -> Piece:
    return Piece(text, token_ids(ids), is_sampled)


def insert(tree: RadixTree, *pieces: Piece, owner: str | None = None, epoch: int = 0) -> Node:
    """A path from the root; any text may be cut after a sampled piece."""
    anchors = [piece.is_sampled for piece in pieces]
    return tree.insert(tree.root(""), pieces, owner=owner, anchors=anchors, epoch=epoch)


def drop_older(tree: RadixTree, epoch: int, *, kept: tuple[Node, ...] = ()) -> int:
    """All steps at once."""
    return sum(tree.drop_older(epoch, is_kept=lambda node: node in kept, max_nodes=2))


def never(text: str, index: int) -> bool:
    return False


def anywhere(text: str, index: int) -> bool:
    return True


@pytest.fixture
def stack() -> Stack:
    return Stack()


async def trace_of(stack: Stack, text: str) -> Trace:
    trace, _ = await stack.retriever.by_text(GenerateCall(rid="", turn_id="", text=text))
    return trace


# Equal text is not equal tokens


def test_two_samples_with_equal_text_are_both_kept_and_each_is_exact():
    tree = RadixTree()
    prompt = piece("P", 1)
    first = insert(tree, prompt, piece("HAVING", 10, 11, is_sampled=True), owner="a")
    second = insert(tree, prompt, piece("HAVING", 20, 21, is_sampled=True), owner="b")
    assert first is not second
    for session, ids in (("a", [1, 10, 11]), ("b", [1, 20, 21]), (None, [1, 20, 21])):
        match = tree.match_prefix("", "PHAVING and on", session, never)
        assert match.node.path_ids().tolist() == ids
    assert tree.size.tokens == 5


def test_of_equal_texts_the_one_that_was_sampled_last_is_found():
    tree = RadixTree()
    prompt = piece("P", 1)
    one = piece("HAVING", 10, 11, is_sampled=True)
    other = piece("HAVING", 20, 21, is_sampled=True)
    for pieces, ids in ((one, [1, 10, 11]), (other, [1, 20, 21]), (one, [1, 10, 11])):
        insert(tree, prompt, pieces)
        match = tree.match_prefix("", "PHAVING and on", None, never)
        assert match.node.path_ids().tolist() == ids


async def test_a_group_of_samples_with_equal_text_is_told_apart_by_session(stack):
    """GRPO: one prompt, one text, other tokens; each conversation goes on with its own."""
    ask = ["What keeps groups?"]
    for session, ids in (("a", H_AVING), ("b", HAV_ING)):
        call = stack.call(ask, session_id=session)
        assert await stack.generate(call, Sample([*ids, STOP], Finish("stop", STOP))) == "HAVING"
    for session, ids in (("a", H_AVING), ("b", HAV_ING)):
        call = stack.call([*ask, "HAVING", "And?"], session_id=session)
        await stack.generate(call, Sample([STOP], Finish("stop", STOP)))
        prompt = stack.sent[-1]
        head = len(stack.sent[0])
        assert prompt[: head + len(ids) + 1] == [*stack.sent[0], *ids, STOP]


async def test_a_text_is_retrieved_with_the_tokens_that_were_sampled_last(stack):
    """... and with their own logprobs, not with those of the twin."""
    for ids, value in ((H_AVING, -1.0), (HAV_ING, -2.0)):
        await stack.generate(stack.call("GROUP BY x "), Sample(ids, logprobs=[value] * len(ids)))
    trace = await trace_of(stack, "GROUP BY x HAVING")
    prompt = stack.sent[0]
    assert trace.ids.tolist() == [*prompt, *HAV_ING]
    assert trace.loss_mask.tolist() == [0] * len(prompt) + [1] * len(HAV_ING)
    assert trace.logprobs[len(prompt) :].tolist() == [-2.0] * len(HAV_ING)


def test_a_session_reads_back_its_own_sample_and_no_other_sessions():
    tree = RadixTree()
    first = insert(tree, piece("HAVING", 10, 11, is_sampled=True), owner="a")
    second = insert(tree, piece("HAVING", 20, 21, is_sampled=True), owner="b")
    assert tree.match_text("", "HAVING", "a") is first
    assert tree.match_text("", "HAVING", "b") is second
    assert tree.match_text("", "HAVING", "c") is None
    assert tree.match_text("", "HAVING", None) is second
    assert [*tree.alike("", "HAVING", "a")] == [first]
    assert [*tree.alike("", "HAVING", None)] == [second, first]


def test_siblings_share_their_prefix_once():
    tree = RadixTree()
    shared = piece("sys user ", 1, 2, 3)
    insert(tree, shared, piece("AB", 4, 5))
    insert(tree, shared, piece("AC", 4, 6))
    assert tree.size.tokens == 3 + 2 + 2
    assert tree.match_prefix("", "sys user A", None, anywhere).node.path_ids().tolist() == [1, 2, 3]


# Text and tokens do not cut at the same places


async def test_a_longer_text_is_not_read_through_a_shorter_one_that_cuts_inside_its_token(stack):
    """`count to 1` and `count to 10` share text, not tokens; so do Hello and Hello world."""
    one, ten = [66, 354, 342, 78, 220, 16], [66, 354, 342, 78, 220, 300]
    for ids, value in ((one, -1.0), (ten, -2.0)):
        await stack.generate(stack.call("Please "), Sample(ids, logprobs=[value] * 6))
    tree_text = stack.tokenizer.decode([*stack.sent[0], *ten], skip_special_tokens=False)
    trace = await trace_of(stack, tree_text)
    assert trace.ids.tolist() == [*stack.sent[0], *ten]
    assert trace.loss_mask[-6:].tolist() == [1] * 6
    assert trace.logprobs[-6:].tolist() == [-2.0] * 6


def test_a_split_in_the_text_leaves_the_tokens_of_both_paths_whole():
    tree = RadixTree()
    short = insert(tree, piece("Hello", 4, is_sampled=True))
    long = insert(tree, piece("Hello world", 3, 7, 9, is_sampled=True))
    assert tree.match_text("", "Hello", None) is short
    assert tree.match_text("", "Hello world", None) is long
    assert long.path_ids().tolist() == [3, 7, 9]
    assert tree.match_text("", "Hello w", None) is None
    match = tree.match_prefix("", "Hello world!", None, never)
    assert match.node.path_ids().tolist() == [3, 7, 9]


def test_unsampled_text_is_cut_at_anchors_only():
    tree = RadixTree()
    insert(tree, piece("ab", 1), piece("cd", 2))
    cut_at_2 = tree.match_prefix("", "abcdef", None, lambda text, index: index == 2)
    assert (cut_at_2.node.path_ids().tolist(), cut_at_2.text_len) == ([1], 2)
    assert tree.match_prefix("", "abcdef", None, never).text_len == 0


# Nothing sampled is dropped, no guess becomes a fact


async def test_an_output_of_a_lone_stop_token_is_kept_and_trained(stack):
    """Its visible text is empty; the token is there anyway."""
    sample = Sample([STOP], Finish("stop", STOP), logprobs=[-0.25])
    assert await stack.generate(stack.call("Say nothing"), sample) == ""
    trace = await trace_of(stack, "Say nothing<|im_end|>")
    assert trace.ids.tolist() == [*stack.sent[0], STOP]
    assert trace.loss_mask.tolist() == [0] * len(stack.sent[0]) + [1]
    assert trace.logprobs[-1] == -0.25


async def test_a_retrieved_guess_never_poisons_what_is_sampled_later(stack):
    """Looking up a text that is not cached encodes it, and files nothing."""
    text = "GROUP BY x HAVING"
    guess = await trace_of(stack, text)
    assert guess.ids.tolist() == stack.tokenizer.encode(text).tolist()
    assert guess.loss_mask.sum() == 0
    assert stack.cache.size.nodes == 0
    await stack.generate(stack.call("GROUP BY x "), Sample(HAV_ING, logprobs=[-1.0] * 6))
    trace = await trace_of(stack, text)
    assert trace.ids.tolist() == [*stack.sent[0], *HAV_ING]
    assert trace.loss_mask.tolist() == [0] * len(stack.sent[0]) + [1] * 6


async def test_half_characters_with_equal_text_stay_apart(stack):
    """Ids 94 and 95 both read U+FFFD, which encodes to neither."""
    ask = ["Draw"]
    for session, ids in (("a", [94]), ("b", [95])):
        call = stack.call(ask, session_id=session)
        assert await stack.generate(call, Sample(ids)) == "\ufffd"
    held = {turn.session_id: turn.output_ids.tolist() for turn in stack.store._turns.values()}
    assert held == {"a": [94], "b": [95]}
    text = stack.tokenizer.decode([*stack.sent[0], 94], skip_special_tokens=False)
    trace = await trace_of(stack, text)
    assert trace.ids.tolist() == [*stack.sent[0], 95], "the newest of the two, never a guess"
    assert trace.loss_mask[-1] == 1
    for session, last in (("a", 94), ("b", 95)):
        call = stack.call([*ask, "\ufffd", "More"], session_id=session)
        await stack.generate(call, Sample([STOP], Finish("stop", STOP)))
        assert stack.sent[-1][: len(stack.sent[0]) + 1] == [*stack.sent[0], last]


@pytest.mark.parametrize("broken_len", [1, 2])
async def test_a_stop_string_behind_broken_bytes_never_splits_a_character(stack, broken_len):
    """U+FFFD has three bytes, the broken byte it stands for one: no cut may be reckoned by it.

    Cut inside the emoji, the tree would hand out `X` with a part of an emoji after it.
    """
    id_of = {stack.tokenizer.token_bytes(token_id): token_id for token_id in range(256)}
    said = b"ab" + b"\x82" * broken_len + "X🙂".encode()
    output = [id_of[bytes([byte])] for byte in said]
    await stack.generate(stack.call("Go "), Sample(output, Finish("stop", "X🙂")))
    for node in stack.cache._tree.nodes():
        assert node.parent is not None
        text = node.place.text_since(node.parent.place)
        assert stack.tokenizer.decode(node.ids.tolist(), skip_special_tokens=False) == text


# What was filed does not change, and a look-up changes nothing


async def test_what_came_is_copied_on_its_way_in(stack):
    """A plug-in that changes a chunk after it passed changes nothing of what is held."""
    ids, values = [100, 101, 102], [-1.0, -2.0, -3.0]
    stack.samples.append(Sample(ids, logprobs=values, chunk_len=3))
    call = stack.call("Begin ")
    async with stack.router.generate(call) as chunks:
        async for chunk in chunks:
            chunk.output_ids.append(9)
            chunk.logprobs.clear()
    turn = stack.store.get(call.turn_id)
    assert turn.output_ids.tolist() == ids
    assert turn.logprobs.tolist() == values
    text = stack.tokenizer.decode([*stack.sent[0], *ids], skip_special_tokens=False)
    trace = await trace_of(stack, text)
    assert trace.ids[-3:].tolist() == ids
    for array in (turn.output_ids, turn.logprobs, turn.prompt_ids, trace.ids):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7


async def test_a_search_changes_nothing(stack):
    await stack.generate(stack.call(["Hi"]), Sample([100, STOP], Finish("stop", STOP)))
    before = await stack.cache.dump(1000), stack.cache.size, stack.store.tokens
    for text in ("Hi", "<|im_start|>user\nHi", "<|im_start|>user\nHi<|im_end|>\n", "other"):
        await trace_of(stack, text)
        await stack.retriever.by_messages(stack.call([text, text]))
    assert (await stack.cache.dump(1000), stack.cache.size, stack.store.tokens) == before
    assert pins(stack.cache) == 0
    stack.cache.check_integrity()
    stack.store.check_integrity()


# Budget, depth, width


def test_the_budget_holds_whatever_the_tokens_were_sampled_under():
    """No version says whether a node may go: what is idle may."""
    tree = RadixTree()
    for number in range(12):
        insert(tree, piece(f"text {number}", *range(10), is_sampled=number % 2 == 0))
    assert tree.size.tokens == 120
    assert tree.evict(100, max_nodes=100) == 2
    assert tree.size.tokens == 100
    assert tree.match_text("", "text 1", None) is None, "the oldest went"
    assert tree.match_text("", "text 2", None) is not None
    tree.check_integrity()


def test_what_is_pinned_is_never_evicted_nor_what_it_stands_on():
    tree = RadixTree()
    node = insert(tree, piece("a", 1), piece("b", 2), piece("c", 3))
    tree.pin(node)
    insert(tree, piece("x", 9))
    assert tree.evict(0, max_nodes=100) == 1
    assert node.path_ids().tolist() == [1, 2, 3]
    tree.unpin(node)
    assert tree.evict(0, max_nodes=100) == 3
    assert tree.size == (tree.size.__class__)(0, 0, 0)


def test_a_matched_path_outlives_one_that_nobody_asks_for():
    tree = RadixTree()
    for name in ("old", "new"):
        insert(tree, piece(name, 1, is_sampled=True))
    tree.match_prefix("", "old", None, never)
    tree.evict(1, max_nodes=2)  # looks at both
    assert tree.match_text("", "old", None) is not None
    assert tree.match_text("", "new", None) is None


def test_a_slice_stays_true_after_its_path_was_evicted():
    tree = RadixTree()
    ids = insert(tree, piece("a", 1), piece("b", 2)).path_ids()
    tree.evict(0, max_nodes=9)
    insert(tree, piece("a", 7), piece("b", 8))
    assert ids.tolist() == [1, 2]


def test_a_deep_chain_needs_no_recursion():
    tree = RadixTree()
    limit = sys.getrecursionlimit()
    node = tree.root("")
    sys.setrecursionlimit(200)
    try:
        for turn in range(1100):
            node = tree.insert(
                node,
                [piece("ab", turn, turn, is_sampled=True)],
                owner=None,
                anchors=[True],
                epoch=0,
            )
        assert tree.match_prefix("", "ab" * 1100 + "c", None, never).node is node
        tree.check_integrity()
        ids = node.path_ids()
        assert tree.evict(0, max_nodes=5000) == 1100
    finally:
        sys.setrecursionlimit(limit)
    assert ids.tolist() == np.repeat(np.arange(1100), 2).tolist()
    assert (tree.size.tokens, tree.size.places) == (0, 0)


def test_many_tails_share_one_long_prefix():
    """16 000 paths with 500 tokens in common hold those once."""
    tree = RadixTree()
    shared = piece("p" * 500, *range(500))
    for number in range(16_000):
        insert(tree, shared, piece(f"{number:05}", number))
    assert tree.size.tokens == 500 + 16_000
    assert tree.size.nodes == 1 + 16_000


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_place_below_which_one_path_leads_on_is_there_for_its_mark_alone(is_marked):
    """Where the last mark goes, so does the place: what finds it otherwise is the check."""
    index: TextIndex[str, str] = TextIndex("")
    middle = index.below(index.root, "ab")
    index.below(middle, "c").marks = ("end",)
    middle.marks = ("middle",) if is_marked else ()
    with nullcontext() if is_marked else pytest.raises(AssertionError, match="marks nothing"):
        index.check_integrity()
    index.prune(middle)
    index.check_integrity()
    assert [place.depth for place in index.along("abc")] == ([2, 3] if is_marked else [3])
    assert index.size == (2 if is_marked else 1)


def test_what_a_text_is_known_to_begin_with_is_not_compared():
    index: TextIndex[str, int] = TextIndex("")
    first = index.below(index.root, "old text, ")
    likely = index.below(first, "and new")
    first.marks, likely.marks = (1,), (2,)
    for text, same_len, found in (
        ("old text, and new one", 0, [2, 1]),
        ("other one, and new one", 0, []),
        ("********, and new one", 10, [2, 1]),  # whoever says so has seen it
        ("********, and new one", 9, []),
        ("********, and no", 10, []),
    ):
        places = index.deepest_first(text, likely, same_len)
        assert [mark for place in places for mark in place.marks] == found


@given(lens=st.lists(st.integers(2, 40), min_size=1, max_size=60), is_long=st.booleans())
def test_a_text_that_grows_is_not_copied_each_time(lens, is_long):
    """Where each end but the last is forgotten, few places are left, and every text is found."""
    index: TextIndex[bytes, int] = TextIndex(b"")
    text, place, copied = b"", index.root, 0
    for length in [*([4_000] if is_long else []), *lens]:
        text += bytes([length % 7]) * length
        edges = {id(each): len(each.edge) for each in index.places()}
        before, place = place, index.below(place, text[place.depth :])
        place.marks, before.marks = (len(text),), ()
        index.prune(before)
        index.check_integrity()
        copied += sum(len(e.edge) for e in index.places() if edges.get(id(e), 0) != len(e.edge))
        assert [each.depth for each in index.along(b"-" + text + b"x", start=1)] == [len(text)]
        assert index.size <= len(text).bit_length()
    assert copied <= 2 * len(text) * len(text).bit_length()
    index.below(index.root, text[: len(text) // 2]).marks = (0,)
    index.check_integrity()
    place.marks = ()
    index.prune(place)
    assert index.size == 1


def test_a_whole_text_ends_only_at_an_anchor_of_the_tree():
    """What comes after it is not known yet: the text itself says nothing about a cut at its end."""
    tree = RadixTree()
    insert(tree, piece("x", 1), piece("y", 2))
    assert tree.match_prefix("", "xy", None, anywhere).text_len == 1
    assert tree.match_prefix("", "xyz", None, anywhere).text_len == 2


def test_a_path_that_comes_again_is_the_most_recent_and_hides_no_other():
    tree = RadixTree()
    one, two = (insert(tree, piece("x", number, is_sampled=True)) for number in (1, 2))
    assert insert(tree, piece("x", 1, is_sampled=True)) is one
    assert list(tree.alike("", "x", None)) == [one, two]
    tree.check_integrity()


def test_each_piece_is_an_anchor_or_not():
    tree = RadixTree()
    with pytest.raises(ValueError, match="shorter"):
        tree.insert(tree.root(""), [piece("x", 1)], owner=None, anchors=[], epoch=0)


def test_scopes_share_nothing():
    tree = RadixTree()
    tree.insert(
        tree.root("a"), [piece("x", 1, is_sampled=True)], owner=None, anchors=[True], epoch=0
    )
    assert tree.match_prefix("b", "xy", None, anywhere).text_len == 0
    assert tree.match_text("b", "x", None) is None


# Weight updates


def test_versions_that_are_words_are_cleaned_up_without_comparing_them():
    """SGLang calls its first "default", which is neither less than 3 nor more."""
    tree, weights = RadixTree(), WeightVersions()
    for version in ("default", 3, "v-next"):
        insert(tree, piece(str(version), 1, is_sampled=True), epoch=weights.note(version))
    assert drop_older(tree, weights.epoch - 1) == 1
    assert tree.match_text("", "default", None) is None
    assert tree.match_text("", "3", None) is not None
    assert tree.match_text("", "v-next", None) is not None
    tree.check_integrity()


def test_a_child_is_never_newer_than_its_parent():
    """A prompt of epoch 1 that is continued in epoch 3 is as new as what stands on it."""
    tree = RadixTree()
    prompt = piece("P", 1)
    parent = insert(tree, prompt, epoch=1)
    child = insert(tree, prompt, piece("A", 2, is_sampled=True), epoch=3)
    assert (parent.epoch, child.epoch) == (3, 3)
    late = insert(tree, prompt, piece("B", 2, is_sampled=True), epoch=2)
    assert (parent.epoch, late.epoch) == (3, 2)
    assert drop_older(tree, 3) == 1
    assert child.path_ids().tolist() == [1, 2]
    assert tree.match_text("", "PA", None) is child
    tree.check_integrity()
    child.epoch = 4
    with pytest.raises(AssertionError, match="newer than its parent"):
        tree.check_integrity()


def test_a_path_of_a_worker_that_lags_does_not_make_old_what_is_new():
    tree = RadixTree()
    steps = piece("a", 1), piece("b", 2)
    node = insert(tree, *steps, epoch=5)
    assert insert(tree, *steps, epoch=2) is node
    assert [step.epoch for step in tree.path(node)] == [5, 5]


def test_an_old_path_goes_to_its_root_and_a_new_one_below_it_stays_whole():
    tree = RadixTree()
    insert(tree, *(piece(letter, 1) for letter in "old path"), epoch=1)
    insert(tree, piece("o", 1), piece("x", 7), epoch=2)
    assert drop_older(tree, 2) == len("ld path")
    assert sorted(node.ids.tolist() for node in tree.nodes()) == [[1], [7]]
    assert drop_older(tree, 2) == 0
    assert drop_older(tree, 3) == 2
    assert tree.size.nodes == 0


def test_what_is_pinned_or_kept_stays_with_the_path_to_it():
    tree = RadixTree()
    pinned = insert(tree, piece("a", 1), piece("b", 2), epoch=1)
    kept = insert(tree, piece("c", 3), piece("d", 4), epoch=1)
    insert(tree, piece("c", 3), piece("e", 5), epoch=1)
    tree.pin(pinned)
    assert drop_older(tree, 9, kept=(kept,)) == 1
    assert pinned.path_ids().tolist() == [1, 2]
    assert kept.path_ids().tolist() == [3, 4]
    tree.unpin(pinned)
    assert drop_older(tree, 9, kept=(kept,)) == 2
    assert drop_older(tree, 9) == 2
    assert tree.size.nodes == 0


def test_clean_up_goes_in_steps_between_which_the_tree_is_whole_and_in_use():
    tree = RadixTree()
    for number in range(10):
        insert(tree, piece(f"<{number}>", number), epoch=1)
    seen = []
    for dropped in tree.drop_older(2, is_kept=lambda node: False, max_nodes=3):
        tree.check_integrity()
        seen.append(dropped)
        fresh = insert(tree, piece(f"fresh {len(seen)}", 50), epoch=2)
        assert fresh.path_ids().tolist() == [50]
    assert sum(seen) == 10
    assert max(seen) == 3
    assert tree.size.nodes == len(seen)


def test_a_scope_in_which_nothing_is_left_is_forgotten():
    """Clients choose their cache salts, as many as they like."""
    tree = RadixTree()
    for number in range(100):
        scope = f"salt {number}"
        match = tree.match_prefix(scope, "Hello", None, lambda text, index: True)
        tree.pin(match.node)
        assert tree.match_text(f"other {number}", "Hello", None) is None
        if number % 2:
            tree.insert(
                match.node, [piece("x", 1, is_sampled=True)], owner=None, anchors=[True], epoch=0
            )
        tree.unpin(match.node)
    assert len(tree._roots) == len(tree._indexes) == 50
    while tree.may_evict(0):
        tree.evict(0, max_nodes=10)
    assert len(tree._roots) == len(tree._indexes) == 0
    end = tree.insert(
        match.node, [piece("y", 2, is_sampled=True)], owner=None, anchors=[True], epoch=0
    )
    assert tree.match_text(scope, "y", None) is end
    tree.check_integrity()


def test_a_run_that_every_session_samples_knows_a_limited_number_of_them(monkeypatch):
    monkeypatch.setattr("slime_router.cache.node.MAX_OWNERS", 10)
    tree = RadixTree()
    for number in range(100):
        run = [piece("x", 1, is_sampled=True)]
        node = tree.insert(tree.root(""), run, owner=f"s{number}", anchors=[True], epoch=0)
        assert node.may_be_reused_by(f"s{number}")
        assert len(node.owners or ()) <= 10


def test_using_a_leaf_costs_the_same_however_often_it_was_used():
    """No look-up pays for those before it, at once or later."""
    tree = RadixTree()
    for number in range(50):
        insert(tree, piece(f"<{number}>", number, is_sampled=True))

    def use() -> None:
        for number in range(50):
            assert tree.match_prefix("", f"<{number}>", None, never).text_len

    early = opcodes(use)
    for _ in range(100):
        use()
    assert max(opcodes(use) for _ in range(20)) == early
    assert len(tree._idle) == len(tree) == 50


def test_a_step_of_eviction_costs_the_same_where_everything_was_used_since():
    """Finding out what is oldest is done in steps, too."""

    def work(leaves: int) -> int:
        tree = RadixTree()
        for number in range(leaves):
            insert(tree, piece(f"<{number}>", 1, is_sampled=True))
        for number in range(leaves):
            tree.match_prefix("", f"<{number}>", None, never)
        worst = 0
        while tree.may_evict(leaves // 2):
            worst = max(worst, opcodes(lambda: tree.evict(leaves // 2, max_nodes=8)))
        assert tree.size.nodes == leaves // 2
        assert tree.match_text("", "<0>", None) is None
        return worst

    assert work(2_000) <= 1.2 * work(100)


@pytest.mark.parametrize("steps", range(4))
def test_a_clean_up_that_is_cut_short_leaves_everything_up_for_eviction(steps):
    tree = RadixTree()
    for number in range(9):
        insert(tree, piece(f"<{number}>", number), epoch=number % 2)
    cleaning = tree.drop_older(1, is_kept=lambda node: False, max_nodes=3)
    for _ in range(steps):
        next(cleaning)
        tree.check_integrity()
    cleaning.close()
    tree.check_integrity()
    while tree.may_evict(0):
        tree.evict(0, max_nodes=3)
    assert tree.size.nodes == 0
