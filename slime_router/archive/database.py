"""The writing side of an archive in SQLite: what was recorded, and what leaves it."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, groupby
from pathlib import Path
from typing import Literal, TypeGuard

from slime_router.archive.homes import home_of_session, session_of
from slime_router.archive.indexing import drop_turns, indexed, put_names
from slime_router.archive.merging import merged
from slime_router.choices import JournalSync
from slime_router.errors import SetupError
from slime_router.journal.closings import Closings, Leaving
from slime_router.journal.codec import (
    Damaged,
    packed_session,
    packed_turn,
    unpacked_session,
    unpacked_turn,
)
from slime_router.journal.database import (
    MAX_DELETED,
    Change,
    Database,
    Drop,
    Late,
    MarkUndelivered,
    Put,
    PutTurn,
    as_blob,
    as_text,
)
from slime_router.journal.progress import Progress
from slime_router.journal.writing import portions, writing
from slime_router.values import replace

logger = logging.getLogger(__name__)

ROUTERS = 1 << 16

_PUT_TURNS = """
INSERT INTO turns (seq, id, session, data, home, version, changed) VALUES {}
ON CONFLICT (seq) DO UPDATE SET id = excluded.id, session = excluded.session,
    data = excluded.data, home = excluded.home, version = excluded.version,
    changed = max(changed, excluded.changed)
"""
_PUT_SESSION = """
INSERT INTO sessions (id, data, version, born, is_closed) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET data = excluded.data, version = excluded.version,
    is_closed = excluded.is_closed
"""
_PUT = """
INSERT INTO {} (id, data) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET data = excluded.data
"""
_COUNT_WORKERS = """
INSERT INTO counters VALUES ('workers', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1
"""
_BEGIN = """
UPDATE counters SET value = value + 1 WHERE name = 'version'
RETURNING value, (SELECT value FROM counters WHERE name = 'idles')
"""
_KEEP_IDLES = "INSERT OR IGNORE INTO counters VALUES ('idles', 1)"
_STATES = "SELECT id, is_closed FROM sessions WHERE id IN ({})"
_TURNS = "SELECT id, 0 FROM turns WHERE id IN ({})"
_DELETED = "SELECT id, 1 FROM deleted WHERE id IN ({})"
_HAS_MORE = "SELECT 1 FROM turns WHERE home = ? LIMIT 1"


class SharedDatabase(Database):
    """The writing side of a journal, which one router has or several share."""

    def __init__(
        self,
        directory: Path,
        *,
        sync: JournalSync = "normal",
        now: Callable[[], float] = time.time,
        keeps_idles: bool = True,
    ) -> None:
        super().__init__(directory, sync=sync, is_shared=True)
        self.closings = Closings(self._sql, now, _home_of_session, _session_of)
        self._keeps_idles = keeps_idles  # as the current transaction found it
        self._log: os.stat_result | None = None  # once something was written to it
        self._has_log = True
        if keeps_idles:
            self._set_up(_KEEP_IDLES)

    def forget_idles(self) -> None:
        """From now on, nobody needs to know which homes are idle. Raises SetupError."""
        self._set_up("DELETE FROM idles", "DELETE FROM counters WHERE name = 'idles'")

    def _set_up(self, *statements: str) -> None:
        try:
            with writing(self._sql):
                for statement in statements:
                    self._sql.execute(statement)
        except sqlite3.Error as exc:
            self.close()
            raise SetupError(f"the journal {self.path.parent} cannot be written: {exc}") from exc

    def indexed(self, progress: Progress) -> Iterator[None]:
        """See `slime_router.archive.indexing`."""
        return indexed(self._sql, progress)

    def count_up(self, name: str) -> int:
        """The next number of a counter; within a transaction."""
        row = self._sql.execute(
            "UPDATE counters SET value = value + 1 WHERE name = ? RETURNING value", (name,)
        ).fetchone()
        return int(row[0])

    def new_router(self) -> int:
        """See `slime_router.archive.port`."""
        with writing(self._sql):
            return self.count_up("router") % ROUTERS

    def last_seq(self) -> int:
        """The highest number of a turn; 0 where there is none."""
        return int(self._sql.execute("SELECT coalesce(max(seq), 0) FROM turns").fetchone()[0])

    def apply(self, changes: Sequence[Change]) -> Late:
        """See `Archive.apply`."""
        self.check_place()
        late: dict[str, Literal["closed", "deleted"]] = {}
        with writing(self._sql):
            row = self._sql.execute(_BEGIN).fetchone()
            if row is None:
                raise sqlite3.DatabaseError("somebody has removed its counters: restore it")
            version, keeps_idles = row
            self._keeps_idles = bool(keeps_idles)
            for are_turns, some in groupby(changes, key=_is_turn):
                if are_turns:
                    late |= self._put_turns([each for each in some if _is_turn(each)], version)
                    continue
                for change in some:
                    self._apply(change, version)
        self._save_from_lost_log()
        return late

    def _save_from_lost_log(self) -> None:
        """Puts what was written into the file itself, where somebody has removed the log.

        SQLite goes on writing to a log that nobody will find again: until then, what is committed
        counts as not written. To make the same changes once more changes nothing.

        Raises:
            sqlite3.OperationalError: it cannot be done while somebody is reading.
        """
        if self._has_log:
            found = None
            with suppress(FileNotFoundError):
                found = os.stat(f"{self.path}-wal")
            self._log = self._log or found
            if self._log is None or (found and os.path.samestat(found, self._log)):
                return  # some file systems have none
            self._has_log = False
            logger.error(
                "the log of the journal, %s-wal, was removed: what is written goes into the file"
                " at once, which is slower; restart the router",
                self.path,
            )
        is_busy = self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if is_busy:
            raise sqlite3.OperationalError("its log was removed, and the file is being read")

    def _apply(self, change: Change, version: int) -> None:
        run = self._sql.execute
        if isinstance(change, PutTurn):
            self._put_turns([change], version)
        elif isinstance(change, MarkUndelivered):
            run(
                "UPDATE turns SET is_undelivered = 1, version = ? WHERE seq = ?",
                (version, change.seq),
            )
        elif isinstance(change, Put) and change.table == "sessions":
            self._put_session(change, version)
        elif isinstance(change, Drop) and change.table == "sessions":
            self._drop_session(change, version)
        else:
            self._put_by_name(change)
            if change.table == "workers":
                run(_COUNT_WORKERS)

    def _put_by_name(self, change: Put | Drop) -> None:
        """What is neither a turn nor a session."""
        name = as_blob(change.id)
        if isinstance(change, Put):
            self._sql.execute(_PUT.format(change.table), (name, change.data))
        else:
            self._sql.execute(f"DELETE FROM {change.table} WHERE id = ?", (name,))

    def _put_turns(self, turns: Sequence[PutTurn], version: int) -> Late:
        """Turns, with few statements; the sessions of those that are late."""
        states = self._known(_STATES, {each.session_id for each in turns})
        deleted = self._known(_DELETED, {each.session_id for each in turns} - states.keys())
        if deleted:
            turns = [each for each in turns if each.session_id not in deleted]
        bases = self._known(_TURNS, {each.base for each in turns})
        for each in turns:
            self._put_again(each, states, bases, version)
            bases[each.id] = False
        rows = [_row(each, version) for each in turns]
        for some in portions(rows):
            marks = ",".join(["(?,?,?,?,?,?,?)"] * len(some))
            self._sql.execute(_PUT_TURNS.format(marks), list(chain(*some)))
        put_names(self._sql, [(each.names, each.seq) for each in turns])
        if self._keeps_idles:
            self._note_use(turns)
        late: dict[str, Literal["closed", "deleted"]] = {
            each.session_id: "closed"
            for each in turns
            if each.session_id and not each.is_change and states.get(each.session_id)
        }
        return late | dict.fromkeys(deleted, "deleted") if deleted else late

    def _put_again(
        self, change: PutTurn, states: dict[str, bool], bases: dict[str, bool], version: int
    ) -> None:
        """What a turn needs and retention has dropped meanwhile."""
        session, base = change.session_id, change.base
        if (session is None or session in states) and (base is None or base in bases):
            return
        for each in change.needed():
            of = each.session_id if isinstance(each, PutTurn) else None
            of = each.id if isinstance(each, Put) else of
            if not self._known(_DELETED, {of}):
                self._apply(each, version)
            elif isinstance(each, PutTurn):  # as those that others build on stay
                self._apply(_without_session(each), version)
        states |= self._known(_STATES, {session})
        bases |= self._known(_TURNS, {base})

    def _note_use(self, turns: Sequence[PutTurn]) -> None:
        """Note that the homes of these turns were used."""
        alone = {each.home: session_of(each.home) for each in turns if each.session_id is None}
        known = self._known(_STATES, set(alone.values()))
        # Nobody can ever export turns of no session.
        lasting = {home for home, of in alone.items() if of is None or of not in known}
        used = {each.home for each in turns} - lasting
        self.closings.put_idles(map(as_blob, sorted(lasting)), is_exported=True)
        self.closings.touch_idles(map(as_blob, sorted(used)))

    def _known(self, query: str, names: set[str | None]) -> dict[str, bool]:
        """What the query says of those of these that are there."""
        found: dict[str, bool] = {}
        for some in portions([as_blob(name) for name in names if name is not None]):
            rows = self._sql.execute(query.format(",".join("?" * len(some))), some)
            found |= {as_text(name): bool(value) for name, value in rows}
        return found

    def _put_session(self, change: Put, version: int) -> None:
        run, name = self._sql.execute, as_blob(change.id)
        row = run("SELECT data FROM sessions WHERE id = ?", (name,)).fetchone()
        state = unpacked_session(change.data)
        if row is not None:
            with suppress(Damaged):  # then the new one is all that is known
                state = merged(unpacked_session(row[0]), state)
        was_deleted = run("DELETE FROM deleted WHERE id = ?", (name,)).rowcount > 0
        born = version if was_deleted else -1  # what was before is gone
        run(_PUT_SESSION, (name, packed_session(state), version, born, state.is_closed))
        self.closings.put(name, state)

    def drop(self, leaving: Leaving) -> int | None:
        """See `Shelf.drop` of `slime_router.journal.retention`."""
        with writing(self._sql):
            if not self.closings.is_so(leaving):
                return None
            if leaving.is_idle or leaving.session is None:
                turns = self._drop_idle(leaving.name, leaving.session)
            else:
                session_id = as_text(leaving.session)
                drop = Drop("sessions", session_id, is_deleted=True)
                turns = self._drop_session(drop, self.count_up("version"))
                self._put_by_name(Drop("openings", session_id))
                turns += self._drop_idle(as_blob(home_of_session(session_id)), None)
            self.closings.count(leaving, turns)
        return turns

    def _drop_idle(self, home: bytes, session: bytes | None) -> int:
        """How many turns are dropped with it; a router that extends them writes them again."""
        self.closings.forget_idle(home)
        if session is not None:  # its name may be used again: nobody deleted it
            self._sql.execute("DELETE FROM sessions WHERE id = ?", (session,))
        return drop_turns(self._sql, home, is_whole=True)

    def _drop_session(self, change: Drop, version: int) -> int:
        """How many turns are dropped with it."""
        run, name = self._sql.execute, as_blob(change.id)
        home = as_blob(home_of_session(change.id))
        self.closings.forget(name)
        self.closings.forget_idle(home)
        run("DELETE FROM sessions WHERE id = ?", (name,))
        if not change.is_deleted:
            return 0
        turns = drop_turns(self._sql, home)
        if run(_HAS_MORE, (home,)).fetchone() is not None:
            self.closings.put_idles((home,), is_exported=True)
        run("INSERT OR REPLACE INTO deleted (id, version) VALUES (?, ?)", (name, version))
        run(
            "DELETE FROM deleted WHERE number <= (SELECT max(number) FROM deleted) - ?",
            (MAX_DELETED,),
        )
        return turns


def _is_turn(change: Change) -> TypeGuard[PutTurn]:
    return isinstance(change, PutTurn)


def _row(turn: PutTurn, version: int) -> tuple[object, ...]:
    session = None if turn.session_id is None else as_blob(turn.session_id)
    changed = version if turn.is_change else -1
    return turn.seq, as_blob(turn.id), session, turn.data, as_blob(turn.home), version, changed


def _without_session(turn: PutTurn) -> PutTurn:
    data = packed_turn(replace(unpacked_turn(turn.data), session_id=None))
    return replace(turn, session_id=None, data=data)


def _home_of_session(name: bytes) -> bytes:
    return as_blob(home_of_session(as_text(name)))


def _session_of(home: bytes) -> bytes | None:
    name = session_of(as_text(home))
    return None if name is None else as_blob(name)
