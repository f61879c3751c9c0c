"""What a parser makes of the tokens of a chunk is in the chunks that a client sees, once each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pytest

from slime_router.replies.parser import ReplyDelta, ReplyParser, ReplyReader
from slime_router.replies.pieces import Marks
from slime_router.tokens.stop_strings import VisibleText
from slime_router.types import (
    Finish,
    GenerateChunk,
    Prompt,
    Receipt,
    ToolDelta,
    VersionSpan,
    token_ids,
)

CALL = ToolDelta(0, "c", "f", "{}")
CONTENT, REASONING = ReplyDelta("said"), ReplyDelta(reasoning="thought", is_thinking=True)
CALLED = ReplyDelta(tool_calls=(CALL,))


class Scripted:
    """A parser that makes this of one token after another."""

    stops, is_thinking = None, False

    def __init__(self, deltas: Iterable[ReplyDelta]) -> None:
        self._deltas = iter(deltas)

    def is_content(self, _: str) -> bool:
        return False

    def push(self, _: str, *, is_last: bool) -> ReplyDelta:
        return next(self._deltas)


class Spelled:
    """Each token is a letter."""

    def push(self, ids: list[int], _: Finish | None) -> str:
        return "x" * len(ids)


def read(chunk: GenerateChunk, *deltas: ReplyDelta) -> list[GenerateChunk]:
    parser = cast("ReplyParser", Scripted(deltas))
    return [*ReplyReader(cast("VisibleText", Spelled()), parser).read(chunk)]


@pytest.mark.parametrize(
    ("delta", "fields"),
    [
        (CONTENT, {"text": "said"}),
        (REASONING, {"reasoning": "thought", "reasoning_tokens": 1}),
        (CALLED, {"tool_calls": (CALL,)}),
        (ReplyDelta(is_thinking=True), {"reasoning_tokens": 1}),
        (ReplyDelta(hidden_calls=2), {"hidden_calls": 2}),
    ],
)
def test_all_that_one_token_adds_is_in_its_chunk(delta: ReplyDelta, fields: dict[str, Any]) -> None:
    chunk = GenerateChunk([1])
    assert read(chunk, delta) == [chunk._replace(**fields)]


@pytest.mark.parametrize(
    "deltas",
    [(CONTENT, REASONING), (CALLED, REASONING), (CALLED, CONTENT)],
    ids=["reasoning after content", "reasoning after calls", "content after calls"],
)
def test_what_comes_out_of_order_is_in_a_chunk_of_its_own(deltas: tuple[ReplyDelta, ...]) -> None:
    ends: dict[str, Any] = {
        "finish": Finish("length"),
        "weight_versions": (VersionSpan("v", 0, 2),),
        "routed_experts": "AAAA",
        "indexer_topk": "AAAA",
        "item": {"of": "the worker"},
    }
    begins: dict[str, Any] = {"prompt": Prompt(token_ids([1]), Receipt("fresh", 0, 1, "t", ""))}
    chunk = GenerateChunk([1, 2], [-1.0, -2.0], **begins, **ends)
    [first] = read(GenerateChunk([1], [-1.0], **begins), deltas[0])
    [last] = read(GenerateChunk([2], [-2.0], **ends), deltas[1])
    assert read(chunk, *deltas) == [first, last]
    assert len(read(chunk, *reversed(deltas))) == 1


def test_a_chunk_may_be_cut_more_than_once() -> None:
    prompt = Prompt(token_ids([1]), Receipt("fresh", 0, 1, "t", ""))
    parts = read(GenerateChunk([1, 2, 3, 4], prompt=prompt), *(CONTENT, REASONING) * 2)
    assert [(part.output_ids, part.reasoning_tokens) for part in parts] == [
        ([1], 0),
        ([2, 3], 1),
        ([4], 1),
    ]
    assert [part.prompt for part in parts] == [prompt, None, None]


def test_a_mark_is_seen_from_its_first_character_on() -> None:
    marks = Marks(["<think>", "◁/"])
    for mark in ("<think>", "◁/"):
        assert marks.is_in(f"a{mark}b")
        assert not marks.is_in(f"a{mark[:-1]}b")
        for length in range(1, len(mark) + 1):
            head = f"a{mark[:length]}"
            assert marks.begins(head), head
            assert marks.begins_in(head.encode()), head
    for text in ("", "a", "a<b", "a<thinb", "think>", "◁b"):
        assert not marks.begins(text), text
        assert not marks.begins_in(text.encode()), text


def test_a_mark_is_seen_wherever_it_is_and_a_beginning_of_one_at_the_end():
    marks = Marks(["<think>", "[END]"])
    for mark in ("<think>", "[END]"):
        for text in (mark, f"a{mark}b"):
            assert marks.is_in(text)
            assert marks.begins(text)
        for length in range(1, len(mark)):
            text = f"a{mark[:length]}"
            assert not marks.is_in(text)
            assert marks.begins(text)
            assert marks.begins_in(text.encode())
            assert not marks.begins(f"{text}b")
            assert not marks.begins_in(f"{text}b".encode())
    assert not marks.begins("a")
