"""How far the reading of a journal has come."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """How far reading has come."""

    turns: int
    of: int
    skipped: int = 0  # damaged, or after one that is

    def __str__(self) -> str:
        return f"{self.turns} of {self.of} turns"
