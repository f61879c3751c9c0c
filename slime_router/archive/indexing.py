"""The names of turns in a journal, and those that older routers did not write.

A name is kept as a number of eight bytes, so that few pages hold all of them. Two names may have
the same one: whoever looks for a turn then looks into one home too many.

A router that had the journal to itself wrote turns without a home, and no session that was a mere
name.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from itertools import chain

from slime_router.archive.homes import home_of_session, names_of
from slime_router.journal.codec import Damaged, SessionState, packed_session, unpacked_turn
from slime_router.journal.database import as_blob, as_text
from slime_router.journal.progress import Progress
from slime_router.journal.writing import portions, writing
from slime_router.trajectory.session import SessionSpec

logger = logging.getLogger(__name__)

SLICE = 200  # turns of one transaction
MAX_HOMES = 16  # of one name: the newest
MAX_NAMED = 1_000  # turns with one name whose homes are found

# Turns without a home are few: this finds them without looking at all others.
HOMELESS = "CREATE INDEX IF NOT EXISTS homeless ON turns (seq) WHERE home IS NULL"
_OWN_ID = re.compile(rb"t(?:[a-z]{2,8}[_-])?(0[12][0-9a-f]{10})[0-9a-f]*([0-9a-f]{12})")
_PERIOD = 6  # bits: 64 ms have the same
_BITS = 21  # that tell apart what is made within that time; two numbers of 63 bits seldom meet
_RANDOM = (1 << _BITS) - 1
_COUNT = "SELECT count(*) FROM turns WHERE home IS NULL"
_OF_HOME = "SELECT seq, data FROM turns WHERE home = ?"
_OF_SESSION = "SELECT seq, data FROM turns WHERE home = ? AND session IS NOT NULL"
_NAMED = """
SELECT home FROM (SELECT seq FROM names WHERE name = ? ORDER BY seq DESC LIMIT ?) JOIN turns
USING (seq) WHERE home IS NOT NULL ORDER BY seq DESC
"""
_OLDER_NAMED = """
SELECT home FROM older_names WHERE name = ? GROUP BY home ORDER BY max(seq) DESC LIMIT ?
"""
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
                try:
                    _index(sql, seq, session, data, homes)
                except Damaged as exc:  # it stays where it is, for `journal verify`
                    progress.skipped += 1
                    logger.error("turn number %d of the journal cannot be read: %s", seq, exc)
        last = rows[-1][0]
        progress.turns += len(rows)
        yield


def _index(
    sql: sqlite3.Connection, seq: int, session: bytes | None, data: bytes, homes: dict[str, str]
) -> None:
    turn = unpacked_turn(data)
    if session is not None:
        home = home_of_session(as_text(session))
        state = packed_session(SessionState(spec=SessionSpec(id=as_text(session))))
        sql.execute("INSERT OR IGNORE INTO sessions (id, data) VALUES (?, ?)", (session, state))
    elif turn.base is None:
        home = "t" + turn.id
    else:
        home = homes.get(turn.base) or _home_of(sql, turn.base)
    homes[turn.id] = home
    sql.execute("UPDATE turns SET home = ? WHERE seq = ?", (as_blob(home), seq))
    put_names(sql, [(names_of(turn), seq)])


def number_of(name: bytes) -> int:
    """What stands for a name in the file; for later ids of a router's own a larger one.

    So those that are made now are on the last few pages; all others are anywhere.
    """
    if (own := _OWN_ID.fullmatch(name)) is not None:
        made_ms, random = own.groups()
        return int(made_ms, 16) >> _PERIOD << _BITS | int(random, 16) & _RANDOM
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little", signed=True)


def put_names(sql: sqlite3.Connection, turns: Iterable[tuple[Iterable[bytes], int]]) -> None:
    """Turns can be found by these names: those of each, and its number."""
    numbers = {(number_of(name), seq) for names, seq in turns for name in names}
    rows = sorted(numbers)  # page by page
    for some in portions(rows):
        marks = ",".join(["(?,?)"] * len(some))
        sql.execute(f"INSERT OR IGNORE INTO names VALUES {marks}", list(chain(*some)))


def has_older_names(sql: sqlite3.Connection) -> bool:
    """Whether an older router has left names in the file."""
    has_table = sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'older_names'").fetchall()
    return bool(has_table and sql.execute("SELECT 1 FROM older_names LIMIT 1").fetchall())


def homes_named(sql: sqlite3.Connection, name: bytes, *, has_older: bool) -> dict[bytes, None]:
    """The homes of turns with this name, the newest first."""
    homes = dict.fromkeys(
        bytes(home) for (home,) in sql.execute(_NAMED, (number_of(name), MAX_NAMED))
    )
    if has_older and len(homes) < MAX_HOMES:
        older = sql.execute(_OLDER_NAMED, (name, MAX_HOMES))
        homes |= dict.fromkeys(bytes(home) for (home,) in older)
    return dict.fromkeys(list(homes)[:MAX_HOMES])


def drop_turns(sql: sqlite3.Connection, home: bytes, *, is_whole: bool = False) -> int:
    """The turns of a session go, and their names; how many there were.

    Others stay in its home, unless the whole of it goes.
    """
    seqs: list[tuple[int]] = []
    has_older = has_older_names(sql)
    for seq, data in sql.execute(_OF_HOME if is_whole else _OF_SESSION, (home,)).fetchall():
        seqs.append((seq,))
        with suppress(Damaged):
            names = names_of(unpacked_turn(data))
            sql.executemany(
                "DELETE FROM names WHERE name = ? AND seq = ?", ((number_of(n), seq) for n in names)
            )
            if has_older:
                sql.executemany(
                    "DELETE FROM older_names WHERE name = ? AND seq = ?", ((n, seq) for n in names)
                )
    sql.executemany("DELETE FROM turns WHERE seq = ?", seqs)
    return len(seqs)


def _home_of(sql: sqlite3.Connection, turn_id: str) -> str:
    row = sql.execute("SELECT home FROM turns WHERE id = ?", (as_blob(turn_id),)).fetchone()
    return "t" + turn_id if row is None or row[0] is None else as_text(row[0])
