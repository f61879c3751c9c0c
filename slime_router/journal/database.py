"""The journal's file: SQLite in WAL mode, one writer, one schema version. Blocking.

    turns      seq, id, session, is_undelivered, data       (see `slime_router.journal.codec`)
               home, version                                where several routers share it
    names      name, seq                                    likewise; see `slime_router.archive`
    older_names  name, seq, home                            of turns that came under schema 2
    sessions   id, data; version, born                      likewise
    deleted    id                                           sessions that late calls must not revive
    openings   id, data                                     when a session was opened: Unix time
    closings   id, at, is_exported                          see `slime_router.journal.closings`
    idles      home, at, is_exported                        likewise
    workers    url, data                                    those that registered while it ran
    responses  id, data                                     what `previous_response_id` may name
    meta       name, value                                  the vocabulary that the ids belong to

An older router leaves `openings`, `closings` and `idles` alone: they were added without a new
schema version.

A change is one of `Change`; `slime_router.archive.database` writes them.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import field
from pathlib import Path
from typing import Literal, TypeAlias

from slime_router.choices import JournalSync
from slime_router.errors import SetupError
from slime_router.journal.closings import TABLES as CLOSINGS
from slime_router.journal.closings import dropped
from slime_router.journal.first_rows import odd_table
from slime_router.values import value

FILE_NAME = "journal.sqlite"
SCHEMA = 3
MAX_DELETED = 100_000
BUSY_TIMEOUT_S = 10.0  # for another process to end its transaction
# The log may take 16 MiB before its pages go into the file: those that come again go there once.
LOG_PAGES = 4_000
STATEMENTS = 512  # that are read once: some for each number of rows

Table: TypeAlias = Literal["sessions", "openings", "workers", "responses"]

# `data` comes last: what stands after a long one is found by walking through all of its pages.
_TABLES = """
CREATE TABLE turns (
    seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, session BLOB,
    is_undelivered INTEGER NOT NULL DEFAULT 0, home BLOB, changed INTEGER NOT NULL DEFAULT -1,
    version INTEGER NOT NULL DEFAULT 0, data BLOB NOT NULL
);
CREATE TABLE sessions (
    id BLOB PRIMARY KEY, data BLOB NOT NULL, version INTEGER NOT NULL DEFAULT 0,
    born INTEGER NOT NULL DEFAULT -1, is_closed INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE deleted (
    number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, version INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE workers (id BLOB PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE responses (id BLOB PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE INDEX homes ON turns (home, version) WHERE home IS NOT NULL;
CREATE INDEX session_versions ON sessions (version);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO counters VALUES ('version', 0), ('router', 0);
"""

_ADDED = (
    "CREATE TABLE IF NOT EXISTS openings (id BLOB PRIMARY KEY, data BLOB NOT NULL)",
    *CLOSINGS,
)

_FROM_1_TO_2 = """
ALTER TABLE turns ADD COLUMN home BLOB;
ALTER TABLE turns ADD COLUMN changed INTEGER NOT NULL DEFAULT -1;
ALTER TABLE turns ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN born INTEGER NOT NULL DEFAULT -1;
ALTER TABLE sessions ADD COLUMN is_closed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE deleted ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
CREATE INDEX homes ON turns (home, version) WHERE home IS NOT NULL;
CREATE INDEX session_versions ON sessions (version);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO counters VALUES ('version', 0), ('router', 0);
"""
# Older routers wrote into it without saying when homes were used last: that is learnt again.
_FROM_2_TO_3 = """
ALTER TABLE names RENAME TO older_names;
DROP TABLE IF EXISTS idles;
"""
# Numbers for names: all that a turn is found by are a few bytes, and few pages are touched.
_NAMES = """
CREATE TABLE names (
    name INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (name, seq)
) WITHOUT ROWID;
"""

_MADE_FROM = {  # what is done to a file of each schema; 0 is a new one
    version: [each for part in parts for each in part.split(";") if each.strip()]
    for version, parts in {
        0: (_TABLES, _NAMES),
        1: (_FROM_1_TO_2, _NAMES),
        2: (_FROM_2_TO_3, _NAMES),
    }.items()
}
_EXPECTED = re.findall(r"CREATE TABLE (\w+)", _TABLES + _NAMES)


@value(frozen=True, slots=True)
class PutTurn:
    """A turn is recorded, or written again after a change."""

    seq: int
    id: str
    session_id: str | None
    data: bytes
    home: str = ""  # in an archive: see `slime_router.archive.port`
    names: tuple[bytes, ...] = ()
    is_change: bool = False  # whoever has it, has it as it was before
    base: str | None = None
    # the turns it continues, and its session, for an archive that has dropped them meanwhile
    needed: Callable[[], Iterable[Change]] = field(default=tuple, compare=False)


@value(frozen=True, slots=True)
class MarkUndelivered:
    """The client left before it had the whole reply."""

    seq: int
    id: str = ""
    home: str = ""


@value(frozen=True, slots=True)
class Put:
    """Something with a name is as `data` says from now on."""

    table: Table
    id: str
    data: bytes


@value(frozen=True, slots=True)
class Drop:
    """Something with a name is gone; a session's name may be remembered as deleted."""

    table: Table
    id: str
    is_deleted: bool = False


# Sessions whose turns came late: one of a session that is closed is kept, of a deleted one not.
Late: TypeAlias = Mapping[str, Literal["closed", "deleted"]]

Change: TypeAlias = PutTurn | MarkUndelivered | Put | Drop
Made: TypeAlias = Callable[[], Change]  # made where it is written, off the loop


class Database:
    """An open journal that nobody else has open, unless it is shared.

    Args:
        directory: where its files are; made if it is not there, for its owner alone.
        sync: `full` survives a power failure, `normal` the end of the process.
        is_new_allowed: whether one is made where there is none.
        is_shared: whether other processes of this machine may have it open, too.

    Raises:
        SetupError: it cannot be opened, is in use, is damaged, or was written by a newer router.
    """

    def __init__(
        self,
        directory: Path,
        *,
        sync: JournalSync = "normal",
        is_new_allowed: bool = True,
        is_shared: bool = False,
    ) -> None:
        self.path = directory / FILE_NAME
        if not is_new_allowed and not os.path.isfile(self.path):
            raise SetupError(f"{directory}: there is no journal")
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):  # made here, so that nobody else can read it
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._sql = sqlite3.connect(
                self.path,
                timeout=BUSY_TIMEOUT_S if is_shared else 0,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=STATEMENTS,
            )
        except (OSError, sqlite3.Error) as exc:
            raise SetupError(f"the journal {directory} cannot be opened: {exc}") from exc
        try:
            self._open(sync, is_shared=is_shared)
            self._place = os.stat(self.path)  # once it was written to: some file systems copy then
        except (sqlite3.Error, OSError) as exc:
            self._sql.close()
            raise SetupError(_explained(directory, exc)) from exc
        except SetupError:
            self._sql.close()
            raise

    def __repr__(self) -> str:
        return f"<Database {self.path}>"

    def _open(self, sync: JournalSync, *, is_shared: bool) -> None:
        sql = self._sql
        if not is_shared:
            sql.execute("PRAGMA locking_mode = EXCLUSIVE")  # taken with the first transaction
        # Of a new file; others are left as they are.
        sql.execute("PRAGMA auto_vacuum = INCREMENTAL")
        sql.execute("PRAGMA journal_mode = WAL")
        sql.execute(f"PRAGMA synchronous = {sync}")
        sql.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        sql.execute("BEGIN IMMEDIATE")
        version = sql.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise SetupError(
                f"{self.path} was written by a newer router: it has schema {version}, and this one"
                f" reads {SCHEMA}"
            )
        for statement in (*_MADE_FROM.get(version, ()), *_ADDED):
            sql.execute(statement)
        if version < SCHEMA:
            sql.execute(f"PRAGMA user_version = {SCHEMA}")
        there = {name for (name,) in sql.execute("SELECT name FROM sqlite_master")}
        if missing := [table for table in _EXPECTED if table not in there]:
            raise SetupError(
                f"{self.path} has no table {missing[0]!r}: restore it, or name another directory"
            )
        if (table := odd_table(sql)) is not None:
            raise SetupError(
                f"{self.path} has other rows in {table!r} than routers write: restore it, or name"
                " another directory"
            )
        sql.execute("COMMIT")

    def check_place(self) -> None:
        """See that the file is still there: SQLite goes on writing to one that was removed.

        Raises:
            OSError: it was removed or replaced, and a restart would not find what is written.
        """
        try:
            is_same = os.path.samestat(os.stat(self.path), self._place)
        except FileNotFoundError:
            is_same = False
        if not is_same:
            raise OSError(f"{self.path} was removed or replaced while it was open")

    def close(self) -> None:
        """Close it; what was applied stays."""
        self._sql.close()

    def bind(self, name: str, value: bytes) -> bytes:
        """What was first bound to `name`: `value` now, if nothing was."""
        self._sql.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
        row = self._sql.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return bytes(row[0])

    def vacuum(self) -> None:
        """Give the space of what was dropped back to the file system."""
        self._sql.execute("PRAGMA auto_vacuum = INCREMENTAL")  # from now on
        self._sql.execute("VACUUM")
        self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def dropped(self) -> tuple[int, ...]:
        """See `slime_router.journal.closings.dropped`."""
        return dropped(self._sql)

    def count(self, table: Table | Literal["turns", "deleted"]) -> int:
        """How many there are."""
        return int(self._sql.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def turns(self) -> Iterator[tuple[int, bool, bytes]]:
        """Sequence number, whether it is undelivered, and the bytes of each turn, oldest first."""
        with closing(self._sql.cursor()) as rows:
            rows.execute("SELECT seq, is_undelivered, data FROM turns ORDER BY seq")
            for seq, is_undelivered, data in rows:
                yield seq, bool(is_undelivered), data

    def named(self, table: Table) -> Iterator[tuple[str, bytes]]:
        """Names and bytes, in the order in which they came first."""
        with closing(self._sql.cursor()) as rows:
            rows.execute(f"SELECT id, data FROM {table} ORDER BY rowid")
            for name, data in rows:
                yield as_text(name), data

    def faults(self) -> list[str]:
        """What SQLite finds wrong with the file; nothing for a sound one."""
        found = [row[0] for row in self._sql.execute("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found


def as_blob(text: str) -> bytes:
    """Names may hold halves of surrogate pairs, which SQLite's texts may not."""
    return text.encode("utf-8", "surrogatepass")


def as_text(blob: bytes) -> str:
    """The name that `as_blob` made these bytes of."""
    return blob.decode("utf-8", "surrogatepass")


def _explained(directory: Path, exc: sqlite3.Error | OSError) -> str:
    if "locked" in str(exc):
        return f"the journal {directory} is in use by another router"
    return f"the journal {directory} cannot be read ({exc}): restore it, or name another directory"
