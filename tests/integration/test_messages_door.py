"""The messages door over real HTTP: shapes, order, errors, one trajectory with the chat door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anthropic
import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer

from slime_router.api.anthropic.dialect import ANTHROPIC, count_tokens
from slime_router.api.endpoint import serve
from slime_router.errors import (
    BadRequest,
    ContextLengthExceeded,
    NoWorker,
    RouterError,
    SessionLimit,
    TooManyRequests,
    WorkerFailed,
    WorkerRefused,
    WorkerTimeout,
)
from slime_router.testing import FakeWorker
from slime_router.types import Finish, GenerateCall, GenerateChunk, ToolDelta
from tests.integration import gateway as gateways
from tests.integration.gateway import CHAT, Served, user
from tests.integration.scripted import (
    STOP_ID,
    Client,
    Script,
    Scripted,
    application,
    call,
    first,
    hello,
    last,
    named_events,
    said,
)
from tests.stack import tiny_tokenizer

PATH = "/v1/messages"
COUNT = PATH + "/count_tokens"
TURN = "turn_a"  # in the scripted receipt
ASK: dict[str, Any] = {"model": "m", "max_tokens": 999, "messages": [user("hi")]}
TOOL = {
    "name": "get_weather",
    "description": "Looks outside.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def thoughtful(*_: Any):
    """Thinking, text and two calls, as a parser gives them."""
    return [
        first(reasoning="Let me "),
        said(reasoning="see."),
        said("I look", reasoning=""),
        said("."),
        call(0, name="get_weather"),
        call(0, '{"city": '),
        call(0, '"Rome"}'),
        call(1, '{"city": "Bonn"}', name="get_weather"),
        last(),
    ]


@asynccontextmanager
async def door(script: Script = hello, limit: int = 8) -> AsyncIterator[tuple[Client, Scripted]]:
    async def prompt_len(_: GenerateCall) -> int:
        return 7

    scripted = Scripted(script)
    context = scripted.context(limit)
    app = application()
    app.router.add_post(PATH, partial(serve, ANTHROPIC, context))
    app.router.add_post(COUNT, partial(count_tokens, context, prompt_len))
    async with TestClient(TestServer(app)) as client:
        yield client, scripted


async def whole(client: Client, **fields: Any) -> Any:
    async with client.post(PATH, json={**ASK, **fields}) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def streamed(client: Client, **fields: Any) -> list[Any]:
    async with client.post(PATH, json={**ASK, "stream": True, **fields}) as response:
        assert response.status == 200, await response.text()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        return named_events(await response.read())


def folded(stream: Sequence[Any]) -> Any:
    """What an SDK makes of a stream; blocks must not overlap."""
    start, *middle, end, stop = stream
    assert (start["type"], end["type"], stop) == (
        "message_start",
        "message_delta",
        {"type": "message_stop"},
    )
    content: list[Any] = []
    texts: list[str] = []
    is_open = False
    for event in middle:
        assert event["index"] == len(content) - is_open
        match event["type"]:
            case "content_block_start":
                assert not is_open
                content.append(dict(event["content_block"]))
                texts, is_open = [], True
            case "content_block_stop":
                kind, is_open = content[-1]["type"], False
                written = "".join(texts)
                if kind != "tool_use":
                    content[-1][kind] = written
                elif written:
                    assert content[-1]["input"] == {}
                    content[-1]["input"] = json.loads(written)  # keeps long numbers
            case "content_block_delta":
                delta = dict(event["delta"])
                if delta.pop("type") == "signature_delta":
                    content[-1] |= delta
                else:
                    (text,) = delta.values()
                    assert text, "no event without a purpose"
                    texts.append(text)
    assert not is_open
    return {**start["message"], "content": content, **end["delta"], "usage": end["usage"]}


async def test_the_whole_reply_has_this_shape():
    async with door() as (client, scripted):
        reply = await whole(client)
    assert reply.pop("id") == scripted.calls[0].rid
    assert reply == {
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 1,  # of 3, 2 are cached
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 2,
            "output_tokens": 6,
            "output_tokens_details": {"thinking_tokens": 0},
        },
    }
    assert scripted.calls[0].rid.startswith("msg_")


async def test_a_stream_begins_without_output_also_where_its_first_chunk_has_some():
    async with door(lambda *_: [first("a", reasoning_tokens=1), last()]) as (client, _):
        start, *_, end, _ = await streamed(client)
    usages = [start["message"]["usage"], end["usage"]]
    assert [usage["output_tokens"] for usage in usages] == [0, 2]
    thinking = [usage["output_tokens_details"]["thinking_tokens"] for usage in usages]
    assert thinking == [0, 1]


async def test_a_stream_has_start_blocks_reason_and_stop_in_this_order():
    async with door(thoughtful) as (client, scripted):
        start, *got = await streamed(client)
    usage = start["message"].pop("usage")
    assert (usage["output_tokens"], usage["output_tokens_details"]["thinking_tokens"]) == (0, 0)
    assert start["message"] == {
        "id": scripted.calls[0].rid,
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }

    def begin(index: int, **block: Any) -> Any:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def delta(index: int, **fields: Any) -> Any:
        return {"type": "content_block_delta", "index": index, "delta": fields}

    def end(index: int) -> Any:
        return {"type": "content_block_stop", "index": index}

    use = {"type": "tool_use", "name": "get_weather", "input": {}}
    assert got == [
        begin(0, type="thinking", thinking="", signature=""),
        delta(0, type="thinking_delta", thinking="Let me "),
        delta(0, type="thinking_delta", thinking="see."),
        delta(0, type="signature_delta", signature=TURN),
        end(0),
        begin(1, type="text", text=""),
        delta(1, type="text_delta", text="I look"),
        delta(1, type="text_delta", text="."),
        end(1),
        begin(2, **use, id="call_0"),
        delta(2, type="input_json_delta", partial_json="{"),  # a key waits for its value
        delta(2, type="input_json_delta", partial_json='"city": "Rome"'),
        delta(2, type="input_json_delta", partial_json="}"),
        end(2),
        begin(3, **use, id="call_1"),
        delta(3, type="input_json_delta", partial_json='{"city": "Bonn"'),
        delta(3, type="input_json_delta", partial_json="}"),
        end(3),
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {
                "input_tokens": 1,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 2,
                "output_tokens": 8,
                "output_tokens_details": {"thinking_tokens": 0},
            },
        },
        {"type": "message_stop"},
    ]


REPLIES: dict[str, Sequence[GenerateChunk]] = {
    "text": hello(),
    "all of it": thoughtful(),
    "nothing": [first(), last()],
    "one chunk": [first("x", reasoning="y", finish=Finish("stop", STOP_ID))],
    "thinking again": [first(reasoning="a"), said("b"), said(reasoning="c"), said("d"), last()],
    "a call at once": [first(), call(0, '{"a": [1.50, 123456789012345678901]}', name="f"), last()],
    "no arguments": [first(), call(0, name="f"), call(1, " ", name="g"), last()],
    "a list": [first(), call(0, name="f"), call(0, "[1"), call(0, ", 2]"), last()],
    "no JSON": [first(), call(0, name="f"), call(0, '{"city": Rome}'), call(0, " "), last()],
    "no JSON at the end": [
        first(),
        call(0, name="f"),
        last(tool_calls=(ToolDelta(0, None, None, '{"city": "Ro'),)),
    ],
    "text after a call": [
        first(),
        call(0, '{"a"', name="f"),
        said("and "),
        said("so", reasoning="hm"),
        call(0, ": 1}"),
        call(1, name="g"),
        said("end"),
        last(),
    ],
}


@pytest.mark.parametrize("name", REPLIES)
async def test_a_stream_says_what_the_whole_reply_says(name):
    """Folded as SDKs do it; the input is an object, and so is what the model wrote as none."""
    async with door(lambda *_: REPLIES[name]) as (client, _):
        reply, stream = await whole(client), folded(await streamed(client))
    assert reply.pop("id") != stream.pop("id")
    assert stream == reply
    thoughts = "".join(block.get("thinking", "") for block in reply["content"])
    texts = "".join(block.get("text", "") for block in reply["content"])
    assert thoughts == "".join(chunk.reasoning for chunk in REPLIES[name])
    assert texts == "".join(chunk.text for chunk in REPLIES[name])
    signatures = [b["signature"] for b in reply["content"] if b["type"] == "thinking"]
    assert set(signatures) <= {TURN}


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("no arguments", [{}, {}]),
        ("a list", [{"_raw": "[1, 2]"}]),
        ("no JSON", [{"_raw": '{"city": Rome} '}]),
        ("no JSON at the end", [{"_raw": '{"city": "Ro'}]),
        ("text after a call", [{"a": 1}, {}]),
    ],
)
async def test_an_input_is_always_an_object(name, inputs):
    async with door(lambda *_: REPLIES[name]) as (client, _):
        reply = await whole(client)
    assert [b["input"] for b in reply["content"] if b["type"] == "tool_use"] == inputs


async def test_numbers_of_an_input_are_written_as_the_model_wrote_them():
    async with (
        door(lambda *_: REPLIES["a call at once"]) as (client, _),
        client.post(PATH, json=ASK) as response,
    ):
        assert b'"input":{"a": [1.50, 123456789012345678901]}' in await response.read()


@pytest.mark.parametrize(
    ("finish", "has_call", "reason", "sequence"),
    [
        (Finish("stop", STOP_ID), False, "end_turn", None),
        (Finish("stop"), False, "end_turn", None),
        (Finish("stop", "END"), False, "stop_sequence", "END"),
        (Finish("length"), False, "max_tokens", None),
        (Finish("stop", STOP_ID), True, "tool_use", None),
        (Finish("length"), True, "max_tokens", None),
    ],
)
async def test_why_a_reply_ended(finish, has_call, reason, sequence):
    calls = [call(0, "{}", name="f")] if has_call else []
    async with door(lambda *_: [first("x"), *calls, last(finish)]) as (client, _):
        reply = await whole(client)
    assert (reply["stop_reason"], reply["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadRequest("no"), 400, "invalid_request_error"),
        (WorkerRefused("no", status=403), 403, "permission_error"),
        (SessionLimit("no"), 429, "rate_limit_error"),
        (TooManyRequests("no"), 429, "rate_limit_error"),
        (RouterError("no"), 500, "api_error"),
        (WorkerFailed("no"), 502, "api_error"),
        (NoWorker("no"), 503, "overloaded_error"),
        (WorkerTimeout("no"), 504, "timeout_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_byte_is_anthropics(error, status, kind, stream):
    asked = {**ASK, "stream": stream}
    headers = {"x-request-id": "mine"}
    async with (
        door(lambda *_: [error]) as (client, _),
        client.post(PATH, json=asked, headers=headers) as response,
    ):
        assert response.status == status
        assert response.headers["request-id"] == "mine"
        assert response.content_type == "application/json"
        assert await response.json() == {
            "type": "error",
            "error": {"type": kind, "message": "no"},
            "request_id": "mine",
        }
        assert ("retry-after" in response.headers) == (
            status in (429, 503) and not isinstance(error, SessionLimit)
        )


async def test_a_conversation_that_is_too_long_is_told_in_the_words_that_agents_know():
    error = ContextLengthExceeded("It has 9 tokens, 8 fit.", param="messages")
    async with (
        door(lambda *_: [error]) as (client, _),
        client.post(PATH, json=ASK) as response,
    ):
        assert response.status == 400
        said = (await response.json())["error"]["message"]
        assert said == "prompt is too long: It has 9 tokens, 8 fit."


@pytest.mark.parametrize("path", [PATH, COUNT])
async def test_a_mistake_names_its_field_and_runs_nothing(path):
    asked = {**ASK, "messages": [user([{"type": "image"}])]}
    async with door() as (client, scripted), client.post(path, json=asked) as response:
        assert response.status == 400
        message = (await response.json())["error"]["message"]
    assert message.startswith("messages[0].content[0].type: 'image'")
    assert scripted.calls == []


@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "x": "msg_1"}])
async def test_a_thread_is_refused_so_that_the_sdk_sends_the_whole_conversation(thread):
    """Its later requests hold only what is new; a reply to those would forget the rest."""
    asked = {**ASK, "thread": thread}
    async with door() as (client, scripted), client.post(PATH, json=asked) as response:
        assert response.status == 400
        details = (await response.json())["error"]["details"]
    assert details == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert scripted.calls == []


async def test_a_body_that_is_no_json_is_told_in_anthropics_words():
    async with door() as (client, _), client.post(PATH, data=b"{") as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_an_error_after_the_first_byte_is_an_event():
    script: Script = lambda *_: [first("Hel"), WorkerFailed("it died")]  # noqa: E731
    async with (
        door(script) as (client, _),
        client.post(PATH, json={**ASK, "stream": True}, headers={"x-request-id": "r"}) as response,
    ):
        assert response.status == 200
        got = named_events(await response.read())
    assert got[-1] == {
        "type": "error",
        "error": {"type": "api_error", "message": "it died"},
        "request_id": "r",
    }
    assert got[-2]["type"] == "content_block_delta"


async def test_the_request_over_the_limit_is_turned_away():
    async with door(limit=0) as (client, _), client.post(PATH, json=ASK) as response:
        assert response.status == 429
        assert (await response.json())["error"]["type"] == "rate_limit_error"


async def test_tokens_are_counted_without_a_generation():
    async with door() as (client, scripted):
        asked = {name: ASK[name] for name in ("model", "messages")}  # no max_tokens
        async with client.post(COUNT, json=asked) as response:
            assert await response.json() == {"input_tokens": 7}
    assert scripted.calls == []


# Anthropic's own SDK


def sdk(base_url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=base_url, api_key="none", max_retries=0)


async def message_of(asker: anthropic.AsyncAnthropic, stream: bool) -> anthropic.types.Message:
    message: anthropic.types.Message
    if not stream:
        message = await asker.messages.create(**ASK, stream=False)
        return message
    async with asker.messages.stream(**ASK) as live:
        message = await live.get_final_message()
    return message


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_anthropics_sdk_reads_thinking_text_and_calls(stream):
    async with door(thoughtful) as (client, _), sdk(str(client.make_url("/"))) as asker:
        message = await message_of(asker, stream)
        counted = await asker.messages.count_tokens(model="m", messages=ASK["messages"])
    kinds = [block.type for block in message.content]
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    content: Any = message.content
    thinking, text, rome, bonn = content
    assert (thinking.thinking, thinking.signature) == ("Let me see.", TURN)
    assert text.text == "I look."
    assert (rome.id, rome.name, rome.input) == ("call_0", "get_weather", {"city": "Rome"})
    assert bonn.input == {"city": "Bonn"}
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (1, 2)
    assert message.usage.output_tokens == 8
    assert counted.input_tokens == 7


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_anthropics_sdk_raises_what_a_worker_did(stream):
    script: Script = lambda *_: [first("Hel"), WorkerFailed("it died")]  # noqa: E731
    async with door(script) as (client, _), sdk(str(client.make_url("/"))) as asker:
        with pytest.raises(anthropic.APIStatusError, match="it died") as caught:
            await message_of(asker, stream)
    assert caught.value.request_id is not None
    body: Any = caught.value.body
    assert body["error"]["type"] == "api_error"


@pytest.mark.parametrize("name", REPLIES)
async def test_anthropics_sdk_makes_the_same_of_a_stream_and_of_the_whole(name):
    async with (
        door(lambda *_: REPLIES[name]) as (client, _),
        sdk(str(client.make_url("/"))) as asker,
    ):
        reply, streamed = [await message_of(asker, stream) for stream in (False, True)]
    blocks = [block.to_dict() for block in reply.content]
    assert [block.to_dict() for block in streamed.content] == blocks
    assert streamed.usage.to_dict() == reply.usage.to_dict()


@pytest.mark.parametrize(
    ("written", "begun"),
    [
        ('{"city": "Rome",}', {"city": "Rome"}),
        ('{"city": "Rome"}}', {"city": "Rome"}),
        ('{"path": "a\\q", "n": 1}', {"path": "a\\q", "n": 1}),
        ('{"city": "Rome"', {"city": "Rome"}),
        ('{"city": Rome}', {}),
    ],
)
async def test_anthropics_sdk_reads_a_stream_whose_arguments_turn_out_to_be_no_json(written, begun):
    """What was passed on before that was known stands beside what the whole reply has."""
    chunks = [first(), call(0, name="f"), *(call(0, letter) for letter in written), last()]
    async with (
        door(lambda *_: chunks) as (client, _),
        sdk(str(client.make_url("/"))) as asker,
    ):
        reply, streamed = [await message_of(asker, stream) for stream in (False, True)]
    assert reply.content[0].to_dict()["input"] == {"_raw": written}
    assert streamed.content[0].to_dict()["input"] == {**begun, "_raw": written}
    assert streamed.stop_reason == reply.stop_reason == "tool_use"


# Through the gateway


IM_END = 514
THOUGHT = "<think>\nWhich city?\n</think>\n\n"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city":  "Paris"}}\n</tool_call>'


def letters(text: str) -> list[int]:
    """One token for each letter, but for the tags: ids that no tokenizer makes of this text."""
    ids: list[int] = []
    for part in (
        text.replace("<think>", "\0<think>\0").replace("</think>", "\0</think>\0").split("\0")
    ):
        pieces = [part] if "think>" in part else part
        ids += [i for piece in pieces for i in tiny_tokenizer().encode(piece).tolist()]
    return [*ids, IM_END]


def parsing() -> Any:
    return gateways.served(tool_call_parser="qwen25", reasoning_parser="qwen3")


async def asked(
    router: Served, messages: Sequence[Any], *, stream: bool = False, path: str = PATH, **more: Any
) -> tuple[Any, Any]:
    """A reply and its receipt."""
    body = {**ASK, "tools": [TOOL], "messages": messages, "stream": stream, **more}
    async with router.http.post(path, json=body) as response:
        raw = await response.read()
        assert response.status == 200, raw
        receipt = orjson.loads(response.headers["x-slime-receipt"])
    return (folded(named_events(raw)) if stream else orjson.loads(raw)), receipt


def extends(worker: FakeWorker, output: Sequence[int]) -> bool:
    """Whether the last prompt begins with the one before it and what was sampled then."""
    before, now = (request.body["input_ids"] for request in worker.requests[-2:])
    held = [*before, *output]
    return len(now) > len(held) and now[: len(held)] == held


def result(use: Any, text: str = "sunny") -> Any:
    return {"type": "tool_result", "tool_use_id": use["id"], "content": text}


@pytest.mark.parsers
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_tool_loop_keeps_every_sampled_token(stream):
    outputs = [letters(THOUGHT + "I look.\n" + CALL), letters("Sunny."), letters("Bye.")]
    conversation: list[Any] = [user("Weather in Paris?")]
    async with parsing() as (router, worker):
        for output in outputs:
            worker.script(output)
        reply, receipt = await asked(router, conversation, stream=stream)
        assert receipt["status"] == "fresh"
        thinking, text, use = reply["content"]
        assert thinking["thinking"].strip() == "Which city?"
        assert thinking["signature"] == receipt["turn"]
        assert text["text"].strip() == "I look."
        assert (use["name"], use["input"]) == ("get_weather", {"city": "Paris"})
        assert reply["stop_reason"] == "tool_use"
        conversation += [
            {"role": "assistant", "content": reply["content"]},
            {"role": "user", "content": [result(use), {"type": "text", "text": "So?"}]},
        ]
        reply, receipt = await asked(router, conversation, stream=stream)
        assert receipt["status"] == "extended"
        assert extends(worker, outputs[0])
        assert reply["content"] == [{"type": "text", "text": "Sunny."}]
        conversation += [{"role": "assistant", "content": reply["content"]}, user("Thanks.")]
        reply, receipt = await asked(router, conversation, stream=stream)
        assert receipt["status"] == "extended"
        assert extends(worker, outputs[1])


@pytest.mark.parsers
async def test_a_signed_reply_is_known_again_whatever_its_text_became():
    """The signature alone names the turn: the text around it came back in another spelling."""
    output = letters(THOUGHT + "Hello there")
    async with parsing() as (router, worker):
        worker.script(output)
        reply, _ = await asked(router, [user("Hi")])
        thinking, text = reply["content"]
        text = {**text, "text": text["text"].replace(" ", "  ")}
        for content, is_known in (([text], False), ([thinking, text], True)):
            replayed = {"role": "assistant", "content": content}
            _, receipt = await asked(router, [user("Hi"), replayed, user("So?")])
            assert (receipt["status"] == "extended") == is_known, receipt
            assert extends(worker, output) == is_known
            worker.requests.pop()


@pytest.mark.parsers
async def test_a_conversation_begun_at_the_chat_door_goes_on_at_this_one_and_back():
    output, second = letters(THOUGHT + "I look.\n" + CALL), letters("Sunny.")
    tool = {"name": TOOL["name"], "description": TOOL["description"]}
    tools = [{"type": "function", "function": {**tool, "parameters": TOOL["input_schema"]}}]
    asking = [{"role": "system", "content": "Be brief."}, user("Weather in Paris?")]
    chat_body: dict[str, Any] = {"model": "tiny", "tools": tools, "max_tokens": 999}
    async with parsing() as (router, worker):
        worker.script(output)
        worker.script(second)
        worker.script(letters("Bye."))
        _, chat = await router.post(CHAT, {**chat_body, "messages": asking})
        message = chat["choices"][0]["message"]
        (made,) = message["tool_calls"]
        arguments = orjson.loads(made["function"]["arguments"])
        use = {"type": "tool_use", "id": made["id"], "name": "get_weather", "input": arguments}
        text = {"type": "text", "text": message["content"]}
        conversation = [
            asking[1],
            {"role": "assistant", "content": [text, use]},
            {"role": "user", "content": [result(use)]},
        ]
        reply, receipt = await asked(router, conversation, system="Be brief.")
        assert receipt["status"] == "extended"
        assert extends(worker, output)
        answer = {"role": "assistant", "content": reply["content"][0]["text"]}
        told = {"role": "tool", "tool_call_id": made["id"], "content": "sunny"}
        back = [*asking, message, told, answer, user("Thanks.")]
        status, _ = await router.post(CHAT, {**chat_body, "messages": back})
        assert status == 200
        assert extends(worker, second)


@pytest.mark.parsers
async def test_the_billing_line_does_not_part_one_conversation():
    first_ids = letters("Hello.")
    async with parsing() as (router, worker):
        conversation = [user("Hi")]
        worker.script(first_ids)
        for number in range(2):
            billing = f"x-anthropic-billing-header: cch={number};"
            system = [{"type": "text", "text": each} for each in (billing, "Be brief.")]
            reply, receipt = await asked(router, conversation, system=system)
            conversation += [{"role": "assistant", "content": reply["content"]}, user("So?")]
    assert receipt["status"] == "extended"
    assert extends(worker, first_ids)


@pytest.mark.parsers
async def test_the_count_is_the_length_of_the_prompt_and_leaves_nothing_behind():
    async with parsing() as (router, worker):
        body = {**ASK, "tools": [TOOL]}
        before = router.footprint()
        status, counted = await router.post(COUNT, body)
        assert (status, router.footprint()) == (200, before)
        await asked(router, ASK["messages"])
    assert counted == {"input_tokens": len(worker.requests[0].body["input_ids"])}


@pytest.mark.parsers
async def test_a_forced_choice_constrains_the_worker():
    async with parsing() as (router, worker):
        worker.script(letters(CALL))
        choice = {"type": "tool", "name": "get_weather"}
        reply, _ = await asked(router, [user("Weather?")], tool_choice=choice)
    sampling = worker.requests[0].body["sampling_params"]
    assert {"json_schema", "structural_tag"} & sampling.keys()
    assert reply["stop_reason"] == "tool_use", reply


@pytest.mark.parsers
async def test_a_begun_reply_is_gone_on_with():
    async with parsing() as (router, worker):
        begun = {"role": "assistant", "content": "The answer is"}
        await asked(router, [user("Hi"), begun])
    sent = tiny_tokenizer().decode(worker.requests[0].body["input_ids"], skip_special_tokens=False)
    assert sent.endswith("<|im_start|>assistant\nThe answer is")


@pytest.mark.parsers
async def test_a_session_is_named_by_the_path_or_by_claude_codes_header():
    async with parsing() as (router, _):
        await asked(router, ASK["messages"], path=f"/sessions/mine{PATH}")
        headers = {"x-claude-code-session-id": "theirs"}
        async with router.http.post(f"{PATH}?beta=true", json=ASK, headers=headers) as response:
            assert response.status == 200
        for name in ("mine", "theirs"):
            assert len(router.gateway.store.sessions.get(name).turns) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_max_tokens_of_zero_has_the_prompt_computed_and_nothing_sampled(stream):
    """Anthropic's way of filling its prompt cache; the next request is as if it had not been."""
    asked = {"model": "m", "messages": [user("hi")], "stream": stream}
    async with gateways.served() as (router, worker):
        async with router.http.post(PATH, json={**asked, "max_tokens": 0}) as answer:
            raw = await answer.read()
            assert answer.status == 200, raw
        sent = worker.requests[-1].body
        assert sent["sampling_params"]["max_new_tokens"] == 0
        if stream:
            told = [orjson.loads(line[6:]) for line in raw.split(b"\n") if line[:6] == b"data: "]
            assert [each["type"] for each in told] == [
                "message_start",
                "message_delta",
                "message_stop",
            ]
            content, end, usage = [], told[1]["delta"], told[1]["usage"]
        else:
            end = orjson.loads(raw)
            content, usage = end["content"], end["usage"]
        assert (content, end["stop_reason"], usage["output_tokens"]) == ([], "max_tokens", 0)
        assert len(router.gateway.store) == 0
        async with router.http.post(PATH, json={**asked, "max_tokens": 3}) as answer:
            assert answer.status == 200
        assert worker.requests[-1].body["input_ids"] == sent["input_ids"]


@pytest.mark.parametrize("limit", [-1, "0", 0.0, False])
async def test_another_max_tokens_than_a_count_is_refused(limit):
    async with gateways.served() as (router, worker):
        body = {"model": "m", "messages": [user("hi")], "max_tokens": limit}
        status, reply = await router.post(PATH, body)
        assert status == 400
        assert "max_tokens" in reply["error"]["message"]
        assert not worker.requests
