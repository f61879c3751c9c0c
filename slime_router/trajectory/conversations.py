"""Turns by what was said: the key of a conversation leads to the turns that recorded it.

Turns whose replies are spelled in a way that their keys do not tell (white space that agents add or
drop) are found by that spelling first. Every look-up costs the same, however many turns read alike.
Beside them are the handles: the ids of tool calls by which a reply names its turn, and nobody
else's.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence

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


class Handles:
    """Turns by scope and handle; of several with the same the newest."""

    def __init__(self) -> None:
        self._turn_ids: dict[tuple[str, str], str] = {}

    def file(self, turn: Turn) -> None:
        """Make a turn known by its handles."""
        for handle in turn.handles:
            self._turn_ids[turn.scope, handle] = turn.id

    def unfile(self, turn: Turn) -> None:
        """Forget a turn."""
        for handle in turn.handles:
            if self._turn_ids.get((turn.scope, handle)) == turn.id:
                del self._turn_ids[turn.scope, handle]

    def find(self, scope: str, handle: str) -> str | None:
        """The id of the turn with this handle."""
        return self._turn_ids.get((scope, handle))

    def ids(
        self,
        handles: Sequence[str],
        turns: Mapping[str, Turn],
        session_id: str | None,
        scope: str,
    ) -> list[str | None]:
        """The id of the turn that has each handle, or has it as its id, in this scope and session.

        None where no such turn is among `turns`.
        """
        ids = self._turn_ids
        found = [turns.get(ids.get((scope, handle), handle)) for handle in handles]
        return [
            None
            if turn is None or turn.scope != scope or session_id not in (None, turn.session_id)
            else turn.id
            for turn in found
        ]

    def check_integrity(self, turns: Mapping[str, Turn]) -> None:
        """Look at each.

        Raises:
            AssertionError: what is broken.
        """
        for (scope, handle), turn_id in self._turn_ids.items():
            turn = turns[turn_id]
            assert turn.scope == scope, "a handle leads out of its scope"
            assert handle in turn.handles, "a handle leads nowhere"
