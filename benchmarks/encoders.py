"""Encoding: what a token costs with fastokens and with tokenizers, cut as prompts are."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.conversation import prose
from benchmarks.report import Measurement
from benchmarks.rounds import Rounds, interleave
from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.errors import SetupError
from slime_router.tokens.tokenizer import Tokenizer

AIMS = {"text and code": 0.2, "random words": None}  # of what tokenizers takes
SIDES = ("tokenizers", "fastokens")
SEED = 7


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 9
    text_len: int = 64_000  # characters a round


FULL = Size()


def run(checkpoints: Sequence[Path], size: Size = FULL) -> list[Measurement]:
    """For each vocabulary and kind of text, one ratio; each round has its own text."""
    measurements = []
    for checkpoint in checkpoints:
        pair = {name: load_tokenizer(str(checkpoint)) for name in SIDES}
        try:
            pair["fastokens"].use_faster_encoder()
            measurements += list(_measured(checkpoint.name, pair, size))
        except SetupError as exc:
            print(f"{checkpoint.name}: {exc.message}")
        finally:
            for tokenizer in pair.values():
                tokenizer.close()
    return measurements


def _measured(vocabulary: str, pair: Mapping[str, Tokenizer], size: Size) -> Iterator[Measurement]:
    for kind, text in (("text and code", _prose), ("random words", _words)):
        sides = {name: _side(pair[name], text, size.text_len) for name in SIDES}
        rounds = interleave(sides, size.rounds)
        yield _measurement(f"{vocabulary}, {kind}", rounds, AIMS[kind], size)


def _measurement(name: str, rounds: Rounds, aim: float | None, size: Size) -> Measurement:
    fast, plain = (rounds.cost(side) * 1e6 for side in ("fastokens", "tokenizers"))
    return Measurement(
        f"encoding, {name}: fastokens over tokenizers",
        rounds.ratio("fastokens", to="tokenizers"),
        "x",
        aim,
        f"{fast:.3f} us over {plain:.3f} us of CPU a token; {size.text_len:,} characters in"
        f" {size.rounds} rounds",
    )


def _side(
    tokenizer: Tokenizer, text: Callable[[int, int], str], text_len: int
) -> Callable[[], float]:
    """Seconds of CPU for each token; both sides are given the same texts in the same order."""
    numbers = count()

    def one_round() -> float:
        given = text(next(numbers), text_len)
        before_s = time.process_time()
        pieces = tokenizer.encode_pieces(given)
        used_s = time.process_time() - before_s
        return used_s / sum(len(piece.ids) for piece in pieces)

    return one_round


def _prose(number: int, length: int) -> str:
    return prose(number * length, length)


def _words(number: int, length: int) -> str:
    """Words that nobody has seen: no memory of words helps."""
    chance = random.Random(SEED + number)
    words = ("".join(chance.choices(string.ascii_lowercase, k=7)) for _ in range(length // 8))
    return " ".join(words)
