"""The pure parts of a request, one by one: `make bench-micro`. The test suite leaves them out."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import orjson
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.__main__ import checkpoint_of_all
from benchmarks.conversation import prose, reply_ids
from benchmarks.lookups import PIECE_LEN, filled_cache, piece
from slime_router.cache.prefix_cache import PrefixCache
from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.engine.chunks import ChunkReader
from slime_router.failover.stitch import Stitch
from slime_router.tokens.stop_strings import VisibleText
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import (
    Finish,
    GenerateCall,
    GenerateChunk,
    Prompt,
    Receipt,
    Sampling,
    token_ids,
)

TOKENS = 256  # of the streamed reply that each part is given
TRAJECTORIES = 1_000
VOCAB_SIZE = 200_000
PROMPT = "".join(prose(7 * PIECE_LEN * i, PIECE_LEN) for i in range(100))


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return checkpoint_of_all()


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return load_tokenizer(str(checkpoint))


@pytest.fixture(scope="module")
def ids(checkpoint: Path) -> list[int]:
    return reply_ids(checkpoint, TOKENS)


@pytest.fixture(scope="module")
def tree() -> PrefixCache:
    return filled_cache(TRAJECTORIES, PROMPT)


def test_tree_lookup(benchmark: BenchmarkFixture, tree: PrefixCache) -> None:
    def look_up() -> int:
        match = tree.match_prefix("", PROMPT + " And then?", None)
        tree.unpin(match.node)
        return match.text_len

    assert benchmark(look_up) == len(PROMPT)


def test_tree_insert(benchmark: BenchmarkFixture, tree: PrefixCache) -> None:
    numbers = count()
    reply = piece(prose(0, PIECE_LEN), is_sampled=True)

    def insert() -> None:
        number = next(numbers)
        match = tree.match_prefix("", PROMPT, None)
        task = piece(f" Task {number}: {PROMPT[:80]}")
        tree.insert(
            match.node, [task], [reply], session_id=None, turn_id=f"micro {number}", epoch=0
        )
        tree.unpin(match.node)

    benchmark(insert)


@pytest.mark.parametrize("is_cumulative", [False, True], ids=["incremental", "cumulative"])
def test_chunk_reader(benchmark: BenchmarkFixture, ids: list[int], is_cumulative: bool) -> None:
    payloads = [_item(ids, 0 if is_cumulative else end - 1, end) for end in range(1, TOKENS + 1)]

    def read() -> int:
        reader = ChunkReader(vocab_size=VOCAB_SIZE, with_logprobs=True)
        chunks = (chunk for payload in payloads for chunk in reader.feed([payload]))
        return sum(len(chunk.output_ids) for chunk in chunks)

    assert benchmark(read) == TOKENS


def test_stitch(benchmark: BenchmarkFixture, tokenizer: Tokenizer, ids: list[int]) -> None:
    chunks = [GenerateChunk(output_ids=[each], logprobs=[-0.5]) for each in ids[:-1]]
    finish = Finish("stop", matched=ids[-1])
    chunks.append(GenerateChunk(output_ids=ids[-1:], logprobs=[-0.5], finish=finish))
    receipt = Receipt("fresh", 0, 2, "t", "")
    prompt = Prompt(token_ids([1, 2]), receipt=receipt)
    call = GenerateCall(rid="r", turn_id="t", stream=True, prompt=prompt)

    def stitched() -> int:
        stitch = Stitch(call, lambda rules: _text(tokenizer, rules))
        stitch.next_call()
        return sum(len(stitch.emit(stitch.take(chunk))) for chunk in chunks)

    assert benchmark(stitched) >= TOKENS


def test_decoder(benchmark: BenchmarkFixture, tokenizer: Tokenizer, ids: list[int]) -> None:
    def decode() -> str:
        decoder = tokenizer.decoder(skip_special_tokens=True)
        return "".join(decoder.push([each]) for each in ids) + decoder.flush()

    assert benchmark(decode).startswith("Certainly.")


def _text(tokenizer: Tokenizer, rules: Sampling) -> VisibleText:
    return VisibleText(tokenizer.decoder(skip_special_tokens=rules.skip_special_tokens), rules)


def _item(ids: list[int], start: int, end: int) -> bytes:
    """SGLang's item after `end` tokens, telling those from `start` on."""
    is_last = end == len(ids)
    meta = {
        "id": "r",
        "finish_reason": {"type": "stop", "matched": ids[-1]} if is_last else None,
        "prompt_tokens": 100,
        "weight_version": "default",
        "output_token_logprobs": [[-0.5 - i / 1024, ids[i], None] for i in range(start, end)],
        "completion_tokens": end,
        "cached_tokens": 0,
    }
    return orjson.dumps({"text": "", "output_ids": ids[start:end], "meta_info": meta})
