"""All formats of tool calls: what SGLang reads in a whole reply comes out of any of its cuts.

`gpt-oss` is read here without SGLang (`test_harmony.py`); `response_template` needs a checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest

from slime_router.replies.calls.nothing_lost import NothingLost
from slime_router.replies.parser import ReplyParser
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.replies.tool_calls import CallReader
from slime_router.types import ReplyFormat
from tests.unit.formats import FORMATS, Call

pytestmark = pytest.mark.parsers

# These are one token each, whatever the vocabulary.
MARK = r"<[|｜][^|｜<>]*[|｜]>|<\|\"\|>|\]<\]minimax\[>\["
CUTS = {"letters": MARK + r"|[\s\S]", "tokens": MARK + r"|</?\w+>|\w+|\s+|[^\w\s]"}
LEAD = "I look. "
PARIS: Call = ("get_weather", {"city": "Paris", "days": 3})
ROME: Call = ("get_weather", {"city": "Köln am Rhein", "days": 4})
SEARCH: Call = ("search", {"query": "東京 🙂 é", "deep": True, "filter": {"k": ["v", {"x": "ü"}]}})
SHORT: Call = ("search", {"query": "a < b", "filter": {"k": ["ü"]}})
NOW: Call = ("now", {})
REPLIES: dict[str, list[Call]] = {
    "call": [PARIS],
    "nested": [SEARCH],
    "none": [NOW],
    "two": [PARIS, SEARCH],
    "same": [PARIS, ROME],
    "none first": [NOW, PARIS],
    "none last": [PARIS, NOW],
    "none twice": [NOW, NOW],
    "one of each": [SHORT, PARIS],
}
CASES = [(name, kind) for name in FORMATS for kind in REPLIES]
ALIASES = {"glm", "qwen", "step3p5", "nanbeige"}  # of glm45, qwen25 and qwen3_coder
DISTINCT = sorted(FORMATS.keys() - ALIASES)
NO_TEXT_BETWEEN = {"beam", "muse"}  # all their text is in channels
LOSES_VALUES = ("step3", "one of each")  # SGLang does; here it is mended
ONE_SECTION = {"gigachat35", "step3"}  # of calls in a reply
DROPS_UNKNOWN = {"beam", "muse"}  # by a switch of the whole process


def _tool(name: str, **kinds: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in kinds.items()}
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = (
    _tool("get_weather", city="string", days="integer"),
    _tool("search", query="string", deep="boolean", filter="object"),
    _tool("now"),
)


@cache
def parsers_of(name: str) -> ReplyParsers:
    return ReplyParsers(load_parsers, tools=name, reasoning=None)


def parser_of(name: str, *, is_parallel: bool = True) -> ReplyParser:
    form = ReplyFormat(tools=TOOLS, is_parallel=is_parallel)
    parser = parsers_of(name).parser(form, prompt_tail="", history=())
    assert parser is not None
    return parser


def read(
    name: str, pieces: Sequence[str], *, is_parallel: bool = True
) -> tuple[str, list[tuple[str, str]]]:
    """Content, and names and arguments as they were written."""
    parser = parser_of(name, is_parallel=is_parallel)
    content, calls = "", list[tuple[str, str]]()
    for index, piece in enumerate([*pieces, ""]):
        delta = parser.push(piece, is_last=index == len(pieces))
        content += delta.content
        for call in delta.tool_calls:
            if call.name is not None:
                assert call.index == len(calls)
                calls.append((call.name, ""))
            assert call.index == len(calls) - 1, "calls come one after the other"
            calls[-1] = (calls[-1][0], calls[-1][1] + call.arguments)
    return content, calls


def tokens(text: str) -> list[str]:
    pieces = re.findall(CUTS["tokens"], text)
    assert "".join(pieces) == text
    return pieces


def values(calls: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
    return [(name, json.loads(arguments)) for name, arguments in calls]


def ends(text: str) -> Iterator[int]:
    """Places at which a token may end."""
    marks = [match.span() for match in re.finditer(MARK, text)]
    return (at for at in range(len(text)) if not any(a < at < b for a, b in marks))


def written(name: str, kind: str, lead: str) -> tuple[str, list[Call]]:
    form = FORMATS[name]
    calls = REPLIES[kind][: form.most]
    return form.write(calls, lead if form.speaks else ""), calls


def test_every_format_of_sglang_is_here():
    assert {*FORMATS, "gpt-oss", "response_template"} == set(load_parsers().tool_formats)


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case != LOSES_VALUES])
def test_sglang_reads_the_whole_reply_as_it_is_meant(name, kind):
    """The samples are right: what is compared with them is compared with SGLang."""
    text, calls = written(name, kind, LEAD)
    sglang = load_parsers()
    tools = [sglang.Tool.model_validate(tool) for tool in TOOLS]
    content, found = sglang.FunctionCallParser(tools, name).parse_non_stream(text)
    assert [(call.name, json.loads(call.parameters)) for call in found] == calls
    assert content.strip() == (LEAD.strip() if FORMATS[name].speaks else "")


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("lead", ["", LEAD])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_reply_is_read_from_letters_and_from_tokens(name, kind, lead, cut):
    text, calls = written(name, kind, lead)
    content, found = read(name, re.findall(CUTS[cut], text))
    assert values(found) == calls
    assert content.strip() == (lead.strip() if FORMATS[name].speaks else "")


@pytest.mark.parametrize("kind", ["one of each", "none last"])
@pytest.mark.parametrize("name", DISTINCT)
def test_a_reply_is_read_from_any_two_pieces(name, kind):
    text, calls = written(name, kind, LEAD)
    for at in ends(text):
        content, found = read(name, [text[:at], text[at:]])
        assert values(found) == calls, at
        assert content.strip() == (LEAD.strip() if FORMATS[name].speaks else ""), at


@pytest.mark.parametrize("name", DISTINCT)
def test_what_was_said_before_the_cut_is_there(name):
    """In the content or in a call, once, wherever the limit of tokens ends the reply."""
    words = {"look", "Paris", "Köln", "Rhein", "東京", "ü"}
    text, _ = written(name, "same", LEAD)
    more, _ = written(name, "nested", "")
    for whole in (text, more):
        for at in ends(whole):
            said = whole[:at]
            content, calls = read(name, tokens(said))
            shown = content + "".join(arguments for _, arguments in calls)
            for word in words:
                assert shown.count(word) == said.count(word), (said[-40:], shown)


@pytest.mark.parametrize("name", DISTINCT)
def test_a_call_cut_before_its_arguments_has_none(name):
    """Where nothing says that it has ended, an empty object would be another call."""
    text = FORMATS[name].write([PARIS])
    for at in ends(text):
        _, calls = read(name, tokens(text[:at]))
        for _, arguments in calls:
            assert arguments.strip() != "{}", text[:at]


@pytest.mark.parametrize("name", DISTINCT)
def test_white_space_at_the_end_is_content(name):
    """Also where the reply ends with the very token that has it."""
    for text in ("Well.\n", "Well. \n\n", "1 < 2 [x]\n"):
        parser = parser_of(name)
        pieces = tokens(text)
        said = [parser.push(p, is_last=n == len(pieces)) for n, p in enumerate(pieces, 1)]
        assert "".join(delta.content for delta in said) == text


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - NO_TEXT_BETWEEN))
def test_text_behind_the_calls_is_content(name):
    text, calls = written(name, "two", LEAD)
    content, found = read(name, tokens(text + "\nThat is all, I think.\n"))
    assert values(found) == calls
    lead = LEAD.strip() if FORMATS[name].speaks else ""
    assert content.split() == f"{lead} That is all, I think.".split()


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - NO_TEXT_BETWEEN))
def test_text_behind_a_long_call_is_content(name):
    """Its parser was given longer pieces for a while."""
    for length in range(0, 600, 60):
        city = "Köln " * (length // 5) + "end"
        calls: list[Call] = [("get_weather", {"days": 3, "city": city})]
        content, found = read(name, tokens(FORMATS[name].write(calls) + "\n\nThat is all."))
        assert values(found) == calls
        assert content.split() == ["That", "is", "all."], length


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - NO_TEXT_BETWEEN - {"gigachat3"}))
def test_text_between_calls_is_content(name):
    form = FORMATS[name]
    lead = LEAD if form.speaks else ""
    text = form.write([PARIS], lead) + "\nAnd then, too.\n" + form.write([SEARCH])
    content, found = read(name, tokens(text))
    assert values(found[:1]) == [PARIS]
    if name in ONE_SECTION:
        assert "東京" in content
        return
    assert values(found[1:]) == [SEARCH]
    assert content.split() == f"{lead} And then, too.".split()


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - DROPS_UNKNOWN))
@pytest.mark.parametrize("order", ["first", "last"])
def test_a_call_of_an_unknown_tool_is_not_lost(name, order):
    form = FORMATS[name]
    unknown: Call = ("rm", {"query": "gamma"})
    calls = [unknown, PARIS] if order == "first" else [PARIS, unknown]
    content, found = read(name, tokens(form.write(calls[: form.most])))
    shown = content + str(found)
    for call in calls[: form.most]:
        assert call[0] in shown
        assert str(next(iter(call[1].values()))) in shown


@pytest.mark.parametrize("name", ["lfm2", "pythonic"])
@pytest.mark.parametrize(
    ("written", "value"),
    [("-1", -1), ("+2.5", 2.5), ("[-1, {'a': -2}]", [-1, {"a": -2}]), ("(1, 2)", [1, 2])],
)
def test_a_python_value_is_read(name, written, value):
    """SGLang's own reader of one of them takes no number with a sign."""
    form = FORMATS[name]
    text = f"{form.head}search(query='x'), search(query={written}){form.tail}"
    content, found = read(name, tokens(text))
    assert (content, values(found)) == (
        "",
        [("search", {"query": "x"}), ("search", {"query": value})],
    )


@pytest.mark.parametrize("name", ["lfm2", "pythonic"])
@pytest.mark.parametrize("written", ["query=Paris", "query=b'x'", "query=1e999", "query='a' + 'b'"])
def test_a_python_call_that_cannot_be_read_is_content(name, written):
    form = FORMATS[name]
    for calls in (f"search({written}), search(query='x')", f"search(query='x'), search({written})"):
        content, found = read(name, tokens(f"{form.head}{calls}{form.tail}"))
        assert (content, values(found)) == (f"search({written})", [("search", {"query": "x"})])


@pytest.mark.parametrize("name", DISTINCT)
def test_where_one_call_is_asked_for_the_others_leave_nothing_behind(name):
    for kind, cut, behind in (("two", "tokens", ""), ("same", "letters", " Bye.")):
        text, _ = written(name, kind, LEAD)
        pieces = re.findall(CUTS[cut], text + behind)
        content, calls = read(name, pieces)
        assert read(name, pieces, is_parallel=False) == (content, calls[:1])


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", DISTINCT)
def test_half_an_escaped_emoji_does_not_take_the_next_call_with_it(name, cut):
    form = FORMATS[name]
    calls: list[Call] = [("search", {"query": "a HALF b"}), PARIS]
    text = form.write(calls[: form.most]).replace("HALF", r"\ud83d")
    content, found = read(name, re.findall(CUTS[cut], text))
    (_, first), *rest = values(found)
    assert content.strip() == ""
    assert first["query"] in ("a \ud83d b", r"a \ud83d b")  # an escape only where values are JSON
    assert rest == calls[1 : form.most]


@pytest.mark.parametrize("cut", [*CUTS, "split marks"])
def test_deepseeks_call_that_is_not_json_ends_with_its_frame(cut):
    """SGLang waits for JSON to end, and gives what it has again and again."""
    text = FORMATS["deepseekv31"].write([("search", {"query": "a BROKEN"}), PARIS])
    text = text.replace('BROKEN"', "b")
    content, found = read("deepseekv31", re.findall(CUTS.get(cut, r"[\s\S]"), text))
    assert found[0] == ("search", '{"query": "a b}')
    if cut in CUTS:
        assert (content, values(found[1:])) == ("", [PARIS])


@pytest.mark.parametrize("name", ["glm45", "glm47", "ling3"])
def test_a_long_call_cut_inside_its_closing_tag_leaves_no_half_of_the_tag(name):
    """What waits to be read together is read with what comes last: never from inside a tag on."""
    call: Call = ("search", {"query": "lorem ipsum " * 50, "filter": {"k": ["v"]}})
    text = FORMATS[name].write([call])
    for end in ends(text):
        if end > len(text) - 24:
            content, [(called, _)] = read(name, re.findall(CUTS["letters"], text[:end]))
            assert called == "search"
            assert not content.strip() or content.strip()[0] == "<"


@pytest.mark.parametrize("cut", CUTS)
def test_mistrals_calls_stay_in_order_after_arguments_that_are_a_list(cut):
    """The parser takes no list for the end of a call; a later call whose end is seen waits."""
    text = "[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS][1, 2]"
    text += '[TOOL_CALLS]search[CALL_ID]jklmnopqr[ARGS]{"query": "x"}[TOOL_CALLS]now[ARGS]{}'
    _, found = read("mistral", re.findall(CUTS[cut], text))
    assert found == [("get_weather", "[1, 2]"), ("search", '{"query": "x"}'), ("now", "{}")]


@pytest.mark.parametrize("mark", ["<|function_call|>", "function call<|role_sep|>\n"])
def test_gigachats_text_before_a_call_is_not_kept(mark):
    """SGLang looks for a call in all of it with each piece."""
    parser = parser_of("gigachat3")
    for _ in range(50):
        parser.push("x < y {z} ", is_last=False)
    assert isinstance(parser._calls, NothingLost)
    assert isinstance(parser._calls._reader, CallReader)
    assert parser._calls._reader._parser.kept_len < 100
    text = FORMATS["gigachat3"].write([PARIS]).replace("<|function_call|>", mark)
    said = [parser.push(piece, is_last=False) for piece in tokens(text)]
    assert next(call.name for each in said for call in each.tool_calls) == "get_weather"


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", sorted(set(DISTINCT) - {"lfm2", "pythonic"}))  # these: no JSON
def test_a_number_that_is_too_huge_stays_json(name, cut):
    """Python reads it as infinity, and writes that as a word that is no JSON."""
    given = {"query": "-Infinity, NaN", "filter": {"a": [77777, 2], "b": "Infinity"}}
    form = FORMATS[name]
    text = form.write([("search", given), ROME][: form.most]).replace("77777", "-1e999")
    _, found = read(name, re.findall(CUTS[cut], text))
    arguments = json.loads(found[0][1], parse_constant=_refuse)
    assert arguments["query"] == "-Infinity, NaN"
    if name not in ("gemma4", "minimax-m3"):  # SGLang takes it for text there
        assert arguments["filter"] == {"a": [float("-inf"), 2], "b": "Infinity"}
    assert values(found[1:]) == [ROME][: form.most - 1]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", sorted(set(DISTINCT) - {"beam", "gemma4", "minimax-m3"}))
def test_a_number_that_comes_digit_by_digit_is_the_number(name, cut):
    """SGLang gives what it has of it, and then the end of what it turned out to be: 1.0015.

    Three formats have text in its place.
    """
    for number in ("1.5e-3", "25e-1", "-2E+2", "0.10", "100e-2"):
        given = {"filter": {"a": [77777, 2], "b": 77777}}
        text = FORMATS[name].write([("search", given)]).replace("77777", number)
        _, found = read(name, re.findall(CUTS[cut], text))
        value = json.loads(number)
        assert values(found)[0][1]["filter"] == {"a": [value, 2], "b": value}


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")
