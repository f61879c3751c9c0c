"""Notices when the event loop stands still: no stream moves then, whoever's request it is.

A late tick shows that something ran for this long without letting anything else run. What
it was cannot be known afterwards, but it is one of the requests under way: the log names them where
they are few.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from slime_router.telemetry.request_record import Times

logger = logging.getLogger(__name__)

TICK_S = 0.01
REST_S = 0.1  # between two ticks while no request is under way
STALL_S = 0.05  # a tick that comes later than this is counted
LOG_PAUSE_S = 10.0  # between two lines
MAX_NAMED = 3  # requests


class Requests(Protocol):
    """The requests that are being handled."""

    @property
    def has_requests(self) -> bool:
        """Whether there are any."""
        ...

    def under_way(self) -> Sequence[str]:
        """Names them for a person."""
        ...


class StallWatch:
    """Counts stalls of the loop, and adds to `delays` how late each tick was.

    While there are no requests, ticks are rare: a hundred a second would take a router at rest more
    than a hundredth of a core.
    """

    def __init__(
        self,
        requests: Requests,
        delays: Times,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._requests = requests
        self._delays = delays
        self._clock = clock
        self._last: float | None = None
        self._pause_s = TICK_S  # until the next tick
        self._log_after = 0.0
        self._unlogged = 0
        self._loop: asyncio.AbstractEventLoop | None = None  # while it is watched
        self._timer: asyncio.TimerHandle | None = None
        self.count = 0  # stalls
        self.total_s = self.longest_s = 0.0  # how long they took
        self.lag_s = 0.0  # how late the last look was

    def __repr__(self) -> str:
        return f"<StallWatch {self.count} stalls, {self.total_s:.3f} s>"

    def late_by_ms(self) -> dict[str, int]:
        """How many ticks were later than so many milliseconds.

        What holds the loop for less than `TICK_S` is seen in part: of 10 ms half of the times are
        late by over 5. So is what holds it for less than `REST_S` when the first request comes
        after a rest.
        """
        return {f"{bound * 1e3:g}": count for bound, count in self._delays.over().items()}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches for the block. By a timer: a task that woke so often would cost every stream."""
        self._loop = asyncio.get_running_loop()
        self.tick()
        try:
            yield
        finally:
            self._loop = None
            if self._timer is not None:
                self._timer.cancel()

    def tick(self) -> None:
        """To be called every `TICK_S`, or `REST_S`; while the watch is on, it sees to that."""
        clock = self._clock or asyncio.get_running_loop().time
        now = clock()
        late_s = 0.0 if self._last is None else now - self._last - self._pause_s
        self._last = now
        self._pause_s = TICK_S if self._requests.has_requests else REST_S
        if self._loop is not None:
            self._timer = self._loop.call_later(self._pause_s, self.tick)
        self.lag_s = max(late_s, 0.0)
        self._delays.add(self.lag_s)
        if late_s <= STALL_S:
            return
        self.count += 1
        self.total_s += late_s
        self.longest_s = max(self.longest_s, late_s)
        self._note(now, late_s)

    def _note(self, now: float, late_s: float) -> None:
        if now < self._log_after:
            self._unlogged += 1
            return
        requests = self._requests.under_way()
        named = ", ".join(requests) if len(requests) <= MAX_NAMED else f"{len(requests)} requests"
        unlogged = f"; {self._unlogged} earlier stalls were not logged" if self._unlogged else ""
        logger.warning(
            "the event loop stood still for %.0f ms; under way: %s%s",
            late_s * 1e3,
            named or "no request",
            unlogged,
        )
        self._log_after, self._unlogged = now + LOG_PAUSE_S, 0
