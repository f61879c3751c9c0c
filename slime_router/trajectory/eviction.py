"""Which turns may be dropped, and in which order: those nothing builds on and no session keeps.

First those of no session or of one that nobody opened, then those of exported sessions; within each
the least recently used first. `age` is a number that grows; this room knows no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import TypeGuard

from slime_router.trajectory.session import Session
from slime_router.trajectory.turn import Turn


class EvictionQueue:
    """Turn ids in the order in which they go."""

    def __init__(self) -> None:
        self._idle: OrderedDict[str, int] = OrderedDict()  # with the age of their last use
        self._exported: OrderedDict[str, int] = OrderedDict()

    def __repr__(self) -> str:
        return f"<EvictionQueue {len(self._idle)} idle, {len(self._exported)} exported>"

    def __contains__(self, turn_id: object) -> bool:
        return turn_id in self._idle or turn_id in self._exported

    def is_idle(self, turn_id: str | None) -> TypeGuard[str]:
        """Whether it is one of those that go first."""
        return turn_id in self._idle

    @property
    def idle(self) -> list[str]:
        """The turns that go first, oldest first."""
        return list(self._idle)

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

    def age(self, turn_id: str) -> int:
        """When a turn that is here was last used."""
        return self._idle[turn_id] if turn_id in self._idle else self._exported[turn_id]

    def older_than(self, age: int) -> list[str]:
        """The turns not used since `age`; stops at the first that was."""
        return [
            turn_id
            for queue in (self._idle, self._exported)
            for turn_id, _ in takewhile(lambda entry: entry[1] < age, queue.items())
        ]

    def check_integrity(self, *, idle: set[str], exported: set[str]) -> None:
        """Raises AssertionError where these are not the turns that wait."""
        assert self._idle.keys() == idle, "idle turns are wrong"
        assert self._exported.keys() == exported, "turns of exported sessions are wrong"


def check_tree(
    turns: Mapping[str, Turn],
    children: Mapping[str, Mapping[str, None]],
    session_of: Callable[[Turn], Session | None],
) -> tuple[set[str], set[str]]:
    """Whether each turn has its base and its session; returns which may wait to be dropped.

    The second set are those of exported sessions.

    Raises:
        AssertionError: what is broken.
    """
    found: dict[str, dict[str, None]] = {}
    idle: set[str] = set()
    exported: set[str] = set()
    for turn in turns.values():
        if turn.base is not None:
            assert turn.base in turns, "a base was dropped under its turn"
            found.setdefault(turn.base, {})[turn.id] = None
    for turn in turns.values():
        session = session_of(turn)
        assert turn.session_id is None or (session and turn.id in session.turns)
        if turn.id not in found and not (session and session.is_pinned):
            (exported if session is not None and session.was_exported else idle).add(turn.id)
    assert found == children, "the turns that stand on others are wrong"
    return idle, exported
