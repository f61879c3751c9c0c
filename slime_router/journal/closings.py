"""When sessions were closed, and whether they were exported: what may leave a journal first.

    closings   id, at, is_exported     one for each closed session; `at`: when it changed last

Beside the sessions' own rows, so that a router of before leaves it alone; what such a router closed
is learnt later. Blocking.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress

from slime_router.journal.codec import Damaged, SessionState, unpacked_session

TABLES = (
    "CREATE TABLE IF NOT EXISTS closings (id BLOB PRIMARY KEY, at REAL NOT NULL,"
    " is_exported INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS closing_order ON closings (is_exported, at, id)",
)
DROPPED = ("dropped_sessions", "dropped_unexported_sessions", "dropped_turns")
SLICE = 200  # sessions of one step
PAGES = 256  # given back in one step; and so many stay, for what comes next

_PUT = """
INSERT INTO closings VALUES (?, ?, ?)
ON CONFLICT (id) DO UPDATE SET at = excluded.at, is_exported = excluded.is_exported
"""
_OLDEST = "SELECT id FROM closings WHERE is_exported = ? AND at < ? ORDER BY at, id LIMIT 1"
_UNKNOWN = """
SELECT rowid, id, data FROM sessions WHERE rowid > ? AND id NOT IN (SELECT id FROM closings)
ORDER BY rowid LIMIT ?
"""
_COUNT = """
INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value
"""


class Closings:
    """Those of one journal. `now` is Unix time. Methods raise sqlite3.Error."""

    def __init__(self, sql: sqlite3.Connection, now: Callable[[], float]) -> None:
        self._sql = sql
        self.now = now

    def __repr__(self) -> str:
        return "<Closings>"

    def put(self, name: bytes, state: SessionState) -> None:
        """A session is so from now on; within a transaction."""
        if state.is_closed:
            self._sql.execute(_PUT, (name, self.now(), state.was_exported))
        else:
            self.forget(name)

    def forget(self, name: bytes) -> None:
        """A session is not there, or not closed, any more."""
        self._sql.execute("DELETE FROM closings WHERE id = ?", (name,))

    def oldest(self, *, is_exported: bool, before: float = float("inf")) -> bytes | None:
        """The session that changed least recently, if that was before this time."""
        row = self._sql.execute(_OLDEST, (is_exported, before)).fetchone()
        return None if row is None else bytes(row[0])

    def learn(self, after: int) -> int | None:
        """A slice of what an older router wrote; where to go on, or None at the end."""
        rows = self._sql.execute(_UNKNOWN, (after, SLICE)).fetchall()
        known = [(bytes(name), state) for _, name, data in rows if (state := _closed(data))]
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            for name, state in known:
                self.put(name, state)
            self._sql.execute("COMMIT")
        except BaseException:  # whatever it is, no transaction may stay open
            with suppress(sqlite3.Error):  # it may have rolled back by itself
                self._sql.execute("ROLLBACK")
            raise
        return int(rows[-1][0]) if rows else None

    def count(self, *, turns: int, is_exported: bool) -> None:
        """A session was dropped; within that transaction."""
        for name, value in zip(DROPPED, (1, int(not is_exported), turns), strict=True):
            self._sql.execute(_COUNT, (name, value))

    def used(self) -> int:
        """The bytes of the file that hold something."""
        return (self._pragma("page_count") - self._pragma("freelist_count")) * self._pragma(
            "page_size"
        )

    def give_back(self) -> bool:
        """Some of the space that holds nothing, to the file system; whether there is more."""
        if self._pragma("freelist_count") < 2 * PAGES or self._pragma("auto_vacuum") != 2:
            return False  # an older file keeps it for what comes, until `journal vacuum`
        self._sql.execute(f"PRAGMA incremental_vacuum({PAGES})").fetchall()
        return self._pragma("freelist_count") >= 2 * PAGES

    def _pragma(self, name: str) -> int:
        return int(self._sql.execute(f"PRAGMA {name}").fetchone()[0])


def _closed(data: bytes) -> SessionState | None:
    """A session, if it is closed; one that is damaged stays, for `journal verify`."""
    with suppress(Damaged):
        state = unpacked_session(data)
        return state if state.is_closed else None
    return None


def dropped(sql: sqlite3.Connection) -> tuple[int, ...]:
    """How many sessions retention has dropped, those that nobody had exported, and their turns."""
    found = dict(sql.execute("SELECT name, value FROM counters").fetchall())
    return tuple(found.get(name, 0) for name in DROPPED)
