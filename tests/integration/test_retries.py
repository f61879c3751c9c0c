"""A request that an SDK sends again is joined to the generation that still runs for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import openai
import orjson
import pytest
from aiohttp import web

from slime_router.api.chat.dialect import CHAT as CHAT_DIALECT
from slime_router.api.endpoint import serve
from slime_router.api.fanout import Copies
from slime_router.api.generate.dialect import GENERATE as GENERATE_DIALECT
from slime_router.api.retries import Joiner
from slime_router.errors import NoWorker, WorkerFailed
from slime_router.generation.router import Router
from slime_router.pool.pool import WorkerPool
from slime_router.testing import FakeWorker
from slime_router.types import Finish, GenerateCall, GenerateChunk
from tests.integration import gateway
from tests.integration.scripted import (
    Client,
    Script,
    Scripted,
    Step,
    context_of,
    events,
    first,
    last,
    said,
    served,
)
from tests.relayed import Relayed
from tests.stack import Stack, is_free, pins, tiny_tokenizer

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
FOREVER_S = 1e6
REPLY = "Hello"
STOP = 514
IDS = [72, 73, 74, STOP]


class Gate(asyncio.Event):
    """A place in a script where the worker waits; `reached` says that it came there."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def wait(self) -> Any:
        self.reached.set()
        return await super().wait()


async def soon(holds: Callable[[], bool]) -> None:
    """Waits until `holds()`. Raises TimeoutError: it did not come to that."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - a poll needs nothing of what is watched
            await asyncio.sleep(0.001)


def has_joined(joiner: Joiner, count: int) -> bool:
    return joiner.joined == count


class Door:
    """A door with a joiner; `left` counts the clients whose handlers were cancelled."""

    def __init__(self, client: Client, joiner: Joiner) -> None:
        self.client = client
        self.joiner = joiner
        self.left = 0
        self.asking: list[asyncio.Task[Any]] = []

    def ask(self, tries: int | None = 0, *, headers: Any = None, **fields: Any) -> Asking:
        """Sends a request as an SDK does at its try number `tries`."""
        numbered = {} if tries is None else {"x-stainless-retry-count": str(tries)}
        task = asyncio.create_task(self._ask({**numbered, **(headers or {})}, fields))
        self.asking.append(task)
        return task

    async def _ask(self, headers: dict[str, str], fields: dict[str, Any]) -> Answer:
        path = fields.pop("path", CHAT)
        body = orjson.dumps({**ASK, **fields})
        async with (
            asyncio.timeout(60),
            self.client.post(path, data=body, headers=headers) as response,
        ):
            raw = await response.read()
            return Answer(response.status, dict(response.headers), raw)

    async def leave(self, asking: Asking) -> None:
        """The client of that request goes away, and the door notices it."""
        before = self.left
        asking.cancel()
        await asyncio.wait([asking])
        await soon(lambda: self.left > before)


class Answer:
    """What a client got."""

    def __init__(self, status: int, headers: dict[str, str], raw: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.raw = raw

    @property
    def is_joined(self) -> bool:
        return self.headers.get("x-slime-joined") == "true"

    @property
    def id(self) -> str:
        return str((self.events[0] if self.raw.startswith(b"data") else self.json)["id"])

    @property
    def json(self) -> Any:
        return orjson.loads(self.raw)

    @property
    def events(self) -> list[Any]:
        return events(self.raw)

    @property
    def texts(self) -> list[str]:
        """The text of each choice."""
        if not self.raw.startswith(b"data"):
            return [choice["message"]["content"] for choice in self.json["choices"]]
        said: dict[int, str] = {}
        *told, done = self.events
        assert done == "[DONE]"
        for event in told:
            for choice in event["choices"]:
                index = choice["index"]
                said[index] = said.get(index, "") + (choice["delta"].get("content") or "")
        return [said[index] for index in sorted(said)]


Asking = asyncio.Task[Answer]


@asynccontextmanager
async def serving(
    router: Router, *, grace_s: float = FOREVER_S, limit: int = 8
) -> AsyncIterator[Door]:
    """Chat and /generate; on leaving, the joiner is closed and no task of it is left."""
    joiner = Joiner(router, retry_grace_s=grace_s)
    context = context_of(joiner, limit)

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            if request.path.endswith(CHAT):
                return await serve(CHAT_DIALECT, context, request)
            return await serve(GENERATE_DIALECT, context, request)
        except asyncio.CancelledError:
            door.left += 1
            raise

    async with served("/{path:.*}", handle) as client:
        door = Door(client, joiner)
        yield door
        for task in door.asking:
            task.cancel()
        await asyncio.gather(*door.asking, return_exceptions=True)
    async with asyncio.timeout(60):
        await joiner.close()
    assert joiner.running == 0
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "run"]


@asynccontextmanager
async def scripted(script: Script, **settings: Any) -> AsyncIterator[tuple[Door, Scripted]]:
    worker = Scripted(script)
    async with serving(worker.router(), **settings) as door:
        yield door, worker
    assert len(worker.closed) == len(worker.calls)


def gated(gate: asyncio.Event) -> Script:
    """Every generation waits for the gate before its first chunk."""
    return lambda *_: [gate, first("Hel"), said("lo"), last()]


WAYS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
COUNTS = pytest.mark.parametrize("n", [1, 3])


@WAYS
@COUNTS
async def test_case_50_a_resend_gets_the_generation_that_its_first_try_began(stream, n):
    """One generation, one whole reply under the first try's ids; and it was delivered."""
    gate = Gate()
    async with scripted(gated(gate)) as (door, worker):
        asked = door.ask(stream=stream, n=n, headers={"x-request-id": "the-first"})
        await gate.reached.wait()
        await door.leave(asked)
        assert worker.closed == []
        again = door.ask(1, stream=stream, n=n)
        await soon(lambda: door.joiner.joined == 1)
        gate.set()
        answer = await again
        assert answer.texts == [REPLY] * n
        assert answer.is_joined
        assert answer.id == worker.calls[0].rid
        assert answer.headers["x-request-id"] == "the-first"
        assert orjson.loads(answer.headers["x-slime-receipt"])["status"] == "extended"
        await asyncio.wait_for(worker.all_closed.wait(), 60)
    assert len(worker.calls) == len(worker.read_to_end) == n
    assert door.joiner.abandoned == 0


async def test_a_resend_at_the_generate_door_gets_the_first_trys_rid():
    gate = Gate()
    async with scripted(gated(gate)) as (door, worker):
        for stream in (False, True):
            gate.clear()
            gate.reached.clear()
            fields: Any = {"path": "/generate", "text": "hi", "stream": stream, "messages": None}
            asked = door.ask(**fields)
            await gate.reached.wait()
            await door.leave(asked)
            again = door.ask(1, **fields)
            gate.set()
            answer = await again
            item = answer.events[-2] if stream else answer.json
            assert answer.is_joined
            assert item["text"] == REPLY
            assert item["meta_info"]["id"] == worker.calls[-1].rid
        assert len(worker.calls) == 2


OTHERS: dict[str, dict[str, Any]] = {
    "no header": {"tries": None},
    "a first try": {"tries": 0},
    "a header that is no number": {"headers": {"x-stainless-retry-count": "one"}},
    "another session": {"headers": {"x-session-id": "b"}},
    "another key": {"headers": {"authorization": "Bearer b"}},
    "another anthropic key": {"headers": {"x-api-key": "b"}},
    "another path": {"path": f"/sessions/b{CHAT}"},
    "another body": {"seed": 1},
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("has_left", [False, True])
async def test_what_is_not_the_same_request_sent_again_is_a_new_sample(other, has_left):
    """Pitfall P8: body equality alone is never enough."""
    gate = Gate()
    async with scripted(gated(gate)) as (door, worker):
        asked = door.ask()
        await gate.reached.wait()
        if has_left:
            await door.leave(asked)
        again = door.ask(**{"tries": 1, **OTHERS[other]})
        await soon(lambda: len(worker.calls) == 2)
        gate.set()
        assert not (await again).is_joined
        assert door.joiner.joined == 0


@WAYS
@COUNTS
async def test_a_resend_joins_while_the_first_client_is_still_there(stream, n):
    """A proxy in between kept it. Both get the whole reply, and it was delivered once."""
    gate, middle = Gate(), Gate()
    script: list[Step] = [gate, first("Hel"), middle, said("lo"), last()]
    async with scripted(lambda *_: script) as (door, worker):
        asked = door.ask(stream=stream, n=n)
        await gate.reached.wait()
        again = [door.ask(1, stream=stream, n=n), door.ask(2, stream=stream, n=n)]
        await soon(lambda: door.joiner.joined == 2)
        gate.set()
        await middle.reached.wait()
        middle.set()
        answers = [await asked, *[await one for one in again]]
        assert [answer.texts for answer in answers] == [[REPLY] * n] * 3
        assert [answer.is_joined for answer in answers] == [False, True, True]
        assert len({answer.raw for answer in answers}) == 1
        await asyncio.wait_for(worker.all_closed.wait(), 60)
    assert len(worker.calls) == len(worker.read_to_end) == n


@WAYS
async def test_of_two_readers_one_can_leave(stream):
    gate, middle = Gate(), Gate()
    script: list[Step] = [gate, first("Hel"), middle, said("lo"), last()]
    async with scripted(lambda *_: script) as (door, worker):
        asked = door.ask(stream=stream)
        await gate.reached.wait()
        again = door.ask(1, stream=stream)
        await soon(lambda: door.joiner.joined == 1)
        gate.set()
        await middle.reached.wait()
        await door.leave(asked)
        middle.set()
        assert (await again).texts == [REPLY]
        await asyncio.wait_for(worker.all_closed.wait(), 60)
    assert len(worker.read_to_end) == 1


async def test_a_stream_that_all_its_readers_leave_is_closed_at_once():
    gate, middle = Gate(), Gate()
    script: list[Step] = [gate, first("Hel"), middle, said("lo"), last()]
    async with scripted(lambda *_: script) as (door, worker):
        asked, again = door.ask(stream=True), door.ask(1, stream=True)
        await gate.reached.wait()
        await soon(lambda: door.joiner.joined == 1 or len(worker.calls) == 2)
        gate.set()
        await middle.reached.wait()
        for asking in (asked, again):
            await door.leave(asking)
        await asyncio.wait_for(worker.all_closed.wait(), 60)
        assert door.joiner.running == 0
    assert worker.read_to_end == []


async def test_a_stream_that_has_begun_is_closed_with_its_client_and_cannot_be_joined():
    """SDKs do not send a stream again that has begun: what comes then is another sample."""
    middle = Gate()
    async with scripted(lambda *_: [first("Hel"), middle, said("lo"), last()]) as (door, worker):
        asked = door.ask(stream=True)
        await middle.reached.wait()
        again = door.ask(1, stream=True)
        await soon(lambda: len(worker.calls) == 2)
        await door.leave(asked)
        await soon(lambda: len(worker.closed) == 1)
        middle.set()
        answer = await again
        assert answer.texts == [REPLY]
        assert not answer.is_joined
        await soon(lambda: len(worker.closed) == 2)
    assert worker.read_to_end == [worker.calls[1].rid]


async def test_the_only_reader_of_a_stream_reads_it_in_its_own_task():
    """No task switch and no queue for each token."""
    readers: list[asyncio.Task[Any] | None] = []

    async def dispatch(call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        for chunk in (first("Hel"), said("lo"), last()):
            readers.append(asyncio.current_task())
            yield chunk

    async with serving(Router((), dispatch)) as door:
        assert (await door.ask(stream=True)).texts == [REPLY]
    opening, *rest = readers
    assert opening is not None
    assert opening.get_name() == "run"
    assert opening not in rest
    assert len(set(rest)) == 1


async def test_copies_ask_for_a_chunk_only_when_a_reader_has_dealt_with_those_before():
    """Recording takes a stream that was asked for its end for a reply that was read to its end."""
    asked = 0

    async def stream() -> AsyncGenerator[GenerateChunk, None]:
        nonlocal asked
        for chunk in (first("a"), said("b"), last()):
            asked += 1
            yield chunk
        asked += 1

    copies = Copies()
    filling = asyncio.create_task(copies.fill(stream()))
    fast, slow = copies.reader(), copies.reader()
    for count in (1, 2, 3):
        await anext(fast)
        for _ in range(5):
            await asyncio.sleep(0)
        assert asked == count
    assert [chunk.text async for chunk in fast] == []
    assert [chunk.text async for chunk in slow] == ["a", "b", ""]
    assert asked == 4
    await filling


@WAYS
async def test_where_one_of_several_never_finishes_the_others_are_not_waited_for(stream):
    """They are held at their finish until the reply is whole, and this one will never be."""

    def script(_: GenerateCall, k: int) -> list[Step]:
        return [first("a")] if k == 1 else [first("Hel"), said("lo"), last()]

    async with scripted(script) as (door, worker):
        answer = await asyncio.wait_for(door.ask(stream=stream, n=3), 60)
        error = answer.events[-2] if stream else answer.json
        assert error["error"]["code"] == "upstream_error"
    assert worker.read_to_end == [worker.calls[1].rid]


@WAYS
@COUNTS
@pytest.mark.parametrize("error", [NoWorker("none"), WorkerFailed("died"), KeyError("bug")])
async def test_where_the_joined_generation_fails_all_get_the_error(stream, n, error):
    gate = Gate()
    async with scripted(lambda *_: [gate, error]) as (door, worker):
        asked = door.ask(stream=stream, n=n)
        await gate.reached.wait()
        again = door.ask(1, stream=stream, n=n)
        await soon(lambda: door.joiner.joined == 1)
        gate.set()
        answers = [await asked, await again]
    assert len(worker.calls) == n
    assert answers[0].status == answers[1].status == getattr(error, "status", 500)
    assert answers[0].json == answers[1].json
    assert answers[0].headers["x-request-id"] == answers[1].headers["x-request-id"]
    assert [answer.is_joined for answer in answers] == [False, True]


async def test_where_a_shared_stream_fails_all_get_the_event():
    gate = Gate()
    script: list[Step] = [gate, first("a"), WorkerFailed("died")]
    async with scripted(lambda *_: script) as (door, _):
        asked = door.ask(stream=True)
        await gate.reached.wait()
        again = door.ask(1, stream=True)
        await soon(lambda: door.joiner.joined == 1)
        gate.set()
        answers = [await asked, await again]
    for answer in answers:
        assert answer.events[-2]["error"]["message"] == "died"
        assert answer.events[-1] == "[DONE]"


@WAYS
@pytest.mark.parametrize(
    "failure", [NoWorker("none"), last(Finish("abort"), output_ids=[], logprobs=[])]
)
async def test_a_resend_after_an_error_is_a_new_generation(stream, failure):
    """What failed is over; and the next try is not one of a twin that still runs."""
    gate = Gate()

    def script(_: GenerateCall, k: int) -> Any:
        return [failure] if k == 1 else [gate, first("Hel"), said("lo"), last()]

    async with scripted(script) as (door, worker):
        twin = door.ask(stream=stream)
        await gate.reached.wait()
        assert (await door.ask(stream=stream)).status == 503
        again = door.ask(1, stream=stream)
        await soon(lambda: len(worker.calls) == 3 or door.joiner.joined == 1)
        gate.set()
        answers = [await twin, await again]
    assert len({answer.id for answer in answers}) == 2
    assert door.joiner.joined == 0


async def test_a_resend_after_a_refusal_is_not_joined_to_the_one_that_was_let_in():
    """Several samples of one prompt, one of them turned away at the door for now."""
    gate = Gate()
    async with scripted(gated(gate), limit=2) as (door, worker):
        asked = [door.ask(), door.ask(seed=1)]
        await soon(lambda: len(worker.calls) == 2)
        assert (await door.ask()).status == 429
        await door.leave(asked.pop())
        again = door.ask(1)
        await soon(lambda: len(worker.calls) == 3 or door.joiner.joined == 1)
        gate.set()
        answers = [await asked[0], await again]
    assert answers[0].id != answers[1].id


async def test_each_of_two_equal_requests_that_left_is_joined_once():
    gate = Gate()
    async with scripted(gated(gate)) as (door, worker):
        for asking in [door.ask(), door.ask()]:
            await soon(lambda: len(worker.calls) == 2)
            await door.leave(asking)
        again = [door.ask(1), door.ask(1), door.ask(1)]
        await soon(lambda: len(worker.calls) == 3)
        gate.set()
        answers = [await one for one in again]
    assert len({answer.id for answer in answers}) == 3
    assert sorted(answer.is_joined for answer in answers) == [False, True, True]


@WAYS
@COUNTS
async def test_when_the_grace_runs_out_the_generation_is_closed(stream, n):
    gate = Gate()
    async with scripted(gated(gate), grace_s=0.001) as (door, worker):
        asked = door.ask(stream=stream, n=n)
        await gate.reached.wait()
        await door.leave(asked)
        await asyncio.wait_for(worker.all_closed.wait(), 60)
        await soon(lambda: door.joiner.running == 0)
        gate.set()
        assert not (await door.ask(1, stream=stream, n=n)).is_joined
    assert door.joiner.abandoned == 1
    assert len(worker.read_to_end) == n


@WAYS
@pytest.mark.parametrize(("grace_s", "tries"), [(0, 0), (FOREVER_S, None)])
async def test_without_grace_or_header_the_generation_ends_with_its_client(stream, grace_s, tries):
    gate = Gate()
    async with scripted(gated(gate), grace_s=grace_s) as (door, worker):
        asked = door.ask(tries, stream=stream)
        await gate.reached.wait()
        asked.cancel()
        await asyncio.wait_for(worker.all_closed.wait(), 60)
        assert door.joiner.running == 0
        gate.set()
        assert not (await door.ask(1, stream=stream)).is_joined
    assert door.joiner.abandoned == 0


async def test_without_grace_nothing_is_joined():
    gate = Gate()
    async with scripted(gated(gate), grace_s=0) as (door, worker):
        asked, again = door.ask(), door.ask(1)
        await soon(lambda: len(worker.calls) == 2)
        gate.set()
        assert [(await one).is_joined for one in (asked, again)] == [False, False]


@WAYS
async def test_a_generation_that_finished_unread_waits_for_the_resend_too(stream, monkeypatch):
    gate = Gate()
    async with scripted(gated(gate)) as (door, worker):
        asked = door.ask(stream=stream)
        await gate.reached.wait()
        await door.leave(asked)
        gate.set()
        for _ in range(100):  # more than it takes the generation to come to its end
            await asyncio.sleep(0)
        assert worker.read_to_end == worker.closed == []
        answer = await door.ask(1, stream=stream)
        assert answer.texts == [REPLY]
        assert answer.is_joined
        await asyncio.wait_for(worker.all_closed.wait(), 60)
    assert len(worker.calls) == len(worker.read_to_end) == 1


async def test_each_try_that_leaves_has_a_grace_of_its_own():
    gate = Gate()
    async with scripted(gated(gate)) as (door, worker):
        for tries in range(4):
            asked = door.ask(tries)
            await gate.reached.wait()
            await soon(partial(has_joined, door.joiner, tries))
            await door.leave(asked)
        assert len(worker.calls) == 1
        gate.set()
        assert (await door.ask(4)).texts == [REPLY]
        assert door.joiner.joined == 4


async def test_the_grace_ends_when_a_resend_has_come():
    gate = Gate()
    async with scripted(gated(gate), grace_s=0.2) as (door, _):
        asked = door.ask()
        await gate.reached.wait()
        await door.leave(asked)
        over_s = asyncio.get_running_loop().time() + 0.2
        again = door.ask(1)
        await soon(lambda: door.joiner.joined == 1)
        await soon(lambda: asyncio.get_running_loop().time() > over_s)
        gate.set()
        assert (await again).texts == [REPLY]
    assert door.joiner.abandoned == 0


@WAYS
async def test_closing_the_app_closes_what_waits_for_a_resend(stream):
    """`serving` looks for tasks, `scripted` for generations that are still open."""
    gate = Gate()
    async with scripted(gated(gate)) as (door, worker):
        asked = door.ask(stream=stream)
        await gate.reached.wait()
        await door.leave(asked)
        assert worker.closed == []
    assert worker.read_to_end == []
    assert door.joiner.abandoned == 0


async def test_a_failure_that_nobody_is_told_of_is_logged(caplog):
    gate = Gate()
    async with scripted(lambda *_: [gate, WorkerFailed("died")]) as (door, _):
        asked = door.ask()
        await gate.reached.wait()
        await door.leave(asked)
        with caplog.at_level(logging.WARNING):
            gate.set()
            await soon(lambda: door.joiner.running == 0)
    assert [record.msg.partition(" ")[0] for record in caplog.records] == ["run.failed_unseen"]


class Recorded:
    """A door in front of the recording, the cache and a worker."""

    def __init__(self, door: Door, stack: Stack, worker: FakeWorker, pool: WorkerPool) -> None:
        self.door = door
        self.stack = stack
        self.worker = worker
        self.pool = pool

    def is_at_rest(self) -> bool:
        return not (self.pool.total_in_flight or pins(self.stack.cache) or self.door.joiner.running)

    def turns(self) -> tuple[int, int]:
        """How many turns were recorded, and how many of them were not delivered."""
        counts = self.stack.recording.counts
        return counts.turns, counts.undelivered


@asynccontextmanager
async def recorded(**settings: Any) -> AsyncIterator[Recorded]:
    """On leaving: no lease, no pin and no task is left."""
    others = asyncio.all_tasks()
    async with FakeWorker(eos_ids=[STOP], vocab_size=544, notices_disconnect=False) as worker:
        pool = WorkerPool([worker.url])
        async with Relayed(pool, capture="full", request_timeout_s=60.0) as client:
            stack = Stack(dispatch=client.relay.generate, tokenizer=tiny_tokenizer())
            async with serving(stack.router, **settings) as door:
                parts = Recorded(door, stack, worker, pool)
                yield parts
            assert parts.is_at_rest()
            assert is_free(stack.cache)
            stack.store.check_integrity()
    assert asyncio.all_tasks() == others


@WAYS
@COUNTS
async def test_a_turn_is_delivered_when_a_resend_read_its_reply(stream, n):
    """One recorded turn for each choice, not one for each try."""
    async with recorded() as parts:
        for _ in range(n):
            parts.worker.script(IDS)
        parts.worker.hold()
        asked = parts.door.ask(stream=stream, n=n)
        await parts.worker.wait_running(n)
        await parts.door.leave(asked)
        again = parts.door.ask(1, stream=stream, n=n)
        await soon(lambda: parts.door.joiner.joined == 1)
        parts.worker.release()
        await again
        await soon(parts.is_at_rest)
        assert parts.turns() == (n, 0)
        assert len(parts.worker.requests) == n
        assert parts.worker.aborted == []


@COUNTS
@pytest.mark.parametrize(
    ("stream", "reads_all"), [(False, True), (False, False), (True, False)], ids=str
)
async def test_a_turn_that_nobody_read_is_aborted_or_undelivered(stream, n, reads_all):
    """Aborted where the grace ends first, undelivered where the generation does."""
    async with recorded(grace_s=0.05) as parts:
        for _ in range(n):
            parts.worker.script(IDS)
        parts.worker.hold()
        asked = parts.door.ask(stream=stream, n=n)
        await parts.worker.wait_running(n)
        await parts.door.leave(asked)
        if reads_all:
            parts.worker.release()
        await soon(parts.is_at_rest)
        assert parts.turns() == ((n, n) if reads_all else (0, 0))
        if not reads_all:
            await soon(lambda: len(parts.worker.aborted) == n)


async def test_cancelled_at_every_step_neither_the_first_try_nor_its_resend_holds_anything():
    """Both clients leave after so many steps of the event loop, the grace is over at once."""
    was_cut, step, outcomes = True, 0, set()
    while was_cut:
        async with recorded(grace_s=1e-9) as parts:
            parts.worker.script(IDS)
            parts.worker.script(IDS)
            asking = [parts.door.ask(stream=step % 2 == 0), parts.door.ask(1, stream=step % 2 == 0)]
            for _ in range(step):
                await asyncio.sleep(0)
            cut = [one.cancel() for one in asking]
            was_cut = any(cut)
            await asyncio.wait(asking)
            await soon(parts.is_at_rest)
            turns, undelivered = parts.turns()
            assert was_cut or not undelivered
            outcomes.add((turns > 0, undelivered > 0))
        step += 5
    assert outcomes >= {(False, False), (True, True), (True, False)}


async def test_the_whole_app_joins_within_a_session_and_closes_what_still_waits():
    """`gateway.served` looks for leases that were not given back."""
    body = {"messages": ASK["messages"]}
    async with gateway.served(retry_grace_s=FOREVER_S) as (router, worker):
        worker.hold()

        async def ask(tries: int, path: str) -> Answer:
            headers = {"x-stainless-retry-count": str(tries)}
            async with router.http.post(path, json=body, headers=headers) as response:
                return Answer(response.status, dict(response.headers), await response.read())

        asked = [asyncio.create_task(ask(0, f"/sessions/{name}{CHAT}")) for name in "ab"]
        await worker.wait_running(2)
        for one in asked:
            one.cancel()
        again = asyncio.create_task(ask(1, f"/sessions/a{CHAT}"))
        await soon(lambda: router.gateway.joiner.joined == 1)
        assert len(worker.requests) == 2
        assert worker.aborted == []
        again.cancel()


class OnceTimedOut(httpx.AsyncHTTPTransport):
    """Times out on the first request when `is_over` is set, and waits for any other."""

    def __init__(self) -> None:
        super().__init__()
        self.is_over = asyncio.Event()
        self.is_first = True

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self.is_first:
            return await super().handle_async_request(request)
        self.is_first = False
        sent = asyncio.ensure_future(super().handle_async_request(request))
        await self.is_over.wait()
        sent.cancel()
        await asyncio.wait([sent])
        raise httpx.ReadTimeout("The reply takes too long.", request=request)


async def test_openais_client_that_times_out_gets_the_reply_of_its_first_try():
    """It sends the request again by itself, half a second later."""
    gate = Gate()
    wire = OnceTimedOut()
    http: Any = httpx.AsyncClient(transport=wire)  # newer SDKs take httpx2's by type, and both
    async with (
        scripted(gated(gate)) as (door, worker),
        openai.AsyncOpenAI(
            base_url=str(door.client.make_url("/v1")),
            api_key="x",
            max_retries=1,
            http_client=http,
        ) as sdk,
    ):
        messages: Any = ASK["messages"]
        create: Any = sdk.chat.completions.with_raw_response.create
        asking = asyncio.ensure_future(create(model="m", messages=messages))
        async with asyncio.timeout(60):
            await gate.reached.wait()
        wire.is_over.set()
        await soon(lambda: door.left == 1)
        gate.set()
        raw = await asking
        assert raw.headers["x-slime-joined"] == "true"
        assert raw.parse().choices[0].message.content == REPLY
    assert len(worker.calls) == 1
    assert door.joiner.joined == 1
