"""Parsers by themselves: what a running router detects, says and does without."""

from __future__ import annotations

import importlib
from typing import Any

import orjson
import pytest

from slime_router.cli.banner import banner
from slime_router.errors import SetupError
from tests.chat_templates import template_text
from tests.integration.gateway import CHAT, Served, served, serving, user
from tests.stack import tiny_tokenizer

AUTO: dict[str, Any] = {"tool_call_parser": "auto", "reasoning_parser": "auto"}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
UNPARSED = "; tools not parsed"


def lines(router: Served) -> dict[str, str]:
    """The banner's lines by their labels."""
    rows = (line.split(None, 1) for line in banner(router.gateway).splitlines()[1:])
    return {label: text.strip() for label, text in rows}


async def reason(router: Served, path: str = CHAT, **fields: Any) -> str:
    """The reason in the receipt of a request."""
    body = {"model": "tiny", "messages": [user("Hi")], "max_tokens": 2, **fields}
    async with router.http.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        await response.read()
        found: str = orjson.loads(response.headers["x-slime-receipt"])["reason"]
    return found


@pytest.mark.tokenizers
@pytest.mark.parsers
async def test_a_detected_format_reads_tool_calls_and_reasoning():
    template = template_text("qwen3")
    async with served(**AUTO, chat_template=template) as (router, worker):
        assert lines(router)["tools"] == "qwen (detected)"
        assert lines(router)["reasoning"] == "qwen3 (detected)"
        tokenizer = tiny_tokenizer()
        said = f"<think>\nHm.\n</think>\n\n{CALL}"
        worker.script([*tokenizer.encode(said).tolist(), max(tokenizer.eos_ids)])
        body = {"model": "tiny", "messages": [user("Hi")], "tools": TOOLS}
        status, reply = await router.post(CHAT, body)
        assert status == 200, reply
    message = reply["choices"][0]["message"]
    assert message["reasoning_content"].strip() == "Hm."
    [call] = message["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}


@pytest.mark.parsers
async def test_what_is_set_and_what_is_off_is_said():
    async with serving(tool_call_parser="qwen25", reasoning_parser="none") as router:
        assert lines(router)["tools"] == "qwen25 (set)"
        assert lines(router)["reasoning"] == "off (--reasoning-parser none)"


@pytest.mark.tokenizers
@pytest.mark.parsers
async def test_a_template_without_a_known_format_is_said():
    async with serving(**AUTO, chat_template=template_text("phi3")) as router:
        assert lines(router)["tools"] == "off (no format detected; set --tool-call-parser)"
        assert lines(router)["reasoning"] == "off (no format detected; set --reasoning-parser)"
        assert not router.gateway.parsers.tools
        assert not router.gateway.parsers.reasoning


@pytest.mark.parsers
async def test_a_reply_of_a_model_that_opens_no_reasoning_is_content():
    """The tiny checkpoint's template says <think>, so SGLang takes it for DeepSeek-R1's."""
    async with served(**AUTO) as (router, worker):
        assert lines(router)["reasoning"] == "deepseek-r1 (detected)"
        tokenizer = tiny_tokenizer()
        worker.script([*tokenizer.encode("Paris.").tolist(), max(tokenizer.eos_ids)])
        _, reply = await router.post(CHAT, {"model": "tiny", "messages": [user("Hi")]})
    message = reply["choices"][0]["message"]
    assert message["content"] == "Paris."
    assert not message.get("reasoning_content")


def without_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    load = importlib.import_module

    def gone(name: str, *more: Any) -> Any:
        if name.startswith("sglang"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return load(name, *more)

    monkeypatch.setattr(importlib, "import_module", gone)


async def test_without_sglang_the_router_starts_and_says_what_parsers_need(monkeypatch, caplog):
    without_sglang(monkeypatch)
    async with served(**AUTO) as (router, _):
        said = lines(router)
        assert {"tools", "reasoning"}.isdisjoint(said)
        assert said["parsers"].startswith("off (")
        assert "slime-router install-parsers" in said["parsers"]
        assert (
            await reason(router, tools=TOOLS)
            == f"no recorded turn matches; nothing cached{UNPARSED}"
        )
    told = [line for line in caplog.messages if "slime-router install-parsers" in line]
    assert len(told) == 1


async def test_without_sglang_a_format_that_is_set_is_not_started_without(monkeypatch):
    without_sglang(monkeypatch)
    with pytest.raises(SetupError, match="slime-router install-parsers"):
        async with serving(tool_call_parser="qwen25", reasoning_parser="auto"):
            pass


# Tools that nobody reads


@pytest.mark.parametrize("stream", [False, True])
async def test_the_receipt_says_that_tools_are_not_parsed(stream):
    async with served() as (router, _):
        assert (await reason(router, tools=TOOLS, stream=stream)).endswith(UNPARSED)
        [turn] = router.gateway.store._turns.values()
        assert turn.receipt is not None
        assert turn.receipt.reason.endswith(UNPARSED)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/messages", {"tools": [{"name": "get_weather", "input_schema": {"type": "object"}}]}),
        ("/v1/responses", {"tools": [{"type": "function", "name": "get_weather"}], "input": "Hi"}),
    ],
)
async def test_every_chat_door_says_it(path, fields):
    body = {"model": "tiny", "messages": [user("Hi")], "max_tokens": 2, **fields}
    if "input" in body:
        del body["messages"], body["max_tokens"]
        body["max_output_tokens"] = 16
    async with served() as (router, _), router.http.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        receipt = orjson.loads(response.headers["x-slime-receipt"])
    assert receipt["reason"].endswith(UNPARSED)


@pytest.mark.parsers
@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, {}),
        ({}, {"tools": []}),
        ({}, {"tools": TOOLS, "tool_choice": "none"}),
        ({"tool_call_parser": "qwen25"}, {"tools": TOOLS}),
    ],
)
async def test_there_is_nothing_to_say_without_tools_or_with_a_parser(settings, fields, caplog):
    async with served(**settings) as (router, _):
        assert not (await reason(router, **fields)).endswith(UNPARSED)
    assert not [line for line in caplog.messages if "--tool-call-parser" in line]


async def test_how_to_set_a_parser_is_logged_once(caplog):
    async with served() as (router, _):
        for _ in range(3):
            await reason(router, tools=TOOLS)
    [line] = [each for each in caplog.records if "--tool-call-parser" in each.message]
    assert line.levelname == "WARNING"
    assert line.message == "a request has tools, but calls stay text: set --tool-call-parser NAME"


async def test_a_prompt_with_unparsed_tools_is_given_back_like_any_other():
    async with served() as (router, _):
        text, _ = await router.chat([user("Hi")], tools=TOOLS, max_tokens=2)
        talk = [user("Hi"), {"role": "assistant", "content": text}, user("Go on")]
        assert (await reason(router, tools=TOOLS, messages=talk)).startswith("continues the turn")
        assert not router.gateway.maker._continued
