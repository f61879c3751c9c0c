"""Agents send the results of parallel calls as they finish: where only the order of results shows
whose they are, the receipt says that the model reads them as those of other calls.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slime_router.choices import History
from tests.integration.gateway import CHAT, Served, user
from tests.integration.test_tool_calls import TOOLS, parsing, say

pytestmark = pytest.mark.parsers

PATHS = {"chat": CHAT, "messages": "/v1/messages", "responses": "/v1/responses"}
TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{{- '\\n<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' -}}
{%- endfor -%}
{%- if message.role == 'tool' -%}{{- TELLS -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
TWO_CALLS = "\n".join(
    f'<tool_call>\n{{"name": "search", "arguments": {{"query": "{word}"}}}}\n</tool_call>'
    for word in ("tea", "milk")
)
NOTE = "; results do not answer the calls in order, and the template prints no ids"
TOOL_LISTS = {
    "chat": TOOLS,
    "messages": [
        {"name": each["function"]["name"], "input_schema": each["function"]["parameters"]}
        for each in TOOLS
    ],
    "responses": [{"type": "function", **each["function"]} for each in TOOLS],
}


def asked(door: str, talk: list[Any], **fields: Any) -> dict[str, Any]:
    """The body of a request."""
    name = "input" if door == "responses" else "messages"
    known = {"max_tokens": 99} if door == "messages" else {}
    return {"model": "tiny", name: talk, "tools": TOOL_LISTS[door], **known, **fields}


async def called(router: Served, door: str) -> tuple[list[Any], list[str]]:
    """A reply with two calls, as messages or items of the API, and the ids of its calls."""
    _, reply = await router.post(PATHS[door], asked(door, [user("Hi")]))
    if door == "chat":
        message = reply["choices"][0]["message"]
        return [message], [each["id"] for each in message["tool_calls"]]
    if door == "messages":
        blocks = reply["content"]
        ids = [each["id"] for each in blocks if each["type"] == "tool_use"]
        return [{"role": "assistant", "content": blocks}], ids
    items = reply["output"]
    return items, [each["call_id"] for each in items if each["type"] == "function_call"]


def results(door: str, ids: list[str]) -> list[Any]:
    """A result for each of these calls."""
    if door == "chat":
        return [{"role": "tool", "tool_call_id": each, "content": "5"} for each in ids]
    if door == "messages":
        return [user([{"type": "tool_result", "tool_use_id": i, "content": "5"} for i in ids])]
    return [{"type": "function_call_output", "call_id": each, "output": "5"} for each in ids]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("door", PATHS)
@pytest.mark.parametrize("history", ["held", "template"])
@pytest.mark.parametrize("tells", ["''", "message.tool_call_id"])
async def test_results_in_another_order_than_their_calls(
    tells: str, history: History, door: str, stream: bool, tmp_path: Path
) -> None:
    template = tmp_path / "tells.jinja"
    template.write_text(TEMPLATE.replace("TELLS", tells))
    async with parsing(chat_template=str(template), history=history) as (router, worker):
        say(worker, TWO_CALLS)
        reply, ids = await called(router, door)
        for first in ("Hi", "Hello, you"):  # what a turn holds, and what none does
            for answered in (ids, ids[::-1], ids[1:]):
                say(worker, "Fine.")
                talk = [user(first), *reply, *results(door, answered)]
                body = asked(door, talk, stream=stream)
                async with router.http.post(PATHS[door], json=body) as response:
                    assert response.status == 200, await response.read()
                    receipt = json.loads(response.headers["x-slime-receipt"])
                is_extended = receipt["status"] == "extended"
                assert is_extended == (first == "Hi" and history == "held"), receipt
                is_noted = tells == "''" and answered != ids
                assert receipt["reason"].count(NOTE) == is_noted, receipt
