"""Workers that registered at other routers of one archive, and those that were removed there.

Each router looks from time to time what is written there. Only what has changed there since is done
here: what somebody does at this router is written there as well.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import orjson

from slime_router.archive.shared import SharedArchive
from slime_router.errors import BadRequest, NotFound, StartingUp
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import KINDS, Registration, RegistrationFields
from slime_router.server.together.registry import Registry
from slime_router.supervisor import Supervisor

logger = logging.getLogger(__name__)

EVERY_S = 1.0
MAX_REMOVED = 1_000  # that are remembered
REMOVED = b"null"  # what is written of a worker that was

_DEFAULTS: Mapping[str, Any] = asdict(Registration())


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
            if not _says_removed(data) and self._register(url, data):
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
            data = listed.get(url, REMOVED)
            if _says_removed(data):
                self._remove(url)
            elif self._register(url, data):
                logger.info("worker %s was registered at another router", url)
        removed = [url for url, data in listed.items() if _says_removed(data) and url in known]
        for url in removed[MAX_REMOVED:]:
            assert self._keeping is not None
            self._keeping.drop("workers", url)

    def _register(self, url: str, data: bytes) -> bool:
        """False, and a line in the log, where it cannot be: others may have access to the store."""
        try:
            self._pool.add(url, **_fields(data))
        except (BadRequest, TypeError, ValueError, AttributeError) as exc:
            logger.error("worker %.200r of the store cannot be registered: %s", url, exc)
            return False
        return True

    def _remove(self, url: str) -> None:
        try:
            worker = self._pool.drain(url)
        except NotFound:  # it was removed here, or nobody knew it
            return
        logger.info("worker %s was removed at another router", worker.url)


def _says_removed(data: bytes) -> bool:
    return data == REMOVED


def _fields(data: bytes) -> RegistrationFields:
    """How a worker is registered; what a newer router writes beside that is passed over.

    Raises:
        TypeError, ValueError, AttributeError: it is not of its form.
    """
    known = orjson.loads(data)
    made = Registration(**{name: known.get(name, default) for name, default in _DEFAULTS.items()})
    kinds: dict[str, tuple[type, ...]] = {
        "kind": (str,),
        "priority": (int,),
        "cost": (int, float),
        "labels": (dict,),
    }
    for name, kind in kinds.items():
        if not isinstance(getattr(made, name), kind):
            raise ValueError(f"{name} has the wrong type")
    if made.kind not in KINDS:
        raise ValueError(f"its kind is {made.kind:.40}")
    return cast(RegistrationFields, {name: known[name] for name in _DEFAULTS if name in known})
