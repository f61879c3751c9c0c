"""The connections to the workers, and whether each request reused one or got a fresh one.

aiohttp's tracing reports the same, but at a cost to every request.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import Any

import aiohttp

from slime_router.errors import OUT_OF_DESCRIPTORS, OutOfDescriptors, SetupError

_OPENS = "_create_connection"


class Use:
    """How one request got its connection."""

    __slots__ = ("is_connecting", "is_fresh")

    def __init__(self) -> None:
        self.is_fresh = False  # opened for it, not kept from an earlier request
        self.is_connecting = False  # it is being opened: nothing was sent


_use: ContextVar[Use] = ContextVar("slime_router.use")


def note_in(use: Use) -> None:
    """The next request of this task notes there how it got its connection."""
    _use.set(use)


def check_aiohttp(connector: type[aiohttp.BaseConnector] = aiohttp.TCPConnector) -> None:
    """Makes sure that aiohttp opens connections by the method that `Connector` overrides.

    Otherwise every connection would look like a kept one, and what a dead worker may have taken
    would be sent again.

    Raises:
        SetupError: it does not.
    """
    method = getattr(connector, _OPENS, None)
    if not inspect.iscoroutinefunction(method):
        raise SetupError(
            f"this version of aiohttp ({aiohttp.__version__}) does not fit: "
            f"{connector.__name__}.{_OPENS}() is missing"
        )


class Connector(aiohttp.TCPConnector):
    """Opens connections, and marks the `Use` of the request each one is opened for."""

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        """aiohttp documents this method as one for subclasses to override.

        Raises:
            OutOfDescriptors: the system has none for it.
        """
        use = _use.get(None) or Use()
        use.is_fresh = use.is_connecting = True
        try:
            opened = await super()._create_connection(*args, **kwargs)
        except aiohttp.ClientConnectorError as exc:
            if exc.os_error.errno not in OUT_OF_DESCRIPTORS:
                raise
            raise OutOfDescriptors("The router has no file descriptors left.") from exc
        use.is_connecting = False
        return opened
