"""The trajectory store, by itself and under the recording."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn, logprob_array
from slime_router.types import Finish, GenerateChunk, VersionSpan, token_ids
from tests.stack import Sample, Stack

STOP = 514


def turn(name: str, prompt: list[int], output: list[int], **fields: Any) -> Turn:
    given: dict[str, Any] = {
        "id": name,
        "base": None,
        "base_len": 0,
        "prompt_ids": token_ids(prompt),
        "output_ids": token_ids(output),
        "logprobs": None,
        "weight_versions": (),
        "finish": Finish("length"),
    }
    return Turn(**{**given, **fields})


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


def test_logprobs_come_back_bit_for_bit():
    exact = [-0.1, -1e-300, -1e300, None]
    array = logprob_array(exact)
    assert array[:3].tolist() == exact[:3]
    assert np.isnan(array[3])
    small = logprob_array([float(np.float32(-0.1)), None])
    assert small.dtype == np.float32
    assert float(small[0]) == float(np.float32(-0.1))
    with pytest.raises(ValueError, match="read-only"):
        small[0] = 0


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
