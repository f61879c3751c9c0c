"""A long reply from a worker whose items repeat all before them: a late token over an early one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.conversation import reply_ids
from benchmarks.driven import Driven
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.rounds import Rounds, interleave
from benchmarks.server import Server, router, serving
from benchmarks.streamed_tokens import CHAT, body, registered

AIM = 1.5


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 3
    early: int = 500  # tokens of a reply that has early tokens only
    late: tuple[int, int] = (6_000, 8_000)  # of two replies: late are those that one has more
    pause_ms: float = 2.0  # between two tokens


FULL = Size()


def run(checkpoint: Path, size: Size = FULL) -> list[Measurement]:
    """CPU seconds of the router's process, and of a bare hop's, which only moves the bytes."""
    lengths = (size.early, *size.late)
    with ExitStack() as stack, router(checkpoint) as ours:
        workers = {
            length: stack.enter_context(
                worker(reply_ids(checkpoint, length), pause_ms=size.pause_ms, variants=1)
            )
            for length in lengths
        }
        sides: dict[str, Callable[[], float]] = {}
        for length, behind in workers.items():
            hop = stack.enter_context(serving("benchmarks.hop", "--worker-url", behind.url))
            sides[f"router {length}"] = _side(ours, behind)
            sides[f"hop {length}"] = _driven(hop, "/generate")
        rounds = interleave(sides, size.rounds)
    return [_measurement(name, rounds, size) for name in ("router", "hop")]


def _driven(server: Server, path: str) -> Driven:
    return Driven(server, path, (body(number) for number in count()), requests=1)


def _side(ours: Server, behind: Server) -> Callable[[], float]:
    """One reply of this worker alone."""
    driven = _driven(ours, CHAT)

    def one_round() -> float:
        with registered(ours, behind.url):
            return driven()

    return one_round


def _measurement(name: str, rounds: Rounds, size: Size) -> Measurement:
    cost: Mapping[int, float] = {
        length: rounds.cost(f"{name} {length}") for length in (size.early, *size.late)
    }
    less, more = size.late
    early_us = cost[size.early] / size.early * 1e6
    late_us = (cost[more] - cost[less]) / (more - less) * 1e6
    whose = "of the router" if name == "router" else "of a bare hop"
    return Measurement(
        f"streamed token, cumulative: CPU {whose}, from {less:,} to {more:,} over the first "
        f"{size.early:,}",
        late_us / early_us,
        "x",
        AIM if name == "router" else None,
        f"{late_us:.0f} us over {early_us:.0f} us a token; {size.rounds} rounds of one reply each",
    )
