"""A journal as a router wrote it that had all of it in memory: turns without homes and names."""

from __future__ import annotations

from slime_router.journal.database import Change, Database, Drop, Put, PutTurn, as_blob
from slime_router.journal.writing import writing


def write(database: Database, *changes: Change) -> None:
    """Make these changes as such a router did."""
    run = database._sql.execute
    with writing(database._sql):
        for each in changes:
            if isinstance(each, PutTurn):
                session = None if each.session_id is None else as_blob(each.session_id)
                run(
                    "INSERT INTO turns (seq, id, session, data) VALUES (?, ?, ?, ?)",
                    (each.seq, as_blob(each.id), session, each.data),
                )
            elif isinstance(each, Put):
                run(
                    f"INSERT INTO {each.table} (id, data) VALUES (?, ?)",
                    (as_blob(each.id), each.data),
                )
            elif isinstance(each, Drop):
                run("INSERT INTO deleted (id) VALUES (?)", (as_blob(each.id),))
