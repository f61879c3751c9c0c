"""Requests with pictures and sound: a worker answers them, and the receipt says what is lost."""

from __future__ import annotations

import asyncio
import logging
from codecs import BOM_UTF8
from typing import Any

import aiohttp
import orjson
import pytest

from tests.integration.any_worker import AnyWorker, any_worker
from tests.integration.gateway import CHAT, FOUR_KEYS, Served, served, serving, until, user

RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
HI = {"type": "text", "text": "What is it?"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SOURCE = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}


def chat(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [user("Hi"), user([HI, *parts])], **fields}


def messages(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {**chat(*parts), "max_tokens": 9, **fields}


def responses(item: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": [{"role": "user", "content": "Hi"}, item], **fields}


INPUT_IMAGE = {"type": "input_image", "image_url": "data:,"}
SENT = [  # the door, a body, where the medium stands
    (CHAT, chat(IMAGE), "image at messages[1].content[1]"),
    (CHAT, chat({"type": "input_audio", "input_audio": {}}), "audio at messages[1].content[1]"),
    (CHAT, chat({"type": "video_url"}), "video at messages[1].content[1]"),
    (CHAT, chat(IMAGE, stream=True), "image at messages[1].content[1]"),
    (MESSAGES, messages({"type": "image", "source": SOURCE}), "image at messages[1].content[1]"),
    (MESSAGES, messages(RESULT), "image at messages[1].content[1].content[0]"),
    (f"{MESSAGES}/count_tokens", messages({"type": "image"}), "image at messages[1].content[1]"),
    (
        RESPONSES,
        responses({"role": "user", "content": [INPUT_IMAGE]}),
        "image at input[1].content[0]",
    ),
    (
        RESPONSES,
        responses({"type": "function_call_output", "call_id": "c", "output": [INPUT_IMAGE]}),
        "image at input[1].output[0]",
    ),
]


def receipt(answer: aiohttp.ClientResponse) -> Any:
    return orjson.loads(answer.headers["x-slime-receipt"])


async def left(router: Served) -> tuple[int, ...]:
    """What is held, the requests of other tests' greetings aside."""
    await until(lambda: router.gateway.pool.total_in_flight == 0)
    return router.footprint()


@pytest.mark.parametrize(("path", "body", "reason"), SENT)
async def test_a_worker_answers_what_holds_media_byte_for_byte(path, body, reason):
    """Also with its own spacing: nobody rewrites the body, in either direction."""
    raw = orjson.dumps(body, option=orjson.OPT_INDENT_2) + b" \n"
    async with any_worker() as worker, serving(worker.url, enable_multimodal=True) as router:
        before = await left(router)
        sent = {"Content-Type": "application/json", "x-request-id": "mine"}
        async with router.http.post(f"{path}?beta=true", data=raw, headers=sent) as answer:
            assert answer.status == 200
            assert await answer.read() == b"".join(worker.pieces)
            assert answer.headers["x-request-id"] == "mine"
            said = receipt(answer)
        [heard] = worker.heard
        assert (heard.method, heard.target, heard.body) == ("POST", f"{path}?beta=true", raw)
        plain = {"status": "passed", "reused": 0, "encoded": 0, "turn": ""}
        assert said == {**plain, "reason": reason}
        assert await left(router) == before, "none of it is held"
        _, figures = await router.get("/metrics")
        assert figures["router"]["media_passed"] == 1


async def test_an_adapter_s_name_alone_is_spelled_out_for_the_worker():
    async with any_worker() as worker, serving(worker.url, enable_multimodal=True) as router:
        router.gateway.pool.adapters.add("sql")
        await router.post(CHAT, chat(IMAGE, model="sql"))
    [heard] = worker.heard
    assert orjson.loads(heard.body) == chat(IMAGE, model="sql", lora_path="sql")


@pytest.mark.parametrize("model", ["m", "sql"])
async def test_a_mark_of_the_byte_order_is_not_for_the_worker(model):
    """Editors and shells put it there; the doors of text read such a body, too."""
    raw = orjson.dumps(chat(IMAGE, model=model), option=orjson.OPT_INDENT_2) + b" \n"
    async with any_worker() as worker, serving(worker.url, enable_multimodal=True) as router:
        router.gateway.pool.adapters.add("sql")
        for path, body in ((CHAT, raw), ("/v1/embeddings", b'{"input": "Hi"}')):
            async with router.http.post(path, data=BOM_UTF8 + body) as answer:
                assert answer.status == 200, await answer.text()
    passed, embedded = (each.body for each in worker.heard)
    adapter = b',"lora_path":"sql"}' if model == "sql" else None
    assert passed == (raw if adapter is None else raw.rstrip()[:-1] + adapter)
    assert embedded == b'{"input": "Hi"}'


async def test_a_stream_is_handed_on_as_it_comes():
    pieces = [b'data: {"a":1}\n\n', b"data: [DONE]\n\n"]
    stream = {"Content-Type": "text/event-stream"}
    async with (
        any_worker(pieces=pieces, headers=stream, hold_before=1) as worker,
        serving(worker.url, enable_multimodal=True) as router,
        router.http.post(CHAT, json=chat(IMAGE, stream=True)) as answer,
    ):
        assert answer.content_type == "text/event-stream"
        assert await answer.content.readany() == pieces[0], "the rest is not waited for"
        worker.go.set()
        assert await answer.read() == pieces[1]


async def test_a_refusal_of_the_worker_is_handed_on_too():
    body = b'{"object":"error","message":"no such picture"}'
    async with (
        any_worker(status=400, pieces=[body]) as worker,
        serving(worker.url, enable_multimodal=True) as router,
        router.http.post(CHAT, json=chat(IMAGE)) as answer,
    ):
        assert (answer.status, await answer.read()) == (400, body)


async def test_one_line_says_that_a_turn_is_not_captured(caplog):
    caplog.set_level(logging.INFO, "slime_router.api.media.media_pass")
    async with any_worker() as worker, serving(worker.url, enable_multimodal=True) as router:
        await router.post(f"/sessions/s{CHAT}", json=chat(IMAGE))
        assert worker.heard[0].target == CHAT, "the worker knows no sessions"
    name = "slime_router.api.media.media_pass"
    [line] = [r.getMessage() for r in caplog.records if r.name == name]
    assert line == f"not captured: path={CHAT} session='s' reason=image at messages[1].content[1]"


async def test_at_a_path_of_our_own_the_worker_is_asked_at_its():
    settings: dict[str, Any] = {
        "enable_multimodal": True,
        "openai_chat_completion_path": "/my/chat",
    }
    async with any_worker() as worker, serving(worker.url, **settings) as router:
        status, _ = await router.post("/my/chat", json=chat(IMAGE))
        assert (status, worker.heard[0].target) == (200, CHAT)


async def test_text_is_captured_as_ever():
    async with served(enable_multimodal=True) as (router, worker):
        _, made = await router.chat([user([HI])])
        assert made["status"] == "fresh"
        assert len(worker.requests) == 1


@pytest.mark.parametrize(("path", "body", "reason"), SENT)
async def test_a_model_of_text_refuses_it_and_names_the_part(path, body, reason):
    async with any_worker() as worker, serving(worker.url) as router:
        before = await left(router)
        status, reply = await router.post(path, json=body)
        assert status == 400
        assert reason.partition(" at ")[2] in str(reply["error"])
        if not path.startswith(MESSAGES):
            assert set(reply["error"]) == FOUR_KEYS
            assert reply["error"]["param"].startswith(reason.partition(" at ")[2])
        assert worker.heard == []
        assert await left(router) == before


# Sessions, limits, ends


async def refusal(router: Served, path: str) -> tuple[int, str]:
    status, reply = await router.post(path, json=chat(IMAGE))
    return status, reply["error"]["code"]


async def test_a_session_lets_it_in_as_it_does_its_turns():
    async with any_worker() as worker, serving(worker.url, enable_multimodal=True) as router:
        for name in ("closed", "gone"):
            await router.post("/sessions", json={"session_id": name})
        await router.post("/sessions/closed/close", json={})
        await router.http.delete("/sessions/gone")
        assert await refusal(router, f"/sessions/closed{CHAT}") == (409, "session_closed")
        assert await refusal(router, f"/sessions/gone{CHAT}") == (404, "session_not_found")
        assert worker.heard == []
        assert (await router.post(f"/sessions/new{CHAT}", json=chat(IMAGE)))[0] == 200
        _, listed = await router.get("/sessions")
        assert [s["session_id"] for s in listed["sessions"]] == ["closed"], "no trace of it"


async def test_a_session_that_closes_waits_for_it():
    async with (
        any_worker(hold_before=0) as worker,
        serving(worker.url, enable_multimodal=True) as router,
    ):
        await router.post("/sessions", json={"session_id": "s"})
        asked = asyncio.create_task(router.post(f"/sessions/s{CHAT}", json=chat(IMAGE)))
        await until(lambda: len(worker.heard) == 1)
        closing = asyncio.create_task(router.post("/sessions/s/close", json={}))
        await until(lambda: router.gateway.store.sessions.get("s").state == "closing")
        worker.go.set()
        assert (await asked)[0] == 200
        status, summary = await closing
        assert (status, summary["state"], summary["turns"]) == (200, "closed", 0)


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_session_that_is_closed_at_once_ends_it(has_begun):
    """Before the answer has begun the client learns why; then a cut shows that there is none."""
    async with (
        any_worker(pieces=[b"{", b"}"], hold_before=int(has_begun)) as worker,
        serving(worker.url, enable_multimodal=True) as router,
    ):
        await router.post("/sessions", json={"session_id": "s"})
        asked = asyncio.create_task(_read(router, f"/sessions/s{CHAT}", worker))
        await until(lambda: len(worker.heard) == 1)
        if has_begun:
            await worker_has_written(asked)
        await router.post("/sessions/s/close", json={"in_flight": "cancel"})
        if has_begun:
            with pytest.raises(aiohttp.ClientError):
                await asked
        else:
            assert b"session_closed" in await asked
        await asyncio.wait_for(worker.gone.wait(), 60)


async def worker_has_written(asked: asyncio.Task[bytes]) -> None:
    """Until the first byte is at the client: `_read` names itself so."""
    await until(lambda: asked.get_name() == "has begun")


async def _read(router: Served, path: str, worker: AnyWorker) -> bytes:
    async with router.http.post(path, json=chat(IMAGE, stream=True)) as answer:
        begin = await answer.content.readany()
        task = asyncio.current_task()
        assert task is not None
        task.set_name("has begun")
        return begin + await answer.read()


@pytest.mark.parametrize("hold_before", [0, 1])
async def test_a_client_that_leaves_is_noticed_by_the_worker(hold_before):
    async with (
        any_worker(hold_before=hold_before, pieces=[b"{", b"}"]) as worker,
        serving(worker.url, enable_multimodal=True) as router,
    ):
        asked = asyncio.create_task(_read(router, f"/sessions/s{CHAT}", worker))
        await until(lambda: len(worker.heard) == 1)
        if hold_before:
            await worker_has_written(asked)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await asyncio.wait_for(worker.gone.wait(), 60)
        await until(lambda: router.gateway.pool.total_in_flight == 0)
        await until(lambda: len(router.gateway.store.sessions) == 0)


async def test_it_counts_among_the_requests_that_a_door_lets_in():
    async with (
        any_worker(hold_before=0) as worker,
        serving(worker.url, enable_multimodal=True, openai_max_concurrent_requests=1) as router,
    ):
        asked = asyncio.create_task(router.post(CHAT, json=chat(IMAGE)))
        await until(lambda: len(worker.heard) == 1)
        assert await refusal(router, CHAT) == (429, "rate_limit_exceeded")
        worker.go.set()
        assert (await asked)[0] == 200


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, chat(IMAGE)), ("/v1/embeddings", {"input": "a"})]
)
async def test_an_abort_reaches_what_waits_to_be_passed_on(path, body):
    async with (
        any_worker(hold_before=0) as worker,
        serving(worker.url, enable_multimodal=True, max_concurrent_requests=1) as router,
    ):
        first = asyncio.create_task(router.post(path, json=body))
        await until(lambda: len(worker.heard) == 1)
        others = [asyncio.create_task(router.post(path, json={**body, "rid": r})) for r in "ab"]
        await until(lambda: router.gateway.admission.figures.waiting == 2)
        abort = asyncio.create_task(router.post("/abort_request", json={"rid": "b"}))
        status, reply = await asyncio.wait_for(others[1], 30)
        assert (status, reply["error"]["message"]) == (503, "It was aborted while it waited.")
        worker.go.set()
        await abort
        assert [(await each)[0] for each in (first, others[0])] == [200, 200]


async def test_without_a_worker_it_is_a_503():
    async with serving(enable_multimodal=True) as router:
        assert await refusal(router, CHAT) == (503, "no_available_workers")
