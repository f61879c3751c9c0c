"""Collects garbage little by little: to look through all objects at once would stall every stream.

Requests leave next to nothing that only a collection finds, but each recorded turn leaves some
thirty objects for as long as it is held, and Python's own collector looks through all of them again
and again. Here each is looked at once: what has survived a collection is frozen.

A connection that is cut leaves a few objects that hold each other. Where they were frozen before,
they are found when everything is looked through, which waits for a moment without a request.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

LOOK_S = 0.05  # at 1,000 requests a second, some 2,000 objects
ENOUGH = 5_000  # objects more than after the last collection: about a millisecond
CALM_PAUSE_S = 600.0  # from one look through everything to the next, where no request is under way
BUSY_PAUSE_S = 3600.0  # the same where there is always one
CALM_SHARE = 1 / 1000  # of the time at most: it takes longer where much is held
BUSY_SHARE = 1 / 10_000


class GarbageCollector:
    """Takes the place of the automatic collection. `is_calm()`: no request is under way.

    There is one garbage in a process, whatever number of routers it has.
    """

    def __init__(
        self, is_calm: Callable[[], bool], *, clock: Callable[[], float] | None = None
    ) -> None:
        self._is_calm = is_calm
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None  # while it collects
        self._timer: asyncio.TimerHandle | None = None
        self._looked_through = 0.0  # when everything was
        self._took_s = 0.0  # that

    def __repr__(self) -> str:
        return f"<GarbageCollector {gc.get_freeze_count()} frozen>"

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collects for the block; the automatic collection is on again after it."""
        self._loop = asyncio.get_running_loop()
        self._looked_through = self._now()
        gc.disable()
        self.look()
        try:
            yield
        finally:
            self._loop = None
            if self._timer is not None:
                self._timer.cancel()
            gc.unfreeze()
            gc.enable()

    def look(self) -> None:
        """To be called every `LOOK_S`; while it collects, it sees to that."""
        if self._loop is not None:
            self._timer = self._loop.call_later(LOOK_S, self.look)
        if self._is_due(self._now() - self._looked_through):
            self._look_through_all()
        elif gc.get_count()[0] >= ENOUGH:
            gc.collect()
            gc.freeze()

    def _is_due(self, since_s: float) -> bool:
        """Whether it is time to look through everything."""
        if since_s < max(CALM_PAUSE_S, self._took_s / CALM_SHARE):
            return False
        return since_s >= max(BUSY_PAUSE_S, self._took_s / BUSY_SHARE) or self._is_calm()

    def _look_through_all(self) -> None:
        began = self._now()
        gc.unfreeze()
        found = gc.collect()
        gc.freeze()
        self._looked_through = self._now()
        self._took_s = self._looked_through - began
        logger.debug(
            "all objects were looked through in %.0f ms: %d were garbage",
            self._took_s * 1e3,
            found,
        )

    def _now(self) -> float:
        return (self._clock or asyncio.get_running_loop().time)()
