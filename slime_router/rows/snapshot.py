"""Turns as they are at one moment: rows are made of them in another thread, while more come in."""

from __future__ import annotations

from collections.abc import Iterable

from slime_router.rows.forest import TurnSource
from slime_router.trajectory.held import HeldTokens
from slime_router.trajectory.turn import Trace, Turn
from slime_router.types import TokenIds

TURN_SIZE = 400  # tokens that take as long as what a turn takes besides its tokens


class Snapshot:
    """A `TurnSource` of some turns and all that they build on. Never changes.

    Taking it costs microseconds a turn: turns are values, and none is copied.
    """

    def __init__(self, source: TurnSource, turn_ids: Iterable[str]) -> None:
        """Ids that the source does not hold are skipped."""
        self._turns: dict[str, Turn] = {}
        for turn_id in turn_ids:
            turn = source.get(turn_id)
            while turn is not None and turn.id not in self._turns:
                self._turns[turn.id] = turn
                turn = None if turn.base is None else source.get(turn.base)
        self._delivered = frozenset(filter(source.is_delivered, self._turns))
        self._held = HeldTokens(self._turns)

    def __repr__(self) -> str:
        return f"<Snapshot {len(self._turns)} turns>"

    @property
    def size(self) -> int:
        """How much there is to do, in tokens."""
        return sum(turn.own_len + TURN_SIZE for turn in self._turns.values())

    def get(self, turn_id: str) -> Turn | None:
        """See `TurnSource`."""
        return self._turns.get(turn_id)

    def held_ids(self, turn_id: str, length: int | None = None) -> TokenIds:
        """See `TurnSource`."""
        return self._held.ids(turn_id, length)

    def trace(self, turn_id: str) -> Trace:
        """The held tokens of a turn with what training needs of each. KeyError: it has none."""
        return self._held.trace(turn_id)

    def is_delivered(self, turn_id: str) -> bool:
        """See `TurnSource`."""
        return turn_id in self._delivered
