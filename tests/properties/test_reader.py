"""How a reply reads does not hang on how its tokens came: all at once, or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.replies.parser import ReplyReader
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.tokens.decoder import Decoder, TokenBytes
from slime_router.tokens.stop_strings import VisibleText
from slime_router.types import Finish, GenerateChunk, ReplyFormat, Sampling

pytestmark = pytest.mark.parsers

WORDS = (
    b"a", b" word", b"\n", b"<", b"</", b"<think>", b"</think>", b"think", b">", b"<|stop|>",
    b" <b", b"\xff", *map(str.encode, ("é", "◁think▷", "◁/think▷")), b"\xe2", b"\x97\x81",
    b"<tool_call>", b"<|channel>", b"thought\n", b"<channel|>",
)  # fmt: skip
STOP = WORDS.index(b"<|stop|>")
NAMES = ("qwen3", "kimi", "deepseek-r1", "gemma4", "nemotron_3")
BEGINS = {"kimi": "◁think▷", "gemma4": "<|channel>thought"}


class Way(NamedTuple):
    """How a reply is read, and from where on."""

    name: str
    opened: bool = False  # by the prompt
    strips_newlines: bool = False
    streams_reasoning: bool = True
    stop: tuple[str, ...] = ()


@cache
def parsers(name: str, *, strips_newlines: bool) -> ReplyParsers:
    """Loaded by the first test: this file is also read where SGLang is missing."""
    return ReplyParsers(load_parsers, tools=None, reasoning=name, strips_newlines=strips_newlines)


class Said(NamedTuple):
    text: str
    reasoning: str
    thoughts: int


def said(way: Way, chunks: Sequence[GenerateChunk]) -> Said:
    made = parsers(way.name, strips_newlines=way.strips_newlines)
    form = ReplyFormat(streams_reasoning=way.streams_reasoning)
    tail = BEGINS.get(way.name, "<think>") if way.opened else ""
    parser = made.parser(form, prompt_tail=tail, history=())
    decoder = Decoder(cast("TokenBytes", dict(enumerate(WORDS))))
    visible = VisibleText(decoder, Sampling(stop=way.stop), hidden=frozenset({STOP}))
    reader = ReplyReader(visible, parser)
    parts = [part for chunk in chunks for part in reader.read(chunk)]
    return Said(
        "".join(part.text for part in parts),
        "".join(part.reasoning for part in parts),
        sum(part.reasoning_tokens for part in parts),
    )


@given(
    way=st.builds(
        Way,
        st.sampled_from(NAMES),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sampled_from([(), ("word<",), ("aé", "\n\n")]),
    ),
    ids=st.lists(st.integers(0, len(WORDS) - 1), min_size=1, max_size=30),
    cuts=st.sets(st.integers(1, 29)),
    ends=st.sampled_from([Finish("length"), Finish("stop", STOP)]),
)
def test_a_reply_reads_the_same_however_its_tokens_come(
    way: Way, ids: list[int], cuts: set[int], ends: Finish
) -> None:
    def chunks(bounds: list[int]) -> list[GenerateChunk]:
        pieces = [ids[start:end] for start, end in pairwise(bounds)]
        last = GenerateChunk(pieces.pop(), finish=ends)
        return [*map(GenerateChunk, pieces), last]

    one_by_one = said(way, chunks([*range(len(ids) + 1)]))
    bounds = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    assert said(way, chunks(bounds)) == one_by_one
    assert said(way, chunks([0, len(ids)])) == one_by_one
