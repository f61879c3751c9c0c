"""Whatever a worker sends, what is read of it can have been sampled."""

from __future__ import annotations

from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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
    logprobs = [logprob for chunk in chunks for logprob in chunk.logprobs]
    assert logprobs == [-0.5 * token for token in found]
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
