"""Short chats through the router, against a bare proxy hop before the same worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import orjson

from benchmarks.conversation import prose, reply_ids
from benchmarks.driven import Driven
from benchmarks.native import build
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.rounds import Rounds, interleave
from benchmarks.server import Server, router, serving

AIM = 3.0  # of what the hop costs
CROWD_AIM = 1.3  # most connections over fewest
TAIL_AIM = 3.0  # p99 over p50
RATE_AIM_MS = 1.0  # a thousand requests a second
ADDED_AIM_MS = 10.0  # at p99
REQUEST_LEN = 300  # bytes
REPLY_LEN = 16  # tokens
CHAT = "/v1/chat/completions"
CONNECTIONS_S = 0.25  # at a rate: what would come in this time finds a connection of its own


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 5
    requests: int = 800  # a round, for each side and concurrency
    concurrencies: tuple[int, ...] = (16, 256)
    load: float = 0.8  # of what one process can do at most
    seconds: float = 3.0  # at that load


FULL = Size()


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """CPU seconds of the router's process, over those of the hop's; and latencies."""
    with (
        worker(reply_ids(checkpoint, REPLY_LEN)) as behind,
        serving("benchmarks.hop", "--worker-url", behind.url) as hop,
        router(checkpoint, "--worker-urls", behind.url) as ours,
    ):
        sides = _sides({"router": ours, "hop": hop, "direct": behind}, size)
        rounds = interleave(sides, size.rounds)
        added = _at_load(ours, behind, sides, size)
    return [
        *(_cpu(rounds, concurrency, size) for concurrency in size.concurrencies),
        _crowd(rounds, size),
        *(_tail(sides, concurrency) for concurrency in size.concurrencies),
        *(_direct(sides, concurrency) for concurrency in size.concurrencies),
        _full_load(sides, size.concurrencies[0]),
        *added,
    ]


def _sides(servers: Mapping[str, Server], size: Size) -> dict[str, Driven]:
    given = bodies()
    return {
        f"{name} {concurrency}": Driven(server, CHAT, given, size.requests, concurrency)
        for concurrency in size.concurrencies
        for name, server in servers.items()
    }


def _cpu(rounds: Rounds, concurrency: int, size: Size) -> Measurement:
    here, hop = f"router {concurrency}", f"hop {concurrency}"
    return Measurement(
        f"short chat c={concurrency}: CPU, router over bare hop",
        rounds.ratio(here, to=hop),
        "x",
        AIM,
        f"{rounds.cost(here) * 1e6:.0f} us over {rounds.cost(hop) * 1e6:.0f} us a request; "
        f"{size.rounds} rounds of {size.requests}",
    )


def _crowd(rounds: Rounds, size: Size) -> Measurement:
    few, many = (f"router {size.concurrencies[i]}" for i in (0, -1))
    return Measurement(
        f"short chat: CPU of the router, c={size.concurrencies[-1]} over c={size.concurrencies[0]}",
        rounds.ratio(many, to=few),
        "x",
        CROWD_AIM,
        f"{rounds.cost(many) * 1e6:.0f} us over {rounds.cost(few) * 1e6:.0f} us a request",
    )


def _tail(sides: Mapping[str, Driven], concurrency: int) -> Measurement:
    here, hop = sides[f"router {concurrency}"], sides[f"hop {concurrency}"]
    p50, p99 = (here.quantile_ms("latency", percent) for percent in (50, 99))
    return Measurement(
        f"short chat c={concurrency}: latency of the router, p99 over p50",
        p99 / p50,
        "x",
        TAIL_AIM,
        f"{p99:.1f} ms over {p50:.1f} ms; the hop's are {hop.quantile_ms('latency', 99):.1f} ms "
        f"and {hop.quantile_ms('latency', 50):.1f} ms",
    )


def _direct(sides: Mapping[str, Driven], concurrency: int) -> Measurement:
    """The direct line: it shows that neither the generator nor the worker limits the others."""
    direct, here = sides[f"direct {concurrency}"], sides[f"router {concurrency}"]
    return Measurement(
        f"short chat c={concurrency}: generator straight to worker",
        direct.per_second(),
        "requests/s",
        None,
        f"the generator is busy for {direct.generator_share():.0%} of it; "
        f"through the router {here.per_second():,.0f} requests/s",
    )


def _full_load(sides: Mapping[str, Driven], concurrency: int) -> Measurement:
    """How long each request takes one process.

    p99 has no aim here: each request waits for all the others, so it only reflects how many
    connections there are.
    """
    here, direct = sides[f"router {concurrency}"], sides[f"direct {concurrency}"]
    p99, p99_direct = (side.quantile_ms("latency", 99) for side in (here, direct))
    return Measurement(
        f"short chat c={concurrency}: one process at full load, time for each request",
        1e3 / here.per_second(),
        "ms",
        RATE_AIM_MS,
        f"{here.per_second():,.0f} requests/s; p99 {p99:.1f} ms, without the router "
        f"{p99_direct:.1f} ms",
    )


def _at_load(
    ours: Server, behind: Server, sides: Mapping[str, Driven], size: Size
) -> list[Measurement]:
    """What is added where a queue still empties: the rate is a share of that at full load.

    Empty without gcc: the generator in Python cannot send at a rate.
    """
    if build.program("load") is None:
        return []
    per_second = size.load * sides[f"router {size.concurrencies[0]}"].per_second()
    name = f"one process: short chats at {size.load:.0%} of full load"
    return [at_rate(name, ours, behind, per_second, size.seconds, size.rounds)]


def at_rate(
    name: str, here: Server, behind: Server, per_second: float, seconds: float, rounds: int
) -> Measurement:
    """What a router adds at p99 while `per_second` chats arrive, at random, for some seconds."""
    requests = max(1, int(per_second * seconds))
    connections, given = max(1, int(per_second * CONNECTIONS_S)), bodies()
    ours, direct = (
        Driven(server, CHAT, given, requests, connections, rate=per_second)
        for server in (here, behind)
    )
    interleave({"router": ours, "direct": direct}, rounds)
    p50, p99 = (partial(Driven.quantile_ms, kind="latency", percent=each) for each in (50, 99))
    return Measurement(
        f"{name}, added at p99",
        p99(ours) - p99(direct),
        "ms",
        ADDED_AIM_MS,
        f"{per_second:,.0f} a second; p50 and p99 {p50(ours):.1f} and {p99(ours):.1f} ms, without "
        f"the router {p50(direct):.2f} and {p99(direct):.2f} ms, from when a request was due; they "
        f"come by chance; {ours.cores():.2f} cores used; {rounds} rounds of {requests:,}",
    )


def bodies() -> Iterator[bytes]:
    """Requests without end."""
    return (body(number) for number in count())


def body(number: int) -> bytes:
    """A request of `REQUEST_LEN` bytes; no two have the same text."""
    fields = {"model": "default", "max_tokens": REPLY_LEN, "temperature": 1.0}
    content = f"Question {number:08d}: "
    bare = orjson.dumps({**fields, "messages": [{"role": "user", "content": content}]})
    words = prose(number, 10 * REQUEST_LEN).split()
    content += " ".join(word for word in words if word.isalpha())[: REQUEST_LEN - len(bare)]
    return orjson.dumps({**fields, "messages": [{"role": "user", "content": content}]})
