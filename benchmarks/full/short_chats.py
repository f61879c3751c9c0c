"""Short chats through everything: CPU, latencies and their distribution."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.driven import Driven
from benchmarks.full.field import HOP, OURS, Field, Part, Plot
from benchmarks.full.gateways import FASTAPI, LITELLM
from benchmarks.report import Measurement
from benchmarks.rounds import Rounds, interleave
from benchmarks.short_chat import CHAT, bodies

AIMS = {LITELLM.name: 1 / 10, FASTAPI.name: 1 / 4, HOP: 3.0}  # at `AIMED_AT` connections
AIMED_AT = 64


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 5
    requests: int = 400  # a round, for each side
    concurrencies: tuple[int, ...] = (1, 16, 64, 256)


FULL = Size()


def run(field: Field, size: Size = FULL) -> Part:
    """For each number of connections, ours over each of the others."""
    measurements: list[Measurement] = []
    plots: list[Plot] = []
    for concurrency in size.concurrencies:
        given = bodies()
        sides = {
            name: Driven(server, CHAT, given, field.asked(name, size.requests), concurrency)
            for name, server in field.speaking(CHAT).items()
        }
        rounds = interleave(sides, size.rounds)
        measurements += [
            _measurement(name, concurrency, rounds, sides, size) for name in sides if name != OURS
        ]
        if concurrency == AIMED_AT:
            plots.append(_distribution(sides))
    return Part(measurements, plots)


def _measurement(
    name: str, concurrency: int, rounds: Rounds, sides: dict[str, Driven], size: Size
) -> Measurement:
    ours, theirs = (sides[side] for side in (OURS, name))
    latencies = [
        f"{side.quantile_ms('latency', 50):.1f}/{side.quantile_ms('latency', 99):.1f} ms"
        for side in (ours, theirs)
    ]
    return Measurement(
        f"short chat c={concurrency}: CPU, ours over {name}",
        rounds.ratio(OURS, to=name),
        "x",
        AIMS.get(name) if concurrency == AIMED_AT else None,
        f"{rounds.cost(OURS) * 1e6:.0f} us over {rounds.cost(name) * 1e6:.0f} us a request; "
        f"p50/p99 {latencies[0]} and {latencies[1]}; {size.rounds} rounds of {size.requests}",
    )


def _distribution(sides: dict[str, Driven]) -> Plot:
    return Plot(
        "latency",
        f"Latency of a short chat, {AIMED_AT} connections",
        "percent of the requests",
        "ms",
        {
            name: [(float(at), ms) for at, ms in enumerate(side.quantiles_ms("latency"))]
            for name, side in sides.items()
        },
    )
