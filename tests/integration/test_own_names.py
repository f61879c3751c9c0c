"""What is wrong has the name that the client's own API has for it, however it was read here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.gateway import CHAT, served, user
from tests.integration.test_tool_calls import TOOLS, parsing, say
from tests.stack import tiny_tokenizer

pytestmark = pytest.mark.parsers

ENDLESS = {"$ref": "#"}
SERVER_TOOL = {"type": "web_search_20260101", "name": "web_search"}
STRICT = {"name": "look", "strict": True}
RESPONSES: list[tuple[dict[str, Any], str]] = [
    ({"truncation": "some"}, "truncation"),
    ({"truncation": 1}, "truncation"),
    ({"max_tool_calls": "x"}, "max_tool_calls"),
    ({"max_tool_calls": 0}, "max_tool_calls"),
    ({"max_tool_calls": True}, "max_tool_calls"),
    ({"include": ["reasoning.encrypted_content", 3]}, "include[1]"),
    ({"stream_options": "x"}, "stream_options"),
    ({"service_tier": 3}, "service_tier"),
    ({"user": 3}, "user"),
    ({"safety_identifier": ["x"]}, "safety_identifier"),
    ({"prompt_cache_key": {}}, "prompt_cache_key"),
    ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
    ({"reasoning": {"generate_summary": []}}, "reasoning.generate_summary"),
    ({"text": {"verbosity": 3}}, "text.verbosity"),
    (
        {
            "tool_choice": "required",
            "tools": [
                {"type": "web_search"},
                {
                    "type": "namespace",
                    "name": "n",
                    "tools": [{"type": "function", **STRICT, "parameters": ENDLESS}],
                },
            ],
        },
        "tools[1].tools[0].parameters",
    ),
]
MESSAGES: list[tuple[dict[str, Any], str]] = [
    (
        {"output_config": {"format": {"type": "json_schema", "schema": ENDLESS}}},
        "output_config.format.schema",
    ),
    ({"output_format": {"type": "json_schema", "schema": ENDLESS}}, "output_format.schema"),
    ({"thinking": {"type": "enabled", "budget_tokens": "x"}}, "thinking.budget_tokens"),
    ({"compaction": {"type": "summarize"}}, "compaction"),
    (
        {
            "tool_choice": {"type": "any"},
            "tools": [SERVER_TOOL, {**STRICT, "input_schema": ENDLESS}],
        },
        "tools[1].input_schema",
    ),
]


@pytest.mark.parametrize(("fields", "param"), RESPONSES, ids=str)
async def test_a_field_of_responses(fields: dict[str, Any], param: str) -> None:
    async with parsing() as (router, worker):
        status, reply = await router.post("/v1/responses", {"input": "Hi", **fields})
    assert (status, reply["error"]["param"]) == (400, param), reply
    assert worker.requests == []


@pytest.mark.parametrize(("fields", "param"), MESSAGES, ids=str)
async def test_a_field_of_messages(fields: dict[str, Any], param: str) -> None:
    async with parsing() as (router, worker):
        body = {"max_tokens": 9, "messages": [user("Hi")], **fields}
        status, reply = await router.post("/v1/messages", body)
    assert status == 400
    assert f"'{param}'" in reply["error"]["message"]
    assert worker.requests == []


BUDGET = {"thinking": {"type": "enabled", "budget_tokens": 2000}}
TASK = {"output_config": {"task_budget": {"type": "tokens", "total": 9000}}}
NAMED = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}


@pytest.mark.parametrize(
    ("fields", "notes"),
    [
        (
            {"tools": [SERVER_TOOL, {"type": "bash_20250124", "name": "bash"}]},
            ["'tools[1]' is not shown to the model"],
        ),
        (BUDGET, ["'thinking.budget_tokens' is not enforced"]),
        (TASK, ["'output_config.task_budget' is not enforced"]),
        ({"thinking": {"type": "adaptive", "display": "summarized"}}, None),
    ],
    ids=str,
)
async def test_the_receipt_says_what_no_worker_keeps_to(fields: Any, notes: Any) -> None:
    body = {"max_tokens": 9, "messages": [user("Hi")], **fields}
    async with parsing() as (router, _), router.http.post("/v1/messages", json=body) as response:
        assert response.status == 200
        assert json.loads(response.headers["x-slime-receipt"]).get("notes") == notes


@pytest.mark.parametrize(
    ("fields", "is_enforced"),
    [
        ({}, False),
        ({"tool_choice": "auto"}, False),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": {"type": "function", "function": {"name": "look"}}}, True),
        ({"response_format": NAMED}, True),
        ({"tool_choice": "none"}, None),
    ],
    ids=str,
)
async def test_the_receipt_says_where_strict_tools_are_not_enforced(
    fields: Any, is_enforced: bool | None
) -> None:
    """SGLang's grammars for calls in free text spell them otherwise than models do."""
    schema = {"type": "object", "properties": {"place": {"type": "string"}}}
    tools = [{"type": "function", "function": {**STRICT, "parameters": schema}}]
    async with parsing() as (router, worker):
        _, receipt = await router.chat([user("Hi")], tools=tools, **fields)
        asked = worker.requests[0].body["sampling_params"]
    assert ("notes" in receipt) == (is_enforced is False), receipt
    assert ("place" in str(asked)) == (is_enforced is True)


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking_that_is_to_be_omitted_is_and_the_next_turn_goes_on(stream: bool) -> None:
    body = {"max_tokens": 99, "thinking": {"type": "adaptive", "display": "omitted"}}
    async with parsing() as (router, worker):
        say(worker, "<think>\nSECRET\n</think>\n\nYes")
        asked = {**body, "messages": [user("Hi")], "stream": stream}
        async with router.http.post("/v1/messages", json=asked) as response:
            raw = await response.read()
            turn = json.loads(response.headers["x-slime-receipt"])["turn"]
        assert b"SECRET" not in raw
        assert turn.encode() in raw
        thought = {"type": "thinking", "thinking": "", "signature": turn}
        said = [thought, {"type": "text", "text": "\n\nYes"}]
        if not stream:
            assert json.loads(raw)["content"] == said
        talk = [user("Hi"), {"role": "assistant", "content": said}, user("So?")]
        async with router.http.post("/v1/messages", json={**body, "messages": talk}) as response:
            assert json.loads(response.headers["x-slime-receipt"])["status"] == "extended"


FUNCTION = {"name": "search", "arguments": '{"query": "Oslo"}'}
RESULT = {"role": "function", "name": "search", "content": "Rain"}


async def test_a_function_call_of_old_is_shown() -> None:
    called = {"role": "assistant", "content": None, "function_call": FUNCTION}
    async with served() as (router, worker):
        await router.chat([user("Hi"), called, RESULT], tools=TOOLS)
        ids = worker.requests[0].body["input_ids"]
    prompt = tiny_tokenizer().decode(ids, skip_special_tokens=False)
    assert "Oslo" in prompt
    assert "Rain" in prompt


async def test_a_call_that_comes_back_as_one_of_old_is_recognised() -> None:
    async with parsing() as (router, worker):
        say(worker, '<tool_call>\n{"name": "search", "arguments": {"query":"Oslo"}}\n</tool_call>')
        _, reply = await router.post(CHAT, {"messages": [user("Hi")], "tools": TOOLS})
        [call] = reply["choices"][0]["message"]["tool_calls"]
        called = {"role": "assistant", "content": None, "function_call": call["function"]}
        _, receipt = await router.chat([user("Hi"), called, RESULT], tools=TOOLS)
    assert receipt["status"] == "extended"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("search", "function_call"),
        ({}, "function_call.name"),
        ({"name": 5}, "function_call.name"),
        ({"name": "search", "arguments": 5}, "function_call.arguments"),
    ],
    ids=str,
)
async def test_a_broken_function_call_is_named(given: Any, param: str) -> None:
    called = {"role": "assistant", "content": None, "function_call": given}
    async with served() as (router, worker):
        status, reply = await router.post(CHAT, {"messages": [user("Hi"), called, user("So?")]})
    assert (status, reply["error"]["param"]) == (400, f"messages[1].{param}")
    assert worker.requests == []


async def test_a_function_call_of_another_role_says_nothing() -> None:
    asked = {**user("Hi"), "function_call": "search"}
    async with served() as (router, worker):
        status, _ = await router.post(CHAT, {"messages": [asked], "tools": TOOLS})
    assert status == 200
    assert len(worker.requests) == 1


async def test_calls_of_today_win_over_one_of_old() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    called = {"role": "assistant", "tool_calls": [call], "function_call": FUNCTION}
    async with served() as (router, worker):
        await router.chat([user("Hi"), called, user("So?")], tools=TOOLS)
        ids = worker.requests[0].body["input_ids"]
    assert "Oslo" not in tiny_tokenizer().decode(ids, skip_special_tokens=False)
