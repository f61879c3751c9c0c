"""Calls that no parser can read whole: all is said, once, and no call has another's arguments.

Each reply is a well-formed one in which a piece is misspelled.
"""

from __future__ import annotations

import json
import re

import pytest

from slime_router.replies.calls.nothing_lost import NothingLost
from slime_router.types import ToolDelta
from tests.unit.formats import FORMATS, Call
from tests.unit.test_formats import CUTS, DISTINCT, read, tokens

pytestmark = pytest.mark.parsers

ZAGREB: Call = ("get_weather", {"city": "Zagreb", "days": 3})
QUITO: Call = ("search", {"query": "Quito", "filter": {"k": ["Vaduz"]}})
WORDS = ("Alpha", "Zagreb", "Quito", "Vaduz", "Omega")
JSON = {  # formats of calls in JSON, and the key of their arguments
    "hermes": "arguments",
    "llama3": "parameters",
    "mistral": "arguments",
    "qwen25": "arguments",
}


def replies(name: str, old: str, new: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is read of two calls and a word, the first `old` in them misspelled."""
    form = FORMATS[name]
    text = form.write([ZAGREB, QUITO][: form.most], "Alpha. " if form.speaks else "") + "\nOmega."
    assert old in text
    text = text.replace(old, new, 1)
    found = [read(name, pieces) for pieces in (tokens(text), re.findall(CUTS["letters"], text))]
    for content, calls in found:
        shown = content + str(calls)
        assert {word: shown.count(word) for word in WORDS} == {
            word: text.count(word) for word in WORDS
        }
    return found


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("beam", 'name="city"', 'nam="city"'),
        ("cohere_command4", '"parameters"', '"params"'),
        ("deepseekv3", "```json", "```jsn"),
        ("deepseekv3", "\n```<", "\n``<"),
        ("deepseekv31", "<｜tool▁sep｜>", ""),
        ("dots", "<parameter name", "<param name"),
        ("gigachat35", '<｜GCML｜parameter name="city"', '<｜GCML｜parameter nam="city"'),
        ("glm45", "<arg_key>", "<arg_kee>"),
        ("interns1", '"parameters"', '"params"'),
        ("kimi_k2", "functions.get_weather:3", "functions get_weather"),
        ("lfm2", "city=", "city:"),
        ("minimax-m2", "<parameter name", "<parameter nam"),
        ("muse", "<atem:parameter name", "<atem:param name"),
        ("qwen3_coder", "<parameter=city>", "<paremeter=city>"),
        ("step3", "steptml:parameter name", "steptml:param name"),
    ],
)
def test_what_a_parser_leaves_out_of_a_call_is_content(name: str, old: str, new: str) -> None:
    for content, _ in replies(name, old, new):
        assert "Zagreb" in content


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize(("old", "new"), [('"Zagreb"', '"Zagreb""'), ('"days"', '""days"')])
def test_a_quote_too_many_hides_no_call(name: str, old: str, new: str) -> None:
    """The first call took the arguments of the second one, or the text after them was lost."""
    for content, calls in replies(name, old, new):
        assert [called for called, _ in calls] == ["get_weather", "search"]
        assert calls[0][1].endswith(" 3}")
        assert json.loads(calls[1][1]) == QUITO[1]
        assert content.strip().endswith("Omega.")


@pytest.mark.parametrize("name", JSON)
def test_a_key_that_is_not_closed_takes_no_arguments_of_the_next_call(name: str) -> None:
    for _, calls in replies(name, f'"{JSON[name]}":', f'"{JSON[name]}"":'):
        assert "Quito" not in dict(calls).get("get_weather", "")
        assert json.loads(dict(calls)["search"]) == QUITO[1]


@pytest.mark.parametrize("name", ["deepseekv31", "hermes", "llama3", "mistral", "qwen25"])
def test_a_call_that_breaks_off_ends_where_the_next_begins(name: str) -> None:
    form = FORMATS[name]
    text = form.write([ZAGREB])
    text = text[: text.index('"Zagreb"')] + "\n" + form.write([QUITO])
    for pieces in (tokens(text), re.findall(CUTS["letters"], text)):
        _, calls = read(name, pieces)
        assert "Quito" not in dict(calls).get("get_weather", "")
        assert (calls[-1][0], json.loads(calls[-1][1])) == QUITO


def test_a_call_of_an_unknown_tool_is_said_once() -> None:
    """Before another call it was said again, as it was written."""
    for content, calls in replies("interns1", "get_weather", "rm"):
        assert content.count("rm") == 1
        assert [called for called, _ in calls] == ["search"]


@pytest.mark.parametrize("mark", ["<｜tool▁sep｜>", "<｜tool▁call▁begin｜>"])
def test_a_mark_of_deepseeks_in_an_argument_is_said_once(mark: str) -> None:
    """The text before it was given again with each piece."""
    for content, calls in replies("deepseekv31", "Zagreb", f"a {mark} Zagreb"):
        assert (content + str(calls)).count("city") == 1


class Mute:
    """A reader that says of all calls nothing but `given`."""

    marks = ()
    holds_nothing = False

    def __init__(self, given: str) -> None:
        self.given = given

    def read(self, text: str, *, is_last: bool) -> tuple[str, tuple[ToolDelta, ...]]:
        return "", (ToolDelta(0, "id", "search", self.given),) if is_last else ()


@pytest.mark.parametrize(
    ("text", "given", "lost"),
    [
        ("<a>one</a><b>two</b>", '{"a": "one"}', "<b>two</b>"),
        ("<a>one</a><b>two</b>", '{"a": "one", "b": "TWO"}', ""),
        ('<a>{"k": "\\u00e9t\\u00e9 \\nx"}</a>', '{"k": "été \\nx"}', ""),
        ("<a>x &lt;y&gt; z</a>", '{"a": "x <y> z"}', ""),
        ("<a>True</a><b>03</b>", '{"a": true, "b": 3}', ""),
        ('{"name": "search", "a"": "one", "b": "two"}', '{"b": "two"}', '", "a"": "one", "'),
        ("<a>one</a><b", '{"a": "one"}', ""),
    ],
)
def test_only_words_that_are_nowhere_are_lost(text: str, given: str, lost: str) -> None:
    content, _ = NothingLost(Mute(given)).read(text, is_last=True)
    assert content == lost


class Failing(Mute):
    """A reader that gives a call for `+`, nothing for `-`, and fails on a full stop."""

    def read(self, text: str, *, is_last: bool) -> tuple[str, tuple[ToolDelta, ...]]:
        if text == ".":
            raise RuntimeError("boo")
        return "", (ToolDelta(0, "id", "search", self.given),) if text == "+" else ()


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (["."], "."),
        (["-one ", "-two", "."], "-one -two."),
        (["+", "."], "."),
        (["+", "-four", "."], "+-four."),
        (["-.", "."], "-.."),
    ],
)
def test_a_reader_that_fails_leaves_what_it_has_not_given(pieces: list[str], said: str) -> None:
    reader = NothingLost(Failing("{}"))
    contents = [reader.read(piece, is_last=False)[0] for piece in pieces]
    assert "".join(contents) == said
    assert reader.unread() == ""
    assert reader.holds_nothing
    assert reader.read(" More.", is_last=True) == (" More.", ())


@pytest.mark.parametrize("name", DISTINCT)
def test_of_a_well_formed_call_nothing_is_said_again(name: str) -> None:
    form = FORMATS[name]
    value = "C:\\new \"a\" 'b' é 東京 🙂\n\tIt is 1.5e-7 &amp; x"
    calls: list[Call] = [("search", {"query": value, "deep": True, "filter": {"k": [None, 1e21]}})]
    content, found = read(name, tokens(form.write(calls) + "\nOmega."))
    assert content.split() == ["Omega."]
    assert len(found) == 1
