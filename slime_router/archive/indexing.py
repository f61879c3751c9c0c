"""What a router that had the journal to itself did not write: where turns live, and their names.

Such a router wrote turns without a home, and no session that was a mere name.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress

from slime_router.archive.homes import home_of_session, names_of
from slime_router.archive.writing import writing
from slime_router.journal.codec import Damaged, SessionState, packed_session, unpacked_turn
from slime_router.journal.database import as_blob, as_text
from slime_router.journal.progress import Progress
from slime_router.trajectory.session import SessionSpec

SLICE = 200  # turns of one transaction

# Turns without a home are few: this finds them without looking at all others.
HOMELESS = "CREATE INDEX IF NOT EXISTS homeless ON turns (seq) WHERE home IS NULL"
_COUNT = "SELECT count(*) FROM turns WHERE home IS NULL"
_OF_SESSION = "SELECT seq, data FROM turns WHERE home = ? AND session IS NOT NULL"
_SOME = """
SELECT seq, session, data FROM turns WHERE home IS NULL AND seq > ? ORDER BY seq LIMIT ?
"""


def indexed(sql: sqlite3.Connection, progress: Progress) -> Iterator[None]:
    """Gives homes and names to what has none, a slice with each step.

    Several routers can do it at once.

    Raises:
        sqlite3.Error: it cannot be read or written.
    """
    sql.execute(HOMELESS)
    progress.of = sql.execute(_COUNT).fetchone()[0]
    last, homes = -1, dict[str, str]()
    while rows := sql.execute(_SOME, (last, SLICE)).fetchall():
        with writing(sql):
            for seq, session, data in rows:
                with suppress(Damaged):  # it stays where it is, for `journal verify`
                    _index(sql, seq, session, data, homes)
        last = rows[-1][0]
        progress.turns += len(rows)
        yield


def _index(
    sql: sqlite3.Connection, seq: int, session: bytes | None, data: bytes, homes: dict[str, str]
) -> None:
    turn = unpacked_turn(data)
    if session is not None:
        home = home_of_session(as_text(session))
        state = packed_session(_mere_name(as_text(session)))
        sql.execute("INSERT OR IGNORE INTO sessions (id, data) VALUES (?, ?)", (session, state))
    elif turn.base is None:
        home = "t" + turn.id
    else:
        home = homes.get(turn.base) or _home_of(sql, turn.base)
    homes[turn.id] = home
    sql.execute("UPDATE turns SET home = ? WHERE seq = ?", (as_blob(home), seq))
    put_names(sql, names_of(turn), seq, as_blob(home))


def put_names(sql: sqlite3.Connection, names: Iterable[bytes], seq: int, home: bytes) -> None:
    """A turn of this home can be found by these names."""
    sql.executemany(
        "INSERT OR REPLACE INTO names VALUES (?, ?, ?)", ((name, seq, home) for name in names)
    )


def drop_turns(sql: sqlite3.Connection, home: bytes) -> int:
    """The turns of a session go, and their names; how many there were. Others stay in its home."""
    seqs: list[tuple[int]] = []
    for seq, data in sql.execute(_OF_SESSION, (home,)).fetchall():
        seqs.append((seq,))
        with suppress(Damaged):
            names = names_of(unpacked_turn(data))
            sql.executemany(
                "DELETE FROM names WHERE name = ? AND seq = ?", ((n, seq) for n in names)
            )
    sql.executemany("DELETE FROM turns WHERE seq = ?", seqs)
    return len(seqs)


def _home_of(sql: sqlite3.Connection, turn_id: str) -> str:
    row = sql.execute("SELECT home FROM turns WHERE id = ?", (as_blob(turn_id),)).fetchone()
    return "t" + turn_id if row is None or row[0] is None else as_text(row[0])


def _mere_name(session_id: str) -> SessionState:
    return SessionState(
        spec=SessionSpec(id=session_id),
        was_opened=False,
        is_closed=False,
        was_exported=False,
        reward=None,
        dropped_turns=0,
        dropped_tokens=0,
    )
