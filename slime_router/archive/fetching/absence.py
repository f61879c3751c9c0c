"""An archive that did not answer is not asked again by requests until it has answered a look.

there --a look fails--> away: requests go on without, a look every `RETRY_S`
away --a look is answered--> there
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from slime_router.archive.port import ArchiveDown, ArchiveOdd

logger = logging.getLogger(__name__)

RETRY_S = 1.0


class Absence:
    """Whether the archive is away, and the task that finds out when it is back.

    `look` asks it something small, and raises ArchiveDown where there is no answer. No request
    pays for that: one that hangs costs as much as the longest look may take.
    """

    def __init__(self, look: Callable[[], Awaitable[object]]) -> None:
        self.reason: str | None = None  # why it did not answer; None while it does
        self._look = look
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Absence {self.reason or 'ended'}>"

    def begin(self, reason: str) -> None:
        """The archive did not answer a request."""
        self.reason = reason
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="archive that is away")

    async def look(self) -> None:
        """Asks the archive once whether it is back."""
        try:
            with suppress(ArchiveOdd):  # it does answer
                await self._look()
            self.reason = None
        except ArchiveDown as exc:
            self.reason = str(exc)

    async def close(self) -> None:
        """Ends the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        while self.reason is not None:
            await asyncio.sleep(RETRY_S)
            try:
                await self.look()
            except Exception:  # a fault of ours: without another look it would be away for good
                logger.exception("a fault while the archive was asked whether it is back")
