"""All that is compared: this router, a bare hop, and the other gateways, before the same worker."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.conversation import reply_ids
from benchmarks.full.gateways import GATEWAYS, Gateway
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.server import BenchmarkError, Server, router, serving

OURS = "slime_router"
HOP = "bare hop"
REPLY_LEN = 16  # tokens


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over one axis; each a list of points."""

    name: str  # of its file
    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Part:
    """What one comparison found."""

    measurements: Sequence[Measurement]
    plots: Sequence[Plot]


@dataclass(frozen=True, slots=True)
class Field:
    """The servers by name, ours first; and why others are absent."""

    checkpoint: Path
    servers: Mapping[str, Server]
    absent: Mapping[str, str]

    def speaking(self, path: str) -> dict[str, Server]:
        """Those that serve a path."""
        dumb = {gateway.name for gateway in GATEWAYS if path not in gateway.speaks}
        return {name: server for name, server in self.servers.items() if name not in dumb}

    def asked(self, name: str, requests: int) -> int:
        """How many requests a round has for this one: fewer where it is slow."""
        slowness = {gateway.name: gateway.slowness for gateway in GATEWAYS}
        return max(1, requests // slowness.get(name, 1))

    def others(self, names: Sequence[str]) -> list[str]:
        """Those of the named that are here."""
        return [name for name in names if name in self.servers]

    def told_absent(self) -> list[Measurement]:
        """A line for each that could not be measured: it is not hidden."""
        return [
            Measurement(f"{name}: absent", math.nan, "", None, reason)
            for name, reason in self.absent.items()
        ]


@contextmanager
def field(checkpoint: Path, gateways: Sequence[Gateway] = GATEWAYS) -> Iterator[Field]:
    """Start everything; a gateway that cannot be installed or started is only noted.

    Raises:
        BenchmarkError: the worker, the hop or this router does not start.
    """
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        behind = stack.enter_context(worker(reply_ids(checkpoint, REPLY_LEN)))
        servers = {
            OURS: stack.enter_context(router(checkpoint, "--worker-urls", behind.url)),
            HOP: stack.enter_context(serving("benchmarks.hop", "--worker-url", behind.url)),
        }
        for gateway in gateways:
            try:
                gateway.install()
                servers[gateway.name] = stack.enter_context(gateway.serving(behind.url))
            except BenchmarkError as exc:
                absent[gateway.name] = str(exc)
                sys.stderr.write(f"{exc}\n")
        yield Field(checkpoint, servers, absent)
