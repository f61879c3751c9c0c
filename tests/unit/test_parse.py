"""Replies taken apart: text as models write it, in each of the formats, cut at every place."""

from __future__ import annotations

import importlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from slime_router.errors import BadRequest, SetupError
from slime_router.replies.calls.nothing_lost import NothingLost
from slime_router.replies.parser import ReplyDelta, ReplyParser
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.replies.tool_calls import CallReader
from slime_router.types import Message, ReplyFormat
from tests.unit.formats import FORMATS, HARMONY

pytestmark = pytest.mark.parsers

MARK = r"<[|｜][^|｜<>]*[|｜]>"  # these are one token each, whatever the vocabulary
CUTS = {"letters": MARK + r"|[\s\S]", "tokens": MARK + r"|</?\w+>|\w+|\s+|[^\w\s]"}
PLAIN = "Well, 1 < 2 </b> [x] and so on. <thin "
ARGUMENTS = {"city": "Köln [a] {b}", "days": 3}
OTHER = {"query": 'say "hi"\\n', "deep": True}
A, B = json.dumps(ARGUMENTS, ensure_ascii=False), json.dumps(OTHER)


def tool(name: str, **properties: str) -> dict[str, Any]:
    schema = {name: {"type": kind} for name, kind in properties.items()}
    parameters = {"type": "object", "properties": schema}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER = tool("get_weather", city="string", days="integer")
SEARCH = tool("search", query="string", deep="boolean")
TOOLS = (WEATHER, SEARCH)

CALLS = {
    "qwen25": (
        '<tool_call>\n{"name": "get_weather", "arguments": %s}\n</tool_call>',
        '\n<tool_call>\n{"name": "search", "arguments": %s}\n</tool_call>',
    ),
    "hermes": (
        '<tool_call>{"name": "get_weather", "arguments": %s}</tool_call>',
        '\n<tool_call>{"name": "search", "arguments": %s}</tool_call>',
    ),
    "mistral": (
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": %s}',
        ', {"name": "search", "arguments": %s}]',
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        "<|tool_call_argument_begin|>%s<|tool_call_end|>",
        "<|tool_call_begin|>functions.search:1<|tool_call_argument_begin|>%s<|tool_call_end|>"
        "<|tool_calls_section_end|>",
    ),
    "deepseekv3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        "```json\n%s\n```<｜tool▁call▁end｜>",
        "\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>search\n```json\n%s\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "llama3": (
        '<|python_tag|>{"name": "get_weather", "parameters": %s}',
        '; {"name": "search", "parameters": %s}',
    ),
}
XML_CALLS = {
    "qwen3_coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln [a] {b}\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        '\n<tool_call>\n<function=search>\n<parameter=query>\nsay "hi"\\n\n</parameter>\n'
        "<parameter=deep>\ntrue\n</parameter>\n</function>\n</tool_call>",
    ),
    "glm45": (
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Köln [a] {b}</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        '\n<tool_call>search\n<arg_key>query</arg_key>\n<arg_value>say "hi"\\n</arg_value>\n'
        "<arg_key>deep</arg_key>\n<arg_value>true</arg_value>\n</tool_call>",
    ),
}
WRITTEN = {
    **{name: (first % A, second % B) for name, (first, second) in CALLS.items()},
    **XML_CALLS,
}
PLAIN = "Just an answer: a < b, [x] {y}.\n\n- z <tool\n<tool_cal"


@dataclass
class Reply:
    """What a parser made of a text."""

    content: str = ""
    reasoning: str = ""
    names: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)

    @property
    def calls(self) -> list[tuple[str, Any]]:
        return [(n, json.loads(a)) for n, a in zip(self.names, self.arguments, strict=True)]


def parser_of(
    name: str | None,
    reasoning: str | None = None,
    *,
    tail: str = "",
    written: str = "",
    history: Sequence[Message] = (),
    **form: Any,
) -> ReplyParser:
    parsers = ReplyParsers(load_parsers, tools=name, reasoning=reasoning)
    wanted = ReplyFormat(**{"tools": TOOLS, **form})
    parser = parsers.parser(wanted, prompt_tail=tail, history=history, written=written)
    assert parser is not None
    return parser


def read(parser: ReplyParser, text: str, cut: str = "letters") -> Reply:
    reply = Reply()
    pieces = re.findall(CUTS[cut], text)
    assert "".join(pieces) == text
    for index, piece in enumerate([*pieces, ""]):
        delta = parser.push(piece, is_last=index == len(pieces))
        reply.content += delta.content
        reply.reasoning += delta.reasoning
        for call in delta.tool_calls:
            if call.index == len(reply.names):
                assert call.id, "the first piece of a call has its id and name"
                assert call.name
                reply.names.append(call.name)
                reply.ids.append(call.id)
                reply.arguments.append("")
            else:
                assert call.index < len(reply.names), "calls begin one after the other"
                assert call.id is None
                assert call.name is None
            reply.arguments[call.index] += call.arguments
    return reply


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", WRITTEN)
def test_parallel_calls_behind_content(name, cut):
    lead = "" if name == "llama3" else "I look. "
    reply = read(parser_of(name), lead + "".join(WRITTEN[name]), cut)
    assert reply.calls == [("get_weather", ARGUMENTS), ("search", OTHER)]
    assert reply.content == lead
    assert len(set(reply.ids)) == 2


@pytest.mark.parametrize("name", WRITTEN)
def test_without_parallel_calls_only_the_first_is_given(name):
    reply = read(parser_of(name, is_parallel=False), "".join(WRITTEN[name]))
    assert reply.calls == [("get_weather", ARGUMENTS)]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", WRITTEN)
def test_text_without_calls_comes_through_letter_by_letter(name, cut):
    """Brackets that a format drops, and the beginning of a tag at the very end, too."""
    reply = read(parser_of(name), PLAIN, cut)
    assert (reply.content, reply.names) == (PLAIN, [])


@pytest.mark.parametrize("name", WRITTEN)
def test_a_call_cut_by_length_is_kept_as_far_as_it_was_written(name):
    first, second = (re.findall(CUTS["letters"], part) for part in WRITTEN[name])
    for length in range(0, len(second), 7):
        reply = read(parser_of(name), "".join(first + second[:length]))
        assert reply.names[0] == "get_weather"
        assert json.loads(reply.arguments[0]) == ARGUMENTS
    for length in range(0, len(first), 5):
        reply = read(parser_of(name), "".join(first[:length]))
        assert len(reply.names) <= 1
        if reply.names and name in CALLS:
            assert A.startswith(reply.arguments[0])


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("bad", ['{"city": "Köln, "days": 3,,}', '{"city":"K","days":[1,2,,]}'])
def test_arguments_that_are_no_json_stay_as_the_model_wrote_them(name, bad):
    first, _ = CALLS[name]
    reply = read(parser_of(name), first % bad)
    assert reply.names == ["get_weather"]
    assert reply.arguments[0].replace(" ", "") == bad.replace(" ", "")


@pytest.mark.parametrize("name", ["qwen25", "hermes"])
def test_a_call_behind_bad_json_is_found(name):
    first, second = CALLS[name]
    reply = read(parser_of(name), (first % '{"city": "Köln, }') + second % B)
    assert reply.names == ["get_weather", "search"]
    assert reply.arguments[0].startswith('{"city": "Köln, }')
    assert json.loads(reply.arguments[1]) == OTHER
    assert len(set(reply.ids)) == 2


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("bad", ['{"city": Paris}', "{city}", '{"days": 1,}', '{"city": ]}'])
@pytest.mark.parametrize("name", ["deepseekv3", "llama3", "mistral"])
def test_a_call_that_is_no_json_does_not_take_the_next_with_it(name, bad, cut):
    first, second = CALLS[name]
    reply = read(parser_of(name), first % bad + second % B, cut)
    assert reply.names == ["get_weather", "search"]
    assert reply.arguments[0] == bad
    assert json.loads(reply.arguments[1]) == OTHER
    assert reply.content == ""


WITHOUT_END = ['{"cmd": }', '{"cmd": ', '{"cmd" }', '{"cmd": ls}', "{cmd: 1}", "{", ""]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("bad", WITHOUT_END)
@pytest.mark.parametrize("name", ["qwen25", "hermes"])
def test_a_call_that_neither_has_a_value_nor_ends_is_text(name, bad, cut):
    """Its own brace is missing, so it is not an object at all."""
    first, second = CALLS[name]
    text = (first % bad).replace(f"{bad}}}", bad)
    assert text != first % bad
    reply = read(parser_of(name), text, cut)
    assert (reply.content.strip(), reply.names) == (text.strip(), [])
    reply = read(parser_of(name), first % A + text.lstrip() + second % B, cut)
    assert reply.calls == [("get_weather", ARGUMENTS), ("search", OTHER)]
    assert reply.content.strip() == text.strip()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["qwen25", "hermes"])
@pytest.mark.parametrize("given", [A, '{"days": 1, "city": }', '{"city": "{"}', "{}"])
def test_a_call_without_its_own_brace_keeps_its_arguments_whole(name, given, cut):
    """Once an argument has begun it is a call: it was streamed as one."""
    first, _ = CALLS[name]
    reply = read(parser_of(name), (first % given).replace(f"{given}}}", given), cut)
    assert reply.names == ["get_weather"]
    assert reply.arguments == [given]
    assert reply.content.strip() == ""


def broken(name: str) -> dict[str, str]:
    """Second calls of the format that are not calls, by what is wrong with them."""
    second = WRITTEN[name][1] if name != "mistral" else WRITTEN[name][1].removesuffix("]")
    if name == "glm45":
        return {"no name": second.replace("search", "")}
    if '"name"' not in second:
        return {"name": re.sub(r"search(:1)?", "", second), "start": second.replace("search", "!")}
    return {
        "unknown": second.replace("search", "rm"),
        "no name": second.replace('"name": "search", ', ""),
        "no JSON": second.replace('"name"', "name"),
        "number": second.replace('"search"', "5"),
        "cut": second[: second.index("search")],
    }


BROKEN = [(name, fault) for name in WRITTEN if name != "qwen3_coder" for fault in broken(name)]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("ending", ["", "\nBye."])
@pytest.mark.parametrize(("name", "fault"), BROKEN)
def test_a_broken_call_behind_a_good_one_changes_nothing_of_it(name, fault, ending, cut):
    """Whatever comes after it: nothing, an answer, or another call."""
    first, second = WRITTEN[name]
    for more in (ending, second + ending):
        reply = read(parser_of(name), first + broken(name)[fault] + more, cut)
        assert reply.calls[0] == ("get_weather", ARGUMENTS)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("fault", broken("qwen25"))
@pytest.mark.parametrize("name", ["qwen25", "hermes"])
def test_a_broken_call_behind_a_good_one_is_content_and_the_next_is_a_call(name, fault, cut):
    first, second = WRITTEN[name]
    text = broken(name)[fault]
    reply = read(parser_of(name), first + first + text, cut)
    assert reply.calls == [("get_weather", ARGUMENTS)] * 2
    assert reply.content == text.lstrip()
    if fault != "cut":
        reply = read(parser_of(name), first + first + text + second, cut)
        assert reply.calls == [("get_weather", ARGUMENTS)] * 2 + [("search", OTHER)]
        assert reply.content.strip() == text.strip()
        reply = read(parser_of(name, is_parallel=False), first + text + second, cut)
        assert reply.calls == [("get_weather", ARGUMENTS)]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("fault", broken("llama3"))
@pytest.mark.parametrize("name", ["llama3", "mistral"])
def test_a_broken_call_of_a_list_is_content_and_nothing_is_added(name, fault, cut):
    first, _ = WRITTEN[name]
    text = broken(name)[fault]
    reply = read(parser_of(name), first + text, cut)
    assert reply.calls == [("get_weather", ARGUMENTS)]
    assert reply.content.strip() == text[text.index("{") :]


def test_a_call_without_arguments_has_an_empty_object():
    reply = read(parser_of("qwen25"), '<tool_call>\n{"name": "search"}\n</tool_call>')
    assert reply.calls == [("search", {})]


def test_a_call_of_an_unknown_tool_stays_text():
    text = 'So.\n<tool_call>\n{"name": "rm", "arguments": {"path": "/"}}\n</tool_call>'
    reply = read(parser_of("qwen25"), text)
    assert reply.names == []
    assert reply.content == text


@pytest.mark.parametrize("name", ["qwen25", "llama3", "mistral", "kimi_k2", "glm45", "deepseekv3"])
def test_long_arguments_do_not_cost_their_square(name):
    """SGLang's parsers took half a minute for this one."""
    arguments = {"query": "word and {more}\n" * 1000, "deep": True}
    if name == "glm45":
        text = (
            "<tool_call>search\n<arg_key>query</arg_key>\n<arg_value>"
            f"{arguments['query']}</arg_value>\n<arg_key>deep</arg_key>\n"
            "<arg_value>true</arg_value>\n</tool_call>"
        )
    else:
        head, tail = CALLS[name][0].replace("get_weather", "search").split("%s")
        text = head + json.dumps(arguments) + tail
    started = time.process_time()
    reply = read(parser_of(name), text, "tokens")
    assert time.process_time() - started < 5
    [(called, given)] = reply.calls
    assert called == "search"
    assert given["query"].strip() == str(arguments["query"]).strip()


def test_json_that_is_no_call_is_content_however_long():
    text = json.dumps({"answer": "word {and} more\n" * 500})
    assert read(parser_of("llama3"), text, "tokens").content == text


# Reasoning

THOUGHT = "<think>\nIs a < b? 東\n</think>\n\nIt is."


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("name", ["qwen3", "deepseek-r1"])
def test_reasoning_and_content(name, streams, cut):
    reply = read(parser_of(None, name, streams_reasoning=streams), THOUGHT, cut)
    assert reply.reasoning == "\nIs a < b? 東\n"
    assert reply.content == "\n\nIt is."


@pytest.mark.parametrize("name", ["qwen3", "deepseek-r1"])
def test_reasoning_that_the_prompt_opened(name):
    tail = "<|im_start|>assistant\n<think>\n"
    reply = read(parser_of(None, name, tail=tail), "Hm.\n</think>\n\nYes")
    assert (reply.reasoning, reply.content) == ("Hm.\n", "\n\nYes")


@pytest.mark.parametrize("name", ["qwen3", "deepseek-r1"])
def test_reasoning_that_the_prompt_closed(name):
    tail = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    reply = read(parser_of(None, name, tail=tail), "Yes")
    assert (reply.reasoning, reply.content) == ("", "Yes")


def test_a_user_who_writes_of_tags_opens_and_closes_no_reasoning():
    tail = "What does %s mean?<|im_end|>\n<|im_start|>assistant\n"
    opened, closed = tail.replace("%s", "<think>"), tail.replace("%s", "</think>")
    assert read(parser_of(None, "qwen3", tail=opened), "A tag.").content == "A tag."
    assert read(parser_of(None, "deepseek-r1", tail=closed), "Hm.</think>A").reasoning == "Hm."


@pytest.mark.parametrize(
    ("written", "reasoning", "content"),
    [("<think>\nHm", ".", "Yes"), ("<think>a</think>b", "", ".")],
)
def test_a_continued_reply_goes_on_inside_or_behind_its_reasoning(written, reasoning, content):
    text = ".</think>Yes" if reasoning else "."
    reply = read(parser_of(None, "qwen3", written=written), text)
    assert (reply.reasoning, reply.content) == (reasoning, content)


@pytest.mark.parametrize("name", ["ling3", "nemotron_3", "qwen3"])
def test_a_reply_that_is_cut_in_its_reasoning_says_it_once(name):
    """SGLang's parsers give that of some models again as content."""
    reply = read(parser_of(None, name, tail="<think>"), "Hm, so")
    assert (reply.reasoning, reply.content) == ("Hm, so", "")


@pytest.mark.parametrize("end", ["<|eot|>", "<|eom|>"])
@pytest.mark.parametrize("said", ["", "Hello"])
def test_an_end_that_a_format_makes_nothing_of_is_no_content(said, end):
    reply = read(parser_of(None, "muse", tail="<|start|>assistant"), said + end)
    assert (reply.reasoning, reply.content) == ("", said)


@pytest.mark.parametrize("name", ["deepseek-r1", "kimi_k3", "minimax", "qwen3"])
def test_an_answer_that_the_client_began_goes_on_as_content(name):
    """Also where a reply begins with reasoning otherwise."""
    reply = read(parser_of(None, name, written="It is"), " sunny.")
    assert (reply.reasoning, reply.content) == ("", " sunny.")


@pytest.mark.parametrize("streams", [True, False])
def test_reasoning_cut_by_length_is_reasoning(streams):
    reply = read(parser_of(None, "qwen3", streams_reasoning=streams), "<think>\nHm </thi")
    assert (reply.reasoning, reply.content) == ("\nHm </thi", "")


@pytest.mark.parametrize("end", ["\n</think>\n\n", "\n"])
def test_a_call_ends_reasoning_that_was_not_closed(end):
    reply = read(parser_of("qwen25", "qwen3"), f"<think>\nHm.{end}{WRITTEN['qwen25'][0]}")
    assert reply.calls == [("get_weather", ARGUMENTS)]
    assert reply.reasoning.strip() == "Hm."
    assert reply.content.strip() == ""


@pytest.mark.parametrize("shape", ["%s", "<b>hm<e>%s", "%s<b>hm<e>%s", "%s<b>%s", "%s<e>%s"])
@pytest.mark.parametrize("cut", CUTS)
def test_plain_content_reads_the_same_past_a_parser_and_through_it(cut, shape):
    """In every format, whatever comes later: a mark, or what only looks like one."""
    for name in {*load_parsers().reasoning_formats} - {"response_template"}:  # it is a model's own
        parsers = ReplyParsers(load_parsers, tools=None, reasoning=name)
        told: list[list[ReplyDelta]] = []
        for marks in (parsers._marks, None):
            parsers._marks = marks
            parser = parsers.parser(ReplyFormat(), prompt_tail="", history=())
            assert parser is not None
            begin, end = "<|channel|>analysis<|message|>", "<|end|>"
            if parser._reasoning is not None:
                begin, end = parser._reasoning.begin, parser._reasoning.end
            text = shape.replace("%s", PLAIN).replace("<b>", begin).replace("<e>", end)
            pieces = re.findall(CUTS[cut], text)
            told.append([parser.push(piece, is_last=False) for piece in pieces])
            told[-1].append(parser.push("", is_last=True))
        assert told[0] == told[1], name


def test_plain_content_does_not_pass_through_the_parser_of_reasoning():
    parsers = ReplyParsers(load_parsers, tools=None, reasoning="qwen3")
    parser = parsers.parser(ReplyFormat(), prompt_tail="", history=())
    assert parser is not None
    seen: list[str] = []

    def parse_stream_chunk(text: str) -> tuple[str, str]:
        seen.append(text)
        return "", text

    assert parser._reasoning is not None
    parser._reasoning._made().parse_stream_chunk = parse_stream_chunk
    for piece in ("First", " a <b> and", " so", " on"):
        assert parser.push(piece, is_last=False).content == piece
    assert parser.push(" <", is_last=False).content == " "
    assert parser.push("th", is_last=False).content == ""
    assert parser.push("x", is_last=False).content == "<thx"
    assert seen == [" ", "<", "thx"], "it might have begun a mark"


def test_reasoning_that_is_not_separated_stays_content():
    reply = read(parser_of("qwen25", "qwen3", separates_reasoning=False), THOUGHT)
    assert (reply.reasoning, reply.content) == ("", THOUGHT)


@pytest.mark.parametrize("cut", CUTS)
def test_harmony(cut):
    text = (
        "<|channel|>analysis<|message|>Is a < b?<|end|><|start|>assistant<|channel|>commentary "
        f"to=functions.get_weather <|constrain|>json<|message|>{A}<|call|>"
    )
    reply = read(parser_of("gpt-oss", "gpt-oss"), text, cut)
    assert (reply.reasoning, reply.content) == ("Is a < b?", "")
    assert reply.calls == [("get_weather", ARGUMENTS)]
    text = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>[3]"
    reply = read(parser_of("gpt-oss", "gpt-oss"), text, cut)
    assert (reply.reasoning, reply.content) == ("Hm", "[3]")


def test_a_reply_of_which_a_format_makes_nothing_is_content():
    assert read(parser_of(None, "gpt-oss"), "Hello there").content == "Hello there"
    assert read(parser_of(None, "qwen3"), "<think>").content == ""


def test_a_thinking_parser_says_so_between_pieces():
    parser = parser_of(None, "qwen3")
    said = [parser.push(piece, is_last=False).is_thinking for piece in ("<think>", "a", "</think>")]
    assert said == [True, True, True]
    assert not parser.push("b", is_last=True).is_thinking
    assert not parser.is_thinking


# Forced calls


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen25", "structural_tag"),
        ("hermes", "structural_tag"),
        ("mistral", "structural_tag"),
        ("deepseekv3", "structural_tag"),
        ("qwen3_coder", "json_schema"),
        ("glm45", "json_schema"),
        ("glm47", "ebnf"),
    ],
)
def test_forced_calls_have_a_grammar(name, kind):
    parsers = ReplyParsers(load_parsers, tools=name, reasoning=None)
    grammar = parsers.constraint(ReplyFormat(tools=TOOLS, is_forced=True))
    assert grammar is not None
    assert grammar.kind == kind
    assert "get_weather" in grammar.value
    assert "search" in grammar.value
    if kind != "ebnf":
        json.loads(grammar.value)
    named = ReplyFormat(tools=(SEARCH,), is_forced=True, named="search", is_parallel=False)
    grammar = parsers.constraint(named)
    assert grammar is not None
    assert "search" in grammar.value
    assert "get_weather" not in grammar.value
    assert parsers.constraint(ReplyFormat(tools=TOOLS)) is None


@pytest.mark.parametrize("name", ["qwen25", "hermes", "mistral", "deepseekv3", "llama3", "kimi_k2"])
def test_a_grammar_holds_a_forced_reply_to_one_call_where_it_shall_be_one(name):
    parsers = ReplyParsers(load_parsers, tools=name, reasoning=None)
    strict = {**SEARCH, "function": {**SEARCH["function"], "strict": True}}
    form = ReplyFormat(tools=(WEATHER, strict), is_forced=True)
    many, one = (parsers.constraint(replace(form, is_parallel=each)) for each in (True, False))
    assert many is not None
    assert one is not None
    told, held = json.loads(many.value), json.loads(one.value)["format"]
    assert (held["type"], held["at_least_one"], held["stop_after_first"]) == (
        "triggered_tags", True, True,
    )  # fmt: skip
    assert held["triggers"] == told["triggers"]
    assert [
        {"begin": tag["begin"], "schema": tag["content"]["json_schema"], "end": tag["end"]}
        for tag in held["tags"]
    ] == told["structures"]
    assert held["tags"][1]["content"]["json_schema"] == strict["function"]["parameters"]


@pytest.mark.parametrize("name", ["qwen3_coder", "glm45"])
def test_a_json_array_of_one_forced_call_has_room_for_one(name):
    parsers = ReplyParsers(load_parsers, tools=name, reasoning=None)
    form = ReplyFormat(tools=TOOLS, is_forced=True, is_parallel=False)
    grammar = parsers.constraint(form)
    assert grammar is not None
    assert json.loads(grammar.value)["maxItems"] == 1


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("comma", [",", ", ", ",\n  "])
def test_forced_calls_are_read_back_from_a_json_array(comma, cut):
    calls = [
        {"name": "get_weather", "parameters": ARGUMENTS},
        {"name": "search", "parameters": OTHER},
    ]
    text = f"[{comma.join(json.dumps(call) for call in calls)}]"
    reply = read(parser_of("qwen3_coder", is_forced=True), text, cut)
    assert reply.calls == [("get_weather", ARGUMENTS), ("search", OTHER)]
    assert reply.content == ""


def test_a_forced_call_is_read_back_behind_reasoning():
    text = "<think>\n[a]\n</think>\n\n" + json.dumps([{"name": "search", "parameters": OTHER}])
    reply = read(parser_of("glm45", "glm45", is_forced=True, named="search"), text)
    assert reply.calls == [("search", OTHER)]


def test_tools_that_contradict_one_another_cannot_be_forced():
    def with_defs(name: str, kind: str) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {}, "$defs": {"X": {"type": kind}}}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    parsers = ReplyParsers(load_parsers, tools="qwen25", reasoning=None)
    tools = (with_defs("a", "string"), with_defs("b", "integer"))
    with pytest.raises(BadRequest):
        parsers.constraint(ReplyFormat(tools=tools, is_forced=True))


def test_nulls_in_a_tool_are_read_over():
    function = {"name": "search", "description": None, "parameters": None, "strict": None}
    loose = {"type": "function", "function": function}
    reply = read(parser_of("qwen25", tools=(loose,)), CALLS["qwen25"][1] % B)
    assert reply.calls == [("search", OTHER)]


# Ids


def test_call_ids_are_made_here():
    first, second = (read(parser_of("qwen25"), WRITTEN["qwen25"][0]).ids[0] for _ in range(2))
    assert re.fullmatch("call_[0-9a-f]{24}", first)
    assert first != second


def test_ids_that_kimi_wrote_are_kept_whatever_was_called_before():
    before = {"role": "assistant", "tool_calls": [{"id": "functions.search:0"}, {"id": "x"}]}
    reply = read(parser_of("kimi_k2", history=[before]), "".join(WRITTEN["kimi_k2"]))
    assert reply.ids == ["functions.get_weather:0", "functions.search:1"]


def test_two_calls_of_one_reply_never_share_an_id():
    first, _ = CALLS["kimi_k2"]
    reply = read(parser_of("kimi_k2"), (first % A) + (first % A))
    assert reply.ids == ["functions.get_weather:0", "functions.get_weather:1"]


def test_ids_of_kimi_k3_count_the_calls_of_the_conversation():
    """It writes a call's place in the reply, and no id."""
    before = {"role": "assistant", "tool_calls": [{"id": "search:0"}, {"id": "x"}]}
    text = FORMATS["kimi_k3"].write([("search", OTHER), ("search", OTHER)])
    assert read(parser_of("kimi_k3", history=[before]), text).ids == ["search:2", "search:3"]


@pytest.mark.parametrize("name", ["kimi_k2", "kimi_k3", "gpt-oss", "qwen25"])
def test_only_ids_that_were_made_here_are_random(name):
    text = {**FORMATS, "gpt-oss": HARMONY}[name].write([("search", OTHER), ("search", OTHER)])
    parser = parser_of(name)
    deltas = [parser.push(piece, is_last=False) for piece in re.findall(CUTS["tokens"], text)]
    begun = [call for delta in deltas for call in delta.tool_calls if call.id]
    assert [call.has_random_id for call in begun] == [not name.startswith("kimi")] * 2


def test_ids_can_be_of_another_kind():
    numbers = iter(range(10))
    parsers = ReplyParsers(
        load_parsers, tools="mistral", reasoning=None, new_call_id=lambda: f"{next(numbers):09}"
    )
    parser = parsers.parser(ReplyFormat(tools=TOOLS), prompt_tail="", history=())
    assert parser is not None
    assert read(parser, "".join(WRITTEN["mistral"])).ids == ["000000000", "000000001"]


# What can be wrong


def test_an_unknown_format_is_one_line():
    for tools, reasoning in (("qwen26", None), (None, "qwen26")):
        with pytest.raises(SetupError, match=r"qwen26: SGLang knows .*qwen") as caught:
            ReplyParsers(load_parsers, tools=tools, reasoning=reasoning)
        assert "\n" not in str(caught.value)


def test_a_format_that_needs_what_is_not_here_fails_at_the_start():
    with pytest.raises(SetupError, match="response_template"):
        ReplyParsers(load_parsers, tools="response_template", reasoning=None)


def test_without_sglang_the_error_says_how_to_install_it(monkeypatch):
    def gone(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", gone)
    with pytest.raises(
        SetupError, match=r"need SGLang: run `slime-router install-parsers`"
    ) as caught:
        ReplyParsers(load_parsers, tools="qwen25", reasoning=None)
    assert "\n" not in str(caught.value)


def test_without_parsers_sglang_is_not_asked_for():
    def load() -> Any:
        raise AssertionError("it was")

    parsers = ReplyParsers(load, tools=None, reasoning=None)
    form = ReplyFormat(tools=TOOLS)
    assert not parsers.are_needed(form)
    assert parsers.parser(form, prompt_tail="", history=()) is None


def test_what_a_parser_raises_on_stays_text(monkeypatch, caplog):
    parser = parser_of("qwen25")
    assert isinstance(parser._calls, NothingLost)
    assert isinstance(parser._calls._reader, CallReader)
    detector = parser._calls._reader._parser._detector
    increment = detector.parse_streaming_increment

    def raising(text: str, tools: Any) -> Any:
        if text == "!":
            raise RuntimeError("boo")
        return increment(text, tools)

    monkeypatch.setattr(detector, "parse_streaming_increment", raising)
    text = "Hi <tool_ca! and <tool_call>\n{} more"
    assert read(parser, text).content == text
    assert "the rest of it stays text" in caplog.text


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("tail", ["", "</mm:think>"])
def test_a_thought_that_was_not_begun_may_end_before_the_content(cut, tail):
    """MiniMax-M3 writes so: its template prints earlier turns without thoughts that way."""
    reply = read(parser_of(None, "minimax-m3", tail=tail), "</mm:think>Hello <b", cut)
    assert (reply.content, reply.reasoning) == ("Hello <b", "")


@pytest.mark.parametrize("name", ["qwen3", "kimi_k2", "deepseek-v3", "nemotron_3"])
def test_a_tag_is_seen_after_what_may_have_begun_one(name):
    reply = read(parser_of(None, name, tail="</think>"), "<<think>Hm.</think>Hello <th", "letters")
    assert (reply.content, reply.reasoning) == ("Hello <th", "<Hm.")


LONG = "word " * 100


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].most > 1])
def test_long_calls_that_follow_each_other_are_not_content(name, cut):
    calls = [("get_weather", {"city": LONG + "a"}), ("get_weather", {"city": LONG + "b"})]
    lead = "Let me see." if FORMATS[name].speaks else ""
    reply = read(parser_of(name), FORMATS[name].write(calls, lead), cut)
    assert reply.calls == calls
    assert reply.content.strip() == lead


MARKED = ("mimo", "spark25", "qwen3_coder", "glm45", "qwen25", "hermes", "ling3", "step3p5")


@pytest.mark.parametrize("city", ["a <tool_call> b", "<tool_call>", "<tool_call> <tool_call>x"])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", MARKED)
def test_an_argument_that_holds_the_mark_of_a_call_is_not_content(name, cut, city):
    calls = [("search", {"query": city}), ("search", {"query": "x"})]
    reply = read(parser_of(name), FORMATS[name].write(calls, "Let me see."), cut)
    assert reply.calls == calls
    assert reply.content.strip() == "Let me see."


@pytest.mark.parametrize("suffix", ["", ":opensource"])
def test_hunyuans_marks_have_the_names_of_the_vocabulary(suffix):
    """Those of Hy3 that is published end alike."""
    marks = ("tool_calls", "tool_call", "tool_sep", "arg_key", "arg_value", "think")
    names = [f"<{slash}{mark}{suffix}>" for mark in marks for slash in ("", "/")]
    calls = [("get_weather", {"city": "Paris"})]
    text = "<think>Hm.</think>" + FORMATS["hunyuan"].write(calls, "Let me see.")
    for mark in marks:
        text = text.replace(f"<{mark}>", f"<{mark}{suffix}>")
        text = text.replace(f"</{mark}>", f"</{mark}{suffix}>")
    parsers = ReplyParsers(load_parsers, tools="hunyuan", reasoning="hunyuan", added_tokens=names)
    parser = parsers.parser(ReplyFormat(tools=TOOLS), prompt_tail="", history=())
    assert parser is not None
    reply = read(parser, text)
    assert (reply.calls, reply.content, reply.reasoning) == (calls, "Let me see.", "Hm.")
