"""What real clients tripped over, without the clients."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.integration.test_tool_calls import parsing, say

pytestmark = pytest.mark.parsers

CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


def _folded(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output as the openai SDK for JavaScript puts it together: a part begins before it grows.

    It raises where text comes for a part that no event has begun.
    """
    output: list[dict[str, Any]] = []
    for event in events:
        name = event["type"].removeprefix("response.")
        if name == "output_item.added":
            output.append(event["item"])
        elif name == "content_part.added":
            output[event["output_index"]]["content"].append(event["part"])
        elif name in ("reasoning_text.delta", "output_text.delta"):
            output[event["output_index"]]["content"][event["content_index"]]["text"] += event[
                "delta"
            ]
        elif name == "content_part.done":
            item = output[event["output_index"]]
            assert item["content"][event["content_index"]] == event["part"]
    return output


async def test_every_part_of_a_response_begins_before_its_text_comes():
    """openai for JavaScript refused a stream with reasoning: its part had not begun."""
    async with parsing() as (router, worker):
        say(worker, f"<think>\nLook  first.\n</think>\n\nI look.{CALL}")
        tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
        body = {"model": "tiny", "input": "Hi", "tools": [tool], "stream": True}
        async with router.http.post("/v1/responses", json=body) as response:
            raw = await response.text()
    lines = [line for line in raw.splitlines() if line.startswith("data: ")]
    events = [orjson.loads(line.removeprefix("data: ")) for line in lines]
    final = events[-1]["response"]["output"]
    assert [item["type"] for item in final] == ["reasoning", "message", "function_call"]
    assert [item.get("content") for item in _folded(events)] == [
        item.get("content") for item in final
    ]
