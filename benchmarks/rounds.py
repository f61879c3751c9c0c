"""Rounds: several sides measured in turns, so that a noisy machine disturbs all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

from benchmarks.server import BenchmarkError

Side = Callable[[], float]  # one round of a side: its cost for each unit of work


@dataclass(frozen=True, slots=True)
class Rounds:
    """The costs of each side, one for each round."""

    costs: Mapping[str, Sequence[float]]

    def cost(self, side: str) -> float:
        """The median of a side."""
        return median(self.costs[side])

    def ratio(self, side: str, to: str) -> float:
        """The median of the rounds' ratios: both parts of each met the same noise."""
        pairs = zip(self.costs[side], self.costs[to], strict=True)
        return median(cost / base for cost, base in pairs)


def interleave(sides: Mapping[str, Side], rounds: int) -> Rounds:
    """Run all sides once to warm up, then `rounds` times, each time in another order.

    Forwards and backwards in turn would favour the sides at both ends, which run twice in a row and
    find their caches warm: a ratio of 0.83 measured 1.16 that way.

    Raises:
        BenchmarkError: a side broke off; the message begins with its name.
    """
    order, drawn = list(sides), Random(0)
    for name in order:
        _measured(name, sides[name])
    costs: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        drawn.shuffle(order)
        for name in order:
            costs[name].append(_measured(name, sides[name]))
    return Rounds(costs)


def _measured(name: str, side: Side) -> float:
    try:
        return side()
    except BenchmarkError as exc:
        raise BenchmarkError(f"{name}: {exc}") from exc
