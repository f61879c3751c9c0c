"""The sessions of a router: those in memory, and what counts of the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice

from slime_router.archive.homes import home_of_session
from slime_router.auth.caller import owner_of, shown
from slime_router.journal.codec import SessionState, packed_opening, packed_session
from slime_router.journal.database import Drop, Put
from slime_router.journal.tap import Tap
from slime_router.trajectory.session import Reward, Session, SessionSpec
from slime_router.trajectory.session_table import SessionTable


@dataclass(frozen=True, slots=True)
class _Away:
    rollout: tuple[str, str]  # its owner, and the name
    was_opened: bool


class ArchivedSessions(SessionTable):
    """The sessions by id; each change is written down, but for those of mere names.

    `on_write` hears the name of the home whose session is written.
    """

    def __init__(
        self,
        tap: Tap,
        max_sessions: int,
        owners: Collection[str],
        on_write: Callable[[str], None],
    ) -> None:
        super().__init__(max_sessions, owners)
        self._tap = tap
        self._on_write = on_write
        self._written: set[str] = set()
        # Of those that are not in memory: their places, and what counts of them.
        self._numbers_of: dict[str, tuple[int, int]] = {}
        self._away: dict[str, _Away] = {}
        self._rewarded_away: dict[tuple[str, str], dict[str, None]] = {}  # by owner and rollout

    # What happens here is written there

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
        """Write a session down as it is now."""
        state = SessionState.of(session)
        self._written.add(session.id)
        self._tap.put(lambda: Put("sessions", state.spec.id, packed_session(state)))
        self._on_write(home_of_session(session.id))

    def has_written(self, session: Session) -> bool:
        """Whether the archive knows more of it than its turns say."""
        return session.id in self._written

    def remember_deleted(self, session_id: str) -> None:
        """Remember a session that was deleted elsewhere, or before a restart."""
        self._deleted[session_id] = None
        self._numbers_of.pop(session_id, None)
        self.note_away(session_id, None)

    def _check_room(self, owner: str) -> None:
        if not self._tap.is_shut:  # what was let in once stays, whatever the limits are now
            super()._check_room(owner)

    def check_bytes(self, owner: str, more: int) -> None:
        """See `SessionTable.check_bytes`; what was admitted once stays."""
        if not self._tap.is_shut:
            super().check_bytes(owner, more)

    # What is not in memory

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
            rewarded = self._rewarded_away.get(away.rollout, {})
            rewarded.pop(name, None)
            if not rewarded:
                self._rewarded_away.pop(away.rollout, None)
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

    def _add(self, session: Session) -> None:
        super()._add(session)
        self.note_away(session.id, None)

    def _numbers(self, spec: SessionSpec) -> tuple[int, int]:
        known = self._numbers_of.pop(spec.id, None)
        return super()._numbers(spec) if known is None else known
