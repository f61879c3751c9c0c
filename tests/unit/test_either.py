"""A grammar of the client's beside tools: the model may give what was asked for, or call."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from slime_router.errors import BadRequest
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.types import Grammar, ReplyFormat
from tests.unit.formats import FORMATS

pytestmark = pytest.mark.parsers

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
ASKED = Grammar("json_schema", json.dumps(SCHEMA))
TOOLS = tuple(
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
    for name in ("get_weather", "search")
)
WITHOUT = {"muse"}  # calls in messages of their own, whose heads SGLang has no grammar for
WHOLE = {"gpt-oss"}  # the answer is in a channel, like the calls


def parsers(name: str | None) -> ReplyParsers:
    return ReplyParsers(load_parsers, tools=name, reasoning=None)


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - WITHOUT - WHOLE))
def test_either_is_allowed(name: str) -> None:
    found = parsers(name).either(ReplyFormat(tools=TOOLS), ASKED)
    assert found.kind == "structural_tag"
    tag = json.loads(found.value)
    assert tag["type"] == "structural_tag"
    content, calls = tag["format"]["elements"]
    assert tag["format"]["type"] == "or"
    assert content == {"type": "json_schema", "json_schema": SCHEMA}
    assert calls != content


@pytest.mark.parametrize("name", sorted(FORMATS.keys() & WITHOUT))
def test_where_that_cannot_be_a_400_says_so(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parsers(name).either(ReplyFormat(tools=TOOLS), ASKED)
    assert caught.value.param == "response_format"
    assert "forbids every call" in caught.value.message


def offered(name: str, strict: bool = False) -> ReplyFormat:
    function = {"name": name, "parameters": SCHEMA, "strict": strict}
    return ReplyFormat(tools=({"type": "function", "function": function},))


def test_gpt_oss_answers_in_its_channel_or_calls_after_it_has_thought() -> None:
    found = parsers("gpt-oss").either(offered("search"), ASKED)
    tag = json.loads(found.value)["format"]
    last, after = tag["elements"]
    final, *calls = last["elements"]
    assert final["begin"] == "<|channel|>final<|message|>"
    assert final["content"] == {"type": "json_schema", "json_schema": SCHEMA}
    assert {call["content"]["json_schema"]["type"] for call in calls} == {"object"}
    assert all("to=functions.search" in call["begin"] for call in calls)
    assert {tag["end"] for tag in last["elements"]} == {""}, "the token that ends a reply is last"
    said, separator, again = after["elements"]
    assert "analysis" in said["tags"][0]["begin"]
    assert separator["value"] == "<|start|>assistant"
    assert again == last
    strict = json.loads(parsers("gpt-oss").either(offered("search", True), ASKED).value)
    assert strict["format"]["elements"][0]["elements"][1]["content"]["json_schema"] == SCHEMA


@pytest.mark.parametrize("name", ["gigachat3", "pythonic"])
def test_calls_without_marks_are_told_from_the_answer(name: str) -> None:
    [_, calls] = json.loads(parsers(name).either(ReplyFormat(tools=TOOLS), ASKED).value)["format"][
        "elements"
    ]
    written = FORMATS[name].write([("get_weather", {"city": "Oslo [N] (x)"})])
    if name == "pythonic":
        assert re.fullmatch(calls["pattern"], written)
        assert not re.fullmatch(calls["pattern"], written.replace("get_weather", "nothing"))
        assert not re.fullmatch(calls["pattern"], '{"city": "Oslo"}')
    else:
        assert written.startswith(calls["begin"])
        call = json.loads(written.removeprefix(calls["begin"]))
        schemas = [each["json_schema"] for each in calls["content"]["elements"]]
        assert [each["properties"]["name"]["const"] for each in schemas] == [
            "get_weather",
            "search",
        ]
        assert all(call.keys() == each["properties"].keys() for each in schemas)


@pytest.mark.parametrize("is_parallel", [True, False])
def test_one_call_where_one_was_asked_for(is_parallel: bool) -> None:
    form = ReplyFormat(tools=TOOLS, is_parallel=is_parallel)
    for name in ("qwen25", "glm45"):
        tag = json.loads(parsers(name).either(form, ASKED).value)
        assert tag["format"]["elements"][1].get("stop_after_first", False) is not is_parallel


def test_without_tools_or_a_parser_the_grammar_stays() -> None:
    assert parsers("qwen25").either(ReplyFormat(), ASKED) is ASKED
    assert parsers(None).either(ReplyFormat(tools=TOOLS), ASKED) is ASKED


@pytest.mark.parametrize("kind", ["structural_tag", "regex", "ebnf"])
def test_what_spells_the_whole_reply_is_left(kind: Any) -> None:
    own = Grammar(kind, "{}")
    assert parsers("qwen25").either(ReplyFormat(tools=TOOLS), own) is own
