"""A journal that no router has open: what is in it, and whether it is sound. Blocking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slime_router.journal.codec import Damaged, unpacked_session, unpacked_turn
from slime_router.journal.database import Database, Made
from slime_router.journal.journal import Progress, read_into
from slime_router.journal.store import JournaledStore

ROOM = 2**62  # tokens: nothing is dropped while reading


@dataclass(frozen=True, slots=True)
class JournalStats:
    """What a journal holds. `bytes` are those of its files."""

    turns: int
    sessions: int
    deleted_sessions: int
    workers: int
    sampled_tokens: int
    bytes: int


class Nowhere:
    """Takes changes and forgets them: reading changes nothing."""

    def put(self, made: Made) -> None:
        """Nothing is written."""


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
    return JournalStats(
        turns=database.count("turns"),
        sessions=database.count("sessions"),
        deleted_sessions=database.count("deleted"),
        workers=database.count("workers"),
        sampled_tokens=sampled,
        bytes=sum(path.stat().st_size for path in directory.glob(f"{database.path.name}*")),
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


def read_store(directory: Path) -> tuple[JournaledStore, Progress]:
    """Everything that can be read, in a store that writes nothing.

    Raises:
        SetupError: there is no journal, or it cannot be opened.
        sqlite3.Error: the file is damaged.
    """
    database = Database(directory, is_new_allowed=False)
    try:
        return read_all(database)
    finally:
        database.close()


def read_all(database: Database) -> tuple[JournaledStore, Progress]:
    """As `read_store`, of an open journal."""
    store = JournaledStore(Nowhere(), ROOM)
    progress = Progress(0, database.count("turns"))
    for _ in read_into(store, database, lambda _: 0, progress):
        pass
    return store, progress
