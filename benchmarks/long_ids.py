"""`/generate` with a long list of ids, of which few are new, against a bare proxy hop.

A round has so many requests that what its new connection and cold caches cost is a small part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

import orjson

from benchmarks.conversation import reply_ids
from benchmarks.driven import Driven
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.rounds import interleave
from benchmarks.server import router, serving

AIM = 2.0
GENERATE = "/generate"
REPLY_LEN = 16  # tokens
TEXT_LEN = 400_000  # characters, of which the ids are


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 7
    requests: tuple[int, ...] = (200, 24)  # a round, for each side and each of the lengths
    prompt_lens: tuple[int, ...] = (128, 128_000)  # tokens
    new_len: int = 4_000  # tokens, at most half of a prompt; those before them are the same


FULL = Size()


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """CPU seconds of the router's process, which records every token, over those of the hop's."""
    source = reply_ids(checkpoint, TEXT_LEN // 8)[:-1]
    with (
        worker(reply_ids(checkpoint, REPLY_LEN)) as behind,
        serving("benchmarks.hop", "--worker-url", behind.url) as hop,
        router(checkpoint, "--worker-urls", behind.url) as ours,
    ):
        measurements = []
        for prompt_len, requests in zip(size.prompt_lens, size.requests, strict=True):
            given = bodies(source, prompt_len, size.new_len)
            sides = {
                name: Driven(server, GENERATE, given, requests)
                for name, server in {"router": ours, "hop": hop}.items()
            }
            rounds = interleave(sides, size.rounds)
            measurements.append(
                Measurement(
                    f"/generate with {prompt_len:,} ids: CPU, router over bare hop",
                    rounds.ratio("router", to="hop"),
                    "x",
                    AIM,
                    f"{rounds.cost('router') * 1e3:.2f} ms over {rounds.cost('hop') * 1e3:.2f} ms "
                    f"a request; {size.rounds} rounds of {requests}",
                )
            )
        return measurements


def bodies(source: list[int], prompt_len: int, new_len: int) -> Iterator[bytes]:
    """Requests without end, the same but for their last ids."""
    new_len = min(new_len, prompt_len // 2)
    repeats = -(-prompt_len // len(source))
    held = (source * repeats)[: prompt_len - new_len]
    for number in count():
        new = Random(number).choices(source, k=new_len)
        yield orjson.dumps(
            {
                "input_ids": held + new,
                "sampling_params": {"max_new_tokens": REPLY_LEN, "temperature": 1.0},
                "return_logprob": True,
            }
        )
