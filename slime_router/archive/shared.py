"""The archive of a running router: opened, written until the end, and read when something is asked.

open ──► starting: requests wait ──► serving ──► closed
              └─ of another checkpoint, or damaged: the router stops, in one line
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from slime_router.archive.fetching.absence import RETRY_S, Absence
from slime_router.archive.fetching.filling import Filler
from slime_router.archive.port import Archive, ArchiveBroken, ArchiveDown, ArchiveOdd
from slime_router.archive.store import ArchivedStore
from slime_router.errors import NotDurable, StartingUp
from slime_router.journal.database import Drop, Late, Put, Table
from slime_router.journal.progress import Progress
from slime_router.journal.retention import Retention, RetentionCounts
from slime_router.journal.writer import JournalWriter
from slime_router.template.chat_template import ChatTemplate
from slime_router.types import WeightVersion

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0
MAX_ENDED = 10_000
_TABLES: tuple[Table, ...] = ("workers", "responses")  # read at start


@dataclass(frozen=True, slots=True)
class Wording:
    """What is said of an archive where something is wrong with it.

    Attributes:
        missing: what a receipt says of a turn that is not durable.
        refusal: what is said where a reply may not go out.
        broken: what to do where it is damaged.
    """

    name: str
    missing: str
    refusal: str
    broken: str = ""


STORE = Wording("archive", "degraded: not in the store", "The store cannot be written at present.")


class SharedArchive:
    """One archive, as one of its routers has it.

    Args:
        vocabulary: what tells this vocabulary from others: ids of another mean nothing here.
        must_be_there: whether a reply that is not in the archive may not go out.
        stops_on_error: whether the router ends where it cannot be written once.
        is_shared: whether other routers have it, too. One that nobody shares is listed first, so
            that sessions are in the order of their beginnings.
        max_bytes: what may be in memory, beside the budget in tokens.
        patience_s: how long a reply waits until it is there; None: until that succeeds or fails.
        shortfall: why what was written last is not as safe as it should be; None where it is.
        refused: how many changes it has refused for good.
        retention: what drops sessions from it, if anything does.
        on_end: called with the reason when the router must stop.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        vocabulary: bytes,
        must_be_there: bool,
        on_end: Callable[[str], None],
        max_bytes: int | None = None,
        stops_on_error: bool = False,
        is_shared: bool = True,
        wording: Wording = STORE,
        retention: Retention | None = None,
        patience_s: float | None = None,
        shortfall: Callable[[], str | None] = lambda: None,
        refused: Callable[[], int] = lambda: 0,
    ) -> None:
        self._shortfall = shortfall
        self._refused = refused
        self._retention = retention
        self._archive = archive
        self._wording = wording
        self._is_shared = is_shared
        self._vocabulary = vocabulary
        self._must_be_there = must_be_there
        self._on_end = on_end
        self._max_bytes = max_bytes
        self.writer = JournalWriter(
            archive,
            stops_on_error=stops_on_error,
            on_lost=self._lost,
            on_late=self._came_late,
            upkeep=retention,
            patience_s=patience_s,
        )
        self.store: ArchivedStore | None = None
        self.fetch: Filler | None = None
        self._task: asyncio.Task[None] | None = None
        self.progress: Progress | None = Progress(0, 0)  # None once it has begun
        # Sessions with late turns, the last ones.
        self._ended: dict[str, Literal["closed", "deleted"]] = {}
        self._named: dict[Table, list[tuple[str, bytes]]] = {}

    def __repr__(self) -> str:
        return f"<SharedArchive {self._archive!r}, {self.writer!r}>"

    @property
    def is_shared(self) -> bool:
        """Whether other routers have it, too."""
        return self._is_shared

    def check_read(self) -> None:
        """Raises StartingUp before the archive has answered once."""
        if self.progress is not None:
            what = f"The router waits for its {self._wording.name}."
            if self.progress.of:
                what = f"The router indexes its {self._wording.name}: {self.progress}."
            raise StartingUp(what, retry_after_s=RETRY_AFTER_S)

    async def written(self) -> str | None:
        """Wait until all that was put is durable; why it is not, where it cannot be."""
        return await self.writer.written() or self._shortfall()

    @property
    def must_be_written(self) -> bool:
        """Whether a reply that is not in the archive may not go out."""
        return self._must_be_there

    @property
    def missing(self) -> str:
        """What a receipt says of a turn that is not durable."""
        return self._wording.missing if self.writer.trouble is not None else "degraded"

    @property
    def refusal(self) -> str:
        """What is said where a reply may not go out."""
        return self._wording.refusal

    @property
    def unanswered(self) -> int:
        """How often it did not answer a look-up, or was not asked as it had not answered before."""
        counts = None if self.fetch is None else self.fetch.counts
        return 0 if counts is None else counts.failures + counts.unasked

    @property
    def _absence(self) -> Absence:
        assert self.fetch is not None
        return self.fetch.absence

    async def unready(self) -> str | None:
        """Why the router should get no requests now: the store is away, and must not be."""
        if not self._must_be_there or self.fetch is None:
            return None
        return self.writer.trouble or self.fetch.absence.reason

    def new_store(
        self, budget_tokens: int, *, max_sessions: int, owners: Collection[str]
    ) -> ArchivedStore:
        """The store that has a part of it in memory."""
        self.store = ArchivedStore(
            self.writer,
            budget_tokens,
            max_bytes=self._max_bytes,
            max_sessions=max_sessions,
            owners=owners,
        )
        return self.store

    def fetching(self, template: ChatTemplate) -> Filler:
        """What fetches before requests look."""
        assert self.store is not None
        self.fetch = Filler(
            self._archive,
            self.store,
            template,
            self.writer.written,
            must_answer=self._must_be_there,
            on_broken=self._broken,
        )
        return self.fetch

    def figures(self) -> dict[str, int]:
        """What was written, what waits, what was fetched, and what could not be."""
        assert self.store is not None
        assert self.fetch is not None
        counts = self.writer.counts
        dropped = RetentionCounts() if self._retention is None else self._retention.counts
        return {
            "changes": counts.changes,
            "commits": counts.commits,
            "waiting": self.writer.waiting,
            "failures": counts.failures,
            "lost": counts.lost + self._refused(),
            "skipped": self.store.skipped_turns,
            "degraded": int((self.writer.trouble or self._shortfall()) is not None),
            "lookups": self.fetch.counts.lookups,
            "failed_lookups": self.unanswered,
            "fetched_turns": self.store.fetched_turns,
            "evicted_turns": self.store.evicted_turns,
            "rewritten_turns": self.store.rewritten_turns,
            "dropped_sessions": dropped.sessions,
            "dropped_unexported_sessions": dropped.unexported,
            "dropped_turns": dropped.turns,
        }

    # Life

    def start(
        self, note: Callable[[WeightVersion], int], also: Callable[[], None] = lambda: None
    ) -> None:
        """Begin once the archive answers; `also` reads what else there is."""
        self._task = asyncio.create_task(self._begin(note, also), name="archive")

    async def read(self) -> None:
        """Wait until it has begun."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def close(self) -> None:
        """Write what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self.fetch is not None:
            await self.fetch.absence.close()
        await self.writer.close()
        await self._archive.close()

    async def _begin(self, note: Callable[[WeightVersion], int], also: Callable[[], None]) -> None:
        assert self.store is not None
        assert self.fetch is not None
        assert self.progress is not None
        has_said = False
        while True:
            try:
                if not await self._read(self.progress):
                    return
                break
            except ArchiveBroken as exc:
                self._broken(exc)
                return
            except ArchiveDown as exc:
                if not has_said:
                    logger.warning("the %s does not answer yet: %s", self._wording.name, exc)
                has_said = True
            await asyncio.sleep(RETRY_S)
        self.fetch.note = note
        try:
            also()
        except Exception as exc:  # a fault of ours: without its end, all requests would wait
            logger.exception("what the %s holds cannot be brought back", self._wording.name)
            self._on_end(f"what the {self._wording.name} holds cannot be brought back: {exc}")
            return
        self._named.clear()
        self.writer.start()
        self.progress = None

    async def _read(self, progress: Progress) -> bool:
        """What must be known at the start; False where it is useless. Raises ArchiveDown."""
        archive = self._archive
        assert self.store is not None
        assert self.fetch is not None
        if await archive.bind("vocabulary", self._vocabulary) != self._vocabulary:
            self._on_end(f"{archive!r} holds the tokens of another checkpoint")
            return False
        await archive.prepare(progress)
        self.store.number = await archive.number()
        self.store.number_after(await archive.last_seq())
        if not self._is_shared:
            await self.fetch.list_sessions()
        for table in _TABLES:
            self._named[table] = await archive.named(table)
        return True

    def _broken(self, exc: ArchiveBroken) -> None:
        self._on_end(f"the {self._wording.name} is damaged ({exc}){self._wording.broken}")

    def _lost(self, reason: str) -> None:
        if self._must_be_there:
            self._on_end(f"the {self._wording.name} cannot be written: {reason}")

    def _came_late(self, late: Late) -> None:
        """Turns were put into sessions that had been closed elsewhere, or deleted."""
        self._ended.update(late)
        while len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def end_of(self, session_id: str | None) -> Literal["closed", "deleted"] | None:
        """What had become of the session when its last turn was put; None if nothing had."""
        return None if session_id is None else self._ended.get(session_id)

    # What else is kept

    def put(self, table: Table, name: str, pack: Callable[[], bytes]) -> None:
        """Keep something by name; packed later, so it must hold still."""
        self.writer.put(lambda: Put(table, name, pack()))

    def drop(self, table: Table, name: str) -> None:
        """Record that `name` is gone."""
        self.writer.put(partial(Drop, table, name))

    async def news_of_workers(self, seen: str) -> tuple[str, list[tuple[str, bytes]]] | None:
        """Which workers are registered, and the version of that; `null` for one that was removed.

        None where `seen` is that version, or where nothing can be had.
        """
        if self._absence.reason is not None:
            return None
        try:
            version = await self._archive.workers_version()
            if version == seen:
                return None
            return version, await self._archive.named("workers")
        except ArchiveDown as exc:
            logger.info("workers of other routers are not known: %s", exc)
            return None

    async def look(self, table: Table, name: str) -> bytes | None:
        """What others have kept by this name meanwhile; None where there is nothing.

        Raises:
            NotDurable: nobody can tell at present.
        """
        absence, words = self._absence, "It is not in memory, and the store does not answer."
        if absence.reason is not None:
            raise NotDurable(words)
        try:
            return await self._archive.get(table, name)
        except ArchiveDown as exc:
            logger.warning("not looked up: %s %.100s: %s", table, name, exc)
            if not isinstance(exc, ArchiveOdd):
                absence.begin(str(exc))
            raise NotDurable(words) from exc

    def named(self, table: Table) -> Iterator[tuple[str, bytes]]:
        """What was kept, at the start."""
        return iter(self._named[table])
