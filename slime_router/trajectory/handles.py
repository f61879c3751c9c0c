"""The ids of tool calls by which a reply names its turn, and nobody else's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slime_router.trajectory.turn import Turn


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
