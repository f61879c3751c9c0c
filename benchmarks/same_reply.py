"""One prompt with one reply, again and again: the last such request over the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from statistics import median

from benchmarks.conversation import reply_ids
from benchmarks.driven import Driven
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.server import router, serving
from benchmarks.short_chat import CHAT, REPLY_LEN, body

AIM = 1.3


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    loads: int = 24
    requests: int = 250  # a load
    compared: int = 6  # loads at either end
    connections: int = 16


FULL = Size()


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """CPU seconds of the router's process; a hop's in between show what the machine did."""
    with (
        worker(reply_ids(checkpoint, REPLY_LEN), variants=1) as behind,
        serving("benchmarks.hop", "--worker-url", behind.url) as hop,
        router(checkpoint, "--worker-urls", behind.url) as ours,
    ):
        sides = [
            Driven(server, CHAT, repeat(body(0)), size.requests, size.connections)
            for server in (ours, hop)
        ]
        costs = [(sides[0](), sides[1]()) for _ in range(size.loads + 1)]
    return [_measurement(costs[1:], size)]  # the first load warms up


def _measurement(costs: Sequence[tuple[float, float]], size: Size) -> Measurement:
    parts = costs[: size.compared], costs[-size.compared :]
    first, last = (median(ours / hop for ours, hop in part) for part in parts)
    first_us, last_us = (median(ours for ours, _ in part) * 1e6 for part in parts)
    return Measurement(
        f"the same chat and reply: CPU after {size.loads * size.requests:,} of them, over at first",
        last / first,
        "x",
        AIM,
        f"{last_us:.0f} us over {first_us:.0f} us a request, each over a hop's of its time",
    )
