"""Whatever a worker sends, what is read of it can have been sampled."""

from __future__ import annotations

from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slime_router.engine.answer import MAX_LOGPROB, MIN_LOGPROB, check_ids, logprobs
from slime_router.engine.chunks import ChunkReader
from slime_router.errors import RouterError, WorkerFailed
from slime_router.testing.malformed import malformed
from tests.examples import examples

VOCAB_SIZE = 50
END = {"type": "stop", "matched": 49}


def item(ids: list[int], begin: int, end: int, *, is_last: bool) -> dict[str, Any]:
    new = ids[begin:end]
    meta: dict[str, Any] = {
        "id": "r",
        "finish_reason": END if is_last else None,
        "prompt_tokens": 3,
        "cached_tokens": 1,
        "completion_tokens": end,
        "weight_version": "1",
        "output_token_logprobs": [[-0.5 * token, token, None] for token in new],
    }
    if is_last:
        meta["weight_versions"] = [{"version": "1", "start": 0, "end": end}]
    return {"text": "x" * len(new), "output_ids": new, "meta_info": meta}


def read_all(
    reader: ChunkReader, groups: list[list[bytes]]
) -> tuple[list[Any], RouterError | None]:
    chunks: list[Any] = []
    try:
        for payloads in groups:
            chunks.extend(reader.feed(payloads))
            if reader.failure is not None:
                raise reader.failure
    except RouterError as exc:
        return chunks, exc
    return chunks, None


@settings(max_examples=examples(1000))
@given(
    st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=8),
    st.integers(0, 2**32),
    st.booleans(),
    st.booleans(),
)
@example([1, 0, 0, 0], 4997375, True, True)
def test_nothing_malformed_gets_through(
    ids: list[int], seed: int, is_native: bool, is_cumulative: bool
) -> None:
    """One item of a stream is spoiled: the reader stops there, and keeps what came before."""
    random = Random(seed)
    items = [
        item(ids, 0 if is_cumulative else place, place + 1, is_last=place + 1 == len(ids))
        for place in range(len(ids))
    ]
    spoiled = random.randrange(len(items))
    payloads = [orjson.dumps(each) for each in items]
    payloads[spoiled] = malformed(items[spoiled], random)
    reader = ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=True, is_native=is_native)
    chunks, error = read_all(reader, [[each] for each in payloads])
    found = [token for chunk in chunks for token in chunk.output_ids]
    assert found == ids[: len(found)], "a token is there that was never sampled"
    assert all(type(token) is int for token in found)
    held = [logprob for chunk in chunks for logprob in chunk.logprobs]
    assert held == [-0.5 * token for token in found]
    if error is None:
        # The lie was about tokens that had come before, and was not looked at; or it equals the
        # truth, as `true` equals 1, and what had been read of earlier items was used instead.
        is_as_good = orjson.loads(payloads[spoiled]) == items[spoiled]
        assert found == ids
        assert is_as_good or (is_cumulative and not is_native)
    if is_native:
        passed_on = [token for chunk in chunks for token in (chunk.item or {})["output_ids"]]
        assert all(type(token) is int for token in passed_on)
    for chunk in chunks:
        orjson.dumps((chunk.item, chunk.text, chunk.weight_version, chunk.prompt_tokens))


@given(
    ids=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=2, max_size=12),
    missing=st.integers(1, 5),
    is_native=st.booleans(),
    is_cumulative=st.booleans(),
    is_whole=st.booleans(),
)
def test_no_more_tokens_come_than_were_asked_for(
    ids: list[int], missing: int, is_native: bool, is_cumulative: bool, is_whole: bool
) -> None:
    max_len = max(len(ids) - missing, 0)
    items = [
        item(ids, 0 if is_cumulative else place, place + 1, is_last=place + 1 == len(ids))
        for place in range(len(ids))
    ]
    if is_whole:
        items = [item(ids, 0, len(ids), is_last=True)]
    payloads = [[orjson.dumps(each)] for each in items]
    for limit in (max_len, len(ids)):
        reader = ChunkReader(
            vocab_size=VOCAB_SIZE, with_logprobs=True, is_native=is_native, max_len=limit
        )
        begun, error = read_all(reader, payloads[:1])
        found = [token for chunk in begun for token in chunk.output_ids]
        for payload in payloads[1:] if error is None else ():
            tokens = reader.tokens(payload[0])
            chunks, error = read_all(reader, [payload] if tokens is None else [])
            found += tokens[0] if tokens is not None else ()
            found += [token for chunk in chunks for token in chunk.output_ids]
            if error is not None:
                break
        assert found == (ids[:limit] if not is_whole or limit == len(ids) else [])
        assert isinstance(error, WorkerFailed) is (limit < len(ids))


@pytest.mark.parametrize(
    "streams",
    [
        [[7, 8, 9], [70, 80, 9, 10], [71, 81, 9, 10, 11]],
        [[7, 8], [7, 8, 9], [6, 8, 9, 10]],
    ],
)
@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_output_that_was_sent_before_cannot_change(
    streams: list[list[int]], is_native: bool, together: bool
) -> None:
    payloads = [
        orjson.dumps({"output_ids": ids, "meta_info": {"completion_tokens": len(ids)}})
        for ids in streams
    ]
    reader = ChunkReader(vocab_size=100, with_logprobs=False, is_native=is_native)
    groups = [payloads[:1], payloads[1:]] if together else [[each] for each in payloads]
    _, error = read_all(reader, groups)
    assert isinstance(error, WorkerFailed)


NUMBERS = st.one_of(
    st.sampled_from(
        [None, True, 0, -1, 1, 49, 50, 0.1, 0.2, -0.5, -3.5e38, -4e38, 7.0, "1", float("nan")]
    ),
    st.sampled_from([float("inf"), float("-inf"), 10**400, [1]]),
)


def slow_logprobs(entries: list[Any], ids: list[int]) -> list[float | None]:
    """Entry by entry, as the rules are written down."""
    found: list[float | None] = []
    for entry, token in zip(entries, ids, strict=True):
        if type(entry) is not list or len(entry) < 2 or entry[1] != token:
            raise WorkerFailed("of other tokens")
        value = entry[0]
        if value is None or (type(value) in (int, float) and not is_finite(value)):
            found.append(None)
        elif type(value) in (int, float) and MIN_LOGPROB <= value <= MAX_LOGPROB:
            found.append(float(value))
        else:
            raise WorkerFailed("not a log-probability")
    return found


def is_finite(value: float) -> bool:
    return value == value and value not in (float("inf"), float("-inf"))


@settings(max_examples=examples(500))
@given(st.data())
def test_logprobs_are_read_as_one_by_one(data: st.DataObject) -> None:
    """All at once, the same is found and refused as entry by entry."""
    ids = data.draw(st.lists(st.integers(0, 49), max_size=5))
    entries: list[Any] = [[-0.5 * token, token, None] for token in ids]
    if ids:
        place = data.draw(st.integers(0, len(ids) - 1))
        entries[place] = data.draw(
            st.one_of(
                st.just(entries[place]),
                st.lists(NUMBERS, max_size=3),
                st.builds(lambda value: [value, ids[place], None], NUMBERS),
                NUMBERS,
            )
        )
    try:
        expected: Any = slow_logprobs(entries, ids)
    except WorkerFailed:
        expected = WorkerFailed
    try:
        found: Any = logprobs(entries, ids)
    except WorkerFailed:
        found = WorkerFailed
    assert found == expected


@settings(max_examples=examples(500))
@given(st.lists(st.integers(0, 49) | NUMBERS, max_size=5))
def test_ids_are_checked_as_one_by_one(ids: list[Any]) -> None:
    """All at once, the same ids are refused as one by one."""
    wrong = [each for each in ids if type(each) is not int or not 0 <= each < VOCAB_SIZE]
    if not wrong:
        check_ids(ids, VOCAB_SIZE)
        return
    with pytest.raises(WorkerFailed) as refusal:
        check_ids(ids, VOCAB_SIZE)
    assert repr(wrong[0])[:40] in refusal.value.message
