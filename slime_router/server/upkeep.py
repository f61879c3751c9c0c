"""Upkeep: background work. Idle turns and stale tokens are dropped here."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable

from slime_router.cache.node import Node
from slime_router.cache.prefix_cache import PrefixCache
from slime_router.generation.weight_versions import WeightVersions
from slime_router.pool.worker import Worker
from slime_router.supervisor import Supervisor
from slime_router.trajectory.store import TrajectoryStore
from slime_router.types import WeightVersion

logger = logging.getLogger(__name__)

MIN_AGES = 8  # sweeps per idle time: a turn is dropped at most an eighth of it too late
MAX_PAUSE_S = 60.0


class Upkeep:
    """Sweeps the store, and drops what weight updates have made stale."""

    def __init__(
        self,
        store: TrajectoryStore,
        cache: PrefixCache,
        weights: WeightVersions,
        *,
        idle_s: float,
        max_version_lag: int | None,
    ) -> None:
        self._store = store
        self._cache = cache
        self._weights = weights
        self._pause_s = min(idle_s / MIN_AGES, MAX_PAUSE_S)
        self._max_age = math.ceil(idle_s / self._pause_s)
        self._max_version_lag = max_version_lag
        self._cleaned_epoch = 0
        self._news = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Upkeep every {self._pause_s:.1f} s>"

    def on_weights(self, worker: Worker, version: WeightVersion | None, flushes: bool) -> None:
        """A worker has new weights."""
        if version is not None:
            self._weights.set_current(version)
        logger.info("worker %s runs weights %r, flushed=%s", worker.url, version, flushes)
        self._news.set()

    def start(self, supervisor: Supervisor) -> None:
        """Works in the background, as long as the supervisor lasts."""
        supervisor.every(self._pause_s, "sweep", self.sweep)
        supervisor.start("clean-up of stale tokens", self._clean_up)

    async def _clean_up(self) -> None:
        """Runs until it is cancelled or fails; what it was doing then is still to be done."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self.drop_stale()
            except BaseException:  # whatever it was: what is left is for the next run
                self._news.set()
                raise

    async def sweep(self) -> None:
        """Drop turns that have been idle for too long."""
        self._news.set()  # an update may have been seen by the replies alone
        gone = await _sliced(self._store.sweep(self._max_age))
        if gone:
            logger.info("%d idle turns were dropped", gone)

    async def drop_stale(self) -> None:
        """Drop what is over `--max-version-lag` weight updates old, except for open sessions."""
        lag = self._max_version_lag
        if lag is None or self._weights.epoch - lag <= self._cleaned_epoch:
            return
        oldest = self._weights.epoch - lag
        turns = await _sliced(self._store.drop_older(oldest))
        before = self._cache.counts.stale_nodes
        await self._cache.drop_older(oldest, is_kept=self._is_kept)
        self._cleaned_epoch = oldest
        nodes = self._cache.counts.stale_nodes - before
        logger.info("%d turns and %d cached runs of old weights were dropped", turns, nodes)

    def _is_kept(self, node: Node) -> bool:
        sessions = self._store.sessions
        named = (owner for owner in node.owners or () if owner is not None)
        return any((found := sessions.find(name)) and found.is_pinned for name in named)


async def _sliced(steps: Iterable[int]) -> int:
    """The sum of steps between which others get to run."""
    total = 0
    for dropped in steps:
        total += dropped
        await asyncio.sleep(0)
    return total
