"""The prefix cache: its lock, its budget in slices, and its dump."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any

import pytest
from aiorwlock import RWLock

from slime_router.cache.node import Node
from slime_router.cache.prefix_cache import SLICE_NODES, SPARE_TURNS, PrefixCache
from slime_router.types import Piece, token_ids
from tests.effort import opcodes
from tests.stack import is_free


def filled(nodes: int, budget_tokens: int = 0) -> PrefixCache:
    """A cache of that many sampled nodes of one token, over its budget."""
    cache = PrefixCache(
        budget_tokens, is_anchor=lambda text, index: False, is_control=lambda token_id: False
    )
    for number in range(nodes):
        add(cache, f"<{number}>", number)
    return cache


def add(
    cache: PrefixCache, text: str, token_id: int, *, epoch: int = 0, turn_id: str | None = None
) -> None:
    match = cache.match_prefix("", "nothing", None)
    piece = Piece(text, token_ids([token_id]), is_sampled=True)
    turn_id = text if turn_id is None else turn_id
    cache.insert(match.node, (), (piece,), session_id=None, turn_id=turn_id, epoch=epoch)
    cache.unpin(match.node)


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def turns_given(work: Coroutine[Any, Any, object]) -> int:
    """How often it lets others run, for one turn of the loop each."""
    count = 0
    while True:
        try:
            waits_for = work.send(None)
        except StopIteration:
            return count
        assert waits_for is None, "it waits for something"
        count += 1


# The lock, as it is used here


class Room:
    """Notes what is inside a lock; says so when the wrong ones meet."""

    def __init__(self) -> None:
        self.lock = RWLock()
        self.readers = self.writers = 0
        self.most_readers = 0
        self.order: list[str] = []

    async def read(self, name: str = "r") -> None:
        async with self.lock.reader:
            self.readers += 1
            try:
                assert not self.writers
                self.most_readers = max(self.most_readers, self.readers)
                self.order.append(name)
                await steps(3)
                assert not self.writers
            finally:
                self.readers -= 1

    async def write(self, name: str = "w") -> None:
        async with self.lock.writer:
            self.writers += 1
            try:
                assert (self.readers, self.writers) == (0, 1)
                self.order.append(name)
                await steps(3)
                assert (self.readers, self.writers) == (0, 1)
            finally:
                self.writers -= 1

    @property
    def is_free(self) -> bool:
        return not (self.lock.reader.locked or self.lock.writer.locked)


async def test_many_may_read_and_only_one_may_write():
    room = Room()
    async with asyncio.timeout(60):
        await asyncio.gather(room.read(), room.read(), room.write(), room.write(), room.read())
    assert room.most_readers >= 2
    assert room.is_free


async def test_a_waiting_writer_goes_before_readers_that_come_later():
    room = Room()
    async with asyncio.timeout(60):
        await asyncio.gather(room.read("1"), room.write("2"), room.read("3"), room.write("4"))
    assert room.order.index("2") < room.order.index("3")
    assert room.order[0] == "1"


@pytest.mark.parametrize("victim", range(5))
async def test_cancelling_anyone_at_any_step_leaves_the_lock_free(victim):
    """Whoever waits or holds: the others get their turn, and nothing stays locked."""
    was_cancelled, step = True, 0
    while was_cancelled:
        room = Room()
        who = (room.read, room.write, room.read, room.write, room.read)
        tasks = [asyncio.create_task(enter()) for enter in who]
        await steps(step)
        was_cancelled = tasks[victim].cancel()
        async with asyncio.timeout(60):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [index for index, result in enumerate(results) if result is not None]
        assert failed == ([victim] if was_cancelled else [])
        assert room.is_free
        step += 1
    assert step > 4


# The budget


async def test_eviction_lets_others_run_between_slices():
    cache = filled(5 * SLICE_NODES)
    task = asyncio.create_task(cache.enforce_budget())
    sizes = []
    while not task.done():
        await asyncio.sleep(0)
        sizes.append(cache.size.nodes)
        cache.check_integrity()
    assert sizes[-1] == 0
    drops = [before - after for before, after in pairwise(sizes)]
    assert max(drops) <= SLICE_NODES
    assert sum(drop > 0 for drop in drops) >= 4
    assert cache.counts.evicted_nodes == 5 * SLICE_NODES
    assert is_free(cache)


async def test_what_comes_while_others_are_evicted_is_found_and_kept_while_pinned():
    cache = filled(3 * SLICE_NODES)
    task = asyncio.create_task(cache.enforce_budget())
    await steps(2)
    add(cache, "fresh", 7)
    match = cache.match_prefix("", "fresh and more", None)
    assert match.node.path_ids().tolist() == [7]
    await task
    assert cache.size.nodes == 1
    assert cache.pin_turn("fresh") is match.node
    cache.unpin(match.node)
    cache.unpin(match.node)
    await cache.enforce_budget()
    assert cache.size.nodes == 0
    assert cache.pin_turn("fresh") is None


async def test_a_cancelled_eviction_leaves_a_whole_tree_and_a_free_lock():
    was_cancelled, step = True, 0
    while was_cancelled:
        cache = filled(3 * SLICE_NODES)
        task = asyncio.create_task(cache.enforce_budget())
        await steps(step)
        was_cancelled = task.cancel()
        await asyncio.wait([task])
        cache.check_integrity()
        assert is_free(cache)
        await cache.enforce_budget()
        assert cache.size.nodes == 0
        step += 1
    assert step > 3


async def test_a_turn_that_was_evicted_holds_nothing_of_its_path():
    """Turns are forgotten a few at a time, later; long prompts would stay as long."""
    cache = filled(nodes=1)
    node = cache.turn_node("<0>")
    assert node is not None
    await cache.enforce_budget()
    assert (node.parent, node.ids.size, node.place.edge) == (None, 0, "")
    assert cache.turn_node("<0>") is None


async def test_within_the_budget_nothing_is_evicted():
    cache = filled(10, budget_tokens=10)
    await cache.enforce_budget()
    assert cache.size.tokens == 10
    add(cache, "one more", 1)
    await cache.enforce_budget()
    assert cache.size.tokens == 10
    assert cache.pin_turn("<0>") is None, "the oldest went"


async def test_whoever_is_just_within_the_budget_waits_for_nobody():
    cache = filled(2 * SLICE_NODES, budget_tokens=2 * SLICE_NODES)
    dump = asyncio.create_task(cache.dump(10**6))
    await steps(1)
    assert not is_free(cache)
    assert turns_given(cache.enforce_budget()) == 0
    await dump


@pytest.mark.parametrize("slices", [1, 3])
async def test_each_slice_gives_others_one_turn(slices):
    entry = turns_given(filled(0).dump(1))  # into a lock that is free
    evicting, dropping = filled(slices * SLICE_NODES), filled(slices * SLICE_NODES)
    assert turns_given(evicting.enforce_budget()) == entry + slices
    assert turns_given(dropping.drop_older(1, nothing)) == entry + slices
    dumped = filled(slices * SLICE_NODES + 1)
    assert turns_given(dumped.dump(slices * SLICE_NODES)) == entry + slices
    assert turns_given(dumped.dump(slices * SLICE_NODES - 1)) == entry + slices - 1


# Weight updates


def nothing(node: Node) -> bool:
    return False


async def test_what_is_older_than_an_epoch_is_dropped_in_slices_and_counted():
    cache = filled(5 * SLICE_NODES, budget_tokens=10**9)
    add(cache, "fresh", 7, epoch=2)
    task = asyncio.create_task(cache.drop_older(2, nothing))
    sizes = []
    while not task.done():
        await asyncio.sleep(0)
        sizes.append(cache.size.nodes)
        cache.check_integrity()
    assert sizes[-1] == 1
    drops = [before - after for before, after in pairwise(sizes)]
    assert 0 < max(drops) <= SLICE_NODES
    assert (cache.counts.stale_nodes, cache.counts.evicted_nodes) == (5 * SLICE_NODES, 0)
    assert cache.pin_turn("<0>") is None
    node = cache.pin_turn("fresh")
    assert node is not None
    cache.unpin(node)
    assert is_free(cache)


async def test_what_is_kept_or_in_use_outlives_its_weights():
    cache = filled(3, budget_tokens=10**9)
    pinned, kept = cache.pin_turn("<0>"), cache.match_text("", "<1>")
    assert pinned is not None
    await cache.drop_older(1, lambda node: node is kept)
    assert cache.match_text("", "<0>") is pinned
    assert cache.match_text("", "<1>") is kept
    assert cache.match_text("", "<2>") is None
    cache.unpin(pinned)


async def test_what_comes_while_old_nodes_are_dropped_is_kept():
    cache = filled(3 * SLICE_NODES, budget_tokens=10**9)
    task = asyncio.create_task(cache.drop_older(2, nothing))
    await steps(2)
    assert 1 < cache.size.nodes < 3 * SLICE_NODES
    add(cache, "fresh", 7, epoch=2)
    await task
    assert [node["tokens"] for node in await cache.dump(9)] == [[7]]


async def test_nobody_else_writes_and_nobody_dumps_while_old_nodes_are_dropped():
    cache = filled(3 * SLICE_NODES)
    drop = asyncio.create_task(cache.drop_older(1, nothing))
    await steps(1)
    dump = asyncio.create_task(cache.dump(10))
    evict = asyncio.create_task(cache.enforce_budget())
    assert await dump == []
    assert drop.done()
    await evict
    assert cache.counts.stale_nodes == 3 * SLICE_NODES


async def test_a_cancelled_clean_up_leaves_a_whole_tree_and_a_free_lock():
    was_cancelled, step = True, 0
    while was_cancelled:
        cache = filled(3 * SLICE_NODES, budget_tokens=10**9)
        task = asyncio.create_task(cache.drop_older(1, nothing))
        await steps(step)
        was_cancelled = task.cancel()
        await asyncio.wait([task])
        cache.check_integrity()
        assert is_free(cache)
        assert cache.counts.stale_nodes == 3 * SLICE_NODES - cache.size.nodes
        await cache.drop_older(1, nothing)
        assert cache.size.nodes == 0
        step += 1
    assert step > 3


# The dump


async def test_nothing_is_evicted_while_the_tree_is_dumped():
    cache = filled(3 * SLICE_NODES)
    dump = asyncio.create_task(cache.dump(10**6))
    await steps(2)
    evict = asyncio.create_task(cache.enforce_budget())
    while not dump.done():
        await asyncio.sleep(0)
        assert cache.size.nodes == 3 * SLICE_NODES or dump.done()
    nodes = dump.result()
    assert sorted(node["tokens"][0] for node in nodes) == list(range(3 * SLICE_NODES))
    assert all(node["text"] == f"<{node['tokens'][0]}>" for node in nodes)
    await evict
    assert cache.size.nodes == 0


async def test_a_dump_waits_for_an_eviction_under_way():
    cache = filled(3 * SLICE_NODES)
    evict = asyncio.create_task(cache.enforce_budget())
    await steps(2)
    assert await cache.dump(10) == []
    assert evict.done()


async def test_a_cancelled_dump_leaves_the_lock_free():
    was_cancelled, step = True, 0
    while was_cancelled:
        cache = filled(2 * SLICE_NODES)
        task = asyncio.create_task(cache.dump(10**6))
        await steps(step)
        was_cancelled = task.cancel()
        await asyncio.wait([task])
        assert is_free(cache)
        step += 1
    assert step > 2


async def test_a_dump_has_at_most_as_many_nodes_as_asked_for():
    cache = filled(10)
    assert len(await cache.dump(3)) == 3


async def test_a_dump_says_of_each_node_what_it_is():
    cache = filled(0, budget_tokens=10)
    root = cache.match_prefix("a scope", "nothing", None).node
    question, answer = Piece("Hi", token_ids([7, 8])), Piece("yo", token_ids([9]), is_sampled=True)
    cache.insert(root, (question,), (answer,), session_id="s", turn_id="t", epoch=3)
    cache.unpin(root)
    assert cache.pin_turn("t") is not None
    first, second = sorted(await cache.dump(9), key=lambda node: node["start"])
    assert first == {
        "scope": "a scope", "start": 0, "end": 2, "tokens": [7, 8], "text": "Hi",
        "is_sampled": False, "is_anchor": False, "turn": None, "epoch": 3, "children": 1, "pins": 0,
    }  # fmt: skip
    assert second == {
        "scope": "a scope", "start": 2, "end": 3, "tokens": [9], "text": "yo",
        "is_sampled": True, "is_anchor": True, "turn": "t", "epoch": 3, "children": 0, "pins": 1,
    }  # fmt: skip


async def test_a_control_token_and_the_end_of_a_sample_are_anchors():
    cache = PrefixCache(10, is_anchor=lambda text, index: False, is_control=lambda id: id > 90)
    root = cache.match_prefix("", "nothing", None).node
    prompt = [("Hi", [7, 8]), ("!", []), ("<end>", [9, 99]), ("<x>no", [98, 9])]
    cache.insert(
        root,
        [Piece(text, token_ids(ids)) for text, ids in prompt],
        [Piece(text, token_ids([9]), is_sampled=True) for text in ("yo", "u")],
        session_id=None,
        turn_id="t",
        epoch=0,
    )
    seen = {node["text"]: (node["is_anchor"], node["turn"]) for node in await cache.dump(9)}
    assert seen == {
        "Hi": (False, None), "!": (False, None), "<end>": (True, None), "<x>no": (False, None),
        "yo": (False, "t"), "u": (True, "t"),
    }  # fmt: skip


def test_hits_and_misses_are_counted_whoever_looks():
    cache = filled(0, budget_tokens=99)
    for number, text in enumerate(["one", "two"]):
        add(cache, text, number)
    assert (cache.counts.hits, cache.counts.hit_tokens, cache.counts.misses) == (0, 0, 2)
    for turn_id in ("one", "two", "gone"):
        node = cache.pin_turn(turn_id)
        assert (node is None) is (turn_id == "gone")
    assert (cache.counts.hits, cache.counts.hit_tokens, cache.counts.misses) == (2, 2, 2)
    for text in ("one more", "two more", "three"):
        cache.match_prefix("", text, None)
    assert (cache.counts.hits, cache.counts.hit_tokens, cache.counts.misses) == (4, 4, 3)


def test_a_text_is_looked_up_for_a_session_among_its_own_samples():
    cache = filled(0, budget_tokens=10)
    for session, token_id in (("a", 7), ("b", 8)):
        node = cache.match_prefix("", "nothing", None).node
        sample = Piece("Hi", token_ids([token_id]), is_sampled=True)
        cache.insert(node, (), (sample,), session_id=session, turn_id=session, epoch=0)
        cache.unpin(node)
    seen = {"a": ([7], 1), "b": ([8], 1), None: ([8], 2)}
    for asking, (ids, count) in seen.items():
        found = cache.match_text("", "Hi", asking)
        assert found is not None
        assert found.path_ids().tolist() == ids
        assert cache.count_text("", "Hi", asking) == count
        assert cache.match_prefix("", "Hi there", asking).node.path_ids().tolist() == ids
    assert cache.match_text("", "Hi", "c") is None
    assert cache.count_text("", "Hi", "c") == cache.count_text("", "H", None) == 0
    assert cache.count_text("another scope", "Hi", None) == 0


def test_what_has_no_path_above_it_is_told_from_what_was_evicted():
    """Hits, misses and their tokens are counted."""
    cache = filled(1, budget_tokens=10)
    before = cache.counts.misses
    match = cache.match_prefix("", "<0> and more", None)
    assert (match.text_len, cache.counts.hits, cache.counts.hit_tokens) == (3, 1, 1)
    cache.unpin(match.node)
    assert cache.match_prefix("", "other", None).text_len == 0
    assert cache.counts.misses == before + 1


# What grows must not be walked


def test_the_same_turn_again_costs_the_same_however_often_it_was_filed():
    """Evaluations and probes ask one prompt thousands of times, and get one reply."""
    cache = filled(0, budget_tokens=1000)
    numbers = iter(range(10_000))

    def again() -> None:
        match = cache.match_prefix("", "nothing", None)
        piece = Piece("x", token_ids([7]), is_sampled=True)
        turn_id = f"t{next(numbers)}"
        cache.insert(match.node, (), (piece,), session_id=None, turn_id=turn_id, epoch=0)
        cache.unpin(match.node)

    for _ in range(SPARE_TURNS + 100):
        again()
    early = [opcodes(again) for _ in range(10)]
    for _ in range(3 * SPARE_TURNS):
        again()
    late = [opcodes(again) for _ in range(10)]
    assert max(late) <= 1.1 * max(early)
    assert len(cache._turn_nodes) <= 2 * cache.size.nodes + SPARE_TURNS + 2
    newest = cache.pin_turn(f"t{next(numbers) - 1}")
    assert newest is not None
    cache.unpin(newest)


def test_turns_that_end_at_a_node_of_their_own_are_found_though_others_are_forgotten():
    """Two for each node, and some more: what goes are those that a later turn replaced."""
    cache = filled(0, budget_tokens=10**6)
    own = 100
    for number in range(own):
        add(cache, f"<{number}>", number)
    for number in range(2 * (own + 1) + SPARE_TURNS):
        add(cache, "again", 7, turn_id=f"t{number}")
    assert len(cache._turn_nodes) == 2 * (own + 1) + SPARE_TURNS
    last = f"t{number}"
    assert (cache.pin_turn(last) is None, cache.pin_turn("t0")) == (False, None)
    for number in range(own):
        node = cache.pin_turn(f"<{number}>")
        assert node is not None
        assert node.ids.tolist() == [number]


def test_turns_of_their_own_are_all_found_however_many_there_are():
    cache = filled(0, budget_tokens=100_000)
    count = 3 * SPARE_TURNS
    for number in range(count):
        add(cache, f"<{number}>", number)
    for _ in range(3 * SPARE_TURNS):
        add(cache, "<0>", 0)
    for number in range(1, count):
        node = cache.pin_turn(f"<{number}>")
        assert node is not None
        assert node.ids.tolist() == [number]
        cache.unpin(node)
