"""gpt-oss's replies, read by their marks."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.types import ReplyFormat
from tests.unit.formats import HARMONY
from tests.unit.test_formats import MARK, NOW, PARIS, REPLIES, ROME, TOOLS, ends, values
from tests.unit.test_parse import CUTS, Reply, parser_of, read

pytestmark = pytest.mark.parsers

THOUGHT = "<|channel|>analysis<|message|>Is a < b?\n<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>It is [3].<|return|>"


def said(text: str, *, cut: str = "tokens", tail: str = "", **form: Any) -> Reply:
    parser = parser_of("gpt-oss", "gpt-oss", tail=tail, **{"tools": TOOLS, **form})
    return read(parser, text, cut)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", REPLIES)
def test_calls_behind_reasoning(kind, cut):
    reply = said(THOUGHT + HARMONY.write(REPLIES[kind]), cut=cut)
    assert reply.calls == REPLIES[kind]
    assert (reply.reasoning, reply.content) == ("Is a < b?\n", "")


@pytest.mark.parametrize("kind", REPLIES)
def test_calls_are_those_that_sglang_reads(kind):
    sglang = load_parsers()
    tools = [sglang.Tool.model_validate(tool) for tool in TOOLS]
    text = "<|start|>assistant" + HARMONY.write(REPLIES[kind])
    _, found = sglang.FunctionCallParser(tools, "gpt-oss").parse_non_stream(text)
    assert values([(call.name, call.parameters) for call in found]) == said(text).calls


def test_a_reply_is_read_from_any_two_pieces():
    text = THOUGHT + HARMONY.write([PARIS, NOW]) + "<|start|>assistant" + FINAL
    marks = re.compile(MARK)
    parsers = ReplyParsers(load_parsers, tools="gpt-oss", reasoning="gpt-oss")
    for at in ends(text):
        parser = parsers.parser(ReplyFormat(tools=TOOLS), prompt_tail="", history=())
        assert parser is not None
        halves = [text[:at], text[at:]]
        assert sum(len(marks.findall(half)) for half in halves) == len(marks.findall(text))
        deltas = [parser.push(half, is_last=half is halves[1]) for half in halves]
        assert "".join(delta.content for delta in deltas) == "It is [3]."
        assert "".join(delta.reasoning for delta in deltas) == "Is a < b?\n"
        begun = [call.name for delta in deltas for call in delta.tool_calls if call.name]
        assert begun == ["get_weather", "now"]


def test_a_call_that_is_not_parallel_is_counted_and_not_shown():
    parser = parser_of("gpt-oss", "gpt-oss", tools=TOOLS, is_parallel=False)
    delta = parser.push(HARMONY.write([PARIS, ROME, NOW]), is_last=True)
    assert [call.index for call in delta.tool_calls if call.name] == [0]
    assert json.loads("".join(call.arguments for call in delta.tool_calls)) == PARIS[1]
    assert delta.hidden_calls == 2


def test_reasoning_that_is_not_streamed_comes_at_its_end():
    parser = parser_of("gpt-oss", "gpt-oss", tools=TOOLS, streams_reasoning=False)
    deltas = [parser.push(each, is_last=False) for each in re.findall(CUTS["tokens"], THOUGHT)]
    assert [delta.reasoning for delta in deltas if delta.reasoning] == ["Is a < b?\n"]
    assert parser.push("<|channel|>analysis<|message|>More", is_last=True).reasoning == "More"


def test_reasoning_that_is_not_separated_is_content():
    reply = said(THOUGHT + FINAL, separates_reasoning=False)
    assert (reply.reasoning, reply.content) == ("", "Is a < b?\nIt is [3].")


@pytest.mark.parametrize(
    ("tail", "text", "reasoning", "content"),
    [
        ("<|start|>assistant<|channel|>analysis<|message|>", "Hm.<|end|>", "Hm.", ""),
        ("<|start|>assistant<|channel|>final<|message|>", "Yes.<|return|>", "", "Yes."),
        ("<|start|>assistant<|channel|>analysis<|message|>Hm<|end|>", "Yes.", "", "Yes."),
        ("<|start|>assistant", FINAL, "", "It is [3]."),
    ],
)
def test_a_reply_begins_where_its_prompt_ends(tail, text, reasoning, content):
    reply = said(text, tail=tail)
    assert (reply.reasoning, reply.content) == (reasoning, content)


def test_arguments_that_are_no_json_stay_as_they_are():
    text = HARMONY.write([PARIS]).replace('"days": 3}', "days: ")
    assert said(text).arguments == [json.dumps(PARIS[1]).replace('"days": 3}', "days: ")]


@pytest.mark.parametrize("text", ["Just text.", "to be or not", " to=", "<|call|>text"])
def test_text_without_a_header_is_content(text):
    assert said(text).content.strip() == text.replace("<|call|>", "").strip()


def test_forced_calls_are_read_back_from_a_json_array():
    text = json.dumps([{"name": "now", "parameters": {}}])
    for lead in ("", THOUGHT + "<|channel|>final<|message|>"):
        reply = said(lead + text, is_forced=True)
        assert (reply.calls, reply.content) == ([NOW], "")


@pytest.mark.parametrize("mark", ["<|channel|>", "<|constrain|>", "<|start|>"])
def test_words_of_a_header_that_begins_no_message_are_content(mark):
    """A mark in a message begins a header, whatever follows."""
    text = HARMONY.write([PARIS, NOW]).replace("}", f"}} {mark} Seine", 1)
    reply = said(text)
    assert (reply.content, reply.calls) == ("Seine", [PARIS, NOW])


def test_words_of_a_header_before_another_are_content():
    reply = said("Well.<|call|><|channel|> Seine " + HARMONY.write([PARIS]))
    assert (reply.content, reply.calls) == ("Well.Seine", [PARIS])
