"""Changes to the workers, made in all processes before whoever asked for one learns of it.

A process that does not answer misses a change. It is given the whole state later, until it has
taken it; one that starts asks for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, TypeAlias, Unpack

import orjson

from slime_router.archive.shared import SharedArchive
from slime_router.errors import NotFound
from slime_router.generation.weight_versions import WeightVersions
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import RegistrationFields, Worker
from slime_router.siblings.siblings import Siblings
from slime_router.types import WeightVersion

logger = logging.getLogger(__name__)

OnWeights: TypeAlias = Callable[[Worker, WeightVersion | None, bool], None]
"""Called with a worker that took a weight update, its version if it has a name, and whether the
worker's cache is now empty."""

CHANGE, STATE, TAKE = "change", "state", "take"


class Registry:
    """Makes each change here and in the other processes.

    `journal`: what registers here outlives the router, if there is one.
    """

    def __init__(
        self,
        pool: WorkerPool,
        weights: WeightVersions,
        siblings: Siblings,
        *,
        on_weights: OnWeights,
        journal: SharedArchive | None = None,
    ) -> None:
        self._pool = pool
        self._weights = weights
        self._siblings = siblings
        self._on_weights = on_weights
        self._journal = journal
        self.changes = 0  # of who is registered, made here or in another process
        self._behind: set[int] = set()  # have missed a change
        self._before: dict[str, WeightVersion | None] = {}  # of others' weight updates
        siblings.answer(CHANGE, self._heard)
        siblings.answer(STATE, self._asked)
        siblings.answer(TAKE, self._taken)

    def __repr__(self) -> str:
        return f"<Registry of {self._pool!r}>"

    @property
    def behind(self) -> frozenset[int]:
        """The processes that have missed a change, and not caught up yet."""
        return frozenset(self._behind)

    # Who is registered

    async def add(self, url: str, **fields: Unpack[RegistrationFields]) -> Worker:
        """See `WorkerPool.add`."""
        self.changes += 1
        worker = self._pool.add(url, **fields)
        if self._journal is not None:
            pack = partial(orjson.dumps, asdict(worker.registration))
            self._journal.put("workers", worker.url, pack)
        logger.info("worker %s is registered", worker.url)
        await self._tell("add", worker, fields=fields)
        return worker

    async def remove(self, url_or_id: str) -> Worker:
        """See `WorkerPool.remove`."""
        worker = self._pool.remove(url_or_id)
        self._forget(worker)
        logger.info("worker %s is removed, %d in flight", worker.url, worker.in_flight)
        await self._tell("remove", worker)
        return worker

    async def drain(self, url_or_id: str) -> Worker:
        """See `WorkerPool.drain`."""
        worker = self._pool.drain(url_or_id)
        self._forget(worker)
        logger.info("worker %s leaves, %d in flight", worker.url, worker.in_flight)
        await self._tell("drain", worker)
        return worker

    def _forget(self, worker: Worker) -> None:
        self.changes += 1
        if self._journal is None:
            return
        if self._journal.is_shared:  # other routers learn of it
            self._journal.put("workers", worker.url, lambda: b"null")
        else:
            self._journal.drop("workers", worker.url)

    # What they do

    async def rest(self, worker: Worker, *, is_paused: bool, is_asleep: bool) -> None:
        """See `WorkerPool.rest`."""
        self._pool.rest(worker, is_paused=is_paused, is_asleep=is_asleep)
        await self._tell("rest", worker, is_paused=is_paused, is_asleep=is_asleep)

    async def flushed(self, worker: Worker) -> None:
        """See `WorkerPool.flushed`."""
        self._pool.flushed(worker)
        await self._tell("flushed", worker)

    async def update_started(self, worker: Worker) -> WeightVersion | None:
        """See `Worker.update_started`."""
        before = worker.update_started()
        await self._tell("update_started", worker)
        return before

    async def update_taken(
        self,
        worker: Worker,
        version: WeightVersion | None,
        *,
        before: WeightVersion | None,
        flushes: bool,
    ) -> None:
        """The worker has taken a weight update; see `OnWeights`."""
        self._update_taken(worker, version, before=before, flushes=flushes)
        await self._tell("update_taken", worker, version=version, flushes=flushes)

    def _update_taken(
        self,
        worker: Worker,
        version: WeightVersion | None,
        *,
        before: WeightVersion | None,
        flushes: bool,
    ) -> None:
        worker.update_taken(version, before=before)
        if flushes:
            self._pool.flushed(worker)
        self._on_weights(worker, version, flushes)
        self._pool.note_versions()

    async def adapter_loaded(self, worker: Worker, name: str) -> None:
        """The worker has an adapter of this name."""
        self._pool.adapters.loaded(worker, name)
        await self._tell("adapter_loaded", worker, name=name)

    # To the others, and from them

    async def _tell(self, what: str, worker: Worker, **more: Any) -> None:
        try:
            heard = await self._siblings.ask(CHANGE, {"what": what, "url": worker.url, **more})
        except asyncio.CancelledError:  # whoever asked has left, and some may not have heard of it
            self._behind.update(self._siblings.others)
            raise
        self._behind.update(heard.silent)

    async def catch_up(self) -> None:
        """Send the whole state to each process that has missed a change."""
        for number in tuple(self._behind):
            heard = await self._siblings.ask_one(number, TAKE, self._state())
            if heard.answers:
                self._behind.discard(number)
                logger.info("process %d has caught up", number)

    async def take_over(self) -> None:
        """Takes the state of a process that was there before this one, if there is any."""
        for number in self._siblings.others:
            heard = await self._siblings.ask_one(number, STATE)
            for state in heard.answers.values():
                self._take(state, is_whole=self._siblings.restarts > 0)
                return

    async def _asked(self, _: Any) -> dict[str, Any]:
        return self._state()

    def _state(self) -> dict[str, Any]:
        workers = [
            {
                "url": worker.url,
                "fields": asdict(worker.registration),
                "is_draining": worker.is_draining,
                "is_paused": worker.is_paused,
                "is_asleep": worker.is_asleep,
                "version": worker.weight_version,
            }
            for worker in self._pool.list()
        ]
        known = {"versions": self._weights.known, "adapters": self._pool.adapters.names}
        return {"workers": workers, **known}

    async def _taken(self, state: Mapping[str, Any]) -> None:
        self._take(state, is_whole=True)

    def _take(self, state: Mapping[str, Any], *, is_whole: bool) -> None:
        """Workers that are not in a whole state were removed."""
        self._weights.take_over([(version, epoch) for version, epoch in state["versions"]])
        for name in state["adapters"]:
            self._pool.adapters.add(name)
        listed = {entry["url"] for entry in state["workers"]}
        for worker in self._pool.list():
            if is_whole and worker.url not in listed:
                self._pool.remove(worker.url)
        for entry in state["workers"]:
            worker = self._pool.add(entry["url"], **entry["fields"])
            self._pool.rest(worker, is_paused=entry["is_paused"], is_asleep=entry["is_asleep"])
            worker.observed(entry["version"], known=worker.weight_version)
            if entry["is_draining"]:
                self._pool.drain(worker.url)
        self._pool.note_versions()

    async def _heard(self, change: Mapping[str, Any]) -> None:
        """Makes a change that another process has made."""
        what, url = change["what"], change["url"]
        self.changes += what in ("add", "remove", "drain")
        if what == "add":
            self._pool.add(url, **change["fields"])
            return
        try:
            worker = self._pool.get(url)
        except NotFound:  # removed meanwhile
            return
        match what:
            case "remove":
                self._pool.remove(url)
            case "drain":
                self._pool.drain(url)
            case "rest":
                self._pool.rest(
                    worker, is_paused=change["is_paused"], is_asleep=change["is_asleep"]
                )
            case "flushed":
                self._pool.flushed(worker)
            case "adapter_loaded":
                self._pool.adapters.loaded(worker, change["name"])
            case "update_started":
                self._before[url] = worker.update_started()
            case "update_taken":
                before = self._before.pop(url, None)
                version, flushes = change["version"], change["flushes"]
                self._update_taken(worker, version, before=before, flushes=flushes)
