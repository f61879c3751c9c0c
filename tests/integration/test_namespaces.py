"""Functions of one name in two namespaces, as two MCP servers have them, at the Responses API."""

from __future__ import annotations

from json import dumps
from typing import Any

import pytest

from tests.integration.test_responses_door import PATH, asked
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


CUSTOMS = [
    {"type": "namespace", "name": name, "tools": [{"type": "custom", "name": "look"}]}
    for name in ("left", "right")
]
CUSTOM_CALL = '<tool_call>\n{"name": "right__look", "arguments": {"input": "up"}}\n</tool_call>'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["echoed", "stored", "stored, tools once"])
@pytest.mark.parametrize("is_custom", [False, True], ids=["function", "custom"])
async def test_chains_of_namespaced_calls_are_continued(
    stream: bool, way: str, is_custom: bool
) -> None:
    tools, said = (CUSTOMS, CUSTOM_CALL) if is_custom else (TOOLS, CALL)
    kind = "custom_tool_call" if is_custom else "function_call"
    given: list[Any] = [{"role": "user", "content": "Hi"}]
    more: dict[str, Any] = {"tools": tools}
    async with parsing() as (router, worker):
        for turn in range(3):
            say(worker, said)
            reply, receipt = await asked(router, given, stream=stream, **more)
            assert receipt["status"] == ("extended" if turn else "fresh")
            [call] = [item for item in reply["output"] if item["type"] == kind]
            assert (call["namespace"], call["name"]) == ("right", "look")
            assert call["input" if is_custom else "arguments"] == ("up" if is_custom else "{}")
            result = {"type": f"{kind}_output", "call_id": call["call_id"], "output": "a wall"}
            if way == "echoed":
                given = [*given, *reply["output"], result]
            else:
                given = [result]
                more["previous_response_id"] = reply["id"]


@pytest.mark.parametrize("form", ["named", "allowed"])
@pytest.mark.parametrize(
    ("tools", "choice", "called"),
    [
        (TOOLS, {"name": "look", "namespace": "right"}, "right__look"),
        (TOOLS, {"name": "left__look"}, "left__look"),
        (TOOLS[:1], {"name": "look"}, "look"),
        (TOOLS[:1], {"name": "look", "namespace": "left"}, "look"),
        ([*TOOLS, LOOK], {"name": "look"}, "look"),
        ([*TOOLS, LOOK], {"name": "look", "namespace": None}, "look"),
        ([*TOOLS, LOOK], {"name": "look", "namespace": "left"}, "left__look"),
        (CUSTOMS, {"type": "custom", "name": "look", "namespace": "left"}, "left__look"),
    ],
)
async def test_a_choice_names_a_tool_as_the_client_knows_it(
    tools: list[Any], choice: dict[str, Any], called: str, form: str
) -> None:
    choice = {"type": "function", **choice}
    if form == "allowed":
        choice = {"type": "allowed_tools", "mode": "required", "tools": [choice]}
    async with parsing() as (router, worker):
        say(worker, CALL)
        reply, _ = await asked(router, "Hi", tools=tools, tool_choice=choice)
    assert reply["tool_choice"] == choice
    grammar = dumps(worker.requests[-1].body["sampling_params"]).replace("\\", "")
    named = {name for name in ("look", "left__look", "right__look") if f'"{name}"' in grammar}
    assert named == {called}


@pytest.mark.parametrize("form", ["named", "allowed"])
@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"name": "look"}, "left, right"),
        ({"name": "look", "namespace": "up"}, "'up'"),
        ({"name": "see", "namespace": "left"}, "'see'"),
        ({"name": "see"}, "'see'"),
        ({"name": "look", "namespace": 5}, "namespace"),
    ],
)
async def test_a_choice_of_several_or_none_is_refused(
    choice: dict[str, Any], words: str, form: str
) -> None:
    choice = {"type": "function", **choice}
    if form == "allowed":
        choice = {"type": "allowed_tools", "mode": "auto", "tools": [choice]}
    async with parsing() as (router, worker):
        body = {"model": "m", "input": "Hi", "tools": TOOLS, "tool_choice": choice}
        status, reply = await router.post(PATH, body)
    assert (status, reply["error"]["param"].partition(".")[0]) == (400, "tool_choice")
    assert words in reply["error"]["message"]
    assert not worker.requests
