"""The seams of a generation, one by one; the property tests have them all together."""

from __future__ import annotations

from typing import Any

import pytest

from slime_router.failover.stitch import Stitch
from slime_router.types import (
    Finish,
    GenerateCall,
    GenerateChunk,
    NativeCall,
    Prompt,
    Receipt,
    Sampling,
    Speculation,
    VersionSpan,
    token_ids,
)
from tests.properties.test_stitch import EOS, open_text

A, B, AB = 0, 1, 2  # tokens "a", "b", "ab"
ABORT = Finish("abort", message="Aborted")


def call(**fields: Any) -> GenerateCall:
    prompt = Prompt(ids=token_ids([9, 9]), receipt=Receipt("fresh", 0, 2, "t", ""))
    given = {"rid": "r", "turn_id": "t", "prompt": prompt, "stream": True, **fields}
    if "native" in given:
        return NativeCall(body=given.pop("native"), **given)
    return GenerateCall(**given)


def said(*ids: int, **fields: Any) -> GenerateChunk:
    return GenerateChunk(output_ids=[*ids], logprobs=[-1.0] * len(ids), **fields)


def after(first: list[int], **fields: Any) -> Stitch:
    """One whose first worker died after these tokens."""
    stitch = Stitch(call(**fields), open_text)
    stitch.next_call()
    stitch.take(said(*first, weight_version="v1", prompt_tokens=2, cached_tokens=1))
    return stitch


def test_the_next_part_samples_what_is_left_under_a_name_of_its_own():
    stitch = after([A, B], sampling=Sampling(max_tokens=5))
    following = stitch.next_call()
    assert following.rid == "2~r"
    assert following.sampled.tolist() == [A, B]
    assert stitch.next_call().rid == "3~r"


def test_chunks_of_the_first_part_are_told_as_they_came():
    stitch = Stitch(call(), open_text)
    stitch.next_call()
    chunk = said(A)
    chunk = stitch.take(chunk)
    assert [*stitch.emit(chunk)] == [chunk]
    assert not stitch.is_over


def test_a_stop_string_may_span_the_cut():
    """No worker sees it whole; what was sampled after it is dropped, logprobs too."""
    stitch = after([B, A], sampling=Sampling(stop=("aba",)))
    stitch.next_call()
    chunk = said(B, AB, B, finish=Finish("length"))
    chunk = stitch.take(chunk)
    (told,) = stitch.emit(chunk)
    assert told.output_ids == [B, AB]
    assert told.logprobs == [-1.0, -1.0]
    assert told.finish == Finish("stop", "aba")
    assert stitch.is_over


def test_a_stop_token_comes_before_a_stop_string():
    stitch = after([A], sampling=Sampling(stop=("ab",), stop_token_ids=(B,)))
    stitch.next_call()
    chunk = said(B, finish=Finish("stop", B))
    chunk = stitch.take(chunk)
    assert chunk.finish == Finish("stop", B)


def test_far_from_the_cut_stop_strings_are_the_workers_business():
    stitch = after([A], sampling=Sampling(stop=("ab",)))
    stitch.next_call()
    for _ in range(3):
        stitch.take(said(A))
    assert stitch._seam is None


def test_the_last_chunk_has_the_versions_of_all_parts():
    """Equal ones that touch are one span."""
    stitch = after([A, B])
    stitch.next_call()
    stitch.take(said(A, weight_version="v1"))
    stitch.next_call()
    chunk = said(B, EOS, weight_version="v2", finish=Finish("stop", EOS),
                 weight_versions=(VersionSpan("v2", 0, 2),))  # fmt: skip
    chunk = stitch.take(chunk)
    (told,) = stitch.emit(chunk)
    assert told.weight_versions == (VersionSpan("v1", 0, 3), VersionSpan("v2", 3, 5))
    assert (told.prompt_tokens, told.cached_tokens) == (2, 1)


@pytest.mark.parametrize("is_first", [True, False], ids=["the first part", "a later one"])
def test_weights_that_came_and_went_within_a_chunk_are_told(is_first):
    """The chunk carries the version of the one before it, but its spans show another in between."""
    stitch = after([A, B])
    if not is_first:
        stitch.next_call()
        stitch.take(said(A, B, weight_version="v1"))
    spans = (VersionSpan("v1", 0, 2), VersionSpan("v2", 2, 3), VersionSpan("v1", 3, 4))
    chunk = said(A, B, weight_version="v1", weight_versions=spans)
    assert not stitch.passes(chunk)
    stitch.take(chunk)
    stitch.next_call()
    last = said(EOS, weight_version="v1", finish=Finish("stop", EOS))
    (told,) = stitch.emit(stitch.take(last))
    begin = 0 if is_first else 2
    assert told.weight_versions == (
        VersionSpan("v1", 0, begin + 2),
        VersionSpan("v2", begin + 2, begin + 3),
        VersionSpan("v1", begin + 3, begin + 5),
    )


def test_what_was_cached_is_said_with_the_first_token():
    stitch = Stitch(call(), open_text)
    stitch.next_call()
    for chunk in (said(cached_tokens=0), said(A, cached_tokens=7), said(B, cached_tokens=8)):
        stitch.take(chunk)
    stitch.next_call()
    (told,) = stitch.emit(stitch.take(said(B, finish=Finish("length"), cached_tokens=9)))
    assert told.cached_tokens == 7


def test_an_abort_that_goes_on_is_no_end():
    stitch = after([A])
    chunk = said(B, finish=ABORT, weight_versions=(VersionSpan("v1", 0, 2),))
    chunk = stitch.take(chunk)
    (told,) = stitch.emit(chunk, goes_on=True)
    assert (told.finish, told.output_ids, told.weight_versions) == (None, [B], ())
    assert not stitch.is_over


def test_an_abort_without_a_token_that_goes_on_is_not_told():
    stitch = after([A])
    chunk = said(finish=ABORT)
    chunk = stitch.take(chunk)
    assert [*stitch.emit(chunk, goes_on=True)] == []


@pytest.mark.parametrize("kind", ["json_schema", "regex", "ebnf", "structural_tag", "stop_regex"])
def test_what_a_grammar_rules_cannot_go_on_in_the_middle(kind):
    params = {kind: "x"}
    stitch = after([A], native={"sampling_params": params}, stream=False)
    assert not stitch.can_go_on
    chunk = said(B, finish=ABORT)
    chunk = stitch.take(chunk)
    assert [*stitch.emit(chunk, goes_on=True)] == []
    assert stitch.output_ids == []
    assert stitch.can_go_on, "it starts over"
    assert len(stitch.next_call().sampled) == 0


def test_before_its_first_token_anything_can_go_on():
    stitch = Stitch(call(native={"sampling_params": {"regex": "x"}}), open_text)
    stitch.next_call()
    assert stitch.can_go_on


@pytest.mark.parametrize(("ids", "words"), [([], "Abort in waiting queue"), ([A], "Aborted")])
def test_an_abort_while_nobody_has_it_is_told_as_a_worker_tells_it(ids, words):
    stitch = after(ids)
    stitch.next_call()
    (told,) = stitch.ended()
    assert told.finish == Finish("abort", message=words)
    assert told.output_ids == []


@pytest.mark.parametrize(
    ("first", "fields", "finish"),
    [
        ([A, EOS], {}, Finish("stop", EOS)),
        ([A, EOS], {"sampling": Sampling(ignore_eos=True)}, None),
        ([A, B], {"sampling": Sampling(stop_token_ids=(B,))}, Finish("stop", B)),
        ([A, B], {"sampling": Sampling(stop=("ab",))}, Finish("stop", "ab")),
        ([B, A], {"sampling": Sampling(stop=("ab",))}, None),
        ([A, B], {"sampling": Sampling(max_tokens=2)}, Finish("length")),
        ([A, EOS], {"sampling": Sampling(max_tokens=2)}, Finish("stop", EOS)),
        ([A, B], {"sampling": Sampling(max_tokens=3)}, None),
        ([], {}, None),
    ],
)
def test_a_part_that_was_cut_behind_its_last_token_is_the_whole(first, fields, finish):
    """A worker that is asked to abort says so, whatever it has just sampled."""
    stitch = Stitch(call(**fields), open_text, eos_ids=[EOS])
    stitch.next_call()
    stitch.take(said(*first))
    assert stitch.ending() == finish


def test_an_abort_with_the_last_token_is_told_as_its_end():
    stitch = Stitch(call(native={"sampling_params": {}}), open_text, eos_ids=[EOS])
    stitch.next_call()
    meta: dict[str, Any] = {"id": "r", "finish_reason": {"type": "abort"}, "completion_tokens": 2}
    item: dict[str, Any] = {"text": "a", "output_ids": [A, EOS], "meta_info": meta}
    chunk = said(A, EOS, finish=ABORT, item=item)
    chunk = stitch.take(chunk)
    ending = stitch.ending()
    assert ending is not None
    (told,) = stitch.emit(stitch.settled(chunk, ending))
    assert stitch.is_over
    assert told.finish == Finish("stop", EOS)
    assert told.item is not None
    assert told.item["meta_info"]["finish_reason"] == {"type": "stop", "matched": EOS}
    assert item["meta_info"]["finish_reason"] == {"type": "abort"}, "the worker's own is left"


def test_input_logprobs_are_those_of_the_prompt_alone():
    """The second worker had the first one's tokens as prompt."""
    native = {"sampling_params": {}, "return_logprob": True, "logprob_start_len": 0}
    stitch = Stitch(call(native=native), open_text)
    for index in range(2):
        stitch.next_call()
        entries = [[-1.0, 9, None]] * 2 + [[-1.0, A, None]] * index
        meta = {"id": "r", "finish_reason": None, "completion_tokens": 1,
                "input_token_logprobs": entries}  # fmt: skip
        chunk = said(A, item={"text": "a", "output_ids": [A], "meta_info": meta})
        chunk = stitch.take(chunk)
        stitch.emit(chunk)
    (*_, last) = stitch.ended()
    assert last.item is not None
    assert last.item["meta_info"]["input_token_logprobs"] == [[-1.0, 9, None]] * 2
    assert last.item["output_ids"] == [A, A]
    assert last.item["text"] == "aa"


def test_the_drafts_of_all_parts_are_counted_together():
    """Of a part whose worker died, what it reported last."""
    stitch = after([A])
    stitch.take(said(B, speculation=Speculation(2, 6, 3)))
    stitch.next_call()
    stitch.take(said(A, speculation=Speculation(1, 3, 1)))
    [last] = stitch.emit(
        stitch.take(said(B, speculation=Speculation(2, 6, 2), finish=Finish("stop")))
    )
    assert last.speculation == Speculation(4, 12, 5)
    assert stitch.next_call().rid == "3~r"
    [ended] = stitch.ended()
    assert ended.speculation == Speculation(4, 12, 5), "a part without a chunk adds nothing"
