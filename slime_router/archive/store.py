"""The trajectory store of one router among several: the part of an archive that it has in memory.

What is asked for is fetched before (`slime_router.archive.fetching`), and all that happens here is
written there. What is over the budget leaves the memory alone, whole homes at a time, the least
recently used first; never one that a request uses, nor one whose changes are not written yet.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from secrets import token_hex
from typing import Unpack

from slime_router.archive.home import Home, before, put_of, size_of
from slime_router.archive.homes import home_of, home_of_session, in_words, session_of
from slime_router.archive.port import NOTHING_SEEN, Cursor, Kept, News
from slime_router.archive.sessions import ArchivedSessions
from slime_router.errors import NotFound
from slime_router.journal.codec import Damaged, SessionState
from slime_router.journal.database import MarkUndelivered, as_text
from slime_router.journal.tap import Sink, Tap
from slime_router.trajectory.session import Session, SessionSpec
from slime_router.trajectory.store import MAX_SESSIONS, TrajectoryStore
from slime_router.trajectory.turn import Marks, Turn
from slime_router.types import VersionSpan
from slime_router.values import replace

logger = logging.getLogger(__name__)

LOOKED_AT = 64  # homes at most, to find one that may leave the memory

EpochOf = Callable[[Iterable[VersionSpan]], int]


class ArchivedStore(TrajectoryStore):
    """Turns and sessions of an archive, as far as this router needed them lately.

    `max_bytes` bounds what is in memory, beside the budget in tokens.
    """

    sessions: ArchivedSessions

    def __init__(
        self,
        sink: Sink,
        budget_tokens: int,
        *,
        max_bytes: int | None = None,
        max_sessions: int = MAX_SESSIONS,
        owners: Collection[str] = (),
    ) -> None:
        super().__init__(budget_tokens, max_sessions=max_sessions, owners=owners)
        self._sink = sink
        self._tap = Tap(sink)
        self.sessions = ArchivedSessions(self._tap, max_sessions, owners, self._changed)
        self._homes: OrderedDict[str, Home] = OrderedDict()
        self._home_of: dict[str, str] = {}
        self._max_bytes = max_bytes
        self._bytes = 0
        self.number = 0  # of this router: no other gives the same numbers to turns
        self.evicted_turns = 0  # from the memory alone
        self.fetched_turns = 0
        self.rewritten_turns = 0  # as the archive had lost them
        self.skipped_turns = 0  # damaged, or after one that is

    def __repr__(self) -> str:
        return f"<ArchivedStore {len(self)} turns of {len(self._homes)} homes in memory>"

    @property
    def held_bytes(self) -> int:
        """What is in memory of turns, about."""
        return self._bytes

    def check_room(self) -> None:
        """There is always room: what is in the archive can leave the memory."""

    # What happens here is written there

    @property
    def next_seq(self) -> int:
        """After all that is known, and of nobody else: a Lamport clock with the router's number."""
        return ((self._seq >> 16) + 1) << 16 | self.number

    def _check_open(self, session: Session) -> None:
        """A turn of a session that was closed meanwhile is kept anyway."""

    def number_after(self, seq: int) -> None:
        """Turns get numbers after this one."""
        self._seq = max(self._seq, seq)

    def add(self, turn: Turn) -> Turn:
        """See `TrajectoryStore.add`; a session closed in the meantime takes the turn too."""
        turn = super().add(turn)
        session = self._session_of(turn)
        if session is not None and not self.sessions.has_written(session):
            self.sessions.write(session)  # others list it
        self._write(turn)
        self._evict()
        return turn

    def _file(self, turn: Turn, session: Session | None) -> None:
        super()._file(turn, session)
        name = self._home_of.get(turn.id) or home_of(turn, self._home_of.__getitem__)
        self._home_of[turn.id] = name
        home = self._touched(name)
        home.turns[turn.id] = None
        size = size_of(turn)
        home.bytes += size
        self._bytes += size

    def _write(self, turn: Turn, *, is_change: bool = False) -> None:
        name = self._home_of[turn.id]
        session = self._session_of(turn)
        needed = partial(before, turn, name, session, self._turns, self._undelivered)
        self._tap.put(lambda: put_of(turn, name, is_change=is_change, needed=needed))
        self._changed(name)

    def _changed(self, name: str) -> None:
        if not self._tap.is_shut:
            self._touched(name).changed = self._sink.position

    def mark_undelivered(self, turn_id: str) -> None:
        """See `TrajectoryStore.mark_undelivered`."""
        super().mark_undelivered(turn_id)
        turn = self.get(turn_id)
        if turn is not None:
            name = self._home_of[turn_id]
            self._tap.put(partial(MarkUndelivered, turn.seq, turn_id, name))
            self._changed(name)

    def mark(self, turn_id: str, **marks: Unpack[Marks]) -> Turn:
        """See `TrajectoryStore.mark`."""
        before = size_of(self._turns[turn_id])
        turn = super().mark(turn_id, **marks)
        more = size_of(turn) - before
        self._homes[self._home_of[turn_id]].bytes += more
        self._bytes += more
        self._write(turn, is_change=True)
        return turn

    def open_session(self, spec: SessionSpec, *, at: float | None = None) -> Session:
        """See `TrajectoryStore.open_session`; a random word tells this opening from others."""
        return self.sessions.open(spec, age=self._age, at=at, opener=token_hex(8))

    def mark_exported(self, session_id: str) -> None:
        """See `TrajectoryStore.mark_exported`."""
        session = self.sessions.find(session_id)
        was_exported = session is None or session.was_exported
        super().mark_exported(session_id)
        is_news = session is not None and session.was_exported and not was_exported
        if session is not None and is_news and not self._tap.is_shut:
            self.sessions.write(session)

    def delete_session(self, session_id: str) -> None:
        """See `TrajectoryStore.delete_session`."""
        super().delete_session(session_id)
        self._changed(home_of_session(session_id))
        self._write_turns(self._touched(home_of_session(session_id)))  # those that others build on

    # What is in memory

    def cursor(self, name: str) -> Cursor:
        """How much of a home's past is in memory."""
        home = self._homes.get(name)
        return NOTHING_SEEN if home is None else home.cursor

    def homes_named(self, name: bytes) -> set[str]:
        """The homes in memory of turns with this name."""
        kind, rest = name[:1], name[1:]
        if kind == b"k":
            found = self._conversations.turns(rest)
        else:
            scope, _, text = as_text(rest).rpartition("\0")
            found = [(self._handles.find(scope, text) or "") if kind == b"h" else text]
        return {self._home_of[each] for each in found if each in self._home_of}

    def hold(self, name: str) -> None:
        """A request needs a home: it stays in memory until it is let go."""
        self._touched(name).users += 1

    def let_go(self, name: str) -> None:
        """A request needs it no more."""
        self._homes[name].users -= 1
        self._evict()

    def sweep(self, max_age: int) -> Iterator[int]:
        """See `TrajectoryStore.sweep`. For memory alone: the archive has its own rule."""
        self._age += 1
        oldest = self._age - max_age
        for name, home in tuple(self._homes.items()):
            if home.age < oldest and self._may_leave(home) and self._homes.get(name) is home:
                count = len(home.turns)
                self._leave(name)
                self.expired_turns += count
                yield count

    def drop_older(self, _: int) -> Iterator[int]:
        """Nothing: what old weights sampled stays in the archive."""
        return iter(())

    def _touched(self, name: str) -> Home:
        home = self._homes.get(name)
        if home is None:
            home = self._homes[name] = Home()
        home.age = self._age
        self._homes.move_to_end(name)
        return home

    def _used(self, turn_id: str | None) -> Turn | None:
        if turn_id is not None:
            self._touched(self._home_of[turn_id])
        return super()._used(turn_id)

    def _release(self, turn: Turn, *, last_used: int | None = None) -> None:
        """Single turns do not wait to be dropped: whole homes do."""

    def _enforce_budget(self) -> bool:
        """Drop nothing: `_evict` does, once a change is written."""
        return False

    def _is_over(self) -> bool:
        is_over = self._max_bytes is not None and self._bytes > self._max_bytes
        return is_over or self._tokens > self._budget_tokens

    def _may_leave(self, home: Home) -> bool:
        return not home.users and self._sink.has_written(home.changed)

    def _evict(self) -> None:
        for _ in range(min(LOOKED_AT, len(self._homes) - 1)):  # the last one is in use
            if not self._is_over():
                return
            name, home = next(iter(self._homes.items()))
            if self._may_leave(home):
                self._leave(name)
            else:
                self._homes.move_to_end(name)

    def _leave(self, name: str) -> None:
        """A home leaves the memory; what it holds is in the archive."""
        home = self._homes[name]
        session_id = session_of(name)
        session = None if session_id is None else self.sessions.find(session_id)
        with self._tap.shut():
            if session is not None:
                if session.is_pinned:
                    self._pinned_tokens -= session.held_tokens
                self.sessions.leave(session)
            for turn_id in sorted(home.turns, key=lambda each: -self._turns[each].seq):
                turn = self._turns[turn_id]
                self._remove(turn)
                self.evicted_turns += 1
                if session_id is None:
                    self.sessions.lose(None, turn)
        del self._homes[name]

    def _remove(self, turn: Turn) -> None:
        super()._remove(turn)
        home = self._homes[self._home_of.pop(turn.id)]
        del home.turns[turn.id]
        size = size_of(turn)
        home.bytes -= size
        self._bytes -= size

    # What comes from the archive

    def absorb(self, news: News, since: Cursor, epoch_of: EpochOf) -> bool:
        """Take over what happened elsewhere; False where `since` is no longer where this is."""
        home = self._touched(news.home)
        if home.cursor != since:
            return False
        is_settled = self._sink.has_written(home.changed)
        if news.is_deleted and not is_settled:  # it may be the one before that is opened here now
            return True
        session_id = session_of(news.home)
        with self._tap.shut():
            if news.is_deleted and session_id is not None:
                self._absorb_deletion(session_id, news.state)
                home.knows_opener = False
            if news.state is not None:
                self._absorb_state(news.state, home, is_settled=is_settled)
            for kept in news.turns:
                self._absorb_turn(kept, news.home, epoch_of)
        if news.is_gone and not is_settled:
            return True  # the next look says so again
        home.cursor = news.cursor
        if news.lost:
            self._note_lost(news.lost, news.home)
        if news.is_gone:
            self._write_again(home, news.home)
        return True

    def _note_lost(self, count: int, name: str) -> None:
        """The archive names turns that it has lost: nobody who asks here sees them."""
        self.skipped_turns += count
        if (session := self.sessions.find(session_of(name) or "")) is not None:
            session.had_lost(max(count - session.dropped_turns, 0), 0)
        logger.error("the store has lost %d turns of %s", count, in_words(name))

    def _write_again(self, home: Home, name: str) -> None:
        """The archive has lost a home; it gets back what is here."""
        if (session := self.sessions.find(session_of(name) or "")) is not None:
            self.sessions.write(session)
        self._write_turns(home)
        self.rewritten_turns += (count := len(home.turns))
        logger.warning("the store had lost %s: %d turns written again", in_words(name), count)

    def _write_turns(self, home: Home) -> None:
        """All turns of a home, each after its base."""
        for turn in sorted(map(self._turns.__getitem__, home.turns), key=lambda turn: turn.seq):
            self._write(turn)
            if turn.id in self._undelivered:
                self.mark_undelivered(turn.id)

    def _absorb_deletion(self, session_id: str, state: SessionState | None) -> None:
        session = self.sessions.find(session_id)
        if session is None:
            self.sessions.remember_deleted(session_id)
        elif state is None or state.opener != session.opener:
            super().delete_session(session_id)

    def _absorb_state(self, state: SessionState, home: Home, *, is_settled: bool) -> None:
        session = self.sessions.find(state.spec.id)
        if session is None and state.was_opened:
            session = self.sessions.open(state.spec, age=self._age, opener=state.opener)
        elif session is None:
            try:
                session = self.sessions.name(state.spec.id)
            except NotFound:
                return
            self.sessions.write(session)
        elif state.was_opened and not session.was_opened:
            self._pinned_tokens += session.held_tokens
            self.sessions.opened_elsewhere(session, state.spec, state.opener)
        elif state.was_opened and state.opener != session.opener and not home.knows_opener:
            session.opened_elsewhere(state.spec, state.opener)  # both did, and it came first
        home.knows_opener = home.knows_opener or state.was_opened
        if state.started is not None:
            session.was_active(state.started)
        session.had_lost(
            max(state.dropped_turns - session.dropped_turns, 0),
            max(state.dropped_tokens - session.dropped_tokens, 0),
        )
        if state.reward is not None and is_settled and state.reward != session.reward:
            self.sessions.rewarded_elsewhere(session, state.reward)
        if state.is_closed:
            super().freeze(session)
        if state.was_exported:
            self.mark_exported(session.id)

    def _absorb_turn(self, kept: Kept, home: str, epoch_of: EpochOf) -> None:
        if kept.id not in self and kept.data is not None:
            try:
                turn = kept.turn()
                turn = replace(turn, seq=kept.seq, epoch=epoch_of(turn.weight_versions))
                turn.check(None if turn.base is None else self._turns[turn.base])
                session = None if turn.session_id is None else self.sessions.name(turn.session_id)
            except NotFound:  # its session was deleted
                return
            except (Damaged, KeyError, ValueError) as exc:
                self.skipped_turns += 1
                logger.error("turn %s of the archive cannot be used: %s", kept.id, exc)
                return
            self._seq = max(self._seq, turn.seq)
            self._home_of[turn.id] = home  # also where its session was deleted since
            self._file(turn, session)
            self.fetched_turns += 1
        elif kept.data is not None:  # a trainer's marks changed
            with suppress(Damaged):
                turn = kept.turn()
                self.mark(kept.id, reward=turn.reward, tags=turn.tags, scores=turn.scores)
        if kept.is_undelivered and kept.id in self:
            self._undelivered.add(kept.id)

    def _check_waiting(self, *_: set[str]) -> None:
        super()._check_waiting(set(), set())
        homes: dict[str, dict[str, None]] = {name: {} for name in self._homes}
        for turn_id, name in self._home_of.items():
            homes[name][turn_id] = None
        assert self._home_of.keys() == self._turns.keys(), "a turn has no home"
        assert {n: h.turns.keys() for n, h in self._homes.items()} == {
            name: turns.keys() for name, turns in homes.items()
        }, "homes are wrong"
        assert self._bytes == sum(map(size_of, self._turns.values())), "bytes are miscounted"
