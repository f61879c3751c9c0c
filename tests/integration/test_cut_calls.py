"""Calls that were cut, or are not JSON, come back with an error result: never a 400.

Many templates walk through the arguments of a call as an object, and fail on text.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from slime_router.testing import FakeWorker
from tests.integration.gateway import CHAT, Served, user
from tests.integration.test_tool_calls import TOOLS, parsing, say
from tests.stack import tiny_tokenizer

pytestmark = pytest.mark.parsers

# As Qwen3-Coder, MiniMax-M2, GLM-4.5 and Nemotron 3 print calls: argument by argument.
TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>' + call.function.name -}}
{%- for key, value in call.function.arguments.items() -%}
{{- '<arg>' + key + '=' + (value if value is string else value | tojson) + '</arg>' -}}
{%- endfor -%}
{{- '</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
CUT = {
    '{"cmd": "ls': "<arg>cmd=ls</arg>",
    '{"cmd": "ls"': "<arg>cmd=ls</arg>",
    '{"cmd": ["ls", "-l': '<arg>cmd=["ls", "-l"]</arg>',
    '{"cmd": "a", "b': "<arg>cmd=a</arg>",
    '{"cmd': '<arg>_raw={"cmd</arg>',
    "{": "<arg>_raw={</arg>",
    "ls -l": "<arg>_raw=ls -l</arg>",
    '["ls"]': '<arg>_raw=["ls"]</arg>',
    '"ls"': '<arg>_raw="ls"</arg>',
    "5": "<arg>_raw=5</arg>",
    r'{"cmd": "a\ud83d': "<arg>cmd=ax</arg>",
}
NOTE = "arguments of a call that was cut are shown to the template as far as they are JSON"


@asynccontextmanager
async def strict(directory: Path) -> AsyncIterator[tuple[Served, FakeWorker]]:
    template = directory / "strict.jinja"
    template.write_text(TEMPLATE)
    async with parsing(chat_template=str(template)) as (router, worker):
        yield router, worker


def call_back(arguments: Any, call_id: str = "call_1") -> list[dict[str, Any]]:
    function = {"name": "search", "arguments": arguments}
    called = {"role": "assistant", "content": "I look."}
    result = {"role": "tool", "tool_call_id": call_id, "content": "Invalid JSON."}
    calls = [{"id": call_id, "type": "function", "function": function}]
    return [user("Hi"), {**called, "tool_calls": calls}, result]


@pytest.mark.parametrize(("arguments", "shown"), CUT.items())
async def test_nobody_holds_it(arguments: str, shown: str, tmp_path: Path) -> None:
    """The template gets an object, and the receipt says so."""
    async with strict(tmp_path) as (router, worker):
        say(worker, "Again.")
        _, receipt = await router.chat(call_back(arguments), tools=TOOLS)
        assert receipt["status"] == "fresh"
        assert receipt["notes"] == [NOTE]
        prompt = tiny_tokenizer().decode(
            worker.requests[0].body["input_ids"], skip_special_tokens=False
        )
        assert shown in prompt
        assert "Invalid JSON." in prompt


@pytest.mark.parametrize("arguments", ['{"cmd": "ls"}', {"cmd": "ls"}, "", None])
async def test_what_is_whole_has_no_note(arguments: Any, tmp_path: Path) -> None:
    async with strict(tmp_path) as (router, worker):
        say(worker, "Again.")
        _, receipt = await router.chat(call_back(arguments), tools=TOOLS)
        assert "notes" not in receipt


def tools_of(door: str) -> list[dict[str, Any]]:
    if door == "messages":
        return [{"name": tool["function"]["name"], "input_schema": {}} for tool in TOOLS]
    return [{"type": "function", "name": tool["function"]["name"]} for tool in TOOLS]


async def cut_reply(router: Served, worker: FakeWorker, door: str) -> tuple[Any, Any]:
    """A reply whose call is cut by its length, as a client of an API has it; and its id."""
    text = '<tool_call>\n{"name": "search", "arguments": {"cmd": "ls -la /tmp"}}\n</tool_call>'
    say(worker, text, cut=len(tiny_tokenizer().encode(text)) - 14)
    if door == "chat":
        _, reply = await router.post(CHAT, {"messages": [user("Hi")], "tools": TOOLS})
        return reply["choices"][0]["message"], None
    if door == "messages":
        asked = {"model": "m", "max_tokens": 99, "messages": [user("Hi")]}
        asked["tools"] = tools_of(door)
        _, reply = await router.post("/v1/messages", asked)
        return reply["content"], None
    _, reply = await router.post("/v1/responses", {"input": "Hi", "tools": tools_of(door)})
    return reply["output"], reply["id"]


def answer(door: str, said: Any, first: str) -> dict[str, Any]:
    """The request that returns the reply with an error result."""
    if door == "chat":
        result = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "No."}
        return {"messages": [user(first), said, result], "tools": TOOLS}
    if door == "messages":
        [block] = [each for each in said if each["type"] == "tool_use"]
        result = {"type": "tool_result", "tool_use_id": block["id"], "content": "No."}
        talk = [user(first), {"role": "assistant", "content": said}, user([result])]
        return {"model": "m", "max_tokens": 99, "messages": talk, "tools": tools_of(door)}
    [call] = [item for item in said if item["type"] == "function_call"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "No."}
    return {"input": [user(first), *said, result], "tools": tools_of(door)}


@pytest.mark.parametrize("door", ["chat", "messages", "responses"])
@pytest.mark.parametrize("is_held", [True, False])
async def test_our_own_reply_is_never_our_own_400(door: str, is_held: bool, tmp_path: Path) -> None:
    paths = {"chat": CHAT, "messages": "/v1/messages", "responses": "/v1/responses"}
    async with strict(tmp_path) as (router, worker):
        said, response_id = await cut_reply(router, worker, door)
        asked = answer(door, said, "Hi" if is_held else "Hello, you")
        say(worker, "Again.")
        async with router.http.post(paths[door], json=asked) as response:
            assert response.status == 200, await response.read()
            receipt = json.loads(response.headers["x-slime-receipt"])
        assert receipt["status"] == ("extended" if is_held else "fresh"), receipt
        if response_id is not None and is_held:
            say(worker, "Again.")
            asked |= {"input": asked["input"][-1:], "previous_response_id": response_id}
            async with router.http.post(paths[door], json=asked) as response:
                assert response.status == 200, await response.read()
                assert json.loads(response.headers["x-slime-receipt"])["status"] == "extended"
