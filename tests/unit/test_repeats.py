"""Cumulative streams: cutting off what was said before never changes what is read."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.engine.chunks import ChunkReader
from slime_router.engine.cumulative import CumulativeCutter, names_version
from slime_router.errors import WorkerFailed
from slime_router.replies.reply import Versions


def item(ids: list[int], *, text: str = "", finish: Any = None, **meta: Any) -> bytes:
    entries = [[-0.5 - token_id / 7, token_id, None] for token_id in ids]
    return orjson.dumps(
        {
            "text": text,
            "output_ids": ids,
            "meta_info": {
                "id": "r",
                "finish_reason": finish,
                "prompt_tokens": 3,
                "weight_version": "v1",
                "output_token_logprobs": entries,
                "output_token_logprobs_length": len(ids),
                "completion_tokens": len(ids),
                "cached_tokens": 1,
                **meta,
            },
        }
    )


def test_only_new_entries_are_left():
    repeats = CumulativeCutter()
    assert json.loads(repeats.cut(item([5, 1])) or b"")["output_ids"] == [5, 1]
    left = json.loads(repeats.cut(item([5, 1, 2, 9], text='"output_ids":[')) or b"")
    assert left["output_ids"] == [2, 9]
    assert [entry[1] for entry in left["meta_info"]["output_token_logprobs"]] == [2, 9]
    assert left["text"] == '"output_ids":['
    nothing_new = json.loads(repeats.cut(item([5, 1, 2, 9])) or b"")
    assert nothing_new["output_ids"] == nothing_new["meta_info"]["output_token_logprobs"] == []


def test_only_new_text_is_left():
    repeats = CumulativeCutter()
    texts = [
        'a "quo',
        'a "quote", \\',
        'a "quote", \\","output_ids":[',
        "a \ufffd",
        "a \u20ac5",
        "a \u20ac5",
    ]
    left = []
    for end, text in enumerate(texts, 1):
        cut = repeats.cut(item(list(range(end)), text=text))
        left.append(json.loads(cut or b"")["text"])
    assert left == ['a "quo', 'te", \\', '","output_ids":[', "a \ufffd", "a \u20ac5", ""]


def test_lists_in_another_order_are_not_cut():
    payload = b'{"output_token_logprobs":[[-1.0,5,null]],"output_ids":[5]}'
    assert CumulativeCutter().cut(payload) is None


@pytest.mark.parametrize("second", [[5, 12], [5], [6, 1, 2], [5, 2, 1]])
def test_what_does_not_begin_like_the_item_before_is_not_cut(second):
    repeats = CumulativeCutter()
    assert repeats.cut(item([5, 1]))
    assert repeats.cut(item(second)) is None
    assert json.loads(repeats.cut(item([5, 1, 3])) or b"")["output_ids"] == [3]


def test_a_number_that_only_begins_like_the_one_before_is_not_cut():
    """Without logprobs nothing else would tell 1 from 12."""
    repeats = CumulativeCutter()
    assert repeats.cut(b'{"output_ids":[5,1]}') == b'{"output_ids":[5,1]}'
    assert repeats.cut(b'{"output_ids":[5,12]}') is None
    assert repeats.cut(b'{"output_ids":[5,1,2]}') == b'{"output_ids":[2]}'


def test_entries_with_texts_are_not_cut():
    payload = item([1]).replace(b"1,null]", b'1,"]]"]')
    assert CumulativeCutter().cut(payload) is None


@given(
    ids=st.lists(st.integers(0, 1200), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=8),
    texts=st.lists(st.text(max_size=8), min_size=10, max_size=10),
    with_logprobs=st.booleans(),
)
def test_a_stream_reads_the_same_with_and_without_cutting(ids, cuts, texts, with_logprobs):
    ends = sorted({min(cut, len(ids)) for cut in cuts} | {len(ids)})
    payloads = [
        item(ids[:end], text=texts[i % 10], finish={"type": "stop", "matched": 1} if end == len(ids)
             else None)
        for i, end in enumerate(ends)
    ]  # fmt: skip
    read = []
    for cutting in (True, False):
        reader = ChunkReader(vocab_size=2**31, with_logprobs=with_logprobs)
        if not cutting:
            reader._may_be_plain = False
        chunks = [chunk for payload in payloads for chunk in reader.feed([payload])]
        assert [i for chunk in chunks for i in chunk.output_ids] == ids
        read.append([(c.output_ids, c.logprobs, c.finish, c.cached_tokens) for c in chunks])
        assert chunks[-1].item == orjson.loads(payloads[-1])  # the end is the worker's own item
    assert read[0] == read[1]


def test_a_worker_that_changes_what_it_said_fails_as_before():
    reader = ChunkReader(vocab_size=2**31, with_logprobs=True)
    list(reader.feed([item([1])]))
    list(reader.feed([item([1, 2])]))
    with pytest.raises(WorkerFailed):
        list(reader.feed([item([1, 9, 3])]))


def test_an_item_with_logprobs_of_fewer_tokens_fails_though_the_new_ones_have_theirs():
    reader = ChunkReader(vocab_size=2**31, with_logprobs=True)
    list(reader.feed([item([1])]))
    with pytest.raises(WorkerFailed, match="1 logprobs for 2 tokens"):
        list(reader.feed([item([1, 2], output_token_logprobs=[[-0.5, 2, None]])]))


def test_a_stream_that_is_not_cumulative_reads_the_same():
    reader = ChunkReader(vocab_size=2**31, with_logprobs=True)
    chunks = [
        chunk
        for payload in (item([1]), item([2], completion_tokens=2), item([1], completion_tokens=3))
        for chunk in reader.feed([payload])
    ]
    assert [chunk.output_ids for chunk in chunks] == [[1], [2], [1]]


@pytest.mark.parametrize("last", ["v1", "v2", "v3"])
@pytest.mark.parametrize("finish", [None, {"type": "length", "length": 4}])
def test_weights_that_come_and_go_within_one_read_are_named(last: str, finish: Any) -> None:
    """The newest item may be under the weights of the last read; those before it need not be."""
    reader, versions = ChunkReader(vocab_size=2**31, with_logprobs=True), Versions()
    payloads = (
        [item([1]), item([1, 2])],
        [
            item([1, 2, 3], weight_version="v2"),
            item([1, 2, 3, 4], weight_version=last, finish=finish),
        ],
    )
    start = 0
    for each in payloads:
        assert reader.plain(each) is None
        for chunk in reader.feed(each):
            versions.add(chunk, start)
            start += len(chunk.output_ids)
    found = [span.version for span in versions.spans(4) for _ in range(span.start, span.end)]
    assert found == ["v1", "v1", "v2", last]


@pytest.mark.parametrize("version", ["v1", 3, 30, None, 'a"b'])
def test_an_item_shows_which_weights_it_names(version: Any) -> None:
    payload = item([1], text='"weight_version":"v2"', weight_version=version)
    for known in ("v1", "v2", 3, 30, 'a"b'):
        assert names_version(payload, known, 0) == (known == version)
    assert not names_version(payload, None, 0)
    assert names_version(b'{"meta_info":{}}', None, 0)
    assert names_version(b'{"weight_version":"v1"}', "v1", 0), "it may be the last field"
    assert not names_version(b'{"output_ids":[1,2,3,4],"x":1}', "v1", 0)
