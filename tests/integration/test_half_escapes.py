"""Calls whose arguments are JSON that strict readers refuse.

Half of an escaped emoji is not UTF-8, and no double holds 1E400.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from jiter import from_json

from tests.integration.gateway import CHAT, Served, user
from tests.integration.random_replies import PATHS
from tests.integration.scripted import events
from tests.integration.test_tool_calls import TOOLS, folded, parsing, say, whole
from tests.stack import tiny_tokenizer

pytestmark = pytest.mark.parsers

HALVES = {
    "inside": r"a\ud83d b",
    "end": r"echo \ud83d",
    "beginning": r"\ud83d echo",
    "alone": r"\ud83d",
    "low": r"x\udc00",
    "two": r"\ud83d\ud83d",
    "turned": r"\ude00\ud83d",
    "capitals": r"\uD83D x",
    "emoji": r"\ud83d\ude00",
    "spaces": r"echo \ud83d  ",
    "escaped": r"\\ud83d",
}


def call_text(half: str) -> str:
    return f'<tool_call>\n{{"name": "search", "arguments": {{"cmd": "{half}"}}}}\n</tool_call>'


def arguments(half: str) -> str:
    return f'{{"cmd": "{half}"}}'


async def chat(router: Served, messages: list[Any], *, stream: bool) -> dict[str, Any]:
    body = {"model": "m", "messages": messages, "tools": TOOLS, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    async with router.http.post(CHAT, json=body) as response:
        raw = await response.read()
        assert response.status == 200, raw
    return folded(events(raw)) if stream else whole(orjson.loads(raw))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
async def test_the_escape_comes_as_it_was_sampled_and_the_turn_goes_on(
    half: str, stream: bool
) -> None:
    async with parsing() as (router, worker):
        say(worker, call_text(half))
        reply = await chat(router, [user("Hi")], stream=stream)
        [call] = reply["calls"]
        if half == HALVES["emoji"]:
            assert json.loads(call["arguments"]) == json.loads(arguments(half))
        else:
            assert call["arguments"] == arguments(half)
        assert len(router.gateway.store) == 1
        called = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": call}],
        }
        result = {"role": "tool", "tool_call_id": "c", "content": "done"}
        say(worker, "Fine.")
        _, receipt = await router.chat([user("Hi"), called, result], tools=TOOLS)
        assert receipt["status"] == "extended", receipt


PARTS = {name: half for name, half in HALVES.items() if name != "emoji"}


def tools_of(door: str) -> list[dict[str, Any]]:
    if door == "responses":
        return [{"type": "function", "name": "search", "parameters": {"type": "object"}}]
    return [{"name": "search", "input_schema": {"type": "object"}}]


async def post(router: Served, door: str, stream: bool, **body: Any) -> tuple[bytes, Any]:
    """The reply and its receipt."""
    asked = {"model": "m", "tools": tools_of(door), "stream": stream, **body}
    if door == "messages":
        asked["max_tokens"] = 200
    # As every SDK writes it: what is not ASCII is escaped.
    async with router.http.post(PATHS[door], data=json.dumps(asked).encode()) as response:
        raw = await response.read()
        assert response.status == 200, raw
        return raw, json.loads(response.headers.get("x-slime-receipt", "{}"))


@pytest.mark.parametrize("half", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("is_held", [True, False])
async def test_anthropics_input_comes_back_and_goes_on(half: str, is_held: bool) -> None:
    async with parsing() as (router, worker):
        say(worker, call_text(half))
        raw, _ = await post(router, "messages", False, messages=[user("Hi")])
        assert f'"input":{arguments(half)}'.encode() in raw
        said = json.loads(raw)["content"]
        [block] = [each for each in said if each["type"] == "tool_use"]
        result = {"type": "tool_result", "tool_use_id": block["id"], "content": "done"}
        first = user("Hi") if is_held else user("Hello, you")
        say(worker, "Fine.")
        talk = [first, {"role": "assistant", "content": said}, user([result])]
        _, receipt = await post(router, "messages", False, messages=talk)
        assert receipt["status"] == ("extended" if is_held else "fresh"), receipt


@pytest.mark.parametrize("half", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("is_held", [True, False])
async def test_anthropics_streamed_input_is_read_by_sdks_and_goes_on(
    half: str, is_held: bool
) -> None:
    """They read it with each piece, and give up the reply at half of a character."""
    async with parsing() as (router, worker):
        say(worker, call_text(half))
        raw, _ = await post(router, "messages", True, messages=[user("Hi")])
        lines = [line[6:] for line in raw.split(b"\n") if line.startswith(b"data: ")]
        heard = [orjson.loads(line) for line in lines]
        said = ""
        for event in heard:
            said += event.get("delta", {}).get("partial_json", "")
            from_json(said.encode() or b"{}", partial_mode=True)
        given = orjson.loads(said)
        if half == PARTS["escaped"]:
            assert said == arguments(half)
        else:
            assert given["_raw"] == arguments(half)
        begun = [event["content_block"] for event in heard if "content_block" in event]
        [block] = [block for block in begun if block["type"] == "tool_use"]
        result = {"type": "tool_result", "tool_use_id": block["id"], "content": "done"}
        first = user("Hi") if is_held else user("Hello, you")
        talk = [first, {"role": "assistant", "content": [{**block, "input": given}]}]
        say(worker, "Fine.")
        _, receipt = await post(router, "messages", True, messages=[*talk, user([result])])
        assert receipt["status"] == ("extended" if is_held else "fresh"), receipt
        sent = tiny_tokenizer().decode(
            worker.requests[-1].body["input_ids"], skip_special_tokens=False
        )
        assert half.lower() in sent.lower()


@pytest.mark.parametrize("half", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_responses_have_it_and_go_on(half: str, stream: bool) -> None:
    async with parsing() as (router, worker):
        say(worker, call_text(half))
        raw, _ = await post(router, "responses", stream, input="Hi")
        if stream:
            [last] = [line for line in raw.split(b"\n") if b'"type":"response.completed"' in line]
            reply = orjson.loads(last[6:])["response"]
        else:
            reply = orjson.loads(raw)
        [call] = [item for item in reply["output"] if item["type"] == "function_call"]
        assert call["arguments"] == arguments(half)
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "done"}
        say(worker, "Fine.")
        _, receipt = await post(
            router, "responses", False, input=[result], previous_response_id=reply["id"]
        )
        assert receipt["status"] == "extended", receipt
        talk = [{"role": "user", "content": "Hi"}, call, result]
        say(worker, "Fine.")
        _, receipt = await post(router, "responses", False, input=talk)
        assert receipt["status"] == "extended", receipt


async def test_a_conversation_that_nobody_holds_is_rendered_with_the_escape() -> None:
    async with parsing() as (router, worker):
        call = {"name": "search", "arguments": arguments(HALVES["end"])}
        called: dict[str, Any] = {"role": "assistant", "content": None}
        called["tool_calls"] = [{"id": "c", "type": "function", "function": call}]
        say(worker, "Fine.")
        result = {"role": "tool", "tool_call_id": "c", "content": "done"}
        _, receipt = await router.chat([user("Hi"), called, result], tools=TOOLS)
        assert receipt["status"] == "fresh"
        sent = worker.requests[0].body["input_ids"]
        assert HALVES["end"] in tiny_tokenizer().decode(sent, skip_special_tokens=False)


@pytest.mark.parametrize(
    "body",
    [
        rb'{"messages": [{"role": "user", "content": "\ud83d"}]}',
        rb'{"messages": [], "\ud83d": 1}',
        rb'{"messages": [{"role": "user", "content": [{"type": "text", "input": "\udc00"}]}]}',
        b'{"a": "\\ud83d", "b": ' + b"[" * 300 + b"]" * 300 + b"}",
    ],
)
@pytest.mark.parametrize("door", ["chat", "messages", "responses", "generate"])
async def test_anywhere_else_half_a_character_is_a_400(door: str, body: bytes) -> None:
    async with parsing() as (router, worker):
        async with router.http.post(PATHS[door], data=body) as response:
            assert response.status == 400, await response.read()
        assert not worker.requests


BEYOND = {"1E400": "1E400", "-1e999": "-1e999", "many digits": "9" * 400}


def called(number: str) -> str:
    """A conversation with a call, as a client that does not read numbers sends it back."""
    call = (
        '{"type": "tool_use", "id": "c", "name": "search", "input": {"a": [{"b": %s}], "c": "ü"}}'
    )
    result = '{"type": "tool_result", "tool_use_id": "c", "content": "done"}'
    return (
        '{"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}, '
        f'{{"role": "assistant", "content": [{call % number}]}}, '
        f'{{"role": "user", "content": [{result}]}}]}}'
    )


@pytest.mark.parametrize("number", BEYOND.values(), ids=BEYOND)
async def test_a_number_that_no_double_holds_is_what_it_is_to_the_chat_door(number):
    arguments = f'{{"a": [{{"b": {number}}}], "c": "\\u00fc"}}'
    call = {"id": "c", "type": "function", "function": {"name": "search", "arguments": arguments}}
    talk = [
        user("Hi"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    async with parsing() as (router, worker):
        async with router.http.post(PATHS["messages"], data=called(number)) as response:
            assert response.status == 200, await response.read()
        await router.chat(talk)
        first, second = (request.body["input_ids"] for request in worker.requests)
        assert first == second


async def test_a_sampled_number_that_no_double_holds_goes_on():
    async with parsing() as (router, worker):
        say(worker, '<tool_call>\n{"name": "search", "arguments": {"a": 1E400}}\n</tool_call>')
        raw, _ = await post(router, "messages", False, messages=[user("Hi")])
        assert b'"input":{"a": 1E400}' in raw
        [block] = json.loads(raw)["content"]
        talk = json.dumps(
            [
                user("Hi"),
                {"role": "assistant", "content": [block]},
                user([{"type": "tool_result", "tool_use_id": block["id"], "content": "done"}]),
            ]
        ).replace("Infinity", "1E400")
        tools = json.dumps(tools_of("messages"))
        body = f'{{"model": "m", "max_tokens": 9, "tools": {tools}, "messages": {talk}}}'
        say(worker, "Fine.")
        async with router.http.post(PATHS["messages"], data=body) as response:
            assert response.status == 200, await response.read()
            receipt = json.loads(response.headers["x-slime-receipt"])
        assert receipt["status"] == "extended", receipt


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"temperature": 1E400}', "temperature"),
        ('{"a": [{"b": [0, 1E400]}]}', "a[0].b[1]"),
        ('{"tools": [{"parameters": {"maximum": 1E999}}]}', "tools[0].parameters.maximum"),
        ('{"a": [{"b": "\\ud83d"}]}', "a[0].b"),
    ],
)
@pytest.mark.parametrize("door", ["chat", "messages", "responses", "generate"])
async def test_anywhere_else_the_field_is_named(door, body, param):
    async with parsing() as (router, worker):
        async with router.http.post(PATHS[door], data=body) as response:
            said = await response.json()
            assert response.status == 400, said
        assert param in str(said), said
        assert not worker.requests


async def test_constants_of_javascript_are_no_json_beside_what_is_read_as_written():
    async with parsing() as (router, _):
        body = called("1E400").replace('"m"', "NaN")
        async with router.http.post(PATHS["messages"], data=body) as response:
            assert response.status == 400
            assert "not valid JSON" in await response.text()
