"""Every block that Anthropic's types allow: shown to the model, or refused by name."""

from __future__ import annotations

import json
import typing
from typing import Any

import anthropic
import pytest
from anthropic.types.beta import beta_content_block_param, beta_tool_result_block_param
from pydantic import BaseModel

from tests.integration.gateway import Served, served, user
from tests.integration.test_tool_calls import parsing, say
from tests.stack import tiny_tokenizer

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
HELLO = tiny_tokenizer().encode("Hello there").tolist()

SEARCH_RESULT = {
    "type": "search_result",
    "source": "https://example.com/a",
    "title": "A page",
    "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
}
SEARCH_TEXT = "Title: A page\nSource: https://example.com/a\nContent: one\ntwo"
DOCUMENT = {
    "type": "document",
    "title": "Notes",
    "source": {"type": "text", "media_type": "text/plain", "data": "The notes."},
}
CONTENT_DOCUMENT = {
    "type": "document",
    "context": "from a disk",
    "source": {"type": "content", "content": [{"type": "text", "text": "Parts."}]},
}
WEB = {
    "type": "web_search_tool_result",
    "tool_use_id": "srv_1",
    "content": [
        {
            "type": "web_search_result",
            "title": "A hit",
            "url": "https://example.com/hit",
            "encrypted_content": "SECRET",
            "page_age": None,
        }
    ],
}
SERVER_CALL = {
    "type": "server_tool_use",
    "id": "srv_1",
    "name": "web_search",
    "input": {"query": "what"},
}


def call(tool_id: str = "toolu_1") -> dict[str, Any]:
    return {"type": "tool_use", "id": tool_id, "name": "search", "input": {"q": "x"}}


def result(*content: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": [*content]}


def talk(assistant: list[Any], *more: Any) -> list[dict[str, Any]]:
    return [user("Hi"), {"role": "assistant", "content": assistant}, user([*more])]


async def sent(router: Served, worker: Any, messages: list[Any], **fields: Any) -> str:
    """The prompt that a worker gets; the count of its tokens is the same."""
    worker.script(HELLO)
    body = {"model": "m", "max_tokens": 9, "messages": messages, **fields}
    status, reply = await router.post(MESSAGES, body)
    assert status == 200, reply
    ids = worker.requests[-1].body["input_ids"]
    status, counted = await router.post(COUNT, {"model": "m", "messages": messages, **fields})
    assert (status, counted) == (200, {"input_tokens": len(ids)})
    return tiny_tokenizer().decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (SEARCH_RESULT, SEARCH_TEXT),
        ({**SEARCH_RESULT, "source": {"url": "https://example.com/b"}}, "https://example.com/b"),
        (DOCUMENT, "Title: Notes\nThe notes."),
        (CONTENT_DOCUMENT, "Context: from a disk\nParts."),
        ({"type": "text", "text": "plain"}, "plain"),
    ],
    ids=["search result", "its source", "document", "document of parts", "text"],
)
async def test_a_user_and_a_result_may_hold_it(content: dict[str, Any], shown: str) -> None:
    async with served() as (router, worker):
        assert shown in await sent(router, worker, [user([content])])
        assert shown in await sent(router, worker, talk([call()], result(content)))


async def test_a_reference_to_a_tool_is_a_part_of_its_own() -> None:
    """Templates that know no references print none, as with SGLang's own route."""
    async with served() as (router, worker):
        reference = {"type": "tool_reference", "tool_name": "deploy"}
        text = {"type": "text", "text": "found"}
        prompt = await sent(router, worker, talk([call()], result(text, reference, text)))
        assert prompt.count("found") == 2
        assert "deploy" not in prompt
        other = {"type": "tool_reference", "tool_name": "destroy"}
        await sent(router, worker, talk([call()], result(text, other, text)))
        turns = [*router.gateway.store._turns.values()]
        assert turns[0].keys != turns[1].keys, "two conversations, though they read alike"


async def test_what_the_service_ran_is_a_call_and_its_result() -> None:
    async with served() as (router, worker):
        said = [
            {"type": "text", "text": "I look."},
            SERVER_CALL,
            WEB,
            {"type": "text", "text": "So."},
        ]
        prompt = await sent(router, worker, talk(said, {"type": "text", "text": "Go on"}))
        places = [prompt.index(each) for each in ("I look.", "web_search", "A hit", "So.", "Go on")]
        assert places == sorted(places)
        assert "https://example.com/hit" in prompt
        assert "SECRET" not in prompt


async def test_the_order_of_text_and_results_stays() -> None:
    async with served() as (router, worker):
        before, after = {"type": "text", "text": "Before"}, {"type": "text", "text": "After"}
        prompt = await sent(router, worker, talk([call()], before, result(before), after))
        assert prompt.index("Before") < prompt.index("After")
        prompt = await sent(
            router, worker, talk([call()], before, result({"type": "text", "text": "Mid"}), after)
        )
        places = [prompt.index(each) for each in ("Before", "Mid", "After")]
        assert places == sorted(places)


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"type": "document", "source": {"type": "base64", "data": "eA=="}}, "source.type"),
        (
            {"type": "document", "source": {"type": "url", "url": "https://example.com/x"}},
            "source.type",
        ),
        ({"type": "document", "source": {"type": "text"}}, "source.data"),
        ({"type": "document"}, "source"),
        ({"type": "search_result", "content": 5}, "content"),
        ({"type": "container_upload", "file_id": "f"}, "type"),
        ({"type": "never_heard_of"}, "type"),
        ({"type": "text"}, "text"),
        ({"type": 5}, "type"),
        ({"type": []}, "type"),
    ],
)
async def test_what_cannot_be_shown_is_named(block: dict[str, Any], param: str) -> None:
    async with served() as (router, worker):
        for path in (MESSAGES, COUNT):
            body = {"model": "m", "max_tokens": 9, "messages": [user([block])]}
            status, reply = await router.post(path, body)
            assert status == 400, reply
            assert f"messages[0].content[0].{param}" in json.dumps(reply)
        assert not worker.requests


def kinds(union: Any) -> set[str]:
    """The `type`s of all blocks of a union of the package."""
    found: set[str] = set()
    for member in typing.get_args(union):
        if not hasattr(member, "__annotations__"):
            continue
        annotation = typing.get_type_hints(member).get("type")
        for each in _literals(annotation):
            found.add(each)
    return found


def _literals(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [each for part in typing.get_args(annotation) for each in _literals(part)]


ALL = kinds(beta_content_block_param.BetaContentBlockParam) | kinds(
    beta_tool_result_block_param.Content
)
SERVED: dict[str, dict[str, Any]] = {
    "text": {"text": "SHOWN"},
    "document": {"source": {"type": "text", "data": "SHOWN"}},
    "search_result": {"title": "SHOWN", "source": "s", "content": []},
    "thinking": {"thinking": "SHOWN", "signature": ""},
    "redacted_thinking": {"data": "x"},
    "tool_use": {"id": "a", "name": "SHOWN", "input": {}},
    "server_tool_use": {"id": "a", "name": "SHOWN", "input": {}},
    "mcp_tool_use": {"id": "a", "name": "SHOWN", "server_name": "s", "input": {}},
    "compaction": {"content": "SHOWN"},
    "tool_result": {"tool_use_id": "a", "content": "SHOWN"},
    "browser_state": {"tabs": [{"title": "SHOWN", "active": True}]},
    "fallback": {"from": {"model": "a"}, "to": {"model": "b"}},
    "mcp_tool_listing": {"mcp_server_name": "s", "tools": []},
}
SILENT = ("redacted_thinking", "thinking", "fallback", "mcp_tool_listing")  # in these prompts


@pytest.mark.parametrize("kind", sorted(ALL))
async def test_no_block_of_a_reply_is_dropped_in_silence(kind: str) -> None:
    fields = SERVED.get(kind)
    if fields is None and kind.endswith("_tool_result"):
        fields = {"tool_use_id": "a", "content": {"type": kind, "stdout": "SHOWN"}}
    block = {"type": kind, **(fields or {})}
    async with served() as (router, worker):
        worker.script(HELLO)
        said = [{"type": "text", "text": "I say"}, block]
        body = {
            "model": "m",
            "max_tokens": 9,
            "messages": talk(said, {"type": "text", "text": "?"}),
        }
        status, reply = await router.post(MESSAGES, body)
        if fields is None:
            assert status == 400
            assert kind in reply["error"]["message"]
            return
        assert status == 200, reply
        prompt = tiny_tokenizer().decode(
            worker.requests[0].body["input_ids"], skip_special_tokens=False
        )
        assert "SHOWN" in prompt or kind in SILENT


async def test_a_summary_that_failed_says_nothing() -> None:
    """As Anthropic's API has it."""
    failed = {"type": "compaction", "content": None}
    async with served() as (router, worker):
        prompt = await sent(router, worker, talk([failed, call()], failed, result()))
        assert prompt == await sent(router, worker, talk([call()], result()))


async def test_a_tool_keeps_what_templates_and_grammars_look_at() -> None:
    """Whether its call must fit its schema, and whether it is shown before it is referred to."""
    tool = {"name": "f", "input_schema": {}, "cache_control": {"type": "ephemeral"}}
    async with served() as (router, worker):
        for name in ("strict", "defer_loading"):
            prompt = await sent(router, worker, [user("Hi")], tools=[{**tool, name: True}])
            assert f'"{name}": true' in prompt
            plain = await sent(router, worker, [user("Hi")], tools=[{**tool, name: False}])
            assert plain == await sent(router, worker, [user("Hi")], tools=[tool])


class Weather(BaseModel):
    city: str
    days: int


@pytest.mark.parametrize(
    "fields",
    [
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        {"output_format": {"type": "json_schema", "schema": {"type": "object"}}},
    ],
)
async def test_a_schema_of_the_reply_is_a_grammar(fields: dict[str, Any]) -> None:
    async with served() as (router, worker):
        await sent(router, worker, [user("Hi")], **fields)
        params = worker.requests[0].body["sampling_params"]
        assert json.loads(params["json_schema"]) == {"type": "object"}


async def test_the_sdk_parses_what_it_asked_for() -> None:
    async with served() as (router, worker):
        worker.script(tiny_tokenizer().encode('{"city": "Paris", "days": 3}').tolist())
        base = str(router.http._base_url)
        async with anthropic.AsyncAnthropic(base_url=base, api_key="x") as sdk:
            messages: Any = [user("Hi")]
            reply = await sdk.messages.parse(
                model="m", max_tokens=64, messages=messages, output_format=Weather
            )
        assert reply.parsed_output == Weather(city="Paris", days=3)
        assert "json_schema" in worker.requests[0].body["sampling_params"]


@pytest.mark.parametrize(("effort", "known"), [("low", "low"), ("xhigh", "max"), ("max", "max")])
async def test_an_effort_reaches_the_template(effort: str, known: str, tmp_path: Any) -> None:
    template = tmp_path / "effort.jinja"
    template.write_text(
        "{{ reasoning_effort | default('none') }}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    async with served(chat_template=str(template)) as (router, worker):
        prompt = await sent(router, worker, [user("Hi")], output_config={"effort": effort})
        assert prompt.startswith(known)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"output_config": 5}, "output_config"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_config": {"effort": 5}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
        ({"output_format": "json"}, "output_format"),
    ],
)
async def test_what_is_wrong_about_the_output_is_named(fields: dict[str, Any], param: str) -> None:
    async with served() as (router, worker):
        body = {"model": "m", "max_tokens": 9, "messages": [user("Hi")], **fields}
        status, reply = await router.post(MESSAGES, body)
        assert status == 400
        assert f"'{param}'" in reply["error"]["message"]
        assert not worker.requests


@pytest.mark.parsers
async def test_a_reply_that_comes_back_in_several_messages_is_one() -> None:
    call = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    body = {"model": "m", "max_tokens": 99, "tools": tools}
    async with parsing() as (router, worker):
        say(worker, "<think>\nhm\n</think>\n\nI look.\n" + call)
        _, reply = await router.post(MESSAGES, {**body, "messages": [user("Hi")]})
        said = [{"role": "assistant", "content": [block]} for block in reply["content"]]
        assert len(said) == 3
        result = {"type": "tool_result", "tool_use_id": reply["content"][-1]["id"], "content": "A"}
        talk = [user("Hi"), *said, user([result])]
        async with router.http.post(MESSAGES, json={**body, "messages": talk}) as response:
            receipt = json.loads(response.headers["x-slime-receipt"])
    assert (receipt["status"], receipt["reason"]) == ("extended", "continues the turn")


@pytest.mark.parsers
@pytest.mark.parametrize("stream", [False, True])
async def test_a_bare_line_end_in_a_call_is_escaped_in_its_input(stream: bool) -> None:
    """Agents read the input as JSON, which has no line end in a string."""
    call = '<tool_call>\n{"name": "look", "arguments": {"code": "a\n\tb"}}\n</tool_call>'
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    body = {"model": "m", "max_tokens": 99, "tools": tools}
    async with parsing() as (router, worker):
        say(worker, call)
        asked = {**body, "messages": [user("Hi")], "stream": stream}
        async with router.http.post(MESSAGES, json=asked) as response:
            raw = await response.text()
        if stream:
            lines = [line[6:] for line in raw.split("\n") if line.startswith("data: ")]
            events = [json.loads(line) for line in lines]
            parts = [event["delta"].get("partial_json", "") for event in events if "delta" in event]
            blocks = [event["content_block"] for event in events if "content_block" in event]
            [use] = [{**block, "input": json.loads("".join(parts))} for block in blocks]
        else:
            [use] = json.loads(raw)["content"]
        assert use["input"] == {"code": "a\n\tb"}
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": "A"}
        talk = [user("Hi"), {"role": "assistant", "content": [use]}, user([result])]
        async with router.http.post(MESSAGES, json={**body, "messages": talk}) as response:
            receipt = json.loads(response.headers["x-slime-receipt"])
    assert receipt["status"] == "extended"
