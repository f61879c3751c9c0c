"""Keeps the fleet as the sources say: workers join when they are found, and leave like others do.

    found for the first time      -> registered, as by POST /workers
    missing often enough in a row -> gets nothing new, and leaves after its last request
    removed by a user             -> stays away until its source has lost it and finds it again

What was registered before it was found is never removed here. A source that fails changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from slime_router.discovery.sources import Source, SourceFailed
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Worker
from slime_router.supervisor import Supervisor

logger = logging.getLogger(__name__)


class _Watch:
    """What is known of one source: its workers, and how often in a row each was missing."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.missing: dict[str, int] = {}
        self.failure = ""

    def changes(self, found: frozenset[str]) -> tuple[list[str], list[str]]:
        """Which URLs are new, and which are gone for good."""
        new = sorted(found - self.missing.keys())
        for url in self.missing:
            self.missing[url] = 0 if url in found else self.missing[url] + 1
        gone = [url for url, times in self.missing.items() if times >= self.source.patience]
        for url in gone:
            del self.missing[url]
        self.missing.update(dict.fromkeys(new, 0))
        return new, gone


class Discovery:
    """Asks every source again and again; a context that looks once before it is open.

    Attributes:
        failures: how often a source could not be asked.
    """

    def __init__(
        self,
        pool: WorkerPool,
        sources: Sequence[Source],
        supervisor: Supervisor,
        *,
        interval_s: float,
    ) -> None:
        self.failures = 0
        self._pool = pool
        self._watches = [_Watch(source) for source in sources]
        self._supervisor = supervisor
        self._interval_s = interval_s
        self._joined: dict[str, Worker] = {}

    def __repr__(self) -> str:
        return f"<Discovery {len(self._joined)} workers of {len(self._watches)} sources>"

    async def __aenter__(self) -> Discovery:
        if self._watches:
            await self.look()
            self._supervisor.every(self._interval_s, "discovery of workers", self.look)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Do nothing: the task ends with its supervisor."""

    async def look(self) -> None:
        """Asks every source once."""
        for watch in self._watches:
            try:
                found = await watch.source.find()
            except SourceFailed as exc:
                self._note_failure(watch, str(exc))
                continue
            if watch.failure:
                logger.info("%s can be read again", watch.source.name)
                watch.failure = ""
            new, gone = watch.changes(found)
            for url in new:
                self._join(url, watch.source.name)
            for url in gone:
                self._leave(url, watch.source.name)

    def _note_failure(self, watch: _Watch, reason: str) -> None:
        self.failures += 1
        if reason != watch.failure:  # the same one need not fill the log
            count = len(watch.missing)
            logger.warning("%s: %s; its %d workers stay", watch.source.name, reason, count)
        watch.failure = reason

    def _join(self, url: str, place: str) -> None:
        known = (worker for worker in self._pool.list() if worker.url == url)
        if any(not worker.is_draining for worker in known):
            return  # it is registered already, by whomever
        self._joined[url] = self._pool.add(url)
        logger.info("worker %s joins: it is in %s", url, place)

    def _leave(self, url: str, place: str) -> None:
        if any(url in watch.missing for watch in self._watches):
            return  # another source has it
        worker = self._joined.pop(url, None)
        if worker is None or worker not in self._pool:
            return
        self._pool.drain(url)
        logger.info(
            "worker %s leaves: it is no longer in %s, %d in flight", url, place, worker.in_flight
        )
