"""An archive in SQLite: a journal that several processes of one machine have open.

Each transaction that writes has a number, the version of all rows that it touches. A cursor is the
number of the last one that was seen.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from slime_router.archive.homes import home_of_session, session_of
from slime_router.archive.indexing import drop_turns, indexed, put_names
from slime_router.archive.merging import merged
from slime_router.archive.port import (
    NOTHING_SEEN,
    ArchiveBroken,
    ArchiveDown,
    Cursor,
    Kept,
    News,
)
from slime_router.archive.writing import writing
from slime_router.choices import JournalSync
from slime_router.errors import SetupError
from slime_router.journal.closings import Closings
from slime_router.journal.codec import (
    Damaged,
    SessionState,
    packed_session,
    unpacked_opening,
    unpacked_session,
)
from slime_router.journal.database import (
    MAX_DELETED,
    Change,
    Database,
    Drop,
    DropTurn,
    MarkUndelivered,
    Put,
    PutTurn,
    Table,
    as_blob,
    as_text,
)
from slime_router.journal.lock import JournalLock
from slime_router.journal.progress import Progress

logger = logging.getLogger(__name__)

MAX_HOMES = 16  # of one name: the newest
ROUTERS = 1 << 16
SLICE = 200  # turns that are read in one statement
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_PUT_TURN = """
INSERT INTO turns (seq, id, session, data, home, version, changed) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (seq) DO UPDATE SET id = excluded.id, session = excluded.session,
    data = excluded.data, home = excluded.home, version = excluded.version,
    changed = max(changed, excluded.changed)
"""
_PUT_SESSION = """
INSERT INTO sessions (id, data, version, born, is_closed) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET data = excluded.data, version = excluded.version,
    is_closed = excluded.is_closed
"""
_COUNT_WORKERS = """
INSERT INTO counters VALUES ('workers', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1
"""
_IS_CLOSED = "SELECT is_closed FROM sessions WHERE id = ?"
_STATE = """
SELECT sessions.data, born, openings.data FROM sessions LEFT JOIN openings USING (id)
WHERE id = ? AND version > ?
"""
_FIND = """
SELECT home FROM names WHERE name = ? GROUP BY home ORDER BY max(seq) DESC LIMIT ?
"""


class SharedDatabase(Database):
    """The writing side of a shared journal."""

    def __init__(
        self,
        directory: Path,
        *,
        sync: JournalSync = "normal",
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(directory, sync=sync, is_shared=True)
        self.closings = Closings(self._sql, now)

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

    def apply(self, changes: Sequence[Change]) -> Collection[str]:
        """As `Archive.apply`."""
        late: set[str] = set()
        with writing(self._sql):
            version = self.count_up("version")
            for change in changes:
                if isinstance(change, PutTurn) and change.session_id and not change.is_change:
                    row = self._sql.execute(_IS_CLOSED, (as_blob(change.session_id),)).fetchone()
                    if row is not None and row[0]:
                        late.add(change.session_id)
                self._apply_shared(change, version)
        return late

    def _apply_shared(self, change: Change, version: int) -> None:
        run = self._sql.execute
        if isinstance(change, PutTurn):
            session = None if change.session_id is None else as_blob(change.session_id)
            home = as_blob(change.home)
            changed = version if change.is_change else -1
            row = (change.seq, as_blob(change.id), session, change.data, home, version, changed)
            run(_PUT_TURN, row)
            put_names(self._sql, change.names, change.seq, home)
        elif isinstance(change, DropTurn):
            run("DELETE FROM turns WHERE seq = ?", (change.seq,))
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
            self._apply(change)
            if change.table == "workers":
                run(_COUNT_WORKERS)

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

    def drop_closed(self, name: bytes) -> bool:
        """As `Shelf.drop_closed` of `slime_router.journal.retention`."""
        run = self._sql.execute
        with writing(self._sql):
            row = run("SELECT is_exported FROM closings WHERE id = ?", (name,)).fetchone()
            if row is None:
                return False
            drop = Drop("sessions", as_text(name), is_deleted=True)
            turns = self._drop_session(drop, self.count_up("version"))
            self._apply(Drop("openings", drop.id))
            self.closings.count(turns=turns, is_exported=bool(row[0]))
        return True

    def _drop_session(self, change: Drop, version: int) -> int:
        """How many turns are dropped with it."""
        run, name = self._sql.execute, as_blob(change.id)
        self.closings.forget(name)
        run("DELETE FROM sessions WHERE id = ?", (name,))
        if not change.is_deleted:
            return 0
        turns = drop_turns(self._sql, as_blob(home_of_session(change.id)))
        run("INSERT OR REPLACE INTO deleted (id, version) VALUES (?, ?)", (name, version))
        run(
            "DELETE FROM deleted WHERE number <= (SELECT max(number) FROM deleted) - ?",
            (MAX_DELETED,),
        )
        return turns


class SqliteArchive:
    """A journal of one router, or one that several processes of one machine share.

    Raises:
        SetupError: it cannot be opened, one router has it to itself, or it is of a newer one.
    """

    def __init__(
        self, directory: Path, *, sync: JournalSync = "normal", is_shared: bool = True
    ) -> None:
        self.database = SharedDatabase(directory, sync=sync)
        try:
            self._lock = JournalLock(directory, is_shared=is_shared)
        except SetupError:
            self.database.close()
            raise
        address = f"file:{quote(str(self.database.path.absolute()))}?mode=ro"
        self._reader = sqlite3.connect(address, uri=True, isolation_level=None, timeout=1.0)
        self._data_version = -1
        self._seen = ""  # the newest version when that was so

    def __repr__(self) -> str:
        return f"<SqliteArchive {self.database.path}>"

    async def prepare(self, progress: Progress) -> None:
        """As `Archive.prepare`: an index for what an older router wrote."""
        steps = self.database.indexed(progress)
        try:
            while await asyncio.to_thread(next, steps, steps) is not steps:
                pass
        except sqlite3.Error as exc:
            raise _trouble(exc) from exc

    def apply(self, changes: list[Change]) -> Collection[str]:
        """As `Archive.apply`."""
        return self.database.apply(changes)

    async def find(self, names: Sequence[bytes]) -> list[str]:
        """As `Archive.find`."""
        found: dict[str, None] = {}
        with self._reading() as run:
            for name in names:
                for (home,) in run(_FIND, (name, MAX_HOMES)):
                    found[as_text(home)] = None
        return list(found)

    async def news(self, home: str, since: Cursor, knows: Callable[[str], bool]) -> News:
        """As `Archive.news`."""
        after = int(since or -1)
        with self._reading() as run:
            cursor = self._version(run)
            rows = run(
                "SELECT seq, id, is_undelivered, changed > ? FROM turns"
                " WHERE home = ? AND version > ? ORDER BY seq",
                (after, as_blob(home), after),
            ).fetchall()
            listed = [(seq, as_text(name), bool(undelivered)) for seq, name, undelivered, _ in rows]
            state, is_deleted = self._state(run, session_of(home), after)
            wanted = [
                seq
                for (seq, name, _), (*_, is_changed) in zip(listed, rows, strict=True)
                if is_deleted or is_changed or not knows(name)
            ]
            data = dict(_data_of(run, wanted))
        kept = tuple(Kept(name, seq, lost, data.get(seq)) for seq, name, lost in listed)
        if wanted:  # who looks into many homes must not keep all others waiting
            await asyncio.sleep(0)
        return News(home, str(cursor), kept, state, is_deleted)

    def _state(
        self, run: Callable[..., sqlite3.Cursor], session_id: str | None, after: int
    ) -> tuple[SessionState | None, bool]:
        if session_id is None:
            return None, False
        name = as_blob(session_id)
        row = run(_STATE, (name, after)).fetchone()
        if row is None:
            found = run("SELECT 1 FROM deleted WHERE id = ? AND version > ?", (name, after))
            return None, found.fetchone() is not None
        try:
            return _state_of(row[0], row[2]), row[1] > after
        except Damaged as exc:
            logger.error("session %r of the journal: %s", session_id, exc)
            return None, False

    async def sessions(self, since: Cursor) -> tuple[list[str], Cursor]:
        """As `Archive.sessions`."""
        with self._reading() as run:
            cursor = self._version(run)
            rows = run("SELECT id FROM sessions WHERE version > ? ORDER BY rowid", (since or -1,))
            return [as_text(name) for (name,) in rows], str(cursor)

    async def get(self, table: Table, name: str) -> bytes | None:
        """As `Archive.get`."""
        with self._reading() as run:
            row = run(f"SELECT data FROM {table} WHERE id = ?", (as_blob(name),)).fetchone()
            return None if row is None else bytes(row[0])

    async def named(self, table: Table) -> list[tuple[str, bytes]]:
        """As `Archive.named`."""
        with self._reading() as run:
            rows = run(f"SELECT id, data FROM {table} ORDER BY rowid")
            return [(as_text(name), data) for name, data in rows]

    async def workers_version(self) -> str:
        """As `Archive.workers_version`."""
        with self._reading() as run:
            row = run("SELECT value FROM counters WHERE name = 'workers'").fetchone()
            return "" if row is None else str(row[0])

    def has_news(self, since: Cursor) -> bool:
        """As `Archive.has_news`: what nobody wrote to since the cursor has no news."""
        if since == NOTHING_SEEN:
            return True
        try:
            version = self._reader.execute("PRAGMA data_version").fetchone()[0]
            if version != self._data_version:
                self._data_version = version
                self._seen = str(self._version(self._reader.execute))
        except sqlite3.Error:
            return True
        return since != self._seen

    async def number(self) -> int:
        """As `Archive.number`."""
        try:
            return self.database.new_router()
        except sqlite3.Error as exc:
            raise _trouble(exc) from exc

    async def last_seq(self) -> int:
        """As `Archive.last_seq`."""
        try:
            return self.database.last_seq()
        except sqlite3.Error as exc:
            raise _trouble(exc) from exc

    async def bind(self, name: str, value: bytes) -> bytes:
        """As `Archive.bind`."""
        try:
            return self.database.bind(name, value)
        except sqlite3.Error as exc:
            raise _trouble(exc) from exc

    async def close(self) -> None:
        """As `Archive.close`."""
        self.let_go()

    def let_go(self) -> None:
        """As `close`, at once."""
        self._reader.close()
        self.database.close()
        self._lock.let_go()

    @contextmanager
    def _reading(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """One state of the file for the block.

        Raises:
            ArchiveDown: it cannot be read.
        """
        try:
            self._reader.execute("BEGIN")
            try:
                yield self._reader.execute
            finally:
                self._reader.execute("COMMIT")
        except sqlite3.Error as exc:
            raise _trouble(exc) from exc

    @staticmethod
    def _version(run: Callable[..., sqlite3.Cursor]) -> int:
        return int(run("SELECT value FROM counters WHERE name = 'version'").fetchone()[0])


def _data_of(
    run: Callable[..., sqlite3.Cursor], seqs: Sequence[int]
) -> Iterator[tuple[int, bytes]]:
    for start in range(0, len(seqs), SLICE):
        some = seqs[start : start + SLICE]
        marks = ",".join("?" * len(some))
        with closing(run(f"SELECT seq, data FROM turns WHERE seq IN ({marks})", some)) as rows:
            yield from rows


def _state_of(data: bytes, opening: bytes | None) -> SessionState:
    """A session; an older router wrote elsewhere when it was opened."""
    state = unpacked_session(data)
    if state.started is None and opening is not None:
        with suppress(Damaged):  # then its first turn says it
            state = replace(state, started=unpacked_opening(opening))
    return state


def _trouble(exc: sqlite3.Error) -> ArchiveDown:
    """A file that is damaged stays so; everything else may pass."""
    is_broken = (getattr(exc, "sqlite_errorcode", 0) & 0xFF) in _BROKEN
    return ArchiveBroken(str(exc)) if is_broken else ArchiveDown(str(exc))
