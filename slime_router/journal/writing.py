"""A transaction that writes, whole or not at all; and many rows with few statements."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")

MOST_ROWS = 64  # of one statement; a connection knows one statement for each number of rows


@contextmanager
def writing(sql: sqlite3.Connection) -> Iterator[None]:
    """What is done in the block is one transaction; none of it stays if it fails."""
    sql.execute("BEGIN IMMEDIATE")
    try:
        yield
        sql.execute("COMMIT")
    except BaseException:  # whatever it is, none of it may stay
        with suppress(sqlite3.Error):  # it may have rolled back by itself
            sql.execute("ROLLBACK")
        raise


def portions(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """The rows, in portions that are written with one statement each.

    A statement is a step in which the thread lets all others run, and then waits for its turn:
    while the loop is busy up to 5 ms. So there should be few of them.
    """
    for start in range(0, len(rows), MOST_ROWS):
        yield rows[start : start + MOST_ROWS]
