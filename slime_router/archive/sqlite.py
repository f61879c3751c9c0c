"""An archive in SQLite: a journal that several processes of one machine have open.

Each transaction that writes has a number, the version of all rows that it touches. A cursor is the
number of the last one that was seen.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from slime_router.archive.homes import home_of_session, names_of, session_of
from slime_router.archive.merging import merged
from slime_router.archive.port import NOTHING_SEEN, ArchiveDown, Cursor, Kept, News
from slime_router.choices import JournalSync
from slime_router.errors import SetupError
from slime_router.journal.codec import (
    Damaged,
    SessionState,
    packed_session,
    unpacked_session,
    unpacked_turn,
)
from slime_router.journal.database import (
    FILE_NAME,
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

MAX_HOMES = 16  # of one name: the newest
ROUTERS = 1 << 16
SLICE = 200  # turns that are read in one statement

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
_IS_CLOSED = "SELECT is_closed FROM sessions WHERE id = ?"
_FIND = """
SELECT home FROM names WHERE name = ? GROUP BY home ORDER BY max(seq) DESC LIMIT ?
"""


class SharedDatabase(Database):
    """The writing side of a shared journal."""

    def __init__(self, directory: Path, *, sync: JournalSync = "normal") -> None:
        super().__init__(directory, sync=sync, is_shared=True)
        try:
            self._index()
        except sqlite3.Error as exc:
            self.close()
            raise SetupError(f"the journal {directory} cannot be read: {exc}") from exc

    def _index(self) -> None:
        """Gives homes and names to what a router wrote that had the journal to itself."""
        with self._writing():
            homes: dict[str, str] = {}
            rows = self._sql.execute("SELECT seq, data FROM turns WHERE home IS NULL ORDER BY seq")
            for seq, data in rows.fetchall():
                with suppress(Damaged):  # it stays where it is, for `journal verify`
                    turn = unpacked_turn(data)
                    home = home_of_session(turn.session_id or "")
                    if turn.session_id is None:
                        home = "t" + turn.id if turn.base is None else homes.get(turn.base, "")
                        home = home or self._home_of(turn.base or "")
                    homes[turn.id] = home
                    self._sql.execute(
                        "UPDATE turns SET home = ? WHERE seq = ?", (as_blob(home), seq)
                    )
                    self._name(names_of(turn), seq, as_blob(home))

    def _home_of(self, turn_id: str) -> str:
        row = self._sql.execute(
            "SELECT home FROM turns WHERE id = ?", (as_blob(turn_id),)
        ).fetchone()
        return "t" + turn_id if row is None or row[0] is None else as_text(row[0])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sql.execute("COMMIT")
        except BaseException:  # whatever it is, nothing of it may stay
            with suppress(sqlite3.Error):  # it may have rolled back by itself
                self._sql.execute("ROLLBACK")
            raise

    def count_up(self, name: str) -> int:
        """The next number of a counter; within a transaction."""
        row = self._sql.execute(
            "UPDATE counters SET value = value + 1 WHERE name = ? RETURNING value", (name,)
        ).fetchone()
        return int(row[0])

    def new_router(self) -> int:
        """See `slime_router.archive.port`."""
        with self._writing():
            return self.count_up("router") % ROUTERS

    def apply(self, changes: Sequence[Change]) -> Collection[str]:
        """As `Archive.apply`."""
        late: set[str] = set()
        with self._writing():
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
            self._name(change.names, change.seq, home)
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

    def _name(self, names: Iterable[bytes], seq: int, home: bytes) -> None:
        self._sql.executemany(
            "INSERT OR REPLACE INTO names VALUES (?, ?, ?)", ((name, seq, home) for name in names)
        )

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

    def _drop_session(self, change: Drop, version: int) -> None:
        run, name = self._sql.execute, as_blob(change.id)
        run("DELETE FROM sessions WHERE id = ?", (name,))
        if not change.is_deleted:
            return
        home = as_blob(home_of_session(change.id))
        for seq, data in run(
            "SELECT seq, data FROM turns WHERE home = ? AND session IS NOT NULL", (home,)
        ).fetchall():
            with suppress(Damaged):
                names = names_of(unpacked_turn(data))
                self._sql.executemany(
                    "DELETE FROM names WHERE name = ? AND seq = ?", ((n, seq) for n in names)
                )
        run("DELETE FROM turns WHERE home = ? AND session IS NOT NULL", (home,))
        run("INSERT OR REPLACE INTO deleted (id, version) VALUES (?, ?)", (name, version))
        run(
            "DELETE FROM deleted WHERE number <= (SELECT max(number) FROM deleted) - ?",
            (MAX_DELETED,),
        )


def is_shared(directory: Path) -> bool:
    """Whether routers have shared the journal there; False also where nobody can tell."""
    address = f"file:{quote(str((directory / FILE_NAME).absolute()))}?mode=ro"
    with suppress(sqlite3.Error), closing(sqlite3.connect(address, uri=True, timeout=1.0)) as sql:
        found = sql.execute("SELECT 1 FROM turns WHERE home IS NOT NULL LIMIT 1")
        return found.fetchone() is not None
    return False


class SqliteArchive:
    """A journal that several processes of one machine share.

    Raises:
        SetupError: it cannot be opened, one router has it to itself, or it is of a newer one.
    """

    def __init__(self, directory: Path, *, sync: JournalSync = "normal") -> None:
        self.database = SharedDatabase(directory, sync=sync)
        address = f"file:{quote(str(self.database.path.absolute()))}?mode=ro"
        self._reader = sqlite3.connect(address, uri=True, isolation_level=None, timeout=1.0)
        self._data_version = -1
        self._seen = ""  # the newest version when that was so

    def __repr__(self) -> str:
        return f"<SqliteArchive {self.database.path}>"

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
        return News(home, str(cursor), kept, state, is_deleted)

    def _state(
        self, run: Callable[..., sqlite3.Cursor], session_id: str | None, after: int
    ) -> tuple[SessionState | None, bool]:
        if session_id is None:
            return None, False
        name = as_blob(session_id)
        row = run(
            "SELECT data, born FROM sessions WHERE id = ? AND version > ?", (name, after)
        ).fetchone()
        if row is None:
            found = run("SELECT 1 FROM deleted WHERE id = ? AND version > ?", (name, after))
            return None, found.fetchone() is not None
        try:
            return unpacked_session(row[0]), row[1] > after
        except Damaged:
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
            raise ArchiveDown(str(exc)) from exc

    async def bind(self, name: str, value: bytes) -> bytes:
        """As `Archive.bind`."""
        try:
            return self.database.bind(name, value)
        except sqlite3.Error as exc:
            raise ArchiveDown(str(exc)) from exc

    async def close(self) -> None:
        """As `Archive.close`."""
        self._reader.close()
        self.database.close()

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
            raise ArchiveDown(str(exc)) from exc

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
