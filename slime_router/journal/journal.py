"""The journal of a running router: opened first, read at start, written until the end.

open ──► reading: requests wait ──► writing ──► closed
             └─ damaged: the router stops, in one line
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from slime_router.choices import JournalSync, OnJournalError
from slime_router.errors import SetupError, StartingUp
from slime_router.journal.codec import (
    Damaged,
    SessionState,
    unpacked_opening,
    unpacked_session,
    unpacked_turn,
)
from slime_router.journal.database import Database, Drop, Put, Table
from slime_router.journal.fetching import AllIsHere
from slime_router.journal.store import JournaledStore
from slime_router.journal.writer import JournalWriter
from slime_router.types import WeightVersion
from slime_router.values import replace

logger = logging.getLogger(__name__)

Note: TypeAlias = Callable[[WeightVersion], int]  # the epoch of a version that a turn names

RETRY_AFTER_S = 1.0
SLICE = 200  # turns that are read in one go before other tasks get their turn


@dataclass(slots=True)
class Progress:
    """How far reading has come."""

    turns: int
    of: int
    skipped: int = 0  # damaged, or after one that is

    def __str__(self) -> str:
        return f"{self.turns} of {self.of} turns"


class Journal:
    """One directory, one router.

    Args:
        vocabulary: what tells this vocabulary from others: ids of another one mean nothing here.
        on_end: called with the reason when the router must stop.

    Raises:
        SetupError: it cannot be opened, is in use, or belongs to another vocabulary.
    """

    def __init__(
        self,
        directory: Path,
        *,
        sync: JournalSync,
        on_error: OnJournalError,
        vocabulary: bytes,
        on_end: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._database = Database(directory, sync=sync)
        self._stops_on_error = on_error == "stop"
        self._on_end = on_end
        self.writer = JournalWriter(
            self._database, stops_on_error=self._stops_on_error, on_lost=self._lost
        )
        self.store: JournaledStore | None = None
        self._task: asyncio.Task[None] | None = None
        self.progress: Progress | None = Progress(0, self._database.count("turns"))
        self.skipped = 0
        if self._database.bind("vocabulary", vocabulary) != vocabulary:
            self._database.close()
            raise SetupError(f"the journal {directory} holds the tokens of another checkpoint")

    def __repr__(self) -> str:
        return f"<Journal {self._directory}, {self.writer!r}>"

    def check_read(self) -> None:
        """Whether what was kept is here again.

        Raises:
            StartingUp: it is still being read.
        """
        if self.progress is not None:
            raise StartingUp(
                f"The router reads its journal: {self.progress}.", retry_after_s=RETRY_AFTER_S
            )

    async def written(self) -> str | None:
        """Wait until all that was put is durable; why it is not, where it cannot be."""
        return await self.writer.written()

    @property
    def must_be_written(self) -> bool:
        """Whether a reply that is not in the journal may not go out."""
        return self._stops_on_error

    @property
    def missing(self) -> str:
        """What a receipt says of a turn that is not durable."""
        return "not in the journal"

    @property
    def refusal(self) -> str:
        """What is said where a reply may not go out."""
        return "The journal cannot be written; the router stops."

    async def unready(self) -> str | None:
        """None: where the journal must be written and cannot be, the router ends."""
        return None

    def was_closed(self, _: str | None) -> bool:
        """No: nobody else closes its sessions."""
        return False

    def new_store(
        self, budget_tokens: int, *, max_sessions: int, owners: Collection[str]
    ) -> JournaledStore:
        """The store that this is the journal of."""
        self.store = JournaledStore(
            self.writer, budget_tokens, max_sessions=max_sessions, owners=owners
        )
        return self.store

    def fetching(self, _: object) -> AllIsHere:
        """Nothing has to be fetched: all of it is in memory."""
        return AllIsHere()

    def figures(self) -> dict[str, int]:
        """What was written, what waits, and what could not be kept."""
        counts = self.writer.counts
        return {
            "changes": counts.changes,
            "commits": counts.commits,
            "waiting": self.writer.waiting,
            "failures": counts.failures,
            "lost": counts.lost,
            "skipped": self.skipped,
            "degraded": int(self.writer.trouble is not None),
        }

    # Life

    def start(self, note: Note, also: Callable[[], None] = lambda: None) -> None:
        """Read it in the background, then write; `also` reads what else there is."""
        self._task = asyncio.create_task(self._begin(note, also), name="journal")

    async def read(self) -> None:
        """Wait until it is read."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def close(self) -> None:
        """Write what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.writer.close()
        self._database.close()

    async def _begin(self, note: Note, also: Callable[[], None]) -> None:
        assert self.store is not None
        assert self.progress is not None
        try:
            for _ in read_into(self.store, self._database, note, self.progress):
                await asyncio.sleep(0)
            also()
        except sqlite3.Error as exc:
            self._on_end(
                f"the journal {self._directory} is damaged ({exc}): restore it, or see what"
                " `slime-router journal verify` and `export` find in it"
            )
            return
        self.skipped = self.progress.skipped
        if self.skipped:
            logger.error("%d turns of the journal cannot be read", self.skipped)
        if self.progress.turns:
            logger.info("the journal brought back %r", self.store)
        self.progress = None
        self.writer.start()

    def _lost(self, reason: str) -> None:
        if self._stops_on_error:
            self._on_end(f"the journal cannot be written: {reason}")

    # What else is kept

    def put(self, table: Table, name: str, pack: Callable[[], bytes]) -> None:
        """Keep something by name; packed later, so it must hold still."""
        self.writer.put(lambda: Put(table, name, pack()))

    def drop(self, table: Table, name: str) -> None:
        """It is gone."""
        self.writer.put(partial(Drop, table, name))

    async def look(self, table: Table, name: str) -> bytes | None:  # noqa: ARG002 - there are none
        """See `Keeping`: nobody else writes a journal of one's own."""
        return None

    def named(self, table: Table) -> Iterator[tuple[str, bytes]]:
        """What was kept, while it is read."""
        return self._database.named(table)


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
