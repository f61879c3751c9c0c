"""A journal that no router has open: what is in it, and whether it is sound. Blocking."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from slime_router.journal.codec import (
    Damaged,
    SessionState,
    unpacked_opening,
    unpacked_session,
    unpacked_turn,
)
from slime_router.journal.database import Database, Made
from slime_router.journal.progress import Progress
from slime_router.journal.store import JournaledStore
from slime_router.types import WeightVersion

logger = logging.getLogger(__name__)

Note: TypeAlias = Callable[[WeightVersion], int]  # the epoch of a version that a turn names

ROOM = 2**62  # tokens: nothing is dropped while reading
SLICE = 200  # turns that are read in one go before other tasks get their turn


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


class Nowhere:
    """Takes changes and forgets them: reading changes nothing."""

    def put(self, made: Made) -> None:
        """Write nothing."""


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


def read_store(directory: Path) -> tuple[JournaledStore, Progress]:
    """Everything that can be read, in a store that writes nothing.

    Raises:
        SetupError: there is no journal, or it cannot be opened.
        sqlite3.Error: the file is damaged.
    """
    database = Database(directory, is_new_allowed=False)
    try:
        store = JournaledStore(Nowhere(), ROOM)
        progress = Progress(0, database.count("turns"))
        for _ in read_into(store, database, lambda _: 0, progress):
            pass
    finally:
        database.close()
    return store, progress


def read_into(
    store: JournaledStore, database: Database, note: Note, progress: Progress
) -> Iterator[None]:
    """Brings everything back that can be read; pauses again and again.

    Raises:
        sqlite3.Error: the file is damaged.
    """
    states = list(_sessions(database, progress))
    store.bring_back_sessions(states, database.deleted(), dict(_openings(database)))
    for seq, is_undelivered, data in database.turns():
        progress.turns += 1
        fault = _brought_back(store, seq, data, is_undelivered, note)
        store.number_after(seq)
        if fault:
            progress.skipped += 1
            logger.error("turn number %d of the journal %s", seq, fault)
        if not progress.turns % SLICE:
            yield
    store.bring_back_ends(states)


def _brought_back(
    store: JournaledStore, seq: int, data: bytes, is_undelivered: bool, note: Note
) -> str | None:
    """Why a turn is not in the store; None where it is."""
    try:
        turn = unpacked_turn(data)
    except Damaged as exc:
        return f"cannot be read: {exc}"
    epochs = [note(span.version) for span in turn.weight_versions]
    turn = replace(turn, seq=seq, epoch=max(epochs, default=0))
    if not store.bring_back(turn, is_undelivered=is_undelivered):
        return "continues one that cannot be read"
    return None


def _sessions(database: Database, progress: Progress) -> Iterator[SessionState]:
    for name, data in database.named("sessions"):
        try:
            yield unpacked_session(data)
        except Damaged as exc:
            logger.error("session %r of the journal: %s", name, exc)
            progress.skipped += 1


def _openings(database: Database) -> Iterator[tuple[str, float]]:
    """When sessions were opened; of one that cannot be read, its first turn says it."""
    for name, data in database.named("openings"):
        try:
            yield name, unpacked_opening(data)
        except Damaged as exc:
            logger.warning("session %r of the journal: %s", name, exc)
