"""Functions of one name in two namespaces, as two MCP servers have them, at the Responses API."""

from __future__ import annotations

import pytest

from tests.integration.test_responses_door import asked
from tests.integration.test_tool_calls import parsing, say

pytestmark = pytest.mark.parsers

LOOK = {"type": "function", "name": "look"}
TOOLS = [{"type": "namespace", "name": name, "tools": [LOOK]} for name in ("left", "right")]
CALL = '<tool_call>\n{"name": "right__look", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_names_its_namespace_and_the_next_turn_continues_it(stream: bool) -> None:
    question = {"role": "user", "content": "Hi"}
    async with parsing() as (router, worker):
        say(worker, CALL)
        reply, _ = await asked(router, [question], stream=stream, tools=TOOLS, store=False)
        [call] = [item for item in reply["output"] if item["type"] == "function_call"]
        assert (call["namespace"], call["name"], call["arguments"]) == ("right", "look", "{}")
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "a wall"}
        plain = {name: call[name] for name in ("type", "call_id", "namespace", "name", "arguments")}
        _, receipt = await asked(router, [question, plain, result], tools=TOOLS, store=False)
        assert receipt["status"] == "extended"
