"""Turn ids in the order of their sequence numbers, also where a turn comes late."""

from __future__ import annotations

from typing import TypeAlias

ByNumber: TypeAlias = dict[str, int]  # ids to numbers, the lowest first


def put_by_number(turns: ByNumber, turn_id: str, seq: int) -> None:
    """Add a turn at its place: the last one, unless it comes from another router."""
    last = next(reversed(turns.values()), seq)
    turns[turn_id] = seq
    if seq < last:
        ordered = sorted(turns.items(), key=lambda item: item[1])
        turns.clear()
        turns.update(ordered)
