"""What the router serves on cores of their own: at a rate, and with more and more processes.

A machine of two cores cannot show this, as the generator and the worker need theirs. Here the
router's processes, the generator and the worker run at the same time, and what counts is the clock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from statistics import median

from benchmarks import short_chat, streamed_tokens
from benchmarks.conversation import reply_ids
from benchmarks.native.drive import Outcome, drive
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.rounds import interleave
from benchmarks.server import Server, router

OTHERS = 3  # cores for the generator, the worker and the system
ADDED_AIM_MS = 10.0  # at p99
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    processes: tuple[int, ...] = (1, 2, 4, 8)
    rounds: int = 3
    per_second: float = 500.0  # short chats, for each process
    seconds: float = 2.0  # at that rate
    connections: int = 64  # for each process; twice as many for streams
    chats: int = 20  # for each connection
    reply_len: int = 128  # tokens of a stream
    pause_ms: float = 5.0  # between two of them


FULL = Size()


@dataclass(slots=True)
class Load:
    """Called, it sends one round; returns its seconds for each request."""

    server: Server
    bodies: Iterator[bytes]
    requests: int
    connections: int
    per_second: float | None = None
    outcomes: list[Outcome] = field(default_factory=list)

    def __call__(self) -> float:
        bodies = list(islice(self.bodies, self.requests))
        outcome = drive(self.server, CHAT, bodies, self.connections, self.per_second)
        self.outcomes.append(outcome)
        return outcome.seconds / self.requests

    def latency_ms(self, percent: int) -> float:
        return median(each.latency_us[percent] for each in self.outcomes[1:]) / 1e3

    def cores(self) -> float:
        """How many the server used."""
        return median(each.server_cpu_s / each.seconds for each in self.outcomes[1:])


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """Short chats at a rate, then short chats and streams as fast as they go."""
    cpus = len(os.sched_getaffinity(0))
    numbers = [number for number in size.processes if number + OTHERS <= cpus]
    if not numbers:
        why = f"{cpus} cores are too few: a router, a generator and a worker need their own"
        return [Measurement("cores of their own", float("nan"), "x", None, why)]
    short, long = reply_ids(checkpoint, short_chat.REPLY_LEN), reply_ids(checkpoint, size.reply_len)
    with ExitStack() as stack:
        chats = stack.enter_context(worker(short))
        streams = stack.enter_context(worker(long, pause_ms=size.pause_ms, is_incremental=True))
        routers = {
            number: stack.enter_context(router(checkpoint, "--processes", str(number)))
            for number in numbers
        }
        with _serving(routers, chats.url):
            measurements = [_at_rate(number, routers[number], chats, size) for number in numbers]
            measurements += _short_chats(routers, size)
        with _serving(routers, streams.url):
            return measurements + _streams(routers, size)


@contextmanager
def _serving(routers: Mapping[int, Server], url: str) -> Iterator[None]:
    """The worker at `url` is that of all routers for as long as the block lasts."""
    with ExitStack() as stack:
        for server in routers.values():
            stack.enter_context(streamed_tokens.registered(server, url))
        yield


def _at_rate(number: int, server: Server, behind: Server, size: Size) -> Measurement:
    """What a router adds while it gets as many chats a second as it should bear."""
    given = short_chat.bodies()
    rate = size.per_second * number
    requests, connections = int(rate * size.seconds), size.connections * number
    here = Load(server, given, requests, connections, rate)
    direct = Load(behind, given, requests, connections, rate)
    interleave({"here": here, "direct": direct}, size.rounds)
    return Measurement(
        f"{_named(number)}: {rate:,.0f} short chats a second, added at p99",
        here.latency_ms(99) - direct.latency_ms(99),
        "ms",
        ADDED_AIM_MS,
        f"p50 and p99 {here.latency_ms(50):.1f} and {here.latency_ms(99):.1f} ms, without the "
        f"router {direct.latency_ms(50):.2f} and {direct.latency_ms(99):.2f} ms, from when a "
        f"request was due; they come by chance; {here.cores():.2f} cores used; "
        f"{size.rounds} rounds of {requests:,}",
    )


def _short_chats(routers: Mapping[int, Server], size: Size) -> list[Measurement]:
    given = short_chat.bodies()
    sides = {
        number: Load(server, given, size.chats * connections, connections)
        for number, server in routers.items()
        for connections in [size.connections * number]
    }
    interleave({str(number): side for number, side in sides.items()}, size.rounds)
    return [_rate(number, sides, "short chats", 1) for number in routers]


def _streams(routers: Mapping[int, Server], size: Size) -> list[Measurement]:
    given = (streamed_tokens.body(number) for number in count())
    sides = {
        number: Load(server, given, connections, connections)
        for number, server in routers.items()
        for connections in [2 * size.connections * number]
    }
    interleave({str(number): side for number, side in sides.items()}, size.rounds)
    return [_rate(number, sides, "streamed tokens", size.reply_len) for number in routers]


def _rate(number: int, sides: Mapping[int, Load], what: str, units: int) -> Measurement:
    """How many a second at full load, and how many times those of the fewest processes."""

    def per_second(side: Load) -> float:
        return units * median(each.requests / each.seconds for each in side.outcomes[1:])

    here, least = sides[number], next(iter(sides))
    times = per_second(here) / per_second(sides[least])
    generator = median(each.generator_cpu_s / each.seconds for each in here.outcomes[1:])
    return Measurement(
        f"{_named(number)}: {what} at full load",
        per_second(here),
        "/s",
        None,
        f"{times:.2f} times those of {_named(least)}; {here.cores():.2f} cores used, "
        f"{generator:.2f} by the generator; p50 and p99 of a request {here.latency_ms(50):.0f} and "
        f"{here.latency_ms(99):.0f} ms at {here.connections} connections",
    )


def _named(number: int) -> str:
    return "one process" if number == 1 else f"{number} processes"
