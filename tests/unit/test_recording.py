"""What becomes of generations that end oddly: nothing is lost without a count and a log line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

import numpy as np
import pytest

from slime_router.trajectory.turn import Turn
from slime_router.types import (
    Finish,
    GenerateCall,
    GenerateChunk,
    Prompt,
    Receipt,
    VersionSpan,
    token_ids,
)
from tests.stack import Sample, Stack, is_free


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


async def test_a_turn_is_delivered_when_its_reader_asks_for_more_than_all():
    """A client has the whole reply and hangs up; what the router still tidies up is cut short."""

    async def never_tidy(call):
        prompt = Prompt(token_ids([1]), Receipt("fresh", 0, 1, call.turn_id, ""))
        yield GenerateChunk(output_ids=[65], finish=Finish("length"), prompt=prompt)
        await asyncio.Event().wait()

    stack = Stack(dispatch=never_tidy)
    call = stack.call(["Hi"])
    async with stack.router.generate(call) as chunks:
        await anext(chunks)
        rest = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        rest.cancel()
        await asyncio.wait([rest])
    assert stack.store.is_delivered(call.turn_id)
    assert stack.recording.counts.undelivered == 0


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


STOP = 514


async def test_the_tree_and_the_store_hold_the_same_memory():
    """Each token's id is kept once, however it is found."""
    stack = Stack()
    says = ["Hi there, how are you?"]
    for _ in range(2):
        call = stack.call(says)
        turn = await stack.turn(call, Sample([72, STOP], Finish("stop", STOP)))
        says += [stack.tokenizer.decode([72], skip_special_tokens=False), "Go on"]
        runs = [node.ids for node in stack.cache._tree.nodes()]
        for ids in (turn.prompt_ids, turn.output_ids):
            shared = sum(len(run) for run in runs if np.shares_memory(run, ids))
            assert shared == len(ids)


async def test_chunks_of_several_weight_versions_become_spans():
    """A worker that names one version at a time: each chunk's tokens belong to the one it named."""

    async def worker(call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        for version, finish in (("v1", None), ("v1", None), ("v2", Finish("length"))):
            yield GenerateChunk(
                output_ids=[100], logprobs=[-0.5], weight_version=version, finish=finish
            )

    stack = Stack(dispatch=worker)
    call = stack.call("Begin ")
    await stack.generate(call)
    turn = stack.store.get(call.turn_id)
    assert turn is not None
    assert turn.weight_versions == (VersionSpan("v1", 0, 2), VersionSpan("v2", 2, 3))
    assert (stack.weights.current, stack.weights.epoch, turn.epoch) == ("v2", 2, 2)


async def test_tokens_of_no_known_version_are_in_no_span():
    async def worker(call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        for version in (None, "v1", None, "v1"):
            yield GenerateChunk(output_ids=[100], logprobs=[-0.5], weight_version=version)
        yield GenerateChunk(output_ids=[], weight_version="v2", finish=Finish("length"))

    stack = Stack(dispatch=worker)
    call = stack.call("Begin ")
    await stack.generate(call)
    turn = stack.store.get(call.turn_id)
    assert turn is not None
    assert turn.weight_versions == (VersionSpan("v1", 1, 2), VersionSpan("v1", 3, 4))


# Faults of our own


async def test_a_fault_in_recording_never_fails_the_reply(monkeypatch, caplog):
    def broken(*_: object) -> None:
        raise RuntimeError("a fault")

    stack = Stack()
    monkeypatch.setattr(stack.store, "add", broken)
    stack.samples.append(Sample([5, 6]))
    async with stack.router.generate(stack.call("Hi")) as chunks:
        last = [chunk async for chunk in chunks][-1]
    assert last.finish is not None
    assert last.receipt is not None
    assert last.receipt.notes == ("not recorded: the router failed, its log says why",)
    assert (stack.recording.counts.failed, stack.recording.counts.turns) == (1, 0)
    assert "a fault" in caplog.text
    assert is_free(stack.cache)


async def test_a_fault_in_filing_never_fails_the_reply(monkeypatch, caplog):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault")

    stack = Stack()
    monkeypatch.setattr(stack.cache, "insert", broken)
    stack.samples.append(Sample([5, 6]))
    async with stack.router.generate(stack.call("Hi")) as chunks:
        last = [chunk async for chunk in chunks][-1]
    assert last.receipt is not None
    assert last.receipt.notes == ("not cached: the router failed, its log says why",)
    assert stack.cache.counts.failed_insertions == 1
    assert stack.recording.counts.turns == 1
    assert "a fault" in caplog.text
