"""The trajectory store, by itself and under the recording."""

from __future__ import annotations

import sys
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.store import SLICE_TURNS, TrajectoryStore
from slime_router.trajectory.turn import logprob_array, narrowed
from slime_router.types import Finish, GenerateChunk, VersionSpan
from tests.effort import opcodes
from tests.stack import Sample, Stack
from tests.turns import bare_turn as turn

STOP = 514


async def test_logprobs_that_were_not_asked_for_are_absent_and_never_zero():
    stack = Stack(capture="tokens")
    recorded = await stack.turn(stack.call("Begin "), Sample([100, 101]))
    assert recorded.logprobs is None
    assert np.isnan(stack.store.trace(recorded.id).logprobs).all()
    assert stack.store.trace(recorded.id).loss_mask[-2:].tolist() == [1, 1]


async def test_a_logprob_that_is_missing_stays_a_gap_among_the_others():
    stack = Stack()
    recorded = await stack.turn(stack.call("Begin "), Sample([100, 101], logprobs=[-0.5, None]))
    trace = stack.store.trace(recorded.id)
    assert trace.logprobs[-2] == -0.5
    assert np.isnan(trace.logprobs[-1])
    assert np.isnan(trace.logprobs[:-2]).all()
    assert stack.recording.counts.missing_logprobs == 1


def narrowed_of(values):
    return narrowed(np.array(values, np.float64))


@pytest.mark.parametrize("made_of", [logprob_array, narrowed_of])
def test_logprobs_come_back_bit_for_bit(made_of):
    exact = [-0.1, -1e-300, -1e300, None]
    array = made_of(exact)
    assert array[:3].tolist() == exact[:3]
    assert np.isnan(array[3])
    small = made_of([float(np.float32(-0.1)), None])
    assert small.dtype == np.float32
    assert float(small[0]) == float(np.float32(-0.1))
    with pytest.raises(ValueError, match="read-only"):
        small[0] = 0


@given(st.lists(st.floats() | st.floats(width=32) | st.none()))
def test_logprobs_of_an_array_are_those_of_a_list(values):
    array, of_list = narrowed_of(values), logprob_array(values)
    assert array.dtype == of_list.dtype
    assert array.tobytes() == of_list.tobytes()


async def test_weight_versions_may_be_words_and_numbers_side_by_side():
    """Nothing compares them: a child may be newer or older than its parent, or of another kind."""
    stack = Stack(budget_tokens=60)
    says = ["Hi"]
    for version in ("default", 3, 1, None, "v2"):
        call = stack.call(says)
        recorded = await stack.turn(call, Sample([72, STOP], Finish("stop", STOP), version=version))
        trace = stack.store.trace(recorded.id)
        assert trace.weight_versions[-2:] == (version, version)
        text = stack.tokenizer.decode([72], skip_special_tokens=False)
        says += [text, "Go on"]
    assert [v for v in trace.weight_versions if v is not None] == ["default"] * 2 + [3] * 2 + [
        1
    ] * 2 + ["v2"] * 2
    assert stack.cache.size.tokens <= 60
    stack.cache.check_integrity()
    stack.store.check_integrity()


def test_each_token_has_the_version_under_which_it_was_sampled():
    store = TrajectoryStore(100)
    spans = (VersionSpan("default", 0, 1), VersionSpan(7, 1, 3))
    store.add(turn("a", [1], [2, 3, 4], weight_versions=spans))
    assert store.trace("a").weight_versions == (None, "default", 7, 7)
    assert store.trace("a", 3).weight_versions == (None, "default", 7)


def test_a_branch_holds_its_base_up_to_where_it_left():
    store = TrajectoryStore(100)
    store.add(turn("a", [1, 2], [3, 4]))
    store.add(turn("b", [5], [6], base="a", base_len=4))
    store.add(turn("c", [7], [8], base="b", base_len=3))
    assert store.held_ids("b").tolist() == [1, 2, 3, 4, 5, 6]
    assert store.held_ids("c").tolist() == [1, 2, 3, 7, 8]
    assert store.trace("c").loss_mask.tolist() == [0, 0, 1, 0, 1]
    assert store.tokens == 4 + 2 + 2, "each delta is held once"


def test_turns_that_read_the_same_are_counted_for_their_session():
    store = TrajectoryStore(100)
    for name, session in (("a", None), ("b", "s"), ("c", "s")):
        store.add(turn(name, [1], [2], keys=(b"key",), session_id=session))
    assert store.count_alike(b"key", "s") == 2
    assert store.count_alike(b"key", "another") == 0
    assert store.count_alike(b"key", None) == 3
    assert store.count_alike(b"another", None) == 0


def test_a_turn_is_found_by_its_handle_in_its_scope_and_session_only():
    store = TrajectoryStore(100)
    store.add(turn("a", [1], [2], handles=("call_1",), scope="lora", session_id="s"))
    for handle in ("call_1", "a"):
        found = store.of_handle(handle, "s", "lora")
        assert found is not None
        assert found.id == "a"
        assert store.of_handle(handle, None, "lora") is found
        assert store.of_handle(handle, "another", "lora") is None
        assert store.of_handle(handle, "s", "") is None
    assert store.of_handle("call_2", "s", "lora") is None


def test_turns_that_are_looked_up_by_many_handles_are_those_found_by_each_and_not_used():
    store = TrajectoryStore(6)
    store.add(turn("a", [1], [2], handles=("call_a",), scope="lora", session_id="s"))
    for name in "bc":
        store.add(turn(name, [1], [2], handles=(f"call_{name}",)))
    handles = ["call_a", "call_b", "b", "a", "call_d", "call_c", "call_b"]
    assert store.ids_of_handles(handles, None) == [None, "b", "b", None, None, "c", "b"]
    assert store.ids_of_handles(handles, "s", "lora") == ["a", None, None, "a", None, None, None]
    assert store.ids_of_handles(handles, "t", "lora") == [None] * len(handles)
    store.add(turn("d", [1], [2]))
    assert "a" not in store


def test_a_turn_that_is_found_by_its_handle_was_used():
    store = TrajectoryStore(6)
    for name in "abc":
        store.add(turn(name, [1], [2], handles=(f"call_{name}",)))
    assert store.of_handle("call_a", None) is not None
    store.add(turn("d", [1], [2]))
    assert [name in store for name in "abcd"] == [True, False, True, True]


def test_a_sweep_drops_what_was_not_used_for_the_whole_time():
    store = TrajectoryStore(100)
    store.add(turn("old", [1], [2]))
    store.add(turn("base", [1], [2]))
    assert sum(store.sweep(1)) == 0, "no time has passed since"
    store.add(turn("next", [3], [4], base="base", base_len=2))
    assert sum(store.sweep(1)) == 1
    assert [name in store for name in ("old", "base", "next")] == [False, True, True]
    assert store.of_handle("next", None) is not None
    assert sum(store.sweep(1)) == 0, "it was used"
    assert sum(store.sweep(1)) == 2, "and then what it stood on goes with it"
    assert store.expired_turns == 3
    store.check_integrity()


def test_the_budget_holds_and_what_others_stand_on_goes_last():
    store = TrajectoryStore(10)
    store.add(turn("a", [1, 2], [3, 4]))
    store.add(turn("b", [5], [6], base="a", base_len=4))
    store.add(turn("c", [1] * 3, [2]))
    assert store.tokens == 10
    store.add(turn("d", [1], [2]))
    assert [name in store for name in "abcd"] == [True, False, True, True]
    store.add(turn("e", [1], [2]))
    assert [name in store for name in "acde"] == [False, True, True, True]
    assert store.dropped_turns == 2
    store.check_integrity()


def test_a_turn_larger_than_the_budget_is_kept_until_the_next():
    """The newest is never dropped: its conversation could not go on."""
    store = TrajectoryStore(2)
    store.add(turn("a", [1, 2], [3, 4]))
    assert "a" in store
    store.add(turn("b", [1, 2], [3, 4]))
    assert ("a" in store, "b" in store) == (False, True)


def test_order_is_the_order_of_recording():
    store = TrajectoryStore(100)
    for name, session in (("a", "s"), ("b", "t"), ("c", "s")):
        store.add(turn(name, [1], [2], keys=(b"k",), session_id=session))
    found = [store.find(b"k", session) for session in (None, "t")]
    assert [turn and turn.id for turn in found] == ["c", "b"]
    assert store.find(b"k", "other") is None
    assert store.find(b"other", None) is None


def test_a_thousand_turns_need_no_recursion():
    store = TrajectoryStore(10_000)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        base: str | None = None
        for number in range(1100):
            added = turn(f"t{number}", [number], [number], base=base, base_len=2 * number)
            base = store.add(added).id
        assert store.held_ids(f"t{1099}").tolist() == np.repeat(np.arange(1100), 2).tolist()
        assert store.trace(f"t{1099}").loss_mask.tolist() == [0, 1] * 1100
    finally:
        sys.setrecursionlimit(limit)
    assert store.tokens == 2200
    store.check_integrity()


async def test_an_empty_generation_is_no_turn():
    async def nothing(call):
        yield GenerateChunk(output_ids=[], finish=Finish("length"))

    stack = Stack(dispatch=nothing)
    await stack.generate(stack.call(["Hi"]))
    assert len(stack.store) == 0
    assert stack.recording.counts.empty == 1


async def test_what_is_not_to_be_captured_is_not_kept():
    stack = Stack(capture="off")
    await stack.generate(stack.call(["Hi"]), Sample([72, STOP], Finish("stop", STOP)))
    assert len(stack.store) == 0
    assert stack.cache.size.tokens == 0


async def test_a_plug_in_may_ask_again_and_both_answers_are_recorded():
    """A retry is another generation: the second must not fail because the first is held."""

    async def twice(call, call_next):
        async for _ in call_next(call):
            pass
        async for chunk in call_next(call):
            yield chunk

    stack = Stack(plugins=[twice])
    stack.samples += [Sample([72]), Sample([73])]
    await stack.generate(stack.call(["Hi"]))
    assert sorted(held.output_ids.tolist() for held in stack.store._turns.values()) == [[72], [73]]
    stack.store.check_integrity()


# Dropping in steps: nobody waits for all of it


def filled(turns: int, budget_tokens: int = 10**9, **fields: Any) -> TrajectoryStore:
    store = TrajectoryStore(budget_tokens)
    for number in range(turns):
        store.add(turn(f"t{number}", [1, 2], [3], **fields))
    return store


def test_a_turn_that_displaces_very_many_drops_them_with_the_next_ones():
    store = filled(10 * SLICE_TURNS, budget_tokens=30 * SLICE_TURNS)
    assert len(store) == 10 * SLICE_TURNS
    store.add(turn("long", [7] * 30 * SLICE_TURNS, []))
    assert store.dropped_turns == SLICE_TURNS
    for number in range(8):
        store.add(turn(f"next{number}", [], [5]))
        store.check_integrity()
        assert store.dropped_turns == (number + 2) * SLICE_TURNS
    for number in range(8, 12):
        store.add(turn(f"next{number}", [], [5]))
    assert store.tokens <= store.budget_tokens
    assert len(store) == 12, "the long one went last"


def test_a_sweep_drops_what_no_turn_has_displaced_yet():
    store = filled(10 * SLICE_TURNS, budget_tokens=30 * SLICE_TURNS)
    store.add(turn("long", [7] * 30 * SLICE_TURNS, []))
    steps = [len(store) for _ in store.sweep(max_age=5)]
    assert len(steps) > 5
    assert all(before - after <= SLICE_TURNS for before, after in pairwise(steps))
    assert store.tokens <= store.budget_tokens
    assert store.expired_turns == 0


@pytest.mark.parametrize("kind", ["idle", "old weights"])
def test_turns_go_in_steps_between_which_the_store_is_whole_and_in_use(kind):
    store = filled(5 * SLICE_TURNS)
    store.add(turn("base", [4], []))
    steps = store.sweep(max_age=0) if kind == "idle" else store.drop_older(1)
    dropped = [next(steps)]
    store.add(turn("fresh", [9], [], epoch=1))
    if kind == "idle":
        assert store.of_handle("t300", None) is not None, "used in the meantime"
    store.add(turn("on base", [9], [], epoch=1, base="base", base_len=1))
    for count in steps:
        store.check_integrity()
        dropped.append(count)
    assert max(dropped) == SLICE_TURNS
    assert "fresh" in store
    assert "on base" in store
    assert ("t300" in store) == (kind == "idle")
    assert sum(dropped) == store.dropped_turns


def test_a_closed_session_that_is_deleted_while_others_expire_is_left_alone():
    store = filled(2 * SLICE_TURNS)
    for name in ("first", "second"):
        session = store.open_session(SessionSpec(id=name))
        store.add(turn(f"of {name}", [1], [2], session_id=name))
        store.freeze(session)
    steps = store.sweep(max_age=0)
    next(steps)
    store.delete_session("second")
    assert sum(steps) == SLICE_TURNS + 1
    assert len(store) == 0
    store.check_integrity()


def test_the_next_turn_of_a_long_conversation_is_not_put_together_from_all_before_it():
    store = TrajectoryStore(10**9)
    costs = []
    for number in range(1_000):
        base = {"base": f"t{number - 1}", "base_len": 2 * number} if number else {}
        store.add(turn(f"t{number}", [number], [7], **base))
        costs.append(opcodes(partial(store.held_ids, f"t{number}")))
    assert max(costs[10:]) == min(costs[10:])
    assert store.held_ids("t999")[::2].tolist() == list(range(1_000))
    store.check_integrity()


def test_what_is_kept_whole_stays_within_its_bounds_and_goes_with_its_turn():
    store = TrajectoryStore(10**9)
    store._held._kept_tokens = 10
    for name in ("a", "b", "c"):
        store.add(turn(name, [1, 2], [3, 4]))
        assert store.held_ids(name).tolist() == [1, 2, 3, 4]
    assert list(store._held._kept) == ["b", "c"]
    assert not store.held_ids("c").flags.writeable
    store.add(turn("long", [5] * 11, []))
    assert len(store.held_ids("long")) == 11
    assert list(store._held._kept) == ["b", "c"]
    list(store.sweep(max_age=0))
    assert store._held._tokens == 0
    store.add(turn("b", [8], [9]))
    assert store.held_ids("b").tolist() == [8, 9], "another turn of the same name"
