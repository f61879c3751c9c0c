"""Streams with nothing to say show signs of life; what fails at once is still an HTTP error."""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import Any

import aiohttp
import anthropic
import httpx
import openai
import orjson
import pytest

from slime_router.api import sse
from tests.integration.any_worker import any_worker
from tests.integration.gateway import CHAT, Served, served, serving, until, user
from tests.integration.scripted import events

EVERY_S = 0.01
COMMENT = b": keep-alive\n\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
TALK: dict[str, Any] = {"model": "tiny", "messages": [user("Hi")], "max_tokens": 4, "stream": True}
DOORS: dict[str, tuple[str, dict[str, Any], bytes]] = {
    "chat": (CHAT, TALK, COMMENT),
    "completions": ("/v1/completions", {"prompt": "Hi", "stream": True, "max_tokens": 4}, COMMENT),
    "responses": (
        "/v1/responses",
        {"input": "Hi", "stream": True, "max_output_tokens": 4},
        COMMENT,
    ),
    "messages": ("/v1/messages", TALK, PING),
    "generate": (
        "/generate",
        {"text": "Hi", "stream": True, "sampling_params": {"max_new_tokens": 4}},
        COMMENT,
    ),
    "token ids": (
        "/inference/v1/generate",
        {"token_ids": [5, 6], "stream": True, "sampling_params": {"max_tokens": 4}},
        COMMENT,
    ),
}
all_doors = pytest.mark.parametrize("door", DOORS)


async def read_to(response: aiohttp.ClientResponse, sign: bytes, count: int) -> bytes:
    """What came until there were that many signs in a row."""
    raw = b""
    async with asyncio.timeout(60):
        while not raw.endswith(sign * count):
            raw += await response.content.readuntil(b"\n\n")
    return raw


def said(raw: bytes, sign: bytes) -> list[bytes]:
    """The other frames of a stream."""
    assert raw.endswith(b"\n\n") or not raw
    return [frame for frame in raw.split(b"\n\n") if frame and frame != sign.removesuffix(b"\n\n")]


def kinds(frames: list[bytes]) -> list[bytes]:
    """What the frames begin with; how tokens share them depends on when they come."""
    heads = [frame.partition(b"\n")[0] for frame in frames]
    return [head for head, _ in groupby(head if b"event" in head else head[:7] for head in heads)]


async def whole(router: Served, door: str) -> list[bytes]:
    """The events of a stream that was never silent for long."""
    path, body, sign = DOORS[door]
    async with router.http.post(path, json=body) as response:
        frames = said(await response.read(), sign)
    return [frame for frame in frames if not frame.startswith(b": ")]


@all_doors
@pytest.mark.parametrize("after_tokens", [0, 2])
async def test_a_silent_stream_shows_signs_of_life(door, after_tokens):
    """Before its first token and in the middle; the rest is what it would have been."""
    path, body, sign = DOORS[door]
    async with served(sse_keepalive_s=EVERY_S) as (router, worker):
        for _ in range(2):
            worker.script([11, 12, 13, 14])
        worker.hold(after_tokens)
        async with router.http.post(path, json=body) as response:
            assert response.status == 200
            begun = await read_to(response, sign, 2)
            has_receipt = "x-slime-receipt" in response.headers
            worker.release()
            raw = begun + await response.read()
        worker._engine.held_after = None
        usual = await whole(router, door)
    frames = said(raw, sign)
    notes = [frame for frame in frames if frame.startswith(b": ")]
    assert after_tokens or not has_receipt  # on a busy machine a sign comes before the first token
    if has_receipt:
        assert notes == []
    else:
        [note] = notes
        assert orjson.loads(note.removeprefix(b": x-slime-receipt: "))["status"] == "fresh"
    assert kinds([frame for frame in frames if frame not in notes]) == kinds(usual)


async def test_a_stream_in_the_queue_shows_signs_of_life():
    async with served(sse_keepalive_s=EVERY_S, max_concurrent_requests=1) as (router, worker):
        worker.hold()
        async with router.http.post(CHAT, json=TALK) as running:
            await worker.wait_running(1)
            async with router.http.post(CHAT, json=TALK) as waiting:
                await read_to(waiting, COMMENT, 2)
                assert [each.path for each in worker.requests].count("/generate") == 1
                worker.release()
                assert (await running.read()).endswith(sse.DONE)
                assert (await waiting.read()).endswith(sse.DONE)


async def test_one_that_waited_too_long_in_the_queue_is_told_so_in_an_event():
    async with served(sse_keepalive_s=EVERY_S, max_concurrent_requests=1, queue_timeout_s=0.1) as (
        router,
        worker,
    ):
        worker.hold()
        async with router.http.post(CHAT, json=TALK) as running:
            await worker.wait_running(1)
            async with router.http.post(CHAT, json=TALK) as waiting:
                *_, error, done = said(await waiting.read(), COMMENT)
            assert orjson.loads(error.removeprefix(b"data: "))["error"]["code"] is not None
            assert done + b"\n\n" == sse.DONE
            worker.release()
            await running.read()


@all_doors
async def test_what_fails_at_once_has_its_own_status(door):
    path, body, _ = DOORS[door]
    async with served() as (router, worker):
        worker.answer_next(400, b'{"error": {"message": "no"}}')
        async with router.http.post(path, json=body) as response:
            assert response.status == 400
            assert response.content_type == "application/json"


@all_doors
async def test_what_fails_after_a_sign_of_life_is_an_event(door):
    path, body, sign = DOORS[door]
    async with served(sse_keepalive_s=EVERY_S) as (router, worker):
        worker.hold()
        async with router.http.post(path, json=body) as response:
            assert response.status == 200
            begun = await read_to(response, sign, 1)
            router.gateway.grace.end()
            raw = await response.read()
    assert begun == sign
    *_, failure = said(raw.removesuffix(sse.DONE), sign)
    assert b"error" in failure
    assert b"shutting down" in failure


@pytest.mark.parametrize("every_s", [0.0, 60.0])
async def test_without_signs_the_status_line_waits(every_s):
    async with (
        serving(sse_keepalive_s=every_s, worker_wait_s=0.05) as router,
        router.http.post(CHAT, json=TALK) as response,
    ):
        assert response.status == 503


async def test_a_client_that_leaves_a_silent_stream_leaves_nothing():
    async with served(sse_keepalive_s=EVERY_S) as (router, worker):
        worker.hold()
        response = await router.http.post(CHAT, json=TALK)
        await read_to(response, COMMENT, 1)
        response.close()
        await until(lambda: router.gateway.pool.total_in_flight == 0)
        await until(lambda: "sign of life" not in map(asyncio.Task.get_name, asyncio.all_tasks()))


SSE = {"Content-Type": "text/event-stream"}
FRAME = b'data: {"a": 1}\n\n'


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
async def test_a_workers_own_stream_shows_signs_of_life_between_its_events(end):
    pieces = [b'data: {"a": 1}' + end[:-1], end[-1:], b"data: [DONE]" + end]
    async with (
        any_worker(pieces=pieces, headers=SSE, hold_before=2) as worker,
        serving(worker.url, sse_keepalive_s=EVERY_S) as router,
        router.http.get("/v1/of/tomorrow") as answer,
    ):
        begun = await read_to(answer, COMMENT, 2)
        worker.go.set()
        raw = begun + await answer.read()
    assert raw.replace(COMMENT, b"") == b"".join(pieces)
    assert raw.startswith(b'data: {"a": 1}' + end + COMMENT)


@pytest.mark.parametrize(
    ("pieces", "headers"),
    [
        ([FRAME, b'data: {"b"', b": 2}\n\n"], SSE),  # within an event
        ([FRAME, b"data: 1\n", b"data: 2\n\n"], SSE),
        ([b"id: 7\n" + FRAME, b"", FRAME], SSE),  # openai-python takes a later comment for an event
        ([b'{"a":', b"1", b"}"], {"Content-Type": "application/json"}),
        ([FRAME, b"", FRAME], {**SSE, "Content-Length": str(2 * len(FRAME))}),
        ([FRAME, b"", FRAME], {**SSE, "Content-Encoding": "gzip"}),
    ],
)
async def test_nothing_is_put_into_what_it_would_break(pieces, headers, monkeypatch):
    looks = []
    look = sse.Line._look

    def counted(line: sse.Line) -> None:
        looks.append(line)
        look(line)

    monkeypatch.setattr(sse.Line, "_look", counted)
    async with (
        any_worker(pieces=pieces, headers=headers, hold_before=2) as worker,
        serving(worker.url, sse_keepalive_s=EVERY_S) as router,
        aiohttp.ClientSession(base(router), auto_decompress=False) as http,
        http.get("/v1/of/tomorrow") as answer,
    ):
        begun = await answer.content.readany()
        if headers == SSE:
            await until(lambda: len(looks) > 2)
        worker.go.set()
        assert begun + await answer.read() == b"".join(pieces)
    assert bool(looks) == (headers == SSE), "only a stream of events needs a timer"


def base(router: Served) -> str:
    return str(router.http._base_url).rstrip("/")


async def test_openais_client_reads_over_the_signs():
    async with served(sse_keepalive_s=EVERY_S) as (router, worker):
        worker.hold(after_tokens=0)
        async with openai.AsyncOpenAI(
            base_url=f"{base(router)}/v1", api_key="k", max_retries=0
        ) as client:
            asked = client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "Hi"}],
                stream=True,
            )
            stream = await asked
            worker.release()
            chunks = [chunk async for chunk in stream]
            assert chunks[-1].choices[0].finish_reason is not None
            worker.hold(after_tokens=0)
            async with client.responses.stream(model="tiny", input="Hi") as responses:
                worker.release()
                assert (await responses.get_final_response()).status in ("completed", "incomplete")


async def test_openais_client_reads_a_response_that_failed_late():
    async with served(sse_keepalive_s=EVERY_S) as (router, worker):
        worker.hold()
        async with (
            openai.AsyncOpenAI(base_url=f"{base(router)}/v1", api_key="k", max_retries=0) as client,
            client.responses.stream(model="tiny", input="Hi") as stream,
        ):
            router.gateway.grace.end()
            seen = [event.type async for event in stream]
    assert seen == ["response.created", "response.in_progress", "response.failed", "error"]


async def test_a_stream_that_breaks_after_its_status_line_is_not_kept_for_a_retry():
    """SDKs try again until they have a status line. After that it is up to their users, whose next
    request is a new one.
    """
    talk: dict[str, Any] = {"model": "tiny", "messages": [user("Hi")], "max_tokens": 4}
    async with (
        served(sse_keepalive_s=EVERY_S, retry_grace_s=1e6) as (router, worker),
        openai.AsyncOpenAI(base_url=f"{base(router)}/v1", api_key="k", max_retries=2) as client,
    ):
        create: Any = client.chat.completions.create
        worker.hold()
        stream = await create(**talk, stream=True)  # the status line came with a sign of life
        reading = asyncio.ensure_future(anext(stream))
        assert router.gateway.slow_clients.cut_all() == 1  # as a proxy in between might
        with pytest.raises((openai.APIError, httpx.TransportError)):
            await reading
        await until(lambda: len(worker.aborted) == 1)
        joiner = router.gateway.joiner
        assert (joiner.joined, joiner.abandoned, joiner.running) == (0, 0, 0)
        worker.release()
        worker._engine.held_after = None
        again = [chunk async for chunk in await create(**talk, stream=True)]
        assert again[-1].choices[0].finish_reason is not None
        assert [r.path for r in worker.requests].count("/generate") == 2, "the SDK did not retry"
        assert router.gateway.joiner.joined == 0
        store = router.gateway.store
        assert [store.is_delivered(turn) for turn in store._turns] == [True]
        async with router.http.get("/metrics") as answer:
            chats = (await answer.json())["chat_completion"]
        assert chats["started"] == 2


async def test_anthropics_client_reads_over_the_signs():
    async with served(sse_keepalive_s=EVERY_S) as (router, worker):
        worker.hold(after_tokens=0)
        async with (
            anthropic.AsyncAnthropic(base_url=base(router), api_key="k", max_retries=0) as client,
            client.messages.stream(
                model="tiny", max_tokens=4, messages=[{"role": "user", "content": "Hi"}]
            ) as stream,
        ):
            worker.release()
            assert (await stream.get_final_message()).stop_reason == "max_tokens"


async def test_events_are_as_they_were_where_there_is_no_silence():
    async with (
        served(sse_keepalive_s=60.0) as (router, _),
        router.http.post(CHAT, json=TALK) as response,
    ):
        assert events(await response.read())[-1] == "[DONE]"
