"""A schema beside tools, at each door: the model may answer in JSON or call. And after thoughts."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.integration.gateway import CHAT, user
from tests.integration.test_tool_calls import parsing, say, tool

pytestmark = pytest.mark.parsers

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NAMED = {"name": "place", "schema": SCHEMA}
FLAT = {"name": "search", "parameters": {"type": "object"}}
DOORS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (
        CHAT,
        {
            "messages": [user("Hi")],
            "tools": [tool("search")],
            "response_format": {"type": "json_schema", "json_schema": NAMED},
        },
    ),
    "responses": (
        "/v1/responses",
        {
            "input": "Hi",
            "tools": [{"type": "function", **FLAT}],
            "text": {"format": {"type": "json_schema", **NAMED}},
        },
    ),
    "messages": (
        "/v1/messages",
        {
            "messages": [user("Hi")],
            "max_tokens": 99,
            "tools": [{"name": "search", "input_schema": {"type": "object"}}],
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
    ),
}


@pytest.mark.parametrize("door", DOORS)
async def test_a_worker_is_asked_for_either(door):
    path, body = DOORS[door]
    async with parsing() as (router, worker):
        say(worker, '{"city": "Paris"}')
        status, _ = await router.post(path, {"model": "tiny", **body})
        asked = worker.requests[-1].body["sampling_params"]
    assert status == 200
    assert "json_schema" not in asked
    tag = orjson.loads(asked["structural_tag"])
    assert "<tool_call>" in str(tag)
    assert "city" in str(tag)


@pytest.mark.parametrize("door", DOORS)
async def test_without_tools_it_is_the_schema_alone(door):
    path, body = DOORS[door]
    async with parsing() as (router, worker):
        say(worker, '{"city": "Paris"}')
        status, _ = await router.post(path, {"model": "tiny", **body, "tools": []})
        asked = worker.requests[-1].body["sampling_params"]
    assert status == 200
    assert orjson.loads(asked["json_schema"])["required"] == ["city"]
    assert "structural_tag" not in asked


SCHEMA_ALONE = {"response_format": {"type": "json_schema", "json_schema": NAMED}}
FORCED = {"tools": [tool("search")], "tool_choice": "required"}


@pytest.mark.parametrize("fields", [SCHEMA_ALONE, FORCED, {"regex": "a+"}], ids=str)
async def test_a_grammar_waits_for_the_reasoning_as_at_sglangs_own_route(fields):
    """Without this field a worker applies it to the first token, and the model cannot think."""
    body = {"model": "tiny", "messages": [user("Hi")], **fields}
    async with parsing() as (router, worker):
        say(worker, '<think>\nhm\n</think>\n\n{"city": "Paris"}')
        status, reply = await router.post(CHAT, body)
        assert worker.requests[-1].body["require_reasoning"] is True
    assert status == 200
    message = reply["choices"][0]["message"]
    assert message["reasoning_content"] == "\nhm\n"
    assert message["content"] == '\n\n{"city": "Paris"}'


@pytest.mark.parametrize("door", DOORS)
async def test_it_waits_at_each_door(door):
    path, body = DOORS[door]
    async with parsing() as (router, worker):
        say(worker, '{"city": "Paris"}')
        await router.post(path, {"model": "tiny", **body})
        assert worker.requests[-1].body["require_reasoning"] is True


async def test_a_budget_of_thinking_is_kept_by_workers_that_know_of_it():
    async with parsing() as (router, worker):
        say(worker, "Yes")
        await router.chat([user("Hi")], max_thinking_tokens=5)
        assert worker.requests[-1].body["require_reasoning"] is True


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [user("Hi")]}),
        (CHAT, {"messages": [user("Hi")], **SCHEMA_ALONE, "reasoning_effort": "none"}),
        (
            CHAT,
            {
                "messages": [user("Hi"), {"role": "assistant", "content": "It"}],
                "continue_final_message": True,
                "regex": "a+",
            },
        ),
        ("/v1/completions", {"prompt": "Hi", "regex": "a+"}),
        ("/generate", {"text": "Hi", "sampling_params": {"regex": "a+"}}),
    ],
    ids=["no grammar", "no thinking", "an answer goes on", "completions", "generate"],
)
async def test_nothing_waits_where_nothing_is_thought_or_constrained(path, fields):
    async with parsing() as (router, worker):
        say(worker, "a")
        status, reply = await router.post(path, {"model": "tiny", **fields})
        assert status == 200, reply
        assert "require_reasoning" not in worker.requests[-1].body
