"""Which turns may be dropped, and in which order: those nothing builds on and no session keeps.

First those of no session or of one that nobody opened, then those of exported sessions; within each
the least recently used first. `age` is a number that grows; this room knows no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import takewhile


class EvictionQueue:
    """Turn ids in the order in which they go."""

    def __init__(self) -> None:
        self._idle: OrderedDict[str, int] = OrderedDict()  # with the age of their last use
        self._exported: OrderedDict[str, int] = OrderedDict()

    def __repr__(self) -> str:
        return f"<EvictionQueue {len(self._idle)} idle, {len(self._exported)} exported>"

    def __contains__(self, turn_id: object) -> bool:
        return turn_id in self._idle or turn_id in self._exported

    @property
    def idle(self) -> list[str]:
        """Those that go first, oldest first."""
        return list(self._idle)

    @property
    def exported(self) -> list[str]:
        """Those of exported sessions, oldest first."""
        return list(self._exported)

    def put(self, turn_id: str, age: int, *, is_exported: bool, is_oldest: bool = False) -> None:
        """Add a turn; as the next to go if it `is_oldest`."""
        queue = self._exported if is_exported else self._idle
        queue[turn_id] = age
        queue.move_to_end(turn_id, last=not is_oldest)

    def take(self, turn_id: str) -> int:
        """Remove a turn and return its age; 0 if it was not here."""
        return self._idle.pop(turn_id, self._exported.pop(turn_id, 0))

    def touch(self, turn_id: str, age: int) -> None:
        """A turn was used."""
        for queue in (self._idle, self._exported):
            if turn_id in queue:
                queue[turn_id] = age
                queue.move_to_end(turn_id)

    def next_to_go(self) -> str | None:
        """The one to drop under pressure. The last idle one stays: it was only just recorded."""
        queue = self._idle if len(self._idle) > 1 else self._exported
        return next(iter(queue), None)

    def older_than(self, age: int, may_go: Callable[[str], bool]) -> list[str]:
        """Those not used since `age` that may go; looks no further than to the first used since."""
        return [
            turn_id
            for queue in (self._idle, self._exported)
            for turn_id, _ in takewhile(lambda entry: entry[1] < age, queue.items())
            if may_go(turn_id)
        ]
