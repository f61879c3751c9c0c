"""How a reply reads does not hang on how its tokens came: all at once, or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.reader import ReplyReader
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.tokens.decoder import Decoder, TokenBytes
from slime_router.tokens.stop_strings import VisibleText
from slime_router.types import Finish, GenerateChunk, ReplyFormat, Sampling

pytestmark = pytest.mark.parsers

WORDS = (
    b"a", b" word", b"\n", b"<", b"</", b"<think>", b"</think>", b"think", b">", b"<|stop|>",
    b" <b", b"\xff", *map(str.encode, ("é", "◁think▷", "◁/think▷")), b"\xe2", b"\x97\x81",
)  # fmt: skip
STOP = WORDS.index(b"<|stop|>")
NAMES = ("qwen3", "kimi")


@cache
def parsers(name: str) -> ReplyParsers:
    """Loaded by the first test: this file is also read where SGLang is missing."""
    return ReplyParsers(load_parsers, tools=None, reasoning=name)


class Said(NamedTuple):
    text: str
    reasoning: str
    thoughts: int


def said(name: str, chunks: Sequence[GenerateChunk], stop: tuple[str, ...]) -> Said:
    parser = parsers(name).parser(ReplyFormat(), prompt_tail="", history=())
    decoder = Decoder(cast("TokenBytes", dict(enumerate(WORDS))))
    visible = VisibleText(decoder, Sampling(stop=stop), hidden=frozenset({STOP}))
    reader = ReplyReader(visible, parser)
    parts = [part for chunk in chunks for part in reader.read(chunk)]
    return Said(
        "".join(part.text for part in parts),
        "".join(part.reasoning for part in parts),
        sum(part.reasoning_tokens for part in parts),
    )


@given(
    name=st.sampled_from(NAMES),
    ids=st.lists(st.integers(0, len(WORDS) - 1), min_size=1, max_size=30),
    cuts=st.sets(st.integers(1, 29)),
    stop=st.sampled_from([(), ("word<",), ("aé", "\n\n")]),
)
def test_a_reply_reads_the_same_however_its_tokens_come(
    name: str, ids: list[int], cuts: set[int], stop: tuple[str, ...]
) -> None:
    def chunks(bounds: list[int]) -> list[GenerateChunk]:
        pieces = [ids[start:end] for start, end in pairwise(bounds)]
        last = GenerateChunk(pieces.pop(), finish=Finish("length"))
        return [*map(GenerateChunk, pieces), last]

    one_by_one = said(name, chunks([*range(len(ids) + 1)]), stop)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    assert said(name, chunks(bounds), stop) == one_by_one
    assert said(name, chunks([0, len(ids)]), stop) == one_by_one
