"""What happened to a home, as its log in Redis has it, and what all of that says together. Pure.

An entry is `t` a turn was recorded, `c` or marked, `u` its client left, `s` the session is so, `d`
it was deleted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from slime_router.archive.merging import merged
from slime_router.journal.codec import Damaged, SessionState, unpacked_session
from slime_router.journal.database import as_text

Entry: TypeAlias = tuple[bytes, dict[bytes, bytes]]

KIND, ID, SEQ, DATA = b"k", b"i", b"s", b"d"
TURN, CHANGED, UNDELIVERED, STATE, DELETED = b"t", b"c", b"u", b"s", b"d"
_SEQS = range(2**53)  # as clients read it


@dataclass(slots=True)
class Told:
    """What a part of a log says."""

    turns: dict[str, int] = field(default_factory=dict)  # and their numbers
    changed: set[str] = field(default_factory=set)
    undelivered: dict[str, None] = field(default_factory=dict)
    state: SessionState | None = None
    is_deleted: bool = False


def is_left(entry: Entry, after: str) -> bool:
    """Whether an entry still says something: a deletion before `after` is known."""
    return entry[1][KIND] != DELETED or _order(entry[0].decode()) > _order(after)


def _order(cursor: str) -> tuple[int, ...]:
    return tuple(map(int, cursor.split("-")))


def fold(entries: Iterable[Entry]) -> Told:
    """What all entries say together.

    Raises:
        TypeError, ValueError, LookupError: one is not of its form.
    """
    told = Told()
    for _, entry in entries:
        kind = entry[KIND]
        if kind in (TURN, CHANGED):
            told.turns[as_text(entry[ID])] = seq = int(entry[SEQ])
            if seq not in _SEQS:  # or all turns after it would have numbers beyond it
                raise ValueError(f"the number of a turn is {seq:.3g}")
            if kind == CHANGED:
                told.changed.add(as_text(entry[ID]))
        elif kind == UNDELIVERED:
            told.undelivered[as_text(entry[ID])] = None
        elif kind == DELETED:
            told = Told(is_deleted=True)
        elif kind == STATE:
            try:
                told.state = merged(told.state, unpacked_session(entry[DATA]))
            except Damaged:
                continue
    return told
