"""A transaction that writes, whole or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def writing(sql: sqlite3.Connection) -> Iterator[None]:
    """What is done in the block is one transaction; nothing of it stays where it fails."""
    sql.execute("BEGIN IMMEDIATE")
    try:
        yield
        sql.execute("COMMIT")
    except BaseException:  # whatever it is, nothing of it may stay
        with suppress(sqlite3.Error):  # it may have rolled back by itself
            sql.execute("ROLLBACK")
        raise
