"""When sessions were closed, and all else changed last: what may leave a journal first.

    closings   id, at, is_exported     one for each closed session; `at`: when it changed last
    idles      home, at, is_exported   one for each home that nobody closes: the turns of a session
                                       that nobody opened, or of none; `at`: its last turn

Beside the sessions' own rows, so that an older router leaves it alone; what such a router closed
or wrote is learnt later. Blocking.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from slime_router.journal.codec import Damaged, SessionState, unpacked_session
from slime_router.journal.writing import portions, writing

TABLES = (
    "CREATE TABLE IF NOT EXISTS closings (id BLOB PRIMARY KEY, at REAL NOT NULL,"
    " is_exported INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS closing_order ON closings (is_exported, at, id)",
    "CREATE TABLE IF NOT EXISTS idles (home BLOB PRIMARY KEY, at REAL NOT NULL,"
    " is_exported INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS idle_order ON idles (is_exported, at, home)",
)
DROPPED = ("dropped_sessions", "dropped_unexported_sessions", "dropped_turns")
SLICE = 200  # sessions, or homes, of one step
PAGES = 256  # given back in one step; and so many stay, for what comes next

_PUT = """
INSERT INTO closings VALUES (?, ?, ?)
ON CONFLICT (id) DO UPDATE SET at = excluded.at, is_exported = excluded.is_exported
"""
_PUT_IDLES = """
INSERT INTO idles VALUES {}
ON CONFLICT (home) DO UPDATE SET at = excluded.at, is_exported = excluded.is_exported
"""
_OLDEST = "SELECT at, id FROM closings WHERE is_exported = ? AND at < ? ORDER BY at, id LIMIT 1"
_OLDEST_IDLE = """
SELECT at, home FROM idles WHERE is_exported = ? AND at < ? ORDER BY at, home LIMIT 1
"""
_UNKNOWN = """
SELECT rowid, id, data FROM sessions WHERE rowid > ? AND id NOT IN (SELECT id FROM closings)
ORDER BY rowid LIMIT ?
"""
_NEXT_HOME = """
SELECT home FROM turns WHERE home IS NOT NULL AND home > ? ORDER BY home LIMIT 1
"""
_COUNT = """
INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value
"""


@dataclass(frozen=True, slots=True)
class Leaving:
    """What may leave: a closed session by its name, or an idle home by its own.

    Attributes:
        at: when it changed last, in Unix time.
        session: whose it is; None for turns without one.
        is_exported: somebody has all of it, or nobody ever can.
    """

    at: float
    name: bytes
    session: bytes | None
    is_exported: bool
    is_idle: bool = False

    @property
    def is_session(self) -> bool:
        """Whether a session goes with it."""
        return self.session is not None and not (self.is_idle and self.is_exported)


class Closings:
    """The closings of one journal.

    Args:
        now: Unix time.
        home_of_session: the home of a session, by its name.
        session_of: the session whose home it is; None where it is that of none.

    Methods raise sqlite3.Error.
    """

    def __init__(
        self,
        sql: sqlite3.Connection,
        now: Callable[[], float],
        home_of_session: Callable[[bytes], bytes],
        session_of: Callable[[bytes], bytes | None],
    ) -> None:
        self._sql = sql
        self.now = now
        self._home_of_session = home_of_session
        self._session_of = session_of

    def __repr__(self) -> str:
        return "<Closings>"

    def put(self, name: bytes, state: SessionState) -> None:
        """A session is so from now on; within a transaction."""
        home = self._home_of_session(name)
        if state.is_closed:
            self._sql.execute(_PUT, (name, self.now(), state.was_exported))
        else:
            self.forget(name)
        if state.is_closed or state.was_opened:
            self.forget_idle(home)
        else:
            self.put_idles((home,), is_exported=False)

    def forget(self, name: bytes) -> None:
        """A session is not there, or not closed, any more."""
        self._sql.execute("DELETE FROM closings WHERE id = ?", (name,))

    def put_idles(self, homes: Iterable[bytes], *, is_exported: bool) -> None:
        """Homes that nobody closes have changed; each once, within a transaction."""
        at = self.now()
        for some in portions([(home, at, is_exported) for home in homes]):
            marks = ",".join(["(?,?,?)"] * len(some))
            self._sql.execute(_PUT_IDLES.format(marks), list(chain(*some)))

    def touch_idles(self, homes: Iterable[bytes]) -> None:
        """Homes have changed, whether somebody closes them or not; within a transaction."""
        at = self.now()
        for some in portions([*homes]):
            marks = ",".join("?" * len(some))
            self._sql.execute(f"UPDATE idles SET at = ? WHERE home IN ({marks})", (at, *some))

    def forget_idle(self, home: bytes) -> None:
        """A home is not there any more, or somebody will close it."""
        self._sql.execute("DELETE FROM idles WHERE home = ?", (home,))

    def oldest(self, *, is_exported: bool, before: float, idle_before: float) -> Leaving | None:
        """What changed least recently: a session closed before, or a home idle since before."""
        row = self._sql.execute(_OLDEST, (is_exported, before)).fetchone()
        idle = self._sql.execute(_OLDEST_IDLE, (is_exported, idle_before)).fetchone()
        if idle is not None and (row is None or idle[0] < row[0]):
            home = bytes(idle[1])
            return Leaving(idle[0], home, self._session_of(home), is_exported, is_idle=True)
        return None if row is None else Leaving(row[0], bytes(row[1]), bytes(row[1]), is_exported)

    def is_so(self, leaving: Leaving) -> bool:
        """Whether nothing has happened to it since it was found."""
        table, key = ("idles", "home") if leaving.is_idle else ("closings", "id")
        row = self._sql.execute(
            f"SELECT at FROM {table} WHERE {key} = ?", (leaving.name,)
        ).fetchone()
        return row is not None and row[0] <= leaving.at

    def learn_sessions(self, after: int) -> int | None:
        """A slice of what an older router wrote; where to go on, or None at the end."""
        rows = self._sql.execute(_UNKNOWN, (after, SLICE)).fetchall()
        with writing(self._sql):
            for _, name, data in rows:
                with suppress(Damaged):  # it stays, for `journal verify`
                    self._learn(bytes(name), unpacked_session(data))
        return int(rows[-1][0]) if rows else None

    def _learn(self, name: bytes, state: SessionState) -> None:
        if state.is_closed:
            self.put(name, state)
        elif not state.was_opened:
            self._learn_idle(self._home_of_session(name), is_exported=False)

    def learn_homes(self, after: bytes) -> bytes | None:
        """Likewise, of homes that no session has. Those of sessions must be known."""
        with writing(self._sql):
            for _ in range(SLICE):
                row = self._sql.execute(_NEXT_HOME, (after,)).fetchone()
                if row is None:
                    return None
                after = bytes(row[0])
                if not self._has_session(after):
                    self._learn_idle(after, is_exported=True)
        return after

    def _has_session(self, home: bytes) -> bool:
        name = self._session_of(home)
        row = self._sql.execute("SELECT 1 FROM sessions WHERE id = ?", (name,)).fetchone()
        return row is not None

    def _learn_idle(self, home: bytes, *, is_exported: bool) -> None:
        self._sql.execute(
            "INSERT OR IGNORE INTO idles VALUES (?, ?, ?)", (home, self.now(), is_exported)
        )

    def count(self, leaving: Leaving, turns: int) -> None:
        """Count what was dropped, within the same transaction."""
        values = leaving.is_session, leaving.is_session and not leaving.is_exported, turns
        for name, value in zip(DROPPED, values, strict=True):
            self._sql.execute(_COUNT, (name, int(value)))

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


def dropped(sql: sqlite3.Connection) -> tuple[int, ...]:
    """How many sessions retention has dropped, those that nobody had exported, and the turns."""
    found = dict(sql.execute("SELECT name, value FROM counters").fetchall())
    return tuple(found.get(name, 0) for name in DROPPED)
