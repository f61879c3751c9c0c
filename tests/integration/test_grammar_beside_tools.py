"""A schema beside tools, at each door: the model may answer in JSON or call."""

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
