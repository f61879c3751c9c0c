"""Streamed tokens through the router, against a bare proxy hop before the same worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import orjson

from benchmarks import load
from benchmarks.conversation import reply_ids
from benchmarks.driven import Driven
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.rounds import Rounds, interleave
from benchmarks.server import Server, router, serving

AIM = 1.6  # of what the hop costs, where items hold what is new
FIRST_AIM_MS = 3.0  # after the worker's
GAP_AIM_MS = 20.0  # more than the worker's pause
CHAT = "/v1/chat/completions"
KINDS = ("cumulative", "incremental")  # whether an item repeats those before it


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 4
    streams: int = 3  # a round, for a connection alone; else each has one
    reply_len: int = 64  # tokens
    concurrencies: tuple[int, ...] = (1, 64)
    pause_ms: float = 5.0  # between two tokens


FULL = Size()


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """A chat stream of plain text; the worker sends every token with its logprob."""
    ids = reply_ids(checkpoint, size.reply_len)
    with (
        worker(ids, pause_ms=size.pause_ms) as cumulative,
        worker(ids, pause_ms=size.pause_ms, is_incremental=True) as incremental,
        serving("benchmarks.hop", "--worker-url", cumulative.url) as hop,
        router(checkpoint) as ours,
    ):
        measurements = []
        for kind, behind in zip(KINDS, (cumulative, incremental), strict=True):
            with registered(ours, behind.url):
                measurements += _measured(kind, ours, hop, behind, size)
        return measurements


def _measured(
    kind: str, ours: Server, hop: Server, behind: Server, size: Size
) -> list[Measurement]:
    measurements = []
    for concurrency in size.concurrencies:
        sides = _sides(kind, ours, hop, behind, concurrency, size)
        rounds = interleave(sides, size.rounds)
        name = f"streamed token, {kind} c={concurrency}"
        measurements.append(_cpu(name, rounds, sides["router"], kind == "incremental", size))
        measurements.append(_first(name, sides) if concurrency == 1 else _gaps(name, sides, size))
    return measurements


def _sides(
    kind: str, ours: Server, hop: Server, behind: Server, concurrency: int, size: Size
) -> dict[str, Driven]:
    ways = {
        "router": (ours, CHAT),
        "hop": (hop, f"/{kind}/generate"),
        "direct": (behind, f"/{kind}/generate"),
    }
    given = (body(number) for number in count())
    streams = size.streams if concurrency == 1 else concurrency
    return {
        name: Driven(server, path, given, streams, concurrency, units=size.reply_len)
        for name, (server, path) in ways.items()
    }


def _cpu(name: str, rounds: Rounds, driven: Driven, has_aim: bool, size: Size) -> Measurement:
    ours_us, hop_us = (rounds.cost(side) * 1e6 for side in ("router", "hop"))
    last = driven.outcomes[-1]
    return Measurement(
        f"{name}: CPU, router over bare hop",
        rounds.ratio("router", to="hop"),
        "x",
        AIM if has_aim else None,
        f"{ours_us:.0f} us over {hop_us:.0f} us; {size.reply_len} tokens a reply in "
        f"{last.events / last.requests:.0f} events, one every {size.pause_ms:g} ms; "
        f"{size.rounds} rounds of {last.requests}",
    )


def _first(name: str, sides: Mapping[str, Driven]) -> Measurement:
    first_ms = {side: sides[side].quantile_ms("first", 50) for side in sides}
    return Measurement(
        f"{name}: first event after the worker's",
        first_ms["router"] - first_ms["direct"],
        "ms",
        FIRST_AIM_MS,
        f"medians: {first_ms['router']:.2f} ms, of the hop {first_ms['hop']:.2f} ms, "
        f"of the worker {first_ms['direct']:.2f} ms",
    )


def _gaps(name: str, sides: Mapping[str, Driven], size: Size) -> Measurement:
    gap_ms = {side: sides[side].quantile_ms("gap", 99) for side in sides}
    return Measurement(
        f"{name}: p99 of the time between two events, over the worker's",
        gap_ms["router"] - gap_ms["direct"],
        "ms",
        GAP_AIM_MS,
        f"{gap_ms['router']:.1f} ms, of the hop {gap_ms['hop']:.1f} ms, "
        f"of the worker {gap_ms['direct']:.1f} ms, whose pause is {size.pause_ms:g} ms",
    )


@contextmanager
def registered(server: Server, url: str) -> Iterator[None]:
    """The worker at `url` is the router's for as long as the block lasts."""
    named = orjson.dumps({"url": url})
    load.send(server.port, [load.post("/add_worker", named)], 1)
    yield
    load.send(server.port, [load.post("/remove_worker", named)], 1)


def body(number: int) -> bytes:
    """A streamed chat; no two have the same text."""
    content = f"Question {number:08d}: what is the answer to all of this?"
    return orjson.dumps({"messages": [{"role": "user", "content": content}], "stream": True})
