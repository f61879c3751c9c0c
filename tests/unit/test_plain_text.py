"""Text that passes a reader of calls: past it and through it, a reply comes out the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.replies.parser import ReplyDelta, joined
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.types import ReplyFormat
from tests.unit.formats import FORMATS
from tests.unit.test_formats import CUTS, DISTINCT, REPLIES, TOOLS

pytestmark = pytest.mark.parsers

WORDS = [
    "I look",
    " it up",
    " in 2026",
    ".",
    " Well;",
    "\n",
    "\n\n",
    " ",
    ", ",
    "- a",
    " don't",
    "(b)",
    "東京，",
    " é",
    ' "q"',
    "}",
    "]\n",
    "`x`",
    "🙂",
    "\tif a > b:",
    "t",
    " i",
]
ODD = [
    "<",
    "</",
    "{",
    "[",
    "<tool",
    "<think>",
    "</think>",
    "<|",
    "｜",
    "▁",
    "\u3000",
    "\xa0",
    " \n",
    "\r\n",
    "\x0b",
    "<｜",
    "<｜tool",
    "[TOOL",
    "[]",
    "{}",
]


@cache
def parsers_of(name: str) -> ReplyParsers:
    return ReplyParsers(load_parsers, tools=name, reasoning="qwen3", new_call_id=lambda: "call_1")


def told(
    name: str, pieces: list[str], form: ReplyFormat, *, is_plain_known: bool
) -> list[ReplyDelta]:
    """What a parser says of each piece, with and without a way past it; of thoughts at once."""
    parsers = parsers_of(name)
    known, marks = parsers._plain, parsers._marks
    try:
        if not is_plain_known:
            parsers._plain = parsers._marks = None
        parser = parsers.parser(form, prompt_tail="", history=())
    finally:
        parsers._plain, parsers._marks = known, marks
    assert parser is not None
    assert (parser._marks is not None) is (is_plain_known and known is not None)
    assert is_plain_known or parser.stops is None
    said = [parser.push(piece, is_last=False) for piece in pieces]
    told = list[ReplyDelta]()
    for each in [*said, parser.push("", is_last=True)]:
        is_thought = each == ReplyDelta("", each.reasoning, is_thinking=True)
        if is_thought and told and told[-1].is_thinking and not told[-1].content:
            each = joined(told.pop(), each)
        told.append(each)
    return told


texts = st.lists(st.sampled_from(WORDS * 3 + ODD), max_size=12).map("".join)
calls = st.sampled_from([*REPLIES.values()])
cuts = st.sampled_from([*CUTS.values(), r"[\s\S]{1,3}", r"[\s\S]{1,9}"])


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTINCT)
def test_a_reply_reads_the_same_past_a_reader_and_through_it(name):
    @given(
        lead=texts, made=calls, end=texts, cut=cuts, share=st.floats(0, 1), separates=st.booleans()
    )
    def check(lead, made, end, cut, share, separates):
        written = FORMATS[name].write(made)
        text = lead + written[: round(len(written) * share)] + end
        form = ReplyFormat(tools=TOOLS, separates_reasoning=separates)
        pieces = re.findall(cut, text)
        through = told(name, pieces, form, is_plain_known=False)
        assert told(name, pieces, form, is_plain_known=True) == through

    check()


# Their detectors keep all text, or look at it as code does.
NOT_KNOWN = {"beam", "gigachat3", "k2_horizon", "kimi_k3", "muse", "pythonic"}


def seen_by(name: str, pieces: list[str]) -> list[str]:
    """The pieces that reach SGLang's detector of calls."""
    parser = parsers_of(name).parser(ReplyFormat(tools=TOOLS), prompt_tail="", history=())
    assert parser is not None
    detector = parser._calls._reader._parser._detector  # type: ignore[union-attr]
    seen: list[str] = []
    usual: Callable[..., object] = type(detector).parse_streaming_increment

    def read(self: object, text: str, tools: object) -> object:
        seen.append(text)
        return usual(self, text, tools)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(detector), "parse_streaming_increment", read)
        said = [parser.push(piece, is_last=False).content for piece in pieces]
    assert "".join(said) == "".join(pieces)
    return seen


@pytest.mark.parametrize("name", sorted({*DISTINCT} - NOT_KNOWN))
def test_text_that_no_call_begins_with_passes_in_any_script(name):
    """Also in long runs: a reader looks for what may begin a call in the bytes of many tokens."""
    parser = parsers_of(name).parser(ReplyFormat(tools=TOOLS), prompt_tail="", history=())
    assert parser is not None
    parser.push("I", is_last=False)
    for text in (" look", " 東京，é 🙂", ' "it" is (a) + `b`.\tEnd', "ti"):
        assert parser.is_content(text)
        assert parser.stops is not None
        assert parser.stops.begins_in(text.encode()) is None
        assert parser.push(text, is_last=False) == ReplyDelta(text)


@pytest.mark.parametrize("name", DISTINCT)
def test_while_a_reply_thinks_only_the_end_of_that_is_looked_for(name):
    parser = parsers_of(name).parser(ReplyFormat(tools=TOOLS), prompt_tail="<think>", history=())
    assert parser is not None
    for text in ("So,", " {東京} [a] 1 >"):
        assert parser.stops is not None
        assert parser.stops.begins(text) is None
        said = parser.push(text, is_last=False)
        assert said == ReplyDelta("", text, is_thinking=True)
    assert parser.stops is not None
    assert parser.stops.begins("x</think>") is not None


def test_only_what_may_begin_a_call_is_given_to_sglang():
    plain = ["Well", ", I", " look", " it up.", " Now"]
    assert seen_by("qwen25", [*plain, " 1 <", "2", *plain]) == [" ", "1", " ", "<2"]
    assert seen_by("qwen25", [*plain, "\n", *plain]) == ["\n"], "a call may end with it"


def test_most_formats_let_plain_text_pass():
    known = {name for name in DISTINCT if parsers_of(name)._plain is not None}
    assert len(known) > len(DISTINCT) / 2
    assert known >= {"qwen25", "hermes", "llama3", "qwen3_coder", "glm45", "deepseekv3", "kimi_k2"}


@pytest.mark.parametrize("is_plain_known", [True, False])
def test_the_line_end_before_a_call_that_was_cut_is_given_once(is_plain_known):
    written = FORMATS["inkling"].write(REPLIES["call"])
    pieces = re.findall(CUTS["tokens"], "I look.\n" + written[: len(written) // 2])
    said = told("inkling", pieces, ReplyFormat(tools=TOOLS), is_plain_known=is_plain_known)
    assert "".join(delta.content for delta in said).count("\n") == 1
