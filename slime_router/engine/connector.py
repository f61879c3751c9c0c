"""The connections to the workers: kept ones, and for each request whether it got a fresh one.

aiohttp's tracing says the same, at a cost to every request.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import aiohttp


class Use:
    """How one request came by its connection."""

    __slots__ = ("is_fresh",)

    def __init__(self) -> None:
        self.is_fresh = False  # opened for it; else it was kept from an earlier request


_use: ContextVar[Use] = ContextVar("slime_router.use")


def note_use() -> Use:
    """What the next request of this task will say of its connection."""
    use = Use()
    _use.set(use)
    return use


class Connector(aiohttp.TCPConnector):
    """Opens connections, and notes it in the `Use` of the request that it opens one for."""

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        """What aiohttp's documentation names for subclasses to override."""
        if (use := _use.get(None)) is not None:
            use.is_fresh = True
        return await super()._create_connection(*args, **kwargs)
