"""A journal that no router has open: what is in it, and whether it is sound. Blocking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from slime_router.journal.codec import Damaged, unpacked_session, unpacked_turn
from slime_router.journal.database import Database


@dataclass(frozen=True, slots=True)
class JournalStats:
    """What a journal holds, and what retention has dropped. `bytes` are those of its files."""

    turns: int
    sessions: int
    deleted_sessions: int
    workers: int
    sampled_tokens: int
    bytes: int
    dropped_sessions: int
    dropped_unexported_sessions: int
    dropped_turns: int


def stats(database: Database) -> JournalStats:
    """What a journal holds.

    Raises:
        sqlite3.Error: the file is damaged.
    """
    sampled = 0
    for _, _, data in database.turns():
        try:
            sampled += len(unpacked_turn(data).output_ids)
        except Damaged:
            continue  # `faults` says so
    directory = database.path.parent
    dropped_sessions, dropped_unexported, dropped_turns = database.dropped()
    return JournalStats(
        turns=database.count("turns"),
        sessions=database.count("sessions"),
        deleted_sessions=database.count("deleted"),
        workers=sum(data != b"null" for _, data in database.named("workers")),  # or removed
        sampled_tokens=sampled,
        bytes=sum(path.stat().st_size for path in directory.glob(f"{database.path.name}*")),
        dropped_sessions=dropped_sessions,
        dropped_unexported_sessions=dropped_unexported,
        dropped_turns=dropped_turns,
    )


def faults(database: Database) -> Iterator[str]:
    """What is wrong with a journal, a line each; nothing for a sound one.

    Raises:
        sqlite3.Error: the file is so damaged that the rest cannot be looked at.
    """
    yield from database.faults()
    held_lens: dict[str, int] = {}
    for seq, _, data in database.turns():
        try:
            turn = unpacked_turn(data)
        except Damaged as exc:
            yield f"turn number {seq}: {exc}"
            continue
        held_lens[turn.id] = turn.held_len
        if turn.seq != seq:
            yield f"turn {turn.id} has number {turn.seq} and is kept as {seq}"
        if turn.base is not None and turn.base not in held_lens:
            yield f"turn {turn.id} continues {turn.base}, which is not there"
        elif turn.base is not None and turn.base_len > held_lens[turn.base]:
            yield f"turn {turn.id} reuses more than {turn.base} holds"
    for name, data in database.named("sessions"):
        try:
            unpacked_session(data)
        except Damaged as exc:
            yield f"session {name!r}: {exc}"
