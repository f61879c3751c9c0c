"""What the router serves on cores of their own: at a rate, and with more and more processes.

A machine of two cores cannot show this, as the generator and the worker need theirs. Here the
router's processes, the generator and the worker run at the same time, and what counts is the clock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks import short_chat, streamed_tokens
from benchmarks.conversation import reply_ids
from benchmarks.driven import Driven
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.rounds import interleave
from benchmarks.server import Server, router
from benchmarks.short_chat import CHAT

OTHERS = 3  # cores for the generator, the worker and the system


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
            measurements = [
                short_chat.at_rate(
                    f"{_named(number)}: {number * size.per_second:,.0f} short chats a second",
                    server,
                    chats,
                    number * size.per_second,
                    size.seconds,
                    size.rounds,
                )
                for number, server in routers.items()
            ]
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


def _short_chats(routers: Mapping[int, Server], size: Size) -> list[Measurement]:
    given = short_chat.bodies()
    sides = {
        number: Driven(server, CHAT, given, size.chats * connections, connections)
        for number, server in routers.items()
        for connections in [size.connections * number]
    }
    interleave({str(number): side for number, side in sides.items()}, size.rounds)
    return [_rate(number, sides, "short chats", 1) for number in routers]


def _streams(routers: Mapping[int, Server], size: Size) -> list[Measurement]:
    given = (streamed_tokens.body(number) for number in count())
    sides = {
        number: Driven(server, CHAT, given, connections, connections)
        for number, server in routers.items()
        for connections in [2 * size.connections * number]
    }
    interleave({str(number): side for number, side in sides.items()}, size.rounds)
    return [_rate(number, sides, "streamed tokens", size.reply_len) for number in routers]


def _rate(number: int, sides: Mapping[int, Driven], what: str, units: int) -> Measurement:
    """How many a second at full load, and how many times those of the fewest processes."""
    here, least = sides[number], next(iter(sides))
    p50, p99 = (here.quantile_ms("latency", percent) for percent in (50, 99))
    return Measurement(
        f"{_named(number)}: {what} at full load",
        units * here.per_second(),
        "/s",
        None,
        f"{here.per_second() / sides[least].per_second():.2f} times those of {_named(least)}; "
        f"{here.cores():.2f} cores used, {here.generator_share():.2f} by the generator; p50 and "
        f"p99 of a request {p50:.0f} and {p99:.0f} ms at {here.connections} connections",
    )


def _named(number: int) -> str:
    return "one process" if number == 1 else f"{number} processes"
