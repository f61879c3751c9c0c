"""What the processes of a router say to each other all the time.

A process counts its own requests, and knows which worker took a session's last one. What it knows
of the others is what they said last, a fraction of a second ago.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slime_router.json_text import is_text
from slime_router.pool.pool import WorkerPool
from slime_router.server.together.registry import Registry
from slime_router.siblings.siblings import Siblings
from slime_router.supervisor import Supervisor

LOADS = "loads"
EVERY_S = 0.25  # for each process: each tells all others, and the work should not grow with them
TIMEOUT_S = 2.0
REPEATS = 20  # rounds without news, until it is said again nevertheless


class Exchange:
    """Says how many requests each worker has from here, and which sessions have another one now."""

    def __init__(self, pool: WorkerPool, siblings: Siblings, registry: Registry) -> None:
        self._pool = pool
        self._siblings = siblings
        self._registry = registry
        self._said: dict[str, int] | None = None
        self._rounds = 0
        siblings.answer(LOADS, self._heard)

    def start(self, supervisor: Supervisor) -> None:
        """Works in the background, as long as the supervisor lasts."""
        if self._siblings.others:
            every_s = EVERY_S * self._siblings.count
            supervisor.every(every_s, "exchange between processes", self.tell)

    async def tell(self) -> None:
        """One round."""
        await self._registry.catch_up()
        loads = {url: load for url, load in self._pool.loads.items() if load}
        moved = {
            key: url for key, url in self._pool.sharing.take_moved_keys().items() if is_text(key)
        }
        self._rounds += 1
        if loads == self._said and not moved and self._rounds < REPEATS:
            return
        assert self._siblings.place is not None
        message = {"process": self._siblings.place.number, "loads": loads, "keys": moved}
        heard = await self._siblings.ask(LOADS, message, timeout_s=TIMEOUT_S)
        self._said, self._rounds = loads, 0
        for number in heard.silent:  # what it had has ended with it, or is as if it had
            self._pool.sharing.note_elsewhere(number, {})

    async def _heard(self, message: Mapping[str, Any]) -> None:
        self._pool.sharing.note_elsewhere(message["process"], message["loads"])
        self._pool.sharing.learn_keys(message["keys"])
