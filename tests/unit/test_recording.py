"""What becomes of generations that end oddly: nothing is lost without a count and a log line."""

from __future__ import annotations

import logging

import pytest

from slime_router.trajectory.store import Turn
from slime_router.types import Finish, GenerateChunk, token_ids
from tests.stack import Sample, Stack


async def read_one(stack: Stack, call, sample: Sample) -> None:
    """Reads the first chunk, then leaves."""
    stack.samples.append(sample)
    async with stack.router.generate(call) as chunks:
        async for _ in chunks:
            break


async def test_a_generation_without_a_token_is_counted_and_not_recorded():
    async def nothing(call):
        yield GenerateChunk(output_ids=[], finish=Finish("length"))

    stack = Stack(dispatch=nothing)
    await stack.generate(stack.call(["Hi"]))
    async with stack.router.generate(stack.call(["Hi"])) as chunks:
        async for _ in chunks:
            break  # and nobody reads on
    assert len(stack.store) == 0
    assert (stack.recording.counts.empty, stack.recording.counts.undelivered) == (2, 0)


async def test_a_turn_that_nobody_read_to_its_end_is_kept_as_undelivered():
    stack = Stack()
    call = stack.call(["Hi"])
    await read_one(stack, call, Sample([65, 66, 67]))
    turn = stack.store.get(call.turn_id)
    assert turn is not None
    assert turn.output_ids.tolist() == [65]
    assert turn.finish.type == "abort"
    assert not stack.store.is_delivered(call.turn_id)
    assert stack.recording.counts.undelivered == 1


async def test_a_full_store_says_so_once(caplog):
    stack = Stack(budget_tokens=40)
    with caplog.at_level(logging.WARNING, "slime_router"):
        for index in range(6):
            await stack.generate(stack.call([f"question {index}"]), Sample([65] * 8))
    assert stack.store.dropped_turns > 1
    assert [r.message for r in caplog.records].count(
        "the store is full: its oldest turns are dropped from now on"
    ) == 1  # fmt: skip


async def test_a_turn_whose_base_was_dropped_meanwhile_is_recorded_whole(caplog):
    stack = Stack()
    first = stack.call(["Hi"])
    text = await stack.generate(first, Sample([65, 66]))
    held = stack.store.held_ids(first.turn_id).tolist()
    then = stack.call(["Hi", text, "more"])
    stack.samples.append(Sample([67, 68]))
    async with stack.router.generate(then) as chunks:
        async for _ in chunks:
            if first.turn_id in stack.store:
                stack.store._budget_tokens = 1
                stack.store.add(_other_turn())
    turn = stack.store.get(then.turn_id)
    assert turn is not None
    assert (turn.base, turn.base_len) == (None, 0)
    assert stack.store.held_ids(turn.id)[: len(held)].tolist() == held
    assert stack.recording.counts.rebased == 1
    assert "was dropped" in caplog.text


async def test_a_turn_that_cannot_be_filed_by_text_says_so_and_is_still_exact(caplog):
    stack = Stack()
    first = stack.call(["Hi"])
    text = await stack.generate(first, Sample([65, 66]))
    held = stack.store.held_ids(first.turn_id).tolist()
    stack.cache._budget_tokens = 0
    await stack.cache.enforce_budget()
    call = stack.call(["Hi", text, "more"])
    stack.samples.append(Sample([67]))
    async with stack.router.generate(call) as chunks:
        prompts = [chunk.prompt async for chunk in chunks]
    assert prompts[0] is not None
    assert prompts[0].receipt.status == "extended"
    assert "not filed" in prompts[0].receipt.reason
    assert stack.sent[-1][: len(held)] == held
    assert stack.cache.counts.lost_paths == 1
    assert "not filed by text" in caplog.text


def _other_turn():
    return Turn(
        id="other", base=None, base_len=0, prompt_ids=token_ids([1]), output_ids=token_ids([2]),
        logprobs=None, weight_versions=(), finish=Finish("length"),
    )  # fmt: skip


@pytest.mark.parametrize("capture", ["full", "tokens"])
async def test_missing_logprobs_are_none_and_counted(capture, caplog):
    stack = Stack(capture=capture)
    turn = await stack.turn(stack.call(["Hi"]), Sample([65, 66], logprobs=[-0.5, None]))
    assert turn.logprobs is not None
    assert str(turn.logprobs.tolist()) == "[-0.5, nan]"
    assert stack.recording.counts.missing_logprobs == 1
    assert "1 of 2 logprobs are missing" in caplog.text
