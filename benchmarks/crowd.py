"""Memory of many long requests at once: what they take more than the same requests one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import orjson

from benchmarks.conversation import prose, reply_ids
from benchmarks.native.drive import drive
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.server import router
from benchmarks.short_chat import CHAT

AIM_MB = 300.0
REPLY_LEN = 16  # tokens
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    requests: int = 256  # all at once
    body_len: int = 400_000  # characters
    pause_ms: float = 1_000.0  # between two tokens: long enough for all to be under way


FULL = Size()


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """The highest resident memory while all are under way, over that after the first request.

    They are streams: a worker begins each at once and takes its time, so none ends before the last
    has begun. Nothing is kept of them: they are conversations of one turn, and what is held of
    those has its own budget.
    """
    given = bodies(size.body_len)
    limits = ("--openai-max-concurrent-requests", str(size.requests), "--capture", "off")
    with (
        worker(reply_ids(checkpoint, REPLY_LEN), pause_ms=size.pause_ms) as behind,
        router(checkpoint, "--worker-urls", behind.url, *limits) as ours,
    ):
        drive(ours, CHAT, list(islice(given, 1)), 1)
        before = ours.memory()
        drive(ours, CHAT, list(islice(given, size.requests)), size.requests)
        peak = ours.peak_memory()
    return [
        Measurement(
            f"{size.requests} requests of {size.body_len / 1e3:.0f} KB in flight: memory",
            (peak - before) / MIB,
            "MiB",
            AIM_MB,
            f"{peak / MIB:.0f} MiB at most, {before / MIB:.0f} MiB before; once",
        )
    ]


def bodies(length: int) -> Iterator[bytes]:
    """Requests without end, that have nothing in common."""
    for number in range(10**9):
        text = prose(number * length, length)
        message = {"role": "user", "content": f"{number} {text}"}
        yield orjson.dumps(
            {"model": "default", "messages": [message], "max_tokens": REPLY_LEN, "stream": True}
        )
