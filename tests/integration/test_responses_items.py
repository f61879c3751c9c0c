"""Every item and tool that OpenAI's types allow: shown to the model, or refused by name."""

from __future__ import annotations

import json
import typing
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent, response_input_item_param
from pydantic import TypeAdapter

from tests.integration.gateway import Served, served, user
from tests.integration.scripted import events
from tests.integration.test_tool_calls import parsing, say
from tests.stack import tiny_tokenizer

PATH = "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
HELLO = tiny_tokenizer().encode("Hello there").tolist()

ITEMS: dict[str, dict[str, Any]] = {
    "additional_tools": {"tools": [{"type": "function", "name": "SHOWN"}]},
    "apply_patch_call": {"call_id": "a", "operation": {"type": "delete_file", "path": "SHOWN"}},
    "apply_patch_call_output": {"call_id": "a", "output": "SHOWN"},
    "code_interpreter_call": {
        "id": "a",
        "code": "1",
        "outputs": [{"type": "logs", "logs": "SHOWN"}],
    },
    "computer_call": {"call_id": "a", "id": "b", "action": {"type": "type", "text": "SHOWN"}},
    "custom_tool_call": {"call_id": "a", "name": "patch", "input": "SHOWN"},
    "custom_tool_call_output": {"call_id": "a", "output": "SHOWN"},
    "file_search_call": {"id": "a", "queries": ["SHOWN"], "results": None},
    "function_call": {"call_id": "a", "name": "f", "arguments": '{"x": "SHOWN"}'},
    "function_call_output": {"call_id": "a", "output": "SHOWN"},
    "image_generation_call": {"id": "a", "result": "iVBOR", "revised_prompt": "SHOWN"},
    "local_shell_call": {"call_id": "a", "id": "b", "action": {"command": ["SHOWN"]}},
    "local_shell_call_output": {"id": "a", "output": "SHOWN"},
    "mcp_approval_request": {"id": "a", "name": "SHOWN", "arguments": "{}", "server_label": "s"},
    "mcp_approval_response": {"approval_request_id": "a", "approve": True},
    "mcp_call": {"id": "a", "name": "f", "arguments": "{}", "output": "SHOWN", "server_label": "s"},
    "mcp_list_tools": {"id": "a", "server_label": "s", "tools": [{"name": "SHOWN"}]},
    "message": {"role": "user", "content": "SHOWN"},
    "program": {"id": "a", "call_id": "b", "code": "SHOWN", "fingerprint": "f"},
    "program_output": {"id": "a", "call_id": "b", "result": "SHOWN", "status": "completed"},
    "reasoning": {"id": "a", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}]},
    "shell_call": {"call_id": "a", "action": {"commands": ["SHOWN"]}},
    "shell_call_output": {"call_id": "a", "output": [{"stdout": "SHOWN", "stderr": ""}]},
    "tool_search_call": {"call_id": "a", "arguments": {"query": "SHOWN"}},
    "tool_search_output": {"call_id": "a", "tools": [{"name": "SHOWN"}]},
    "web_search_call": {"id": "a", "action": {"type": "search", "query": "SHOWN"}},
    "compaction": {"id": "a", "encrypted_content": "gAAAA"},
}
UNSEEN = {"reasoning", "compaction"}  # a template may leave old reasoning out
SAYS_OTHERWISE = {"mcp_approval_response": "approved"}
REFERENCES = {"item_reference"}


def literals(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [each for part in typing.get_args(annotation) for each in literals(part)]


KINDS = {
    kind
    for member in typing.get_args(response_input_item_param.ResponseInputItemParam)
    for kind in literals(typing.get_type_hints(member).get("type"))
}


def test_the_table_has_no_items_that_do_not_exist() -> None:
    assert ITEMS.keys() <= KINDS


@pytest.mark.parametrize("kind", sorted(KINDS - REFERENCES))
async def test_each_item_of_a_history_is_shown_or_refused(kind: str) -> None:
    item = {"type": kind, **ITEMS.get(kind, {"id": "a"})}
    async with served() as (router, worker):
        worker.script(HELLO)
        asked = {"model": "m", "input": [user("Hi"), item, user("Go on")]}
        status, reply = await router.post(PATH, asked)
        if kind not in ITEMS:
            assert (status, reply["error"]["param"]) == (400, "input[1].type")
            assert kind in reply["error"]["message"]
            return
        assert status == 200, reply
        prompt = tiny_tokenizer().decode(
            worker.requests[0].body["input_ids"], skip_special_tokens=False
        )
        assert kind in UNSEEN or SAYS_OTHERWISE.get(kind, "SHOWN") in prompt
        assert prompt.index("Hi") < prompt.index("Go on")


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "shell_call", "action": {}}, "id"),
        ({"type": "shell_call", "call_id": 5}, "id"),
        ({"type": "shell_call_output", "output": "x"}, "call_id"),
        ({"type": "mcp_call", "id": "a", "arguments": "{}"}, "name"),
        ({"type": "custom_tool_call", "call_id": "a", "name": "x", "input": 5}, "input"),
        ({"type": 5}, "type"),
        ({"type": []}, "type"),
        ({"type": "function_call_output", "call_id": "", "output": "x"}, "call_id"),
    ],
)
async def test_what_is_wrong_about_an_item_is_named(item: dict[str, Any], param: str) -> None:
    async with served() as (router, worker):
        status, reply = await router.post(PATH, {"model": "m", "input": [item]})
        assert (status, reply["error"]["param"]) == (400, f"input[0].{param}")
        assert not worker.requests


@pytest.mark.parametrize(
    "item",
    [
        {"type": "web_search_call", "action": {"type": "search", "query": "SHOWN"}},
        {"type": "image_generation_call", "id": None, "result": "x", "revised_prompt": "SHOWN"},
        {"type": "tool_search_call", "call_id": None, "arguments": {"query": "SHOWN"}},
        {"type": "tool_search_output", "call_id": None, "tools": [{"name": "SHOWN"}]},
        {"type": "context_compaction"},
        {"type": "compaction_summary", "encrypted_content": "gAAAA"},
    ],
)
async def test_codex_leaves_out_ids_that_nothing_refers_to(item: dict[str, Any]) -> None:
    async with served() as (router, worker):
        worker.script(HELLO)
        asked = {"model": "m", "input": [user("Hi"), item, user("Go on")]}
        status, reply = await router.post(PATH, asked)
        assert status == 200, reply
        ids = worker.requests[0].body["input_ids"]
        prompt = tiny_tokenizer().decode(ids, skip_special_tokens=False)
        assert "SHOWN" in prompt or "compaction" in item["type"]


async def test_a_refusal_in_a_reply_is_its_text() -> None:
    part = {"type": "refusal", "refusal": "I will not."}
    said = {"role": "assistant", "content": [part]}
    async with served() as (router, worker):
        worker.script(HELLO)
        status, _ = await router.post(PATH, {"model": "m", "input": [user("Hi"), said, user("?")]})
        assert status == 200
        worker.script(HELLO)
        _, _ = await router.chat([user("Hi"), said, user("?")])
        one, other = (request.body["input_ids"] for request in worker.requests)
        assert one == other
        assert "I will not." in tiny_tokenizer().decode(one, skip_special_tokens=False)


async def test_a_prompt_is_counted_as_it_would_be_sent() -> None:
    """By OpenAI's own client; nothing runs and nothing is kept."""
    tools: Any = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
    asked: dict[str, Any] = {"model": "tiny", "input": "Hi", "instructions": "Be nice"}
    async with served() as (router, worker):
        async with openai.AsyncOpenAI(
            base_url=str(router.http._base_url) + "/v1", api_key="none"
        ) as client:
            counted = await client.responses.input_tokens.count(**asked, tools=tools)
            assert (router.footprint()[0], worker.requests) == (0, [])
            worker.script(HELLO)
            reply = await client.responses.create(**asked, tools=tools)
            assert reply.usage is not None
            assert counted.input_tokens == reply.usage.input_tokens
            assert counted.object == "response.input_tokens"
            more = await client.responses.input_tokens.count(
                model="tiny", input="More", previous_response_id=reply.id
            )
            assert more.input_tokens > len(HELLO)
            with pytest.raises(openai.BadRequestError, match="not found"):
                await client.responses.input_tokens.count(input="a", previous_response_id="nope")
        status, answer = await router.post(PATH + "/input_tokens", {"input": [{"type": "zzz"}]})
        assert (status, answer["error"]["param"]) == (400, "input[0].type")
        assert (await router.get(PATH + "/input_tokens"))[0] == 404, "no response has this id"


# Custom tools

PATCH = {
    "type": "custom",
    "name": "patch",
    "description": "Applies a patch.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x+/"},
}
INPUT = 'line one\n"two" \N{EURO SIGN} \\ end'


def call_text(arguments: str) -> str:
    return f'<tool_call>\n{{"name": "patch", "arguments": {arguments}}}\n</tool_call>'


async def ask(router: Served, *, stream: bool, **body: Any) -> tuple[Any, list[Any], Any]:
    """The response, the events of a stream, and the receipt."""
    asked = {"model": "m", "tools": [PATCH], "stream": stream, **body}
    async with router.http.post(PATH, json=asked) as response:
        raw = await response.read()
        assert response.status == 200, raw
        receipt = json.loads(response.headers.get("x-slime-receipt", "{}"))
    if not stream:
        return json.loads(raw), [], receipt
    lines = b"".join(line + b"\n\n" for line in raw.split(b"\n") if line.startswith(b"data: "))
    told = events(lines)
    for event in told:
        EVENT.validate_python(event)
    return told[-1]["response"], told, receipt


@pytest.mark.parsers
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (json.dumps({"input": INPUT}), INPUT),
        (json.dumps({"input": INPUT}, ensure_ascii=False), INPUT),
        ('{"input": ""}', ""),
        ('{"patch": "other name"}', "other name"),
        ('{"input": 5, "x": "y"}', '{"input": 5, "x": "y"}'),
        (r'{"input": "a\ud83d b"}', r"a\ud83d b"),
        ('{"input": "as the model\n\twrites it \\"a\\""}', 'as the model\n\twrites it "a"'),
    ],
)
async def test_a_custom_tool_is_called_with_free_text(
    arguments: str, given: str, stream: bool
) -> None:
    async with parsing() as (router, worker):
        say(worker, call_text(arguments))
        reply, told, _ = await ask(router, stream=stream, input="Hi")
        Response.model_validate(reply)
        [item] = [item for item in reply["output"] if item["type"] == "custom_tool_call"]
        assert (item["name"], item["input"]) == ("patch", given)
        assert reply["tools"] == [PATCH]
        if stream:
            deltas = [
                e["delta"] for e in told if e["type"].endswith("custom_tool_call_input.delta")
            ]
            assert "".join(deltas) == given
            [done] = [e for e in told if e["type"].endswith("custom_tool_call_input.done")]
            assert done["input"] == given
        result = {"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "ok"}
        say(worker, "Fine.")
        _, _, receipt = await ask(router, stream=False, input=[user("Hi"), item, result])
        assert receipt["status"] == "extended", receipt


@pytest.mark.parsers
async def test_the_model_is_shown_a_function_of_one_text() -> None:
    async with parsing() as (router, worker):
        say(worker, "Fine.")
        await ask(router, stream=False, input="Hi")
        prompt = tiny_tokenizer().decode(
            worker.requests[0].body["input_ids"], skip_special_tokens=False
        )
        assert "Applies a patch." in prompt
        assert "lark grammar" in prompt
        assert "start: /x+/" in prompt


@pytest.mark.parsers
@pytest.mark.parametrize(
    "choice",
    [
        {"type": "custom", "name": "patch"},
        "required",
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "custom", "name": "patch"}],
        },
    ],
)
async def test_a_custom_tool_can_be_forced(choice: Any) -> None:
    async with parsing() as (router, worker):
        say(worker, call_text('{"input": "x"}'))
        reply, _, _ = await ask(router, stream=False, input="Hi", tool_choice=choice)
        assert [item["type"] for item in reply["output"]] == ["custom_tool_call"]
        params = worker.requests[0].body["sampling_params"]
        assert params.keys() & {"json_schema", "structural_tag", "ebnf"}


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "custom"}, "tools[0].name"),
        ({"type": "custom", "name": 5}, "tools[0].name"),
        ({"type": "custom", "name": "x", "format": "text"}, "tools[0].format"),
        ({"type": "custom", "name": "x", "description": 5}, "tools[0].description"),
    ],
)
async def test_what_is_wrong_about_a_custom_tool_is_named(tool: Any, param: str) -> None:
    async with served() as (router, worker):
        status, reply = await router.post(PATH, {"model": "m", "input": "Hi", "tools": [tool]})
        assert (status, reply["error"]["param"]) == (400, param)
        assert not worker.requests


@pytest.mark.parsers
async def test_the_sdk_streams_a_custom_call() -> None:
    async with parsing() as (router, worker):
        say(worker, call_text(json.dumps({"input": INPUT})))
        base = str(router.http._base_url).rstrip("/") + "/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="x") as sdk:
            tool: Any = PATCH
            async with sdk.responses.stream(model="m", input="Hi", tools=[tool]) as stream:
                async for _ in stream:
                    pass
                reply = await stream.get_final_response()
        assert [getattr(item, "input", None) for item in reply.output] == [INPUT]
