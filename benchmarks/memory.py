"""Memory: bytes for each token that the tree and the store hold of long trajectories."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from benchmarks.conversation import prose
from benchmarks.report import Measurement
from slime_router.cache.prefix_cache import PrefixCache
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn, logprob_array
from slime_router.types import Finish, Piece, Receipt, VersionSpan, token_ids

AIM_BYTES = 24.0
BUDGET_TOKENS = 10**9
CHARS_PER_TOKEN = 4
PIECE_LEN = 100  # tokens, as the tokenizer cuts long prompts
OUTPUT_SHARE = 0.4  # of the new tokens of a turn


@dataclass(frozen=True, slots=True)
class Size:
    """How much is held: a tenth of 10,000 sessions."""

    sessions: int = 1_000
    turns: int = 20  # of each
    new_tokens: int = 500  # of each turn, prompt and output together

    @property
    def tokens(self) -> int:
        return self.sessions * self.turns * self.new_tokens


FULL = Size()


def run(size: Size = FULL) -> list[Measurement]:
    """What caching and recording keep of the same turns, logprobs and receipts included."""
    half = replace(size, sessions=size.sessions // 2)
    (half_bytes, _), (bytes_, tree_bytes) = _held_bytes(half), _held_bytes(size)
    slope = (bytes_ - half_bytes) / (size.tokens - half.tokens)
    return [
        Measurement(
            "memory of tree and store",
            bytes_ / size.tokens,
            "bytes/token",
            AIM_BYTES,
            f"slope {slope:.1f}; tree with the shared ids {tree_bytes / size.tokens:.1f};"
            f" {size.tokens:,} tokens in {size.sessions:,} sessions of {size.turns} turns; once",
        )
    ]


def _held_bytes(size: Size) -> tuple[int, int]:
    """Bytes still in use when all is recorded: in all, and without the store."""
    prose(0, 1)  # its text is not part of it
    gc.collect()
    tracemalloc.start()
    try:
        held = _recorded(size)
        gc.collect()
        in_all, _ = tracemalloc.get_traced_memory()
        cache = held[0]
        del held
        gc.collect()
        of_tree, _ = tracemalloc.get_traced_memory()
        del cache
        return in_all, of_tree
    finally:
        tracemalloc.stop()


def _recorded(size: Size) -> tuple[PrefixCache, TrajectoryStore]:
    """Every turn in both, as the middleware leaves it there: the ids are the same memory."""
    store = TrajectoryStore(BUDGET_TOKENS)
    cache = PrefixCache(
        BUDGET_TOKENS,
        is_anchor=lambda text, index: text[index] == " ",
        is_control=lambda token_id: token_id == 0,
    )
    for number in range(size.sessions):
        session = store.open_session(SessionSpec(id=f"sess_{number:024d}"))
        node = cache.match_prefix("", "", None).node  # the root
        last: Turn | None = None
        for index in range(size.turns):
            turn = new_turn(session.id, number * size.turns + index, last, size)
            prompt, output = _pieces(number, index, turn)
            cache.insert(node, prompt, output, session_id=session.id, turn_id=turn.id, epoch=0)
            cache.unpin(node)
            held = cache.pin_turn(turn.id)
            assert held is not None
            node, last = held, store.add(turn)
        cache.unpin(node)
    return cache, store


def new_turn(session_id: str, number: int, base: Turn | None, size: Size) -> Turn:
    """What the recording middleware makes of one generation."""
    output_len = int(size.new_tokens * OUTPUT_SHARE)
    prompt_len = size.new_tokens - output_len
    reused = base.held_len if base else 0
    turn_id = f"turn_{number:024d}"
    return Turn(
        id=turn_id,
        base=base.id if base else None,
        base_len=reused,
        prompt_ids=token_ids(np.arange(prompt_len)),
        output_ids=token_ids(np.arange(output_len)),
        logprobs=logprob_array(_logprobs(output_len)),
        weight_versions=(VersionSpan("default", 0, output_len),),
        finish=Finish("stop", matched=1),
        keys=(number.to_bytes(16, "little"),),
        session_id=session_id,
        request_id=f"chatcmpl-{number:032d}",
        receipt=Receipt("extended", reused, prompt_len, turn_id, "continues the turn"),
    )


def _pieces(session: int, index: int, turn: Turn) -> tuple[list[Piece], list[Piece]]:
    """The new prompt in pieces as the encoder makes them, and the output in one."""
    new_tokens = len(turn.prompt_ids) + len(turn.output_ids)
    text = f"{session} {index} " + prose(2011 * session + 211 * index, CHARS_PER_TOKEN * new_tokens)
    prompt = [
        Piece(text[CHARS_PER_TOKEN * start :][: CHARS_PER_TOKEN * len(run)], run)
        for start in range(0, len(turn.prompt_ids), PIECE_LEN)
        for run in [turn.prompt_ids[start : start + PIECE_LEN]]
    ]
    said = text[CHARS_PER_TOKEN * len(turn.prompt_ids) :]
    return prompt, [Piece(said, turn.output_ids[:], is_sampled=True)]


@cache
def _logprobs(count: int) -> list[float]:
    """Such as SGLang sends: of float32."""
    values: list[float] = np.linspace(-2, -1, count, dtype=np.float32).tolist()
    return values
