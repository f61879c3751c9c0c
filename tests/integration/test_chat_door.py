"""The chat door over real HTTP: shapes, order, errors, and what is sent when."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain
from typing import Any

import openai
import orjson
import pytest
from aiohttp import web

from slime_router.api.chat.dialect import CHAT
from slime_router.api.endpoint import serve
from slime_router.api.sse import EventStream
from slime_router.edge.json_reply import JsonReply
from slime_router.errors import (
    ContextLengthExceeded,
    NoWorker,
    TooManyRequests,
    WorkerFailed,
    WorkerRefused,
    WorkerTimeout,
)
from slime_router.types import Finish
from tests.integration.scripted import (
    PROMPT_IDS,
    RECEIPT,
    STOP_ID,
    Client,
    Script,
    Scripted,
    events,
    first,
    hello,
    last,
    said,
    served,
)

PATH = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def door(script: Script = hello, limit: int = 8) -> AsyncIterator[tuple[Client, Scripted]]:
    scripted = Scripted(script)
    async with served(PATH, partial(serve, CHAT, scripted.context(limit))) as client:
        yield client, scripted


async def whole(client: Client, **fields: Any) -> Any:
    async with client.post(PATH, json={**ASK, **fields}) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def streamed(client: Client, **fields: Any) -> list[Any]:
    async with client.post(PATH, json={**ASK, "stream": True, **fields}) as response:
        assert response.status == 200, await response.text()
        return events(await response.read())


def chunk(choice: dict[str, Any] | None, head: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**head, "choices": [] if choice is None else [choice], **fields}


async def test_the_whole_reply_has_this_shape():
    async with door() as (client, _):
        reply = await whole(client)
    assert reply.pop("id").startswith("chatcmpl-")
    assert isinstance(reply.pop("created"), int)
    assert reply == {
        "object": "chat.completion",
        "model": "m",
        "system_fingerprint": None,
        "service_tier": None,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hello",
                    "reasoning_content": None,
                    "refusal": None,
                },
                "logprobs": None,
                "finish_reason": "stop",
                "matched_stop": STOP_ID,
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 6,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "metadata": {"weight_version": "v7"},
    }


async def test_a_stream_has_role_deltas_finish_usage_done_in_this_order():
    async with door() as (client, scripted):
        got = await streamed(client, stream_options={"include_usage": True})
        reply = await whole(client)
    head = {key: got[0][key] for key in ("id", "object", "created", "model")}
    assert head["id"] == scripted.calls[0].rid
    assert head["object"] == "chat.completion.chunk"
    role = {"role": "assistant", "content": "", "reasoning_content": None}
    end: dict[str, Any] = {
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
        "matched_stop": STOP_ID,
    }
    assert got == [
        chunk({"index": 0, "delta": role, "logprobs": None, "finish_reason": None}, head),
        chunk({"index": 0, "delta": {"content": "Hel"}, "finish_reason": None}, head),
        chunk({"index": 0, "delta": {"content": "lo"}, "finish_reason": None}, head),
        chunk({"index": 0, **end}, head),
        chunk(None, head, usage=reply["usage"]),
        "[DONE]",
    ]


async def test_headers_carry_receipt_and_request_id_and_keep_proxies_from_buffering():
    async with door() as (client, _):
        for stream in (False, True):
            body = {**ASK, "stream": stream}
            async with client.post(PATH, json=body, headers={"x-request-id": "mine"}) as response:
                assert orjson.loads(response.headers["x-slime-receipt"])["status"] == "extended"
                assert response.headers["x-slime-receipt"] == RECEIPT.to_json()
                assert response.headers["x-request-id"] == "mine"
                await response.read()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        async with client.post(PATH, json=ASK, headers={"x-request-id": "a" * 129}) as response:
            assert response.headers["x-request-id"].startswith("req_")


async def test_without_usage_asked_for_there_is_none_in_a_stream():
    async with door() as (client, _):
        got = await streamed(client)
    assert got[-1] == "[DONE]"
    assert not any("usage" in event for event in got[:-1])


async def test_running_usage_stands_on_every_chunk():
    async with door() as (client, _):
        got = await streamed(client, stream_options={"continuous_usage_stats": True})
    assert [event["usage"]["completion_tokens"] for event in got[:-1]] == [0, 3, 5, 6, 6]


async def test_the_model_is_the_default_one_where_the_client_names_none():
    async with door() as (client, _):
        assert (await whole(client, model=None))["model"] == "tiny"


async def test_a_length_finish_and_a_stop_string_are_told():
    finishes = [Finish("length"), Finish("stop", "END")]
    async with door(lambda call, k: [first("a"), last(finishes[k])]) as (client, _):
        cut = (await whole(client))["choices"][0]
        stopped = (await whole(client))["choices"][0]
    assert (cut["finish_reason"], cut["matched_stop"]) == ("length", None)
    assert (stopped["finish_reason"], stopped["matched_stop"]) == ("stop", "END")


async def test_there_is_one_logprob_entry_for_each_token_with_its_true_bytes():
    """Half a character has bytes but no text; a logprob that nobody knows is the lowest."""
    accent = "é".encode()

    def script(*_: Any):
        return [
            first(output_ids=[accent[0]], logprobs=[None], top_logprobs=[[(-0.1, 65)]]),
            said("é", output_ids=[accent[1]], logprobs=[-0.25], top_logprobs=[[]]),
            last(logprobs=[float("-inf")], top_logprobs=[[]]),
        ]

    async with door(script) as (client, scripted):
        content = (await whole(client, logprobs=True, top_logprobs=1))["choices"][0]["logprobs"]
        got = await streamed(client, logprobs=True, top_logprobs=1)
    assert scripted.calls[0].top_logprobs == 1
    assert content["refusal"] is None
    assert content["content"] == [
        {
            "token": "�",
            "bytes": [accent[0]],
            "logprob": -9999.0,
            "top_logprobs": [{"token": "A", "bytes": [65], "logprob": -0.1}],
        },
        {"token": "�", "bytes": [accent[1]], "logprob": -0.25, "top_logprobs": []},
        {
            "token": "<|256|>",
            "bytes": list(b"<|256|>"),
            "logprob": -9999.0,
            "top_logprobs": [],
        },
    ]
    in_stream = [event["choices"][0]["logprobs"] for event in got[:-1]]
    assert [entry for each in in_stream if each for entry in each["content"]] == content["content"]
    assert [event["choices"][0]["delta"].get("content") for event in got[1:-1]] == [
        "",
        "é",
        "",
        None,
    ]


async def test_token_ids_stand_under_both_names_and_in_streams():
    output_ids = [*b"Hello", STOP_ID]
    async with door() as (client, _):
        reply = await whole(client, return_token_ids=True)
        got = await streamed(client, return_token_ids=True)
    choice = reply["choices"][0]
    assert reply["prompt_token_ids"] == choice["prompt_token_ids"] == PROMPT_IDS
    assert choice["token_ids"] == choice["response_token_ids"] == output_ids
    assert got[0]["prompt_token_ids"] == PROMPT_IDS
    assert not any("prompt_token_ids" in event for event in got[1:-1])
    streamed_ids = [event["choices"][0].get("token_ids", []) for event in got[:-1]]
    assert list(chain.from_iterable(streamed_ids)) == output_ids


@pytest.mark.parametrize("by_header", [False, True])
@pytest.mark.parametrize("n", [1, 2])
async def test_ids_stand_in_sglangs_own_part(n, by_header):
    """As its route has them; in a stream they have an event of their own, before the usage."""
    names = ("return_input_ids_in_sglext", "return_output_ids_in_sglext")
    headers = {"x-sglext-return-input-ids": "1", "x-sglext-return-output-ids": "1"}
    output_ids = [*b"Hello", STOP_ID]
    asked: dict[str, Any] = {**ASK, "n": n, "stream_options": {"include_usage": True}}
    given = headers if by_header else {}
    if not by_header:
        asked |= dict.fromkeys(names, True)
    async with door() as (client, _):
        async with client.post(PATH, json=asked, headers=given) as response:
            reply = await response.json()
        async with client.post(PATH, json={**asked, "stream": True}, headers=given) as response:
            *chunks, ids, usage, _ = events(await response.read())
        plain = await whole(client, return_input_ids_in_sglext=False)
    part = {"input_ids": PROMPT_IDS, "output_ids": [output_ids] * n}
    assert reply["sglext"] == ids["sglext"] == part
    assert ids["choices"] == usage["choices"] == []
    assert not any("sglext" in each for each in chunks)
    assert "sglext" not in plain


async def test_meta_info_is_the_workers_own_but_for_its_id_and_stands_on_the_finish_chunk():
    item = {"meta_info": {"id": "x", "anything": [1]}}
    async with door(lambda *_: [first("a"), last(item=item)]) as (client, _):
        reply = await whole(client, return_meta_info=True, return_prompt_token_ids=True)
        got = await streamed(client, return_meta_info=True)
    assert reply["choices"][0]["meta_info"] == {"id": reply["id"], "anything": [1]}
    assert reply["prompt_token_ids"] == PROMPT_IDS
    assert "token_ids" not in reply["choices"][0]
    assert got[-2]["choices"][0]["meta_info"] == {"id": got[-2]["id"], "anything": [1]}
    assert not any("meta_info" in event["choices"][0] for event in got[:-2])


async def test_three_choices_are_three_generations():
    texts = ["a", "bb", "ccc"]
    async with door(lambda call, k: [first(texts[k % 3]), last()]) as (client, scripted):
        reply = await whole(client, n=3)
        got = await streamed(client, n=3, stream_options={"include_usage": True})
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in reply["choices"]] == texts
    assert reply["usage"]["prompt_tokens"] == 3
    assert reply["usage"]["completion_tokens"] == 9
    assert len({call.rid for call in scripted.calls}) == 6
    assert len(scripted.read_to_end) == 6
    assert got[-1] == "[DONE]"
    assert got[-2]["usage"] == reply["usage"]
    for index, text in enumerate(texts):
        mine = [e["choices"][0] for e in got[:-2] if e["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert [choice["delta"] for choice in mine[1:]] == [{"content": text}, {}]
        assert [choice["finish_reason"] for choice in mine] == [None, None, "stop"]


async def test_the_receipt_of_several_choices_is_the_first_ones():
    """The second choice speaks first; the status line waits for the one in its header."""
    spoken = asyncio.Event()

    class Told(asyncio.Event):
        async def wait(self):
            spoken.set()
            return True

    def script(call: Any, k: int):
        if k == 0:
            return [spoken, first("slow"), last()]
        return [said("fast"), Told(), last()]

    async with door(script) as (client, _):
        body = {**ASK, "stream": True, "n": 2}
        async with client.post(PATH, json=body) as response:
            assert response.headers["x-slime-receipt"] == RECEIPT.to_json()
            got = events(await response.read())
    assert [e["choices"][0]["index"] for e in got[:-1]].index(1) == 0


ERRORS = [
    (ContextLengthExceeded("long", param="messages"), 400, "invalid_request_error",
     "context_length_exceeded", {}),
    (TooManyRequests("many"), 429, "rate_limit_error", "rate_limit_exceeded", {"retry-after": "1"}),
    (NoWorker("none"), 503, "service_unavailable_error", "no_available_workers",
     {"retry-after": "1"}),
    (NoWorker("none", retry_after_s=9.2), 503, "service_unavailable_error", "no_available_workers",
     {"retry-after": "10"}),
    (TooManyRequests("many", retry_after_s=900.0), 429, "rate_limit_error", "rate_limit_exceeded",
     {"retry-after": "60"}),
    (TooManyRequests("many", retry_after_s=0.0), 429, "rate_limit_error", "rate_limit_exceeded",
     {"retry-after": "1"}),
    (WorkerFailed("died"), 502, "server_error", "upstream_error", {"x-should-retry": "false"}),
    (WorkerTimeout("slow"), 504, "server_error", "upstream_timeout", {"x-should-retry": "false"}),
    (WorkerRefused("bad", status=400, body=b"{}"), 400, "invalid_request_error", "invalid_value",
     {}),
    (WorkerRefused("full", status=503), 503, "service_unavailable_error", "upstream_error",
     {"retry-after": "1"}),
    (KeyError("bug"), 500, "server_error", "internal_error", {}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "status", "kind", "code", "headers"), ERRORS)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_chunk_is_a_real_http_error(
    error, status, kind, code, headers, stream
):
    body = {**ASK, "stream": stream}
    async with door(lambda *_: [error]) as (client, _), client.post(PATH, json=body) as response:
        assert response.status == status
        got = await response.json()
    for name, value in headers.items():
        assert response.headers[name] == value
    assert ("x-should-retry" in response.headers) == ("x-should-retry" in headers)
    assert response.headers["x-request-id"].startswith("req_")
    assert got["error"].keys() == {"message", "type", "param", "code"}
    assert (got["error"]["type"], got["error"]["code"]) == (kind, code)
    assert "bug" not in got["error"]["message"], "a bug's words are for the log"


@pytest.mark.parametrize("error", [WorkerFailed("died"), KeyError("bug")])
async def test_an_error_after_the_first_chunk_is_an_event_and_done(error):
    async with door(lambda *_: [first("a"), error]) as (client, scripted):
        got = await streamed(client)
        assert scripted.closed
    assert [event["choices"][0]["finish_reason"] for event in got[:2]] == [None, None]
    assert got[2]["error"].keys() == {"message", "type", "param", "code"}
    assert got[2]["error"]["type"] == "server_error"
    assert got[3:] == ["[DONE]"]


async def test_a_generation_that_just_ends_is_a_failure():
    async with door(lambda *_: [first("a")]) as (client, _):
        assert (await streamed(client))[-2]["error"]["code"] == "upstream_error"
        async with client.post(PATH, json=ASK) as response:
            assert response.status == 502


@pytest.mark.parametrize(
    ("chunk", "status"),
    [
        (last(Finish("abort"), output_ids=[], logprobs=[]), 503),
        (last(Finish("abort", status_code=400), output_ids=[], logprobs=[]), 400),
        (last(Finish("abort", status_code=500), output_ids=[], logprobs=[]), 500),
        (last(Finish("abort"), output_ids=[65]), 502),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_abort_is_an_error_never_a_finish_reason(chunk, status, stream):
    body = {**ASK, "stream": stream}
    async with door(lambda *_: [chunk]) as (client, _), client.post(PATH, json=body) as response:
        assert response.status == status
        assert (await response.json())["error"]["message"]


async def test_an_abort_in_a_stream_that_has_begun_is_an_event():
    async with door(lambda *_: [first("a"), last(Finish("abort"))]) as (client, _):
        got = await streamed(client)
    assert got[-2]["error"]["code"] == "upstream_error"
    assert not any(e["choices"][0]["finish_reason"] for e in got[:-2])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "valid JSON"),
        (b"{", "valid JSON"),
        (b"[]", "object"),
        (b'"x"', "object"),
        (b'{"messages":[{"role":"user","content":"\\ud800"}]}', "surrogate"),
        (b'{"messages":[{"role":"user","content":"\\udc00x"}]}', "surrogate"),
        (b'{"messages":[{"role":"user","content":"\xff"}]}', "valid JSON"),
        (b'{"temperature":1e999}', "no double"),
        (b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}", "valid JSON"),
        (b'{"x":' + b"[" * 600 + b"]" * 600 + b"}", "deep"),
    ],
)
async def test_a_body_that_is_no_json_object_is_a_400(raw, words):
    async with door() as (client, scripted), client.post(PATH, data=raw) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["code"] == "invalid_json"
    assert words in error["message"]
    assert scripted.calls == []


async def test_a_bad_field_is_a_400_and_nothing_happens():
    body = {**ASK, "top_p": 3}
    async with door() as (client, scripted), client.post(PATH, json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "top_p"
    assert scripted.calls == []


async def test_any_content_type_will_do():
    async with door() as (client, _):
        headers = {"content-type": "text/plain"}
        async with client.post(PATH, data=orjson.dumps(ASK), headers=headers) as response:
            assert response.status == 200


async def test_a_body_over_the_limit_is_a_413():
    body = {**ASK, "user": "x" * 150_000}
    async with door() as (client, _), client.post(PATH, json=body) as response:
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "request_too_large"


async def test_the_request_over_the_limit_is_turned_away_and_room_is_made_again():
    release = asyncio.Event()
    async with door(lambda *_: [first("a"), release, last()], limit=1) as (client, _):
        async with client.post(PATH, json={**ASK, "stream": True}) as inside:
            async with client.post(PATH, json=ASK) as refused:
                assert refused.status == 429
                assert refused.headers["retry-after"] == "1"
                assert (await refused.json())["error"]["type"] == "rate_limit_error"
            release.set()
            await inside.read()
        assert (await whole(client))["choices"]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_closes_every_generation(n, stream):
    begun = asyncio.Event()
    never = asyncio.Event()

    class Told(asyncio.Event):
        async def wait(self):
            begun.set()
            return True

    async with door(lambda *_: [first("a"), Told(), never, last()]) as (client, scripted):
        asking = asyncio.ensure_future(streamed(client, n=n, stream=stream))
        await asyncio.wait_for(begun.wait(), 60)
        asking.cancel()
        await asyncio.wait_for(scripted.all_closed.wait(), 60)
    assert len(scripted.closed) == n
    assert scripted.read_to_end == []


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_last_generation_is_read_to_its_end_when_the_reply_is_written(
    stream, n, monkeypatch
):
    """Recording takes a stream that was closed early for a reply that nobody got."""
    read_before: list[int] = []
    async with door() as (client, scripted):
        # The last write with content; what ends a stream after it, clients need not wait for.
        kind: Any = EventStream if stream else JsonReply
        send = kind.send

        async def noted(self: Any, *what: Any) -> None:
            await send(self, *what)
            if not stream or any(b'"finish_reason":"stop"' in event for event in what):
                read_before.append(len(scripted.read_to_end))

        monkeypatch.setattr(kind, "send", noted)
        async with client.post(PATH, json={**ASK, "stream": stream, "n": n}) as response:
            await response.read()
        await asyncio.wait_for(scripted.all_closed.wait(), 60)
    assert read_before[-1] < n
    assert len(scripted.read_to_end) == n


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_behind_the_last_byte_is_logged_and_spoils_no_reply(stream, caplog):
    """There must be no second reply on the connection either."""
    async with door(lambda *_: [first("a"), last(), KeyError("late")]) as (client, scripted):
        async with client.post(PATH, json={**ASK, "stream": stream}) as response:
            assert response.status == 200
            assert b"error" not in await response.read()
        await asyncio.wait_for(scripted.all_closed.wait(), 60)
    assert [record.message for record in caplog.records] == ["reply.tail_failed"]


async def test_each_event_leaves_at_once():
    """A delta arrives while the generation waits; Nagle's algorithm is off."""
    release = asyncio.Event()
    options: list[int] = []
    scripted = Scripted(lambda *_: [first("a"), release, said("b"), last()])
    context = scripted.context(1)

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        connection = request.transport.get_extra_info("socket")
        options.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        return await serve(CHAT, context, request)

    body = {**ASK, "stream": True}
    async with served(PATH, handle) as client, client.post(PATH, json=body) as response:
        seen = b""
        while b'"a"' not in seen:
            seen += await asyncio.wait_for(response.content.readany(), 60)
        release.set()
        assert b'"b"' in await response.read()
    assert options[0] != 0


async def test_openais_async_client_reads_both_ways_and_errors():
    async with door() as (client, _):
        sdk = openai.AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="x", max_retries=0)
        async with sdk:
            messages: Any = ASK["messages"]
            reply = await sdk.chat.completions.create(model="m", messages=messages, logprobs=True)
            assert reply.choices[0].message.content == "Hello"
            assert reply.choices[0].logprobs is not None
            async with sdk.chat.completions.stream(model="m", messages=messages) as stream:
                final = await stream.get_final_completion()
            assert final.choices[0].message.content == "Hello"
            with pytest.raises(openai.BadRequestError) as caught:
                await sdk.chat.completions.create(model="m", messages=messages, temperature=3)
    assert (caught.value.code, caught.value.param) == ("decimal_above_max_value", "temperature")


async def test_openais_async_client_raises_on_an_error_in_the_stream():
    async with door(lambda *_: [first("a"), WorkerFailed("died")]) as (client, _):
        sdk = openai.AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="x", max_retries=0)
        async with sdk:
            messages: Any = ASK["messages"]
            stream = await sdk.chat.completions.create(model="m", messages=messages, stream=True)
            with pytest.raises(openai.APIError, match="died"):
                async for _ in stream:
                    pass


async def test_openais_blocking_client_reads_both_ways():
    def ask(url: str) -> tuple[str | None, str]:
        messages: Any = ASK["messages"]
        with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as sdk:
            reply = sdk.chat.completions.create(model="m", messages=messages)
            stream = sdk.chat.completions.create(model="m", messages=messages, stream=True)
            deltas = [event.choices[0].delta.content or "" for event in stream]
        return reply.choices[0].message.content, "".join(deltas)

    async with door() as (client, _):
        assert await asyncio.to_thread(ask, str(client.make_url("/v1"))) == ("Hello", "Hello")
