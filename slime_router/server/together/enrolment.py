"""Workers that registered at other routers of one archive, and those that were removed there.

Each router looks from time to time what is written there. Only what has changed there since is done
here: what somebody does at this router is written there as well.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import orjson

from slime_router.archive.shared import SharedArchive
from slime_router.errors import NotFound, StartingUp
from slime_router.pool.pool import WorkerPool
from slime_router.server.together.registry import Registry
from slime_router.supervisor import Supervisor

logger = logging.getLogger(__name__)

EVERY_S = 1.0
MAX_REMOVED = 1_000  # that are remembered


class Enrolment:
    """Follows what is written of the workers, if other routers write there, too."""

    def __init__(self, pool: WorkerPool, registry: Registry, keeping: SharedArchive | None) -> None:
        self._pool = pool
        self._registry = registry
        self._keeping = keeping
        self._seen = ""  # the version of what is known
        self._known: Mapping[str, bytes] = {}

    def start(self, supervisor: Supervisor) -> None:
        """Looks in the background, as long as the supervisor lasts."""
        if self._keeping is not None and self._keeping.is_shared:
            supervisor.every(EVERY_S, "look at workers of other routers", self.look)

    def register_again(self) -> None:
        """The workers that were registered before this router started."""
        assert self._keeping is not None
        self._known = dict(self._keeping.named("workers"))
        for url, data in self._known.items():
            if (fields := _fields(data)) is not None:
                self._pool.add(url, **fields)
                logger.info("worker %s is registered again", url)

    async def look(self) -> None:
        """What came or went meanwhile comes and goes here."""
        keeping = self._keeping
        assert keeping is not None
        try:
            keeping.check_read()
        except StartingUp:
            return
        if await keeping.written() is not None:  # what was done here is not there yet
            return
        before = self._registry.changes
        news = await keeping.news_of_workers(self._seen)
        if news is None or self._registry.changes != before:  # or it may be undone here
            return
        self._seen, listed = news
        self._take(dict(listed))

    def _take(self, listed: Mapping[str, bytes]) -> None:
        known, self._known = self._known, listed
        for url in known.keys() | listed.keys():
            if listed.get(url) == known.get(url):
                continue
            fields = _fields(listed.get(url, b"null"))
            if fields is not None:
                self._pool.add(url, **fields)
                logger.info("worker %s was registered at another router", url)
            else:
                self._remove(url)
        removed = [url for url, data in listed.items() if _fields(data) is None and url in known]
        for url in removed[MAX_REMOVED:]:
            assert self._keeping is not None
            self._keeping.drop("workers", url)

    def _remove(self, url: str) -> None:
        try:
            worker = self._pool.drain(url)
        except NotFound:  # it was removed here, or nobody knew it
            return
        logger.info("worker %s was removed at another router", worker.url)


def _fields(data: bytes) -> dict[str, Any] | None:
    """How a worker is registered; None where it was removed."""
    fields: dict[str, Any] | None = orjson.loads(data)
    return fields
