"""Whenever a generation is given up, anywhere: nothing is held, and no turn is half recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from slime_router.pool.pool import WorkerPool
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.testing import FakeWorker
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Finish, GenerateCall, GenerateChunk, Grammar, Sampling
from tests.relayed import Relayed
from tests.stack import Sample, Stack, is_free, pins, tiny_tokenizer

STOP = 514
REPLY = [72, 73, 74, STOP]
SEEN = [39, STOP]  # the reply of the turn before
ASK = ["Hello there", "H", "And you?"]


class Waiting:
    """The tiny tokenizer, which takes a while for every text, as for a long one."""

    def __init__(self) -> None:
        self._tokenizer = tiny_tokenizer()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    async def encode_pieces_async(self, text: str, *_rest: Any) -> Any:
        for _ in range(3):
            await asyncio.sleep(0)
        return self._tokenizer.encode_pieces(text)


def waiting_tokenizer() -> Tokenizer:
    tokenizer: Any = Waiting()
    return tokenizer  # type: ignore[no-any-return]  # it is one in all that is used


class Wired:
    """A stack in front of a fake worker."""

    def __init__(self, worker: FakeWorker, client: Relayed, pool: WorkerPool) -> None:
        self.worker = worker
        self.pool = pool
        # The budget is passed with every turn, so that each one evicts too.
        self.stack = Stack(
            dispatch=client.relay.generate, tokenizer=waiting_tokenizer(), budget_tokens=30
        )
        self.was_read = False

    async def read(self, call: GenerateCall, ids: list[int]) -> None:
        self.worker.script(ids)
        async with self.stack.router.generate(call) as chunks:
            async for chunk in chunks:
                self.was_read = chunk.finish is not None  # and now it asks for more

    def check(self, call: GenerateCall) -> None:
        """Nothing is held; the turn is absent or complete."""
        assert self.pool.total_in_flight == 0
        check_rest(self.stack)
        turn = self.stack.store.get(call.turn_id)
        if turn is None:
            assert not self.was_read
            return
        assert turn.output_ids.tolist() == REPLY[: len(turn.output_ids)]
        assert turn.logprobs is not None
        assert len(turn.logprobs) == len(turn.output_ids)
        held = self.stack.store.held_ids(turn.id).tolist()
        sent = self.worker.requests[-1].body["input_ids"]
        assert held == sent + turn.output_ids.tolist()
        if call.messages is not None and len(call.messages) == len(ASK):
            first = self.worker.requests[0].body["input_ids"] + SEEN
            assert sent[: len(first)] == first
        assert self.stack.store.is_delivered(turn.id) is self.was_read
        if self.was_read:
            assert len(turn.output_ids) == len(REPLY)


def check_rest(stack: Stack) -> None:
    assert pins(stack.cache) == 0
    assert is_free(stack.cache)
    assert not stack.recording._open
    stack.cache.check_integrity()
    stack.store.check_integrity()


@asynccontextmanager
async def wired() -> AsyncIterator[Wired]:
    """... with a first turn recorded; on leaving, no task is left behind."""
    others = asyncio.all_tasks()
    async with FakeWorker(eos_ids=[STOP], vocab_size=544, notices_disconnect=False) as worker:
        pool = WorkerPool([worker.url])
        async with Relayed(pool, capture="full", request_timeout_s=60.0) as client:
            parts = Wired(worker, client, pool)
            await parts.read(parts.stack.call(ASK[:1]), SEEN)
            parts.was_read = False
            yield parts
        await worker.wait_running(0)
    assert asyncio.all_tasks() == others


@pytest.mark.parametrize("says", [ASK, ["Something else"]], ids=["extended", "fresh"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_cancelled_at_every_step(stream, says):
    """From the prompt over the worker to the eviction after the last chunk."""
    outcomes = set()
    was_cancelled, step = True, 0
    while was_cancelled:
        async with wired() as parts:
            call = parts.stack.call(says, stream=stream)
            task = asyncio.create_task(parts.read(call, REPLY))
            for _ in range(step):
                await asyncio.sleep(0)
            was_cancelled = task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() is was_cancelled
            parts.check(call)
            turn = parts.stack.store.get(call.turn_id)
            outcomes.add((turn is not None, parts.was_read))
        step += 1
    cut_short = {(True, False)} if stream else set()  # a whole reply comes at once, or not
    assert outcomes == {(False, False), (True, True)} | cut_short
    assert parts.stack.cache.counts.evicted_nodes > 0, "the last step came to the eviction"
    assert step > 10


@pytest.mark.parametrize("taken", range(1, 5))
async def test_a_stream_that_is_closed_early_leaves_an_undelivered_turn(taken):
    """The client may go after any chunk, the last one too."""
    async with wired() as parts:
        parts.worker.script(REPLY)
        call = parts.stack.call(ASK, stream=True)
        got: list[int] = []
        async with parts.stack.router.generate(call) as chunks:
            async for chunk in chunks:
                got += chunk.output_ids
                if len(got) >= taken:
                    break
        parts.check(call)
        turn = parts.stack.store.get(call.turn_id)
        assert turn is not None
        assert turn.output_ids.tolist() == got
        assert turn.finish.type == ("stop" if len(got) == len(REPLY) else "abort")
        assert parts.stack.recording.counts.undelivered == 1
        node = parts.stack.cache.pin_turn(call.turn_id)
        assert node is not None, "the tree has what was sampled, too"
        assert node.path_ids().tolist() == parts.stack.store.held_ids(turn.id).tolist()
        parts.stack.cache.unpin(node)


async def test_a_stream_that_is_never_read_leaves_nothing():
    async with wired() as parts:
        call = parts.stack.call(ASK, stream=True)
        async with parts.stack.router.generate(call):
            pass
        parts.check(call)
        assert call.turn_id not in parts.stack.store
        assert len(parts.worker.requests) == 1


async def test_a_turn_that_was_cut_short_can_be_gone_on_with_by_who_kept_its_text():
    """What was sampled was sampled: it is sent again, not encoded again."""
    async with wired() as parts:
        parts.worker.script(REPLY)
        call = parts.stack.call(ASK, stream=True)
        text = ""
        async with parts.stack.router.generate(call) as chunks:
            async for chunk in chunks:
                text += chunk.text
                if len(text) >= 2:
                    break
        held = parts.stack.store.held_ids(call.turn_id).tolist()
        following = parts.stack.call([*ASK, text, "Go on"])
        await parts.read(following, REPLY)
        assert parts.worker.requests[-1].body["input_ids"][: len(held)] == held
        parts.check(following)


class Fault(Exception):
    pass


@pytest.mark.parametrize("fails_after", [0, 1, 4])
async def test_a_plug_in_that_fails_leaves_nothing_held(fails_after):
    """Before it asks, in the middle, and after the last chunk."""

    async def failing(call: GenerateCall, call_next: Any) -> AsyncGenerator[GenerateChunk, None]:
        count = 0
        if not fails_after:
            raise Fault
        async for chunk in call_next(call):
            yield chunk
            count += 1
            if count == fails_after:
                raise Fault

    stack = Stack(plugins=[failing], tokenizer=waiting_tokenizer())
    call = stack.call(["Hi"])
    with pytest.raises(Fault):
        await stack.generate(call, Sample(REPLY, Finish("stop", STOP)))
    check_rest(stack)
    turn = stack.store.get(call.turn_id)
    assert (turn.output_ids.tolist() if turn else []) == REPLY[:fails_after]
    assert not stack.store.is_delivered(call.turn_id)


@pytest.mark.parametrize("fails_after", [0, 1, 3])
async def test_a_worker_that_fails_leaves_nothing_held(fails_after):
    """What came before the failure is kept, undelivered."""

    async def dying(call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        for token_id in REPLY[:fails_after]:
            yield GenerateChunk(output_ids=[token_id], logprobs=[-1.0])
        raise Fault

    stack = Stack(dispatch=dying, tokenizer=waiting_tokenizer())
    call = stack.call(["Hi"])
    with pytest.raises(Fault):
        await stack.generate(call)
    check_rest(stack)
    turn = stack.store.get(call.turn_id)
    assert (turn.output_ids.tolist() if turn else []) == REPLY[:fails_after]
    assert not stack.store.is_delivered(call.turn_id)


async def test_a_retrieval_that_is_cancelled_leaves_nothing_held():
    was_cancelled, step = True, 0
    stack = Stack(tokenizer=waiting_tokenizer())
    await stack.generate(stack.call(ASK[:1]), Sample(SEEN, Finish("stop", STOP)))
    while was_cancelled:
        task = asyncio.create_task(stack.retriever.by_messages(stack.call(ASK)))
        for _ in range(step):
            await asyncio.sleep(0)
        was_cancelled = task.cancel()
        await asyncio.wait([task])
        check_rest(stack)
        step += 1
    assert step > 2


async def test_clients_that_always_leave_early_do_not_grow_the_tree_past_its_budget():
    """The eviction after a whole reply never comes then."""
    stack = Stack(budget_tokens=60)
    sizes = []
    for number in range(30):
        stack.samples.append(Sample(REPLY, Finish("stop", STOP)))
        async with stack.router.generate(stack.call([f"Number {number}, please"])) as chunks:
            await anext(chunks)
        sizes.append(stack.cache.size.tokens)
    assert max(sizes) <= 60 + max(map(len, stack.sent)) + len(REPLY), "one turn too many, for once"
    check_rest(stack)


async def test_a_parser_that_fails_before_the_prompt_is_sent_leaves_nothing_held():
    class Parsers(ReplyParsers):
        def thinks_first(self, *_: object, **__: object) -> bool:
            raise KeyError("enable_thinking")

    stack = Stack(parsers=Parsers(load_parsers, tools=None, reasoning=None))
    grammar = Sampling(grammar=Grammar("regex", "a+"))
    for _ in range(2):
        with pytest.raises(KeyError):
            await stack.generate(stack.call(["hello"], sampling=grammar), Sample([5]))
    check_rest(stack)
