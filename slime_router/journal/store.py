"""The trajectory store with a journal: whatever changes in it is written down, in that order.

What the journal holds is what the store holds: a turn that is dropped here is dropped there. Nobody
who uses a store can tell which one it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Protocol, Unpack

from slime_router.journal.codec import (
    SessionState,
    packed_opening,
    packed_session,
    packed_turn,
)
from slime_router.journal.database import Drop, DropTurn, Made, MarkUndelivered, Put, PutTurn
from slime_router.trajectory.session import Reward, Session, SessionSpec
from slime_router.trajectory.session_table import SessionTable
from slime_router.trajectory.store import MAX_SESSIONS, TrajectoryStore
from slime_router.trajectory.turn import Marks, Turn

NO_OPENINGS: Mapping[str, float] = MappingProxyType({})


class Sink(Protocol):
    """Takes changes in order; `slime_router.journal.writer` does."""

    def put(self, made: Made) -> None:
        """Write this change after those that were put before."""


class Tap:
    """Shut while the store is made as it was: that is written already."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.is_shut = False

    def put(self, made: Made) -> None:
        """Passes a change on."""
        if not self.is_shut:
            self._sink.put(made)

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Nothing passes during the block."""
        self.is_shut = True
        try:
            yield
        finally:
            self.is_shut = False


class JournaledSessions(SessionTable):
    """The sessions by id; each change is written down, but for those of mere names."""

    def __init__(self, tap: Tap, max_sessions: int, owners: Collection[str] = ()) -> None:
        super().__init__(max_sessions, owners)
        self._tap = tap
        self._written: set[str] = set()

    def open(
        self, spec: SessionSpec, *, age: int = 0, at: float | None = None, opener: str = ""
    ) -> Session:
        """See `SessionTable.open`."""
        session = super().open(spec, age=age, at=at, opener=opener)
        self.write(session)
        if at is not None:
            self._tap.put(lambda: Put("openings", spec.id, packed_opening(at)))
        return session

    def mark_closed(self, session: Session, age: int) -> None:
        """See `SessionTable.mark_closed`."""
        super().mark_closed(session, age)
        self.write(session)

    def set_reward(self, session_id: str, reward: Reward) -> Session:
        """See `SessionTable.set_reward`."""
        session = super().set_reward(session_id, reward)
        self.write(session)
        return session

    def forget(self, session: Session, *, is_deleted: bool) -> None:
        """See `SessionTable.forget`."""
        was_current = self.is_current(session)
        super().forget(session, is_deleted=is_deleted)
        if was_current and (is_deleted or session.id in self._written):
            self._written.discard(session.id)
            self._tap.put(partial(Drop, "sessions", session.id, is_deleted))
            self._tap.put(partial(Drop, "openings", session.id))

    def write(self, session: Session) -> None:
        """A session is as it is now."""
        state = SessionState.of(session)
        self._written.add(session.id)
        self._tap.put(lambda: Put("sessions", state.spec.id, packed_session(state)))

    def has_written(self, session: Session) -> bool:
        """Whether the journal knows more of it than its turns say."""
        return session.id in self._written

    def remember_deleted(self, session_id: str) -> None:
        """Remember a session that was deleted before the restart."""
        self._deleted[session_id] = None

    def _check_room(self, owner: str) -> None:
        if not self._tap.is_shut:  # what was let in once stays, whatever the limits are now
            super()._check_room(owner)

    def check_bytes(self, owner: str, more: int) -> None:
        """See `SessionTable.check_bytes`; what was admitted once stays."""
        if not self._tap.is_shut:
            super().check_bytes(owner, more)


class JournaledStore(TrajectoryStore):
    """Every recorded turn, written down, and brought back after a restart."""

    def __init__(
        self,
        sink: Sink,
        budget_tokens: int,
        *,
        max_sessions: int = MAX_SESSIONS,
        owners: Collection[str] = (),
    ) -> None:
        super().__init__(budget_tokens, max_sessions=max_sessions, owners=owners)
        self._sink = sink
        self._tap = Tap(sink)
        self.sessions = self._written = JournaledSessions(self._tap, max_sessions, owners)

    def add(self, turn: Turn) -> Turn:
        """See `TrajectoryStore.add`."""
        turn = super().add(turn)
        if turn.id in self:
            self._write(turn)
        return turn

    def mark(self, turn_id: str, **marks: Unpack[Marks]) -> Turn:
        """See `TrajectoryStore.mark`."""
        turn = super().mark(turn_id, **marks)
        self._write(turn)
        return turn

    def mark_undelivered(self, turn_id: str) -> None:
        """See `TrajectoryStore.mark_undelivered`."""
        super().mark_undelivered(turn_id)
        turn = self.get(turn_id)
        if turn is not None:
            self._tap.put(partial(MarkUndelivered, turn.seq))

    def mark_exported(self, session_id: str) -> None:
        """See `TrajectoryStore.mark_exported`."""
        session = self.sessions.find(session_id)
        was_exported = session is None or session.was_exported
        super().mark_exported(session_id)
        if session is not None and session.was_exported and not was_exported:
            self._written.write(session)

    def delete_session(self, session_id: str) -> None:
        """See `TrajectoryStore.delete_session`."""
        turns = tuple(self.sessions.get(session_id).turns)
        super().delete_session(session_id)
        for turn_id in turns:  # those that others build on stay, without a session
            turn = self.get(turn_id)
            if turn is not None:
                self._write(turn)

    def _drop(self, turn: Turn) -> None:
        session = self._session_of(turn)
        super()._drop(turn)
        if session is not None and self._written.has_written(session):
            self._written.write(session)

    def _remove(self, turn: Turn) -> None:
        super()._remove(turn)
        self._sink.put(partial(DropTurn, turn.seq))  # even if it is dropped while it comes back

    def _write(self, turn: Turn) -> None:
        self._tap.put(lambda: PutTurn(turn.seq, turn.id, turn.session_id, packed_turn(turn)))

    # After a restart: sessions, then turns, then what happened to the sessions

    def bring_back_sessions(
        self,
        states: Iterable[SessionState],
        deleted: Iterable[str] = (),
        openings: Mapping[str, float] = NO_OPENINGS,
    ) -> None:
        """The sessions as they were opened, and when, and the names of those that were deleted."""
        with self._tap.shut():
            for name in deleted:
                self._written.remember_deleted(name)
            for state in states:
                if state.was_opened:
                    self.sessions.open(state.spec, at=openings.get(state.spec.id))
                else:  # it was only rewarded
                    self._written.write(self.sessions.name(state.spec.id))

    def bring_back(self, turn: Turn, *, is_undelivered: bool) -> bool:
        """A turn under its own number, the older ones first; False where its base is not here."""
        if turn.base is not None and turn.base not in self:
            return False
        with self._tap.shut():
            self.number_after(turn.seq - 1)
            self.add(turn)
            if is_undelivered:
                self.mark_undelivered(turn.id)
        return True

    def number_after(self, seq: int) -> None:
        """The next turn gets the number after this one."""
        self._seq = seq

    def bring_back_ends(self, states: Iterable[SessionState]) -> None:
        """What happened to the sessions: lost turns, a reward, their close, their export."""
        with self._tap.shut():
            for state in states:
                session = self.sessions.get(state.spec.id)
                session.had_lost(state.dropped_turns, state.dropped_tokens)
                if state.reward is not None:
                    self.sessions.set_reward(session.id, state.reward)
                if state.is_closed:
                    self.freeze(session)
                if state.was_exported:
                    self.mark_exported(session.id)
