"""An archive in SQLite: a journal that several processes of one machine have open.

Each transaction that writes has a number, the version of all rows that it touches. A cursor is the
number of the last one that was seen.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from urllib.parse import quote

from slime_router.archive.database import SharedDatabase
from slime_router.archive.homes import session_of
from slime_router.archive.indexing import has_older_names, homes_named
from slime_router.archive.port import (
    NOTHING_SEEN,
    ArchiveBroken,
    ArchiveDown,
    Cursor,
    Kept,
    News,
    as_expected,
)
from slime_router.choices import JournalSync
from slime_router.errors import SetupError
from slime_router.journal.codec import Damaged, SessionState, unpacked_opening, unpacked_session
from slime_router.journal.database import Change, Late, Table, as_blob, as_text
from slime_router.journal.lock import JournalLock, alone_with_an_older_one
from slime_router.journal.progress import Progress
from slime_router.journal.writing import portions

logger = logging.getLogger(__name__)

SLICE = 200  # turns that are read in one statement
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_STATE = """
SELECT sessions.data, born, openings.data FROM sessions LEFT JOIN openings USING (id)
WHERE id = ? AND version > ?
"""


class SqliteArchive:
    """A journal of one router, or one that several processes of one machine share.

    Where `keeps_idles`, all that share it note which homes were used when, from now on; nobody does
    once a router alone says no. Only retention needs to know.

    Raises:
        SetupError: it cannot be opened, one router has it to itself, or a newer one wrote it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        sync: JournalSync = "normal",
        is_shared: bool = True,
        keeps_idles: bool | None = None,
    ) -> None:
        with alone_with_an_older_one(directory):
            self.database = SharedDatabase(directory, sync=sync, keeps_idles=bool(keeps_idles))
        try:
            self._lock = JournalLock(directory, is_shared=is_shared)
            if not is_shared and keeps_idles is False:
                self.database.forget_idles()
        except SetupError:
            self.database.close()
            raise
        address = f"file:{quote(str(self.database.path.absolute()))}?mode=ro"
        self._reader = sqlite3.connect(address, uri=True, isolation_level=None, timeout=1.0)
        self._has_older = has_older_names(self._reader)
        self._data_version = -1
        self._seen = ""  # the newest version when that was so

    def __repr__(self) -> str:
        return f"<SqliteArchive {self.database.path}>"

    async def prepare(self, progress: Progress) -> None:
        """See `Archive.prepare`. Indexes what an older router wrote."""
        steps = self.database.indexed(progress)
        with _asked():
            while await asyncio.to_thread(next, steps, steps) is not steps:
                pass

    def apply(self, changes: list[Change]) -> Late:
        """See `Archive.apply`."""
        return self.database.apply(changes)

    @as_expected
    async def find(self, names: Sequence[bytes]) -> list[str]:
        """See `Archive.find`."""
        found: dict[str, None] = {}
        with self._reading():
            for name in names:
                homes = homes_named(self._reader, name, has_older=self._has_older)
                found |= dict.fromkeys(map(as_text, homes))
        return list(found)

    @as_expected
    async def news(self, home: str, since: Cursor, knows: Callable[[str], bool]) -> News:
        """See `Archive.news`."""
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

    @as_expected
    async def sessions(self, since: Cursor) -> tuple[list[str], Cursor]:
        """See `Archive.sessions`."""
        with self._reading() as run:
            cursor = self._version(run)
            rows = run("SELECT id FROM sessions WHERE version > ? ORDER BY rowid", (since or -1,))
            names = [as_text(name) for (name,) in rows]
            if since != NOTHING_SEEN:
                deleted = run("SELECT id, version FROM deleted ORDER BY number DESC")  # the last
                newer = takewhile(lambda row: row[1] > int(since), deleted)
                names += [as_text(name) for name, _ in newer]
            return names, str(cursor)

    @as_expected
    async def states(self, names: Sequence[str]) -> dict[str, SessionState]:
        """See `Archive.states`."""
        found: dict[str, SessionState] = {}
        with self._reading() as run:
            for some in portions([as_blob(name) for name in names]):
                marks = ",".join("?" * len(some))
                query = f"SELECT id, data FROM sessions WHERE id IN ({marks})"
                for name, data in run(query, some):
                    with suppress(Damaged):  # whoever fetches it says so
                        found[as_text(name)] = unpacked_session(data)
        return found

    @as_expected
    async def get(self, table: Table, name: str) -> bytes | None:
        """See `Archive.get`."""
        with self._reading() as run:
            row = run(f"SELECT data FROM {table} WHERE id = ?", (as_blob(name),)).fetchone()
            return None if row is None else bytes(row[0])

    @as_expected
    async def named(self, table: Table) -> list[tuple[str, bytes]]:
        """See `Archive.named`."""
        with self._reading() as run:
            rows = run(f"SELECT id, data FROM {table} ORDER BY rowid")
            return [(as_text(name), data) for name, data in rows]

    @as_expected
    async def workers_version(self) -> str:
        """See `Archive.workers_version`."""
        with self._reading() as run:
            row = run("SELECT value FROM counters WHERE name = 'workers'").fetchone()
            return "" if row is None else str(row[0])

    def has_news(self, since: Cursor) -> bool:
        """See `Archive.has_news`. A home that nobody wrote to since the cursor has no news."""
        if since == NOTHING_SEEN:
            return True
        try:
            version = self._reader.execute("PRAGMA data_version").fetchone()[0]
            if version != self._data_version:
                self._data_version = version
                self._seen = str(self._version(self._reader.execute))
        except (sqlite3.Error, TypeError, ValueError):
            return True
        return since != self._seen

    async def number(self) -> int:
        """See `Archive.number`."""
        with _asked():
            return self.database.new_router()

    async def last_seq(self) -> int:
        """See `Archive.last_seq`."""
        with _asked():
            return self.database.last_seq()

    async def bind(self, name: str, value: bytes) -> bytes:
        """See `Archive.bind`."""
        with _asked():
            return self.database.bind(name, value)

    async def close(self) -> None:
        """See `Archive.close`."""
        self.let_go()

    def let_go(self) -> None:
        """Like `close`, but at once."""
        self._reader.close()
        self.database.close()
        self._lock.let_go()

    @contextmanager
    def _reading(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """One state of the file for the block.

        Raises:
            ArchiveDown: it cannot be read.
        """
        with _asked():
            self._reader.execute("BEGIN")
            try:
                yield self._reader.execute
            finally:
                self._reader.execute("COMMIT")

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
            for seq, data in rows:
                if type(data) is not bytes:
                    raise TypeError(f"turn number {seq} is not a blob")
                yield seq, data


def _state_of(data: bytes, opening: bytes | None) -> SessionState:
    """A session; an older router wrote elsewhere when it was opened."""
    state = unpacked_session(data)
    if state.started is None and opening is not None:
        with suppress(Damaged):  # then its first turn says it
            state = replace(state, started=unpacked_opening(opening))
    return state


@contextmanager
def _asked() -> Iterator[None]:
    """What fails in the block is ArchiveDown; ArchiveBroken where it stays so."""
    try:
        yield
    except sqlite3.Error as exc:
        is_broken = (getattr(exc, "sqlite_errorcode", 0) & 0xFF) in _BROKEN
        raise (ArchiveBroken if is_broken else ArchiveDown)(str(exc)) from exc
