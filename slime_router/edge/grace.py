"""The end of a shutdown: what still runs after the grace period ends with an error, not silently.

A handler that is simply cancelled leaves its client with half a stream, which looks like a crash.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType

from aiohttp import web

from slime_router.errors import ShuttingDown
from slime_router.waiting.cancel_scope import CancelScope, Cut

logger = logging.getLogger(__name__)


class Grace:
    """Ends the scopes that are open when the grace period is over.

    `period_s` counts from the start of the shutdown.
    """

    def __init__(self, period_s: float) -> None:
        self.is_over = False
        self._period_s = period_s
        self._open: set[CancelScope] = set()

    def __repr__(self) -> str:
        return f"<Grace {'over' if self.is_over else 'not over'}, {len(self._open)} scopes>"

    def scope(self) -> Scope:
        """A block that raises ShuttingDown once the grace period is over."""
        return Scope(self, self._open)

    async def start(self, _: web.Application) -> None:
        """aiohttp's signal that the server takes no more requests."""
        if self._open:
            logger.info("shutdown: %d requests have %g s", len(self._open), self._period_s)
        asyncio.get_running_loop().call_later(self._period_s, self.end)

    def end(self) -> None:
        """The grace period is over."""
        self.is_over = True
        if self._open:
            logger.warning("shutdown: the grace period is over, %d requests end", len(self._open))
        for scope in tuple(self._open):
            scope.cut()


class Scope(CancelScope):
    """See `Grace.scope`."""

    __slots__ = ("_grace", "_open")

    def __init__(self, grace: Grace, opened: set[CancelScope]) -> None:
        super().__init__()
        self._grace = grace
        self._open = opened

    def __enter__(self) -> Scope:
        super().__enter__()
        self._open.add(self)
        if self._grace.is_over:
            self.cut()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.discard(self)
        try:
            super().__exit__(kind, exc, traceback)
        except Cut:
            raise ShuttingDown("The router is shutting down.") from None
