"""Tools that the input of a Responses request brings, and searches for tools, as Codex has them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.gateway import Served, served, user
from tests.integration.test_responses_items import HELLO, PATH, ask
from tests.integration.test_tool_calls import parsing, say
from tests.stack import tiny_tokenizer

WAIT = {"type": "function", "name": "wait", "parameters": {"type": "object", "properties": {}}}
EXEC = {"type": "custom", "name": "exec", "description": "Runs a program."}
FUNCTIONS = {"type": "namespace", "name": "functions", "description": "", "tools": [EXEC, WAIT]}
BROUGHT = {"type": "additional_tools", "role": "developer", "id": "at_1", "tools": [FUNCTIONS]}
SEARCH: dict[str, Any] = {
    "type": "tool_search",
    "execution": "client",
    "description": "Finds tools.",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
}
CALENDAR = {
    "type": "namespace",
    "name": "mcp__calendar",
    "description": "",
    "tools": [{**WAIT, "name": "add_event", "defer_loading": True}],
}


def call(name: str, arguments: str = "{}") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def prompt(worker: Any) -> str:
    ids = worker.requests[-1].body["input_ids"]
    return tiny_tokenizer().decode(ids, skip_special_tokens=False)


@pytest.mark.parsers
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_stored", [False, True])
async def test_tools_in_the_input_are_those_of_the_request(is_stored: bool, stream: bool) -> None:
    """Codex sends them so for models that it has in its catalogue."""
    async with parsing() as (router, worker):
        say(worker, call("exec", '{"input": "ls"}'))
        given = [BROUGHT, user("Hi")]
        reply, _, _ = await ask(router, stream=stream, input=given, tools=[])
        [item] = reply["output"]
        assert (item["type"], item["namespace"], item["name"], item["input"]) == (
            "custom_tool_call", "functions", "exec", "ls"
        )  # fmt: skip
        assert reply["tools"] == [], "it repeats those in `tools`"
        brought = prompt(worker)
        say(worker, call("wait"))
        result = {"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "a.py"}
        more: dict[str, Any] = {"input": [*given, item, result]}
        if is_stored:
            more = {"input": [result], "previous_response_id": reply["id"]}
        reply, _, receipt = await ask(router, stream=stream, tools=[], **more)
        [item] = reply["output"]
        assert (item["type"], item["namespace"], item["name"]) == (
            "function_call", "functions", "wait"
        )  # fmt: skip
        assert receipt["status"] == "extended"
        say(worker, "ok")
        await ask(router, stream=stream, input=[user("Hi")], tools=[FUNCTIONS])
        assert prompt(worker) == brought


@pytest.mark.parsers
async def test_a_tool_that_is_brought_twice_is_one() -> None:
    async with parsing() as (router, worker):
        say(worker, "ok")
        other = {**WAIT, "description": "another"}
        brought = {**BROUGHT, "tools": [FUNCTIONS, other]}
        await ask(router, stream=False, input=[brought, BROUGHT, user("Hi")], tools=[FUNCTIONS])
    assert prompt(worker).count("Runs a program.") == 1
    assert prompt(worker).count('"functions__wait"') == 1, "told apart from the other one"


@pytest.mark.parsers
@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_search_has_found_can_be_called_and_the_prompt_goes_on(stream: bool) -> None:
    async with parsing() as (router, worker):
        say(worker, call("tool_search", '{"query": "calendar"}'))
        reply, told, _ = await ask(router, stream=stream, input=[user("Hi")], tools=[SEARCH])
        [item] = reply["output"]
        assert item == {
            "id": item["id"],
            "type": "tool_search_call",
            "status": "completed",
            "call_id": item["call_id"],
            "execution": "client",
            "arguments": {"query": "calendar"},
        }
        assert reply["tools"] == [SEARCH]
        if stream:
            kinds = [event["type"].removeprefix("response.") for event in told]
            assert kinds[2:-1] == ["output_item.added", "output_item.done"]
        found = {
            "type": "tool_search_output",
            "call_id": item["call_id"],
            "execution": "client",
            "status": "completed",
            "tools": [CALENDAR],
        }
        say(worker, call("add_event"))
        talk = [user("Hi"), item, found]
        reply, _, receipt = await ask(router, stream=stream, input=talk, tools=[SEARCH])
        [item] = reply["output"]
        assert (item["type"], item["namespace"], item["name"]) == (
            "function_call", "mcp__calendar", "add_event"
        )  # fmt: skip
        assert receipt["status"] == "extended"
        assert prompt(worker).count("add_event") == 1, "in the result alone"
        say(worker, call("add_event"))
        talk += [item, {"type": "function_call_output", "call_id": item["call_id"], "output": "ok"}]
        reply, _, receipt = await ask(router, stream=stream, input=talk, tools=[SEARCH])
        assert receipt["status"] == "extended"
        assert [item["type"] for item in reply["output"]] == ["function_call"]
        for choice in ("none", "required"):  # one of `tools` may be forced, and no other
            say(worker, call("add_event"))
            reply, _, _ = await ask(
                router, stream=stream, input=talk, tools=[SEARCH], tool_choice=choice
            )
            assert [item["type"] for item in reply["output"]] == ["message"], choice


@pytest.mark.parsers
@pytest.mark.parametrize(
    ("arguments", "given"),
    [(r'{"query": "a\ud83d b"}', r'{"query": "a\ud83d b"}'), ('{"query": }', '{"query": }')],
)
async def test_arguments_of_a_search_that_json_does_not_have_are_text(arguments, given) -> None:
    async with parsing() as (router, worker):
        say(worker, call("tool_search", arguments))
        reply, _, _ = await ask(router, stream=False, input=[user("Hi")], tools=[SEARCH])
        [item] = reply["output"]
        if item["type"] == "tool_search_call":
            assert item["arguments"] == given
        else:
            assert given in item["content"][0]["text"]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({**BROUGHT, "tools": {}}, "input[1].tools"),
        ({**BROUGHT, "tools": [WAIT, {"type": "function"}]}, "input[1].tools[1].name"),
        ({**BROUGHT, "tools": [{**WAIT, "parameters": 5}]}, "input[1].tools[0].parameters"),
        ({"type": "tool_search_output", "tools": [{"type": "function", "name": 5}]},
         "input[1].tools[0].name"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_a_tool_in_the_input_is_named(item: Any, param: str) -> None:
    async with served() as (router, worker):
        status, reply = await router.post(PATH, {"model": "m", "input": [user("Hi"), item]})
        assert (status, reply["error"]["param"]) == (400, param)
        assert not worker.requests


@pytest.mark.parametrize("kind", ["shell", "local_shell", "apply_patch", "web_search"])
async def test_the_receipt_names_tools_of_agents_that_are_not_shown(kind: str) -> None:
    async with served() as (router, worker):
        worker.script(HELLO)
        _, _, receipt = await ask(router, stream=False, input="Hi", tools=[WAIT, {"type": kind}])
    notes = None if kind == "web_search" else ["'tools[1]' is not shown to the model"]
    assert receipt.get("notes") == notes


async def _shown(router: Served, worker: Any, *items: Any) -> str:
    worker.script(HELLO)
    status, reply = await router.post(PATH, {"model": "m", "input": [user("Hi"), *items]})
    assert status == 200, reply
    return prompt(worker)


async def test_what_agents_of_codex_say_to_each_other_is_shown() -> None:
    """Their words are called encrypted also where the model that wrote them is not OpenAI's."""
    task = [
        {"type": "input_text", "text": "NEW_TASK "},
        {"type": "encrypted_content", "encrypted_content": "count the files"},
        {"type": "encrypted_content", "encrypted_content": "gAAAAABsealed"},
    ]
    said = {"type": "agent_message", "author": "/root", "recipient": "/root/a", "content": task}
    output = {"type": "function_call_output", "call_id": "a", "output": task[1:]}
    async with served() as (router, worker):
        for item in (said, output, {**said, "content": None}, {"type": "agent_message"}):
            shown = await _shown(router, worker, item, user("Go on"))
            assert ("count the files" in shown) == bool(item.get("content") or item.get("output"))
            assert "sealed" not in shown


async def test_a_result_may_lack_the_id_of_its_call() -> None:
    call_item = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    for kind in ("function_call_output", "custom_tool_call_output"):
        async with served() as (router, worker):
            shown = await _shown(router, worker, call_item, {"type": kind, "output": "SHOWN"})
            assert "SHOWN" in shown


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_prewarmed_is_computed_and_nothing_is_sampled(stream: bool) -> None:
    warm = {"prompt_cache_options": {"prewarm": True, "mode": "implicit"}}
    async with served() as (router, worker):
        reply, told, _ = await ask(router, stream=stream, input="Hi", tools=[], **warm)
        assert (reply["status"], reply["output"], reply["incomplete_details"]) == (
            "completed", [], None
        )  # fmt: skip
        assert reply["usage"]["output_tokens"] == 0
        assert worker.requests[0].body["sampling_params"]["max_new_tokens"] == 0
        assert len(router.gateway.store) == 0
        assert len(told) == (3 if stream else 0)
        worker.script(HELLO)
        after, _, _ = await ask(
            router, stream=stream, input="More", tools=[], previous_response_id=reply["id"]
        )
        assert len(after["output"]) == 1
        assert prompt(worker).index("Hi") < prompt(worker).index("More")
    for wrong, param in (
        ({"prompt_cache_options": 5}, "prompt_cache_options"),
        ({"prompt_cache_options": {"prewarm": 1}}, "prompt_cache_options.prewarm"),
    ):
        async with served() as (router, worker):
            status, error = await router.post(PATH, {"model": "m", "input": "Hi", **wrong})
            assert (status, error["error"]["param"]) == (400, param)
