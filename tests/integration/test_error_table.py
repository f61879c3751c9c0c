"""Every door's answer to every fault: status, type and code as the table of errors has them.

OpenAI's doors write four keys, Anthropic's two and a request id, `/generate` SGLang's message. A
request that fails leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import orjson
import pytest

from slime_router.testing import FakeWorker
from tests.clock import Clock
from tests.integration.gateway import CHAT, FOUR_KEYS, Served, served, serving, until, user

COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
GENERATE = "/generate"


class Door(NamedTuple):
    path: str
    body: dict[str, Any]  # one that is served
    prompt: str  # the field that must be there


DOORS = [
    Door(CHAT, {"messages": [user("Hi")]}, "messages"),
    Door(COMPLETIONS, {"prompt": "Hi"}, "prompt"),
    Door(RESPONSES, {"input": "Hi"}, "input"),
    Door(MESSAGES, {"messages": [user("Hi")], "max_tokens": 9}, "messages"),
    Door(GENERATE, {"text": "Hi", "sampling_params": {"max_new_tokens": 9}}, "text"),
]
ANTHROPIC = {  # by status; where the API has no word of its own, the two general ones
    400: "invalid_request_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
TYPES = {
    429: "rate_limit_error",
    502: "server_error",
    503: "service_unavailable_error",
    504: "server_error",
}

each_door = pytest.mark.parametrize("door", DOORS, ids=lambda door: door.path)
streamed_or_not = pytest.mark.parametrize("stream", [False, True])


async def check(
    door: Door, answer: aiohttp.ClientResponse, status: int, code: str, param: str | None = None
) -> None:
    """The answer is this error, in the words of the door's API."""
    body = orjson.loads(await answer.read())
    assert answer.status == status, body
    assert answer.content_type == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers.get("retry-after") == ("1" if status in (429, 503) else None)
    assert ("x-should-retry" in answer.headers) == (status in (502, 504))
    if door.path == GENERATE and status != 405:
        assert set(body) == {"error"}
        assert isinstance(body["error"]["message"], str)
    elif door.path == MESSAGES:
        assert set(body) == {"type", "error", "request_id"}
        assert set(body["error"]) == {"type", "message"}
        assert (body["type"], body["error"]["type"]) == ("error", ANTHROPIC[status])
        assert body["request_id"] == answer.headers["request-id"]
        assert param is None or param in body["error"]["message"]
    else:
        error = body["error"]
        assert (set(body), set(error)) == ({"error"}, FOUR_KEYS)
        assert (error["type"], error["code"]) == (TYPES.get(status, "invalid_request_error"), code)
        assert error["message"]
        assert param is None or error["param"] == param


@asynccontextmanager
async def without_a_trace(**settings: Any) -> AsyncIterator[tuple[Served, FakeWorker]]:
    async with served(**settings) as (router, worker):
        before = router.footprint()
        yield router, worker
        await until(lambda: router.gateway.pool.total_in_flight == 0)
        assert router.footprint() == before
        assert len(router.gateway.store.sessions) == 0


@each_door
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"null", b"NaN", b"\xff", b"[" * 9999])
@pytest.mark.asyncio(loop_scope="module")
async def test_a_body_that_is_no_object(door, body, unchanged):
    router, worker = unchanged
    async with router.http.post(f"/sessions/s{door.path}", data=body) as answer:
        await check(door, answer, 400, "invalid_json")
    assert worker.requests == []
    assert len(router.gateway.store.sessions) == 0


@each_door
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_body_is_read_whatever_its_type_is_called(door, content_type):
    async with served() as (router, _):
        headers = {"Content-Type": content_type}
        raw = orjson.dumps(door.body)
        async with router.http.post(door.path, data=raw, headers=headers) as answer:
            assert answer.status == 200


@each_door
@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("stream", 1, "invalid_type"),
        (None, None, "missing_required_parameter"),
        ("prompt", 7, "invalid_type"),
        ("temperature", "warm", "invalid_type"),
        ("temperature", -1, "decimal_below_min_value"),
    ],
)
async def test_a_field_that_is_wrong_or_missing(door, field, value, code):
    if door.path == GENERATE and field == "temperature":
        return  # its sampling parameters are the worker's to judge
    name = door.prompt if field in (None, "prompt") else field
    body = {**door.body, name: value}
    if field is None:
        del body[name]
    async with (
        without_a_trace() as (router, worker),
        router.http.post(f"/sessions/s{door.path}", json=body) as answer,
    ):
        await check(door, answer, 400, code, name)
        assert worker.requests == []


LONG = "word " * 4000
OVERFLOWS = [
    b"The input (9000 tokens) is longer than the model's context length (2048 tokens).",
    b"Requested token count exceeds the model's maximum context length of 2048 tokens.",
    b"max_completion_tokens is too large: 9000.",
]


def prompt_of(door: Door) -> str | None:
    """The field that a prompt which is too long is blamed on; Anthropic's words name none."""
    return None if door.path == MESSAGES else door.prompt


@each_door
@streamed_or_not
async def test_a_prompt_that_is_too_long(door, stream):
    long = {"messages": [user(LONG)]} if door.prompt == "messages" else {door.prompt: LONG}
    async with (
        without_a_trace() as (router, _),
        router.http.post(door.path, json={**door.body, **long, "stream": stream}) as answer,
    ):
        await check(door, answer, 400, "context_length_exceeded", prompt_of(door))


@each_door
@streamed_or_not
@pytest.mark.parametrize("words", OVERFLOWS)
@pytest.mark.parametrize("shape", [b'{"error":{"message":"%b"}}', b'{"message":"%b","code":400}'])
async def test_a_worker_that_says_so(door, stream, words, shape):
    async with without_a_trace() as (router, worker):
        for _ in range(2):  # a reply that is too long is asked for once more, and shorter
            worker.answer_next(400, shape % words)
        async with router.http.post(door.path, json={**door.body, "stream": stream}) as answer:
            if door.path != GENERATE:
                await check(door, answer, 400, "context_length_exceeded", prompt_of(door))
                assert words in await answer.read()
            else:
                assert (answer.status, await answer.read()) == (400, shape % words)


@each_door
async def test_a_body_that_is_too_large(door):
    async with (
        without_a_trace(max_payload_size=1000) as (router, worker),
        router.http.post(door.path, json={**door.body, "x": "y" * 2000}) as answer,
    ):
        await check(door, answer, 413, "request_too_large")
        assert worker.requests == []


@each_door
@pytest.mark.parametrize("name", ["gpt-4o", "other:adapter", ""])
async def test_a_model_that_is_not_served(door, name):
    """Only where the model must be named; `/generate` has no such field."""
    if door.path == GENERATE:
        return
    async with (
        without_a_trace(strict_model=True, served_model_name="tiny") as (router, worker),
        router.http.post(f"/sessions/s{door.path}", json={**door.body, "model": name}) as answer,
    ):
        await check(door, answer, 404, "model_not_found", None)
        assert b"does not exist" in await answer.read()
        assert worker.requests == []


@each_door
@pytest.mark.parametrize("strict", [True, False])
async def test_a_model_that_is_served(door, strict):
    settings = {"strict_model": strict, "served_model_name": "a:tiny", "openai_default_model": "b"}
    async with served(**settings) as (router, _):
        own = router.gateway.config.hf_checkpoint
        for name in ("a:tiny", "b", own, "a:tiny:sql", "b:sql", *([] if strict else ["gpt-4o"])):
            status, reply = await router.post(door.path, json={**door.body, "model": name})
            assert status == 200, reply
        assert (await router.post(door.path, json=door.body))[0] == 200, "none is named"


@each_door
async def test_a_method_that_is_not_served(door):
    async with (
        without_a_trace() as (router, _),
        router.http.patch(door.path, json=door.body) as answer,
    ):
        await check(door, answer, 405, "method_not_supported")
        assert answer.headers["Allow"] == ("POST, PUT" if door.path == GENERATE else "POST")


@each_door
async def test_one_request_too_many(door):
    """`/generate` has no limit of its own."""
    if door.path == GENERATE:
        return
    async with served(openai_max_concurrent_requests=1) as (router, worker):
        worker.hold()
        first = asyncio.create_task(router.post(door.path, json=door.body))
        await worker.wait_running(1)
        before = router.footprint()
        async with router.http.post(door.path, json=door.body) as answer:
            await check(door, answer, 429, "rate_limit_exceeded")
        assert router.footprint() == before
        worker.release()
        assert (await first)[0] == 200


@each_door
@streamed_or_not
@pytest.mark.parametrize("status", [200, 500])
async def test_a_worker_that_talks_rubbish(door, stream, status):
    async with without_a_trace(retry_max_retries=0) as (router, worker):
        worker.answer_next(status, b"<html>rubbish</html>")
        async with router.http.post(door.path, json={**door.body, "stream": stream}) as answer:
            await check(door, answer, 502, "upstream_error")


@each_door
@streamed_or_not
async def test_a_worker_that_does_not_answer_in_time(door, stream):
    clock = Clock()
    async with without_a_trace(request_timeout_s=5.0) as (router, worker):
        worker.hold()
        body = {**door.body, "stream": stream}
        asked = asyncio.create_task(router.http.request("POST", door.path, json=body))
        await worker.wait_running(1)
        clock.put_forward(5.0)
        async with await asked as answer:
            await check(door, answer, 504, "upstream_timeout")
        worker.release()


@each_door
@streamed_or_not
async def test_no_worker(door, stream):
    async with serving() as router:
        before = router.footprint()
        async with router.http.post(door.path, json={**door.body, "stream": stream}) as answer:
            await check(door, answer, 503, "no_available_workers")
        assert router.footprint() == before
