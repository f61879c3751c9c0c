"""What a router has in memory of a home, and of the sessions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from slime_router.archive.homes import home_of_session
from slime_router.archive.port import NOTHING_SEEN, Cursor
from slime_router.journal.store import JournaledSessions, Tap
from slime_router.trajectory.measures.scores import nbytes
from slime_router.trajectory.session import Session, SessionSpec
from slime_router.trajectory.turn import Turn

OVERHEAD = (
    5_000  # bytes of a turn beside its arrays, about: measured by `benchmarks.bounded_memory`
)


@dataclass(slots=True)
class Home:
    """What is in memory of a home."""

    cursor: Cursor = NOTHING_SEEN
    turns: dict[str, None] = field(default_factory=dict)
    bytes: int = 0
    users: int = 0  # requests that need it
    changed: int = 0  # the position of its last change in the sink
    age: int = 0
    knows_opener: bool = False  # from the archive: a session that was opened stays so


class ArchivedSessions(JournaledSessions):
    """Says which session is written."""

    def __init__(
        self,
        tap: Tap,
        max_sessions: int,
        owners: Collection[str],
        on_write: Callable[[str], None],
    ) -> None:
        super().__init__(tap, max_sessions, owners)
        self._on_write = on_write
        self._numbers_of: dict[str, tuple[int, int]] = {}  # of those that are not in memory

    def leave(self, session: Session) -> None:
        """It leaves the memory, and keeps its place among the others."""
        self._numbers_of[session.id] = session.number, session.own_number
        self.forget(session, is_deleted=False)

    def number_in_order(self, names: Iterable[str]) -> None:
        """Those that are not in memory get the next places, in this order."""
        for name in names:
            if self.find(name) is None and name not in self._numbers_of:
                self._numbers_of[name] = super()._numbers(SessionSpec(id=name))

    def remember_deleted(self, session_id: str) -> None:
        """As `JournaledSessions.remember_deleted`."""
        super().remember_deleted(session_id)
        self._numbers_of.pop(session_id, None)

    def _numbers(self, spec: SessionSpec) -> tuple[int, int]:
        known = self._numbers_of.pop(spec.id, None)
        return super()._numbers(spec) if known is None else known

    def write(self, session: Session) -> None:
        """As `JournaledSessions.write`."""
        super().write(session)
        self._on_write(home_of_session(session.id))


def size_of(turn: Turn) -> int:
    """The bytes that a turn takes, about."""
    arrays: list[NDArray[Any] | None] = [turn.prompt_ids, turn.output_ids, turn.logprobs]
    arrays += [each.ids for each in (turn.routed_experts, turn.indexer_topk) if each is not None]
    if (tops := turn.top_logprobs) is not None:
        arrays += [tops.offsets, tops.ids, tops.logprobs]
    if (masks := turn.distribution) is not None:
        arrays += [masks.offsets, masks.ids, masks.logprobs]
    own = sum(each.nbytes for each in arrays if each is not None)
    return OVERHEAD + own + nbytes(turn.scores)
