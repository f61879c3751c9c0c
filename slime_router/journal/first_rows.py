"""The rows that every start reads: whether they look as routers write them.

SQLite keeps text where bytes are meant, and lets anybody remove a counter. Turns and sessions are
looked at one by one, as they are read.
"""

from __future__ import annotations

import sqlite3

_COUNTERS = ("version", "router")


def odd_table(sql: sqlite3.Connection) -> str | None:
    """The first table in which something is wrong; None where all is well.

    Raises:
        sqlite3.Error: the file is damaged.
    """
    counters = dict(sql.execute("SELECT name, value FROM counters"))
    if not all(type(counters.get(name)) is int for name in _COUNTERS):
        return "counters"
    if not all(isinstance(value, bytes) for (value,) in sql.execute("SELECT value FROM meta")):
        return "meta"
    if not all(_is_worker(*row) for row in sql.execute("SELECT id, data FROM workers")):
        return "workers"
    return None


def _is_worker(name: object, data: object) -> bool:
    if not isinstance(name, bytes) or not isinstance(data, bytes):
        return False
    try:
        name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True
