"""Memory: bytes for each token that the tree and the store hold of long trajectories."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np

from benchmarks.conversation import prose
from benchmarks.report import Measurement
from slime_router.cache.prefix_cache import PrefixCache
from slime_router.trajectory.store import TrajectoryStore, Turn, logprob_array
from slime_router.types import Finish, Piece, TokenIds, VersionSpan, token_ids

AIM_BYTES = 24.0
BUDGET_TOKENS = 10**9
CHARS_PER_TOKEN = 4
PIECE_LEN = 100  # tokens, as the tokenizer cuts long prompts
OUTPUT_SHARE = 0.4  # of the new tokens of a turn


@dataclass(frozen=True, slots=True)
class Size:
    """How much is held."""

    trajectories: int = 2_000
    turns: int = 10  # of each
    new_tokens: int = 500  # of each turn, prompt and output together


FULL = Size()


def run(size: Size = FULL) -> list[Measurement]:
    """What recording and caching keep of the same turns, all logprobs included."""
    tokens = size.trajectories * size.turns * size.new_tokens
    tree_bytes = _held_bytes(lambda: _filled_cache(size))
    store_bytes = _held_bytes(lambda: _filled_store(size))
    return [
        Measurement(
            "memory of tree and store",
            (tree_bytes + store_bytes) / tokens,
            "bytes/token",
            AIM_BYTES,
            f"tree {tree_bytes / tokens:.1f}, store {store_bytes / tokens:.1f}; {tokens:,} tokens "
            f"in {size.trajectories:,} trajectories of {size.turns} turns; once",
        )
    ]


@contextmanager
def _tracing() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def _held_bytes(build: Callable[[], object]) -> int:
    """Bytes that are still in use when `build` has returned."""
    prose(0, 1)  # its text is no part of it
    with _tracing():
        built = build()
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        del built
    return held


def _output_len(size: Size) -> int:
    return int(size.new_tokens * OUTPUT_SHARE)


def _filled_cache(size: Size) -> PrefixCache:
    cache = PrefixCache(
        BUDGET_TOKENS,
        is_anchor=lambda text, index: text[index] == " ",
        is_control=lambda token_id: token_id == 0,
    )
    for trajectory in range(size.trajectories):
        node = cache.match_prefix("", "", None).node  # the root
        for turn in range(size.turns):
            turn_id = f"turn_{trajectory:012d}{turn:012d}"
            prompt, output = _pieces(trajectory, turn, size)
            cache.insert(node, prompt, output, session_id=None, turn_id=turn_id)
            cache.unpin(node)
            held = cache.pin_turn(turn_id)
            assert held is not None
            node = held
        cache.unpin(node)
    return cache


def _pieces(trajectory: int, turn: int, size: Size) -> tuple[list[Piece], list[Piece]]:
    """The new prompt in pieces as the encoder makes them, and the output in one."""
    output_len = _output_len(size)
    text = f"{trajectory} {turn} " + _text(trajectory, turn, size.new_tokens)
    lengths = [PIECE_LEN] * ((size.new_tokens - output_len) // PIECE_LEN)
    lengths.append(size.new_tokens - output_len - sum(lengths))
    pieces, start = [], 0
    for length in filter(None, (*lengths, output_len)):
        part = text[CHARS_PER_TOKEN * start : CHARS_PER_TOKEN * (start + length)]
        pieces.append(Piece(part, _ids(start, length)))
        start += length
    output = pieces.pop()
    return pieces, [Piece(output.text, output.ids, is_sampled=True)]


def _filled_store(size: Size) -> TrajectoryStore:
    store = TrajectoryStore(BUDGET_TOKENS)
    for trajectory in range(size.trajectories):
        last: Turn | None = None
        for index in range(size.turns):
            last = store.add(_turn(trajectory, index, last, size))
    return store


def _turn(trajectory: int, index: int, base: Turn | None, size: Size) -> Turn:
    """What the recording middleware makes of one generation."""
    output_len = _output_len(size)
    return Turn(
        id=f"turn_{trajectory:012d}{index:012d}",
        base=base.id if base else None,
        base_len=base.held_len if base else 0,
        prompt_ids=_ids(0, size.new_tokens - output_len),
        output_ids=_ids(1, output_len),
        logprobs=logprob_array(_logprobs(output_len)),
        weight_versions=(VersionSpan("default", 0, output_len),),
        finish=Finish("stop", matched=1),
        keys=((trajectory * size.turns + index).to_bytes(16, "little"),),
        reply={"role": "assistant", "content": _text(trajectory, index, output_len)},
        session_id=None,
    )


def _text(trajectory: int, turn: int, tokens: int) -> str:
    return prose(2011 * trajectory + 211 * turn, CHARS_PER_TOKEN * tokens)


@cache
def _logprobs(count: int) -> list[float]:
    """Such as SGLang sends: of float32."""
    values: list[float] = np.linspace(-2, -1, count, dtype=np.float32).tolist()
    return values


def _ids(start: int, count: int) -> TokenIds:
    return token_ids(np.arange(start, start + count))
