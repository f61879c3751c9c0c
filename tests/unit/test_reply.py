"""The accumulator: what the chunks of one generation add up to."""

from __future__ import annotations

import pytest

from slime_router.replies.reply import Reply, Versions
from slime_router.types import (
    Finish,
    GenerateChunk,
    Prompt,
    Receipt,
    ToolDelta,
    VersionSpan,
    token_ids,
)

PROMPT = Prompt(token_ids([1, 2]), Receipt("fresh", 0, 2, "turn", "no recorded turn matches"))


def replied(*chunks: GenerateChunk) -> Reply:
    reply = Reply()
    for chunk in chunks:
        reply.add(chunk)
    return reply


def test_a_chunk_holds_still():
    chunk = GenerateChunk(output_ids=[5], text="a")
    with pytest.raises(AttributeError):
        chunk.text = "b"  # type: ignore[misc]
    assert chunk.changed(text="b") == GenerateChunk(output_ids=[5], text="b")
    assert chunk.text == "a"


def test_nothing_has_come():
    reply = Reply()
    assert not reply.has_begun
    assert (reply.text, reply.output.tolist(), reply.weight_versions) == ("", [], ())
    assert reply.note("for nobody") is None


def test_ids_logprobs_and_text_add_up():
    reply = replied(
        GenerateChunk(output_ids=[5], logprobs=[-0.5], text="a", prompt=PROMPT),
        GenerateChunk(output_ids=[], text="b"),
        GenerateChunk(output_ids=[6, 7], logprobs=[None, -1.0], finish=Finish("stop", 7)),
    )
    assert reply.has_begun
    assert reply.prompt is PROMPT
    assert reply.output_ids == [5, 6, 7]
    assert (reply.logprobs, reply.has_logprobs) == ([-0.5, None, -1.0], True)
    assert reply.message("> ") == {"role": "assistant", "content": "> ab"}
    assert reply.finish == Finish("stop", 7)
    assert reply.output is reply.output, "one array for everybody"


def test_a_chunk_without_logprobs_leaves_the_reply_without():
    reply = replied(GenerateChunk(output_ids=[5], logprobs=[-0.5]), GenerateChunk(output_ids=[6]))
    assert not reply.has_logprobs


def test_calls_are_put_together_from_their_pieces():
    first = ToolDelta(0, "call_1", "look", '{"a"')
    second = ToolDelta(1, "functions.look:1", "look", "{}", has_random_id=False)
    reply = replied(
        GenerateChunk(output_ids=[5], tool_calls=(first,)),
        GenerateChunk(output_ids=[6], tool_calls=(ToolDelta(0, None, None, ": 1}"), second)),
    )
    calls = reply.message()["tool_calls"]
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [
        ("call_1", '{"a": 1}'),
        ("functions.look:1", "{}"),
    ]
    assert reply.handles == ["call_1"], "the model wrote the other one"


def test_the_workers_own_spans_win_over_what_its_chunks_said():
    chunks = [
        GenerateChunk(output_ids=[5], weight_version="v1"),
        GenerateChunk(output_ids=[6], weight_version="v2"),
    ]
    seen = (VersionSpan("v1", 0, 1), VersionSpan("v2", 1, 2))
    assert replied(*chunks).weight_versions == seen
    exact = (VersionSpan("v2", 0, 2),)
    last = GenerateChunk(output_ids=[], weight_versions=exact, finish=Finish("length"))
    assert replied(*chunks, last).weight_versions == exact


def test_a_worker_that_goes_on_counts_from_where_the_one_before_it_stopped():
    def under(version: str | None, *ids: int, spans: tuple[VersionSpan, ...] = ()) -> GenerateChunk:
        return GenerateChunk(output_ids=ids, weight_version=version, weight_versions=spans)

    versions = Versions()
    versions.add(under(None, 5), 0)
    versions.add(under("v1", 6, 7), 1)
    versions.begin_part(3)
    versions.add(under("v1", 8), 3)
    versions.add(under("v2", 9, 9), 4)
    exact = (VersionSpan("v2", 0, 2), VersionSpan("v3", 2, 9))
    versions.begin_part(6)
    assert versions.last is None
    versions.add(under("v3", 1, 2, 3, spans=exact), 6)
    assert versions.last == "v3"
    assert versions.spans(9) == (
        VersionSpan("v1", 1, 4),
        VersionSpan("v2", 4, 8),
        VersionSpan("v3", 8, 9),
    ), "merged where a part goes on under the same weights, and cut where the tokens end"
    assert versions.spans(8)[-1] == VersionSpan("v2", 4, 8), "no span is empty"


def test_notes_are_added_to_the_receipt_of_the_prompt():
    reply = replied(GenerateChunk(output_ids=[5], prompt=PROMPT))
    reply.note("one")
    receipt = reply.note("two")
    assert receipt is not None
    assert (receipt.status, receipt.notes) == ("fresh", ("one", "two"))
    assert PROMPT.receipt.notes == ()
