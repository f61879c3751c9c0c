"""Tool calls and reasoning through the chat door, streamed or not, on the tiny vocabulary."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import orjson
import pytest

from slime_router.testing import FakeWorker
from tests.integration.gateway import CHAT, Served, served, user
from tests.integration.scripted import events
from tests.stack import tiny_tokenizer

pytestmark = pytest.mark.parsers

ARGUMENTS = '{"city": "Paris", "days": 3}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
SECOND = '\n<tool_call>\n{"name": "search", "arguments": {"query": "🙂"}}\n</tool_call>'
THOUGHT = "<think>\nthe weather, 東京\n</think>\n\n"
REPLIES = {
    "text": "It is sunny.",
    "reasoning": THOUGHT + "It is sunny.",
    "call": CALL,
    "calls": "I look. " + CALL + SECOND,
    "all": THOUGHT + "I look. " + CALL + SECOND,
    "broken": CALL.replace('"Paris"', '"Paris'),
    "tag": "a <tool_cal",
}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


TOOLS = [tool("get_weather"), tool("search")]


@asynccontextmanager
async def parsing(**settings: Any) -> AsyncIterator[tuple[Served, FakeWorker]]:
    given = {"tool_call_parser": "qwen25", "reasoning_parser": "qwen3", **settings}
    async with served(**given) as (router, worker):
        yield router, worker


def say(worker: FakeWorker, text: str, *, stops: bool = True, cut: int | None = None) -> int:
    """The worker says this text next; returns how many tokens that are."""
    tokenizer = tiny_tokenizer()
    end = [max(tokenizer.eos_ids)] if stops and cut is None else []
    ids = [*tokenizer.encode(text).tolist()[:cut], *end]
    worker.script(ids)
    return len(ids)


async def ask(router: Served, **fields: Any) -> Any:
    body = {"model": "tiny", "messages": [user("Hi")], "tools": TOOLS, **fields}
    status, reply = await router.post(CHAT, json=body)
    assert status == 200, reply
    return reply


async def ask_stream(router: Served, **fields: Any) -> list[Any]:
    body = {"model": "tiny", "messages": [user("Hi")], "tools": TOOLS, "stream": True}
    options = {"stream_options": {"include_usage": True}}
    async with router.http.post(CHAT, json={**body, **options, **fields}) as response:
        assert response.status == 200
        return events(await response.read())


def folded(chunks: list[Any]) -> dict[str, Any]:
    """The message that a stream spells, and how it ends; the rules of its order are checked."""
    *choices, usage, done = chunks
    assert done == "[DONE]"
    assert usage["choices"] == []
    deltas = [chunk["choices"][0]["delta"] for chunk in choices]
    assert deltas[0] == {"role": "assistant", "content": "", "reasoning_content": None}
    assert deltas[-1] == {}
    assert all("role" not in delta for delta in deltas[1:])
    ends = [chunk["choices"][0]["finish_reason"] for chunk in choices]
    assert set(ends[:-1]) == {None}
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        for call in delta.get("tool_calls", ()):
            _add(calls, call)
    return {
        "content": "".join(delta.get("content") or "" for delta in deltas),
        "reasoning": "".join(delta.get("reasoning_content") or "" for delta in deltas),
        "calls": calls,
        "finish": ends[-1],
        "usage": usage["usage"],
    }


def _add(calls: list[dict[str, Any]], call: dict[str, Any]) -> None:
    function = call["function"]
    if call["index"] == len(calls):
        assert call["type"] == "function"
        assert call["id"]
        calls.append({"name": function["name"], "arguments": ""})
    else:
        assert call["index"] == len(calls) - 1, "calls come one after the other"
        assert "id" not in call
        assert "name" not in function
    calls[-1]["arguments"] += function["arguments"]


def whole(reply: Any) -> dict[str, Any]:
    """The same of a reply in one piece."""
    [choice] = reply["choices"]
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    assert all(call["type"] == "function" for call in message.get("tool_calls", ()))
    return {
        "content": message["content"] or "",
        "reasoning": message["reasoning_content"] or "",
        "calls": calls,
        "finish": choice["finish_reason"],
        "usage": reply["usage"],
    }


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize(
    "fields",
    [{}, {"stream_reasoning": False}, {"logprobs": True, "return_token_ids": True}],
    ids=["plain", "held", "detailed"],
)
async def test_a_stream_says_what_the_whole_reply_says(name, fields):
    async with parsing() as (router, worker):
        count = say(worker, REPLIES[name])
        one = whole(await ask(router, **fields))
        say(worker, REPLIES[name])
        other = folded(await ask_stream(router, **fields))
    one["usage"].pop("prompt_tokens_details")
    other["usage"].pop("prompt_tokens_details")
    assert one == other
    assert one["usage"]["completion_tokens"] == count


async def test_a_whole_reply_with_everything():
    async with parsing() as (router, worker):
        say(worker, REPLIES["all"])
        reply = await ask(router)
    message = reply["choices"][0]["message"]
    assert message["reasoning_content"] == "\nthe weather, 東京\n"
    assert message["content"] == "\n\nI look. "
    first, second = message["tool_calls"]
    assert first["function"] == {"name": "get_weather", "arguments": ARGUMENTS}
    assert json.loads(second["function"]["arguments"]) == {"query": "🙂"}
    assert reply["choices"][0]["finish_reason"] == "tool_calls"
    assert reply["choices"][0]["matched_stop"] is None
    thought = len(tiny_tokenizer().encode(THOUGHT.rstrip()))
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": thought}


async def test_calls_without_text_have_null_content():
    async with parsing() as (router, worker):
        say(worker, CALL)
        message = (await ask(router))["choices"][0]["message"]
    assert message["content"] is None
    assert len(message["tool_calls"]) == 1


async def test_a_client_of_sglangs_meta_info_gets_sglangs_content():
    """miles' session server takes null for a worker that is broken."""
    async with parsing() as (router, worker):
        say(worker, CALL)
        [choice] = (await ask(router, return_meta_info=True))["choices"]
    assert choice["message"]["content"] == ""
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["meta_info"]["completion_tokens"] > 0


async def test_a_reply_without_calls_has_no_tool_calls():
    async with parsing() as (router, worker):
        say(worker, REPLIES["reasoning"])
        reply = await ask(router)
    assert "tool_calls" not in reply["choices"][0]["message"]
    assert reply["choices"][0]["finish_reason"] == "stop"


async def test_events_come_as_reasoning_content_calls_finish_usage():
    async with parsing() as (router, worker):
        say(worker, REPLIES["all"])
        chunks = await ask_stream(router)
    kinds = [key for chunk in chunks[:-2] for key in chunk["choices"][0]["delta"] or ["finish"]]
    runs = [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before]
    begin = ["role", "content", "reasoning_content"]  # the first event has all three
    assert runs == [*begin, "content", "tool_calls", "finish"]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks[:-1]}) == 1


async def test_a_call_cut_by_length_ends_with_length():
    async with parsing() as (router, worker):
        say(worker, CALL, cut=len(tiny_tokenizer().encode(CALL)) - 12)
        reply = whole(await ask(router))
    assert reply["finish"] == "length"
    [call] = reply["calls"]
    assert call["arguments"]
    assert ARGUMENTS.startswith(call["arguments"])


async def test_only_the_first_call_where_calls_are_not_parallel():
    async with parsing() as (router, worker):
        say(worker, REPLIES["calls"])
        reply = whole(await ask(router, parallel_tool_calls=False))
        say(worker, REPLIES["calls"])
        stream = folded(await ask_stream(router, parallel_tool_calls=False))
    assert [call["name"] for call in reply["calls"]] == ["get_weather"]
    assert stream["calls"] == reply["calls"]


@pytest.mark.parametrize("field", ["separate_reasoning", "include_reasoning"])
async def test_reasoning_that_is_not_separated_is_content(field):
    async with parsing() as (router, worker):
        say(worker, REPLIES["all"])
        reply = whole(await ask(router, **{field: False}))
    assert reply["reasoning"] == ""
    assert reply["content"] == THOUGHT + "I look. "
    assert len(reply["calls"]) == 2
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


async def test_held_reasoning_comes_in_one_piece():
    async with parsing() as (router, worker):
        say(worker, REPLIES["reasoning"])
        chunks = await ask_stream(router, stream_reasoning=False)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-2]]
    pieces = [d["reasoning_content"] for d in deltas if d.get("reasoning_content")]
    assert pieces == ["\nthe weather, 東京\n"]


async def test_without_parsers_all_is_content():
    async with served() as (router, worker):
        say(worker, REPLIES["all"])
        reply = whole(await ask(router))
    assert reply["content"] == REPLIES["all"]
    assert reply["finish"] == "stop"


# Which tools


async def prompt_and_reply(choice: Any, text: str = CALL) -> tuple[str, Any, dict[str, Any]]:
    """The prompt that the worker got for a tool choice, its sampling parameters, the reply."""
    async with parsing() as (router, worker):
        say(worker, text)
        reply = whole(await ask(router, tool_choice=choice))
        body = worker.requests[-1].body
    prompt = tiny_tokenizer().decode(body["input_ids"], skip_special_tokens=False)
    return prompt, body["sampling_params"], reply


async def test_auto_shows_all_tools_and_forces_none():
    prompt, sampling, reply = await prompt_and_reply("auto")
    assert "get_weather" in prompt
    assert "search" in prompt
    assert "structural_tag" not in sampling
    assert reply["finish"] == "tool_calls"


async def test_none_shows_no_tools_and_reads_no_calls():
    prompt, sampling, reply = await prompt_and_reply("none", THOUGHT + CALL)
    assert "get_weather" not in prompt
    assert "structural_tag" not in sampling
    assert (reply["calls"], reply["finish"]) == ([], "stop")
    assert reply["content"].endswith(CALL)
    assert "weather" in reply["reasoning"]


async def test_required_forces_a_call_of_any_tool():
    prompt, sampling, reply = await prompt_and_reply("required")
    assert "get_weather" in prompt
    begins = [each["begin"] for each in orjson.loads(sampling["structural_tag"])["structures"]]
    assert len(begins) == 2
    assert reply["finish"] == "tool_calls"


@pytest.mark.parametrize(
    ("choice", "is_shown"),
    [
        ({"type": "function", "function": {"name": "get_weather"}}, True),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "get_weather"}}],
                },
            },
            False,
        ),
    ],
    ids=["named", "allowed"],
)
async def test_one_tool_is_forced(choice, is_shown):
    prompt, sampling, reply = await prompt_and_reply(choice)
    [structure] = orjson.loads(sampling["structural_tag"])["structures"]
    assert "get_weather" in structure["begin"]
    assert ('"search"' in prompt) == is_shown
    assert [call["name"] for call in reply["calls"]] == ["get_weather"]
    assert reply["finish"] == "tool_calls"


async def test_allowed_tools_that_are_not_forced_filter_the_tools():
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "search"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    prompt, sampling, reply = await prompt_and_reply(choice)
    assert "get_weather" not in prompt
    assert "structural_tag" not in sampling
    assert (reply["calls"], reply["content"]) == ([], CALL), "a call of another tool is text"


async def test_forced_calls_come_as_json_where_the_format_cannot_be_forced():
    text = '[{"name": "search", "parameters": {"query": "a"}}]'
    async with parsing(tool_call_parser="glm45") as (router, worker):
        say(worker, text)
        reply = whole(await ask(router, tool_choice="required"))
        sampling = worker.requests[-1].body["sampling_params"]
    assert orjson.loads(sampling["json_schema"])["type"] == "array"
    assert reply["calls"] == [{"name": "search", "arguments": '{"query": "a"}'}]
    assert (reply["content"], reply["finish"]) == ("", "tool_calls")


NAMED = {"type": "function", "function": {"name": "get_weather"}}
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}}


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["any", "named"])
async def test_a_schema_of_the_text_yields_to_a_call_that_is_forced(choice):
    """instructor asks the Responses API for both. A forced call has no text beside it."""
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    async with parsing() as (router, worker):
        say(worker, CALL)
        _, sampling, reply = await prompt_and_reply(choice)
        say(worker, CALL)
        body = {"model": "tiny", "messages": [user("Hi")], "tools": TOOLS, "tool_choice": choice}
        async with router.http.post(CHAT, json={**body, "response_format": wanted}) as response:
            answer = whole(await response.json())
            receipt = orjson.loads(response.headers["x-slime-receipt"])
        sent = worker.requests[-1].body["sampling_params"]
        say(worker, CALL)
        async with router.http.post(CHAT, json=body) as response:
            without = orjson.loads(response.headers["x-slime-receipt"])
    assert without.get("notes", []) == []
    assert sent["structural_tag"] == sampling["structural_tag"]
    assert "json_schema" not in sent
    assert answer["calls"] == reply["calls"] != []
    assert "the schema of the text does not apply to a forced call" in receipt["notes"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required", "regex": "a+"}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "rm"}}}, "tool_choice"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ],
)
async def test_what_cannot_be_is_refused(fields, param):
    async with parsing() as (router, worker):
        body = {"model": "tiny", "messages": [user("Hi")], "tools": TOOLS, **fields}
        status, reply = await router.post(CHAT, json=body)
        assert worker.requests == []
    assert status == 400
    assert reply["error"]["param"] == param


# The SDK


@pytest.mark.parametrize("name", ["all", "call", "reasoning", "broken"])
async def test_the_sdk_rebuilds_the_same_message(name):
    async with parsing() as (router, worker):
        url = str(router.http._base_url)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            asked: dict[str, Any] = {"model": "tiny", "messages": [user("Hi")], "tools": TOOLS}
            say(worker, REPLIES[name])
            one = (await client.chat.completions.create(**asked)).choices[0]
            say(worker, REPLIES[name])
            async with client.chat.completions.stream(**asked) as stream:
                async for _ in stream:
                    pass
                other = (await stream.get_final_completion()).choices[0]
    assert other.finish_reason == one.finish_reason
    assert (other.message.content or "") == (one.message.content or "")
    assert _functions(other.message) == _functions(one.message)
    thoughts = [getattr(each.message, "reasoning_content", None) for each in (one, other)]
    assert thoughts[0] == thoughts[1]


def _functions(message: Any) -> list[tuple[str, str]]:
    calls = message.tool_calls or []
    return [(call.function.name, call.function.arguments) for call in calls]


async def test_two_choices_have_their_own_calls():
    async with parsing() as (router, worker):
        say(worker, CALL)
        say(worker, REPLIES["text"])
        reply = await ask(router, n=2)
    ends = sorted(choice["finish_reason"] for choice in reply["choices"])
    assert ends == ["stop", "tool_calls"]
