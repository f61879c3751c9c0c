"""Turns by what was said: the key of a conversation leads to the turns that recorded it.

Turns whose replies are spelled in a way that their keys do not tell (white space that agents add or
drop) are found by that spelling first. Every look-up costs the same, however many turns read alike.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from slime_router.trajectory.turn import ByNumber, Turn, put_by_number

_OTHERS = b"~"  # turns of all other spellings

Name = tuple[bytes, str | None]  # a key, with or without its spelling; a session


class Conversations:
    """The turns of each conversation, oldest first, in all sessions and in each."""

    def __init__(self) -> None:
        self._turns: dict[Name, ByNumber] = {}

    def file(self, turn: Turn) -> None:
        """Make a turn known under its keys."""
        for name in self._names(turn):
            put_by_number(self._turns.setdefault(name, {}), turn.id, turn.seq)

    def unfile(self, turn: Turn) -> None:
        """Forget a turn."""
        for name in self._names(turn):
            self._take(name, turn.id)

    def leave_session(self, turn: Turn) -> None:
        """Forget that the turn belongs to its session."""
        for name in self._names(turn):
            if name[1] is not None:
                self._take(name, turn.id)

    def find(
        self, key: bytes, session_id: str | None, taken: Container[str], spelling: bytes
    ) -> str | None:
        """The newest turn of a conversation; those that are `taken` only where there is no other.

        Of those spelled as `spelling` says, where there are any.
        """
        names = (key + spelling, key, key + _OTHERS)
        found = next((turns for name in names if (turns := self._of(name, session_id))), None)
        if found is None:
            return None
        return next((turn for turn in reversed(found) if turn not in taken), next(reversed(found)))

    def count(self, key: bytes, session_id: str | None) -> int:
        """How many turns there are of a conversation, in all spellings."""
        return sum(len(self._of(name, session_id)) for name in (key, key + _OTHERS))

    def turns(self, key: bytes) -> list[str]:
        """All turns of a conversation, in all spellings."""
        return [turn_id for name in (key, key + _OTHERS) for turn_id in self._of(name, None)]

    def check_integrity(self, turns: Mapping[str, Turn]) -> None:
        """Recount.

        Raises:
            AssertionError: what is broken.
        """
        expected: dict[Name, ByNumber] = {}
        for turn in turns.values():
            for name in self._names(turn):
                expected.setdefault(name, {})[turn.id] = turn.seq
        assert self._turns == expected, "turns are not found by their conversations"
        for found in self._turns.values():
            assert list(found.values()) == sorted(found.values()), "turns are out of order"

    def _of(self, name: bytes, session_id: str | None) -> ByNumber:
        return self._turns.get((name, session_id), {})

    def _take(self, name: Name, turn_id: str) -> None:
        turns = self._turns.get(name, {})
        turns.pop(turn_id, None)
        if not turns:
            self._turns.pop(name, None)

    @staticmethod
    def _names(turn: Turn) -> Iterator[Name]:
        for key in turn.keys:
            for name in (key + turn.spelling, key + _OTHERS) if turn.spelling else (key,):
                yield name, None
                if turn.session_id is not None:
                    yield name, turn.session_id
