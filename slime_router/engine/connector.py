"""The connections to the workers, and whether each request reused one or got a fresh one.

aiohttp's tracing reports the same, but at a cost to every request.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import aiohttp


class Use:
    """How one request got its connection."""

    __slots__ = ("is_fresh",)

    def __init__(self) -> None:
        self.is_fresh = False  # opened for it, not kept from an earlier request


_use: ContextVar[Use] = ContextVar("slime_router.use")


def note_use() -> Use:
    """Where the next request of this task will note how it got its connection."""
    use = Use()
    _use.set(use)
    return use


class Connector(aiohttp.TCPConnector):
    """Opens connections, and marks the `Use` of the request each one is opened for."""

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        """aiohttp documents this method as one for subclasses to override."""
        if (use := _use.get(None)) is not None:
            use.is_fresh = True
        return await super()._create_connection(*args, **kwargs)
