"""A side of a measurement: one load after the other through a server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Literal

from benchmarks.native.drive import Outcome, drive
from benchmarks.server import Server

Kind = Literal["latency", "first", "gap"]


@dataclass(slots=True)
class Driven:
    """Called, it sends one round, and tells the server's CPU seconds for each unit of work."""

    server: Server
    path: str
    bodies: Iterator[bytes]
    requests: int  # a round
    connections: int = 1
    units: int = 1  # of work in a request, such as streamed tokens
    rate: float | None = None  # requests a second; None: as fast as they are answered
    outcomes: list[Outcome] = field(default_factory=list)

    def __call__(self) -> float:
        bodies = list(islice(self.bodies, self.requests))
        outcome = drive(self.server, self.path, bodies, self.connections, self.rate)
        self.outcomes.append(outcome)
        return outcome.server_cpu_s / (self.requests * self.units)

    def quantile_ms(self, kind: Kind, percent: int) -> float:
        """The median of the rounds' quantiles, the first round left out: it warms up.

        0 where it was not measured, as by the generator in Python.
        """
        found = [getattr(each, f"{kind}_us") for each in self.outcomes[1:]]
        return median(times[percent] for times in found) / 1e3 if all(found) else 0.0

    def quantiles_ms(self, kind: Kind) -> list[float]:
        """All 101 of them, likewise."""
        return [self.quantile_ms(kind, percent) for percent in range(101)]

    def per_second(self) -> float:
        """Requests in a second, the median of the rounds."""
        return median(each.requests / each.seconds for each in self.outcomes[1:])

    def cores(self) -> float:
        """How many cores the server was busy on."""
        return median(each.server_cpu_s / each.seconds for each in self.outcomes[1:])

    def generator_share(self) -> float:
        """How much of one core the generator was busy."""
        return median(each.generator_cpu_s / each.seconds for each in self.outcomes[1:])
