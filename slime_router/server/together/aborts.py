"""Aborts: what is to end, in whichever process it runs."""

from __future__ import annotations

from typing import Any

from slime_router.edge.plugin_guard import PluginGuard
from slime_router.errors import NotFound
from slime_router.failover.relay import Relay
from slime_router.generation.admission import AdmissionQueue
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Worker
from slime_router.siblings.siblings import Siblings

ABORT = "abort"


class Aborts:
    """Ends generations here and in the other processes; their workers are still to be asked."""

    def __init__(
        self,
        pool: WorkerPool,
        relay: Relay,
        admission: AdmissionQueue,
        plugins: PluginGuard,
        siblings: Siblings,
    ) -> None:
        self._pool = pool
        self._relay = relay
        self._admission = admission
        self._plugins = plugins
        self._siblings = siblings
        siblings.answer(ABORT, self._heard)

    async def cancel(self, rid: str) -> list[tuple[Worker, str]]:
        """Nothing under this rid is resumed; the workers that have it, and its name there."""
        found = self._cancel(rid)
        heard = await self._siblings.ask(ABORT, {"rid": rid})
        for url, name in (pair for answer in heard.answers.values() for pair in answer):
            try:
                found.append((self._pool.get(url), name))
            except NotFound:  # it was removed; what it still has ends with its lease
                continue
        return found

    async def cancel_all(self) -> None:
        """Nothing that runs or waits now is resumed or begun."""
        self._cancel_all()
        await self._siblings.ask(ABORT, {"rid": None})

    async def _heard(self, message: dict[str, Any]) -> list[tuple[str, str]]:
        rid = message["rid"]
        if rid is None:
            self._cancel_all()
            return []
        return [(worker.url, name) for worker, name in self._cancel(rid)]

    def _cancel(self, rid: str) -> list[tuple[Worker, str]]:
        self._plugins.cancel(rid)
        self._admission.cancel(rid)
        return self._relay.cancel(rid)

    def _cancel_all(self) -> None:
        self._plugins.cancel_all()
        self._admission.cancel_all()
        self._relay.cancel_all()
