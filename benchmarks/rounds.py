"""Rounds: several sides measured in turns, so that a noisy machine disturbs all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

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
    """Run all sides once to warm up, then `rounds` times, forwards and backwards in turn."""
    order = list(sides)
    for name in order:
        sides[name]()
    costs: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in order:
            costs[name].append(sides[name]())
        order.reverse()
    return Rounds(costs)
