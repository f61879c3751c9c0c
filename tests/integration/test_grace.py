"""The end of a shutdown: every client learns of it in its API's form, and the log says so."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import orjson
import pytest

from tests.integration.any_worker import any_worker
from tests.integration.gateway import CHAT, served, serving, until, user

ASKED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": [user("hi")], "max_tokens": 9}),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 9}),
    ("/v1/responses", {"input": "hi"}),
    ("/v1/messages", {"messages": [user("hi")], "max_tokens": 9, "model": "m"}),
    ("/generate", {"text": "hi", "sampling_params": {"max_new_tokens": 9}}),
]


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_a_stream_ends_with_an_error_and_its_own_end(path, body, caplog):
    caplog.set_level(logging.INFO, "slime_router")
    async with served() as (router, worker):
        worker.hold(after_tokens=1)
        async with router.http.post(path, json={**body, "stream": True}) as answer:
            assert answer.status == 200
            await worker.wait_running(1)
            first = await answer.content.readany()
            router.gateway.grace.end()
            raw = first + await asyncio.wait_for(answer.read(), 60)
        await until(lambda: router.gateway.pool.total_in_flight == 0)
    assert b"shutting down" in raw
    if path not in ("/v1/responses", "/v1/messages"):
        assert raw.endswith(b"data: [DONE]\n\n")
    line = next(m for m in caplog.messages if m.startswith(f"POST {path} 200"))
    assert " ended=shutdown" in line
    assert "shutdown: the grace period is over, 1 requests end" in caplog.text


@pytest.mark.parametrize(("path", "body"), ASKED)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_has_not_begun_to_answer_is_a_503(path, body, stream):
    async with served() as (router, worker):
        worker.hold()
        task = asyncio.create_task(router.post(path, {**body, "stream": stream}))
        await until(lambda: len(worker.requests) == 1)
        router.gateway.grace.end()
        status, reply = await asyncio.wait_for(task, 60)
        assert status == 503
        assert "shutting down" in orjson.dumps(reply).decode()
        worker.release()
        assert (await router.post(path, body))[0] == 503, "nothing begins any more"


async def test_a_workers_own_stream_ends_with_words_too():
    pieces = [b'data: {"a": 1}\n\n', b"data: [DONE]\n\n"]
    headers = {"Content-Type": "text/event-stream"}
    async with (
        any_worker(pieces=pieces, headers=headers, hold_before=1) as worker,
        serving(worker.url) as router,
    ):
        async with router.http.get("/v1/of/tomorrow") as answer:
            first = await answer.content.readany()
            router.gateway.grace.end()
            raw = first + await asyncio.wait_for(answer.read(), 60)
        worker.go.set()
    assert b'"code":"shutting_down"' in raw
    assert raw.endswith(b"data: [DONE]\n\n")
