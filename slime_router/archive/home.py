"""What a router has in memory of a home, and of the sessions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from numpy.typing import NDArray

from slime_router.archive.homes import home_of_session, names_of
from slime_router.archive.port import NOTHING_SEEN, Cursor
from slime_router.auth.owners import owner_of, shown
from slime_router.journal.codec import SessionState, packed_session, packed_turn
from slime_router.journal.database import Change, MarkUndelivered, Put, PutTurn
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


@dataclass(frozen=True, slots=True)
class _Away:
    rollout: tuple[str, str]  # its owner, and the name
    was_opened: bool


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
        # Of those that are not in memory: their places, and what counts of them.
        self._numbers_of: dict[str, tuple[int, int]] = {}
        self._away: dict[str, _Away] = {}
        self._rewarded_away: dict[tuple[str, str], dict[str, None]] = {}  # by owner and rollout

    def leave(self, session: Session) -> None:
        """Drop a session from memory; it keeps its place among the others."""
        self._numbers_of[session.id] = session.number, session.own_number
        state = SessionState.of(session)
        self.forget(session, is_deleted=False)
        self.note_away(session.id, state)

    def note_away(self, name: str, state: SessionState | None) -> None:
        """Count a session that is not in memory; a `state` of None means that it is gone."""
        away = self._away.pop(name, None)
        if away is not None:
            self._rewarded_away.get(away.rollout, {}).pop(name, None)
            if not self._rewarded_away.get(away.rollout, {"": None}):
                del self._rewarded_away[away.rollout]
            if away.was_opened:
                self._opened.give_back(away.rollout[0])
        if state is None or self.find(name) is not None:
            return
        rollout = owner_of(name), state.spec.rollout_id or shown(name)
        if state.was_opened:
            self._opened.take(rollout[0])
        if state.reward is not None:
            self._rewarded_away.setdefault(rollout, {})[name] = None
        if state.was_opened or state.reward is not None:
            self._away[name] = _Away(rollout, state.was_opened)

    def rewarded_away(self, session: Session) -> list[str]:
        """List sessions of its rollout that are not in memory and have a reward: two at most.

        All of them have the same one.
        """
        return list(islice(self._rewarded_away.get((session.owner, session.rollout_id), ()), 2))

    def number_in_order(self, names: Iterable[str]) -> None:
        """Give the sessions that are not in memory the next places, in this order."""
        for name in names:
            if self.find(name) is None and name not in self._numbers_of:
                self._numbers_of[name] = super()._numbers(SessionSpec(id=name))

    def remember_deleted(self, session_id: str) -> None:
        """See `JournaledSessions.remember_deleted`."""
        super().remember_deleted(session_id)
        self._numbers_of.pop(session_id, None)
        self.note_away(session_id, None)

    def _add(self, session: Session) -> None:
        super()._add(session)
        self.note_away(session.id, None)

    def _numbers(self, spec: SessionSpec) -> tuple[int, int]:
        known = self._numbers_of.pop(spec.id, None)
        return super()._numbers(spec) if known is None else known

    def write(self, session: Session) -> None:
        """See `JournaledSessions.write`."""
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


def put_of(
    turn: Turn,
    home: str,
    *,
    is_change: bool = False,
    needed: Callable[[], Iterable[Change]] = tuple,
) -> PutTurn:
    """A turn, as it is written."""
    return PutTurn(
        turn.seq,
        turn.id,
        turn.session_id,
        packed_turn(turn),
        home,
        names_of(turn),
        is_change,
        turn.base,
        needed,
    )


def before(
    turn: Turn,
    home: str,
    session: Session | None,
    turns: Mapping[str, Turn],
    undelivered: Container[str],
) -> Iterator[Change]:
    """The session of a turn, and the turns that it continues, the oldest first.

    The writer's thread asks for it. All of it is in memory then: a home with changes that are not
    written does not leave it.
    """
    if session is not None:
        yield Put("sessions", session.id, packed_session(SessionState.of(session)))
    line: list[Turn] = []
    base = turn.base
    while base is not None and (held := turns.get(base)) is not None:
        line.append(held)
        base = held.base
    for held in reversed(line):
        yield put_of(held, home)
        if held.id in undelivered:
            yield MarkUndelivered(held.seq, held.id, home)
