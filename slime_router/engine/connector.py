"""The connections to the workers, and whether each request reused one or got a fresh one.

aiohttp's tracing reports the same, but at a cost to every request.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

from slime_router.engine.wire.protocol import WorkerProtocol
from slime_router.errors import OUT_OF_DESCRIPTORS, OutOfDescriptors, SetupError

_OPENS = "_create_connection"
_TAKES = "_get"  # a connection that is kept
_EXPIRES = "_on_read_timeout"
_READS = ("_buffer", "_eof", "_exception", "_size")  # of a body: `edge/bodies.py`, `ArrivedBody`


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
    would be sent again. What `KeptConnections` uses must be there, too.

    Raises:
        SetupError: it does not.
    """
    for name in (_OPENS, _TAKES):
        if not inspect.iscoroutinefunction(getattr(connector, name, None)):
            raise _misfit(f"{connector.__name__}.{name}()")
    for name in ("set_response_params", "read", "abort", _EXPIRES):
        if not callable(getattr(ResponseHandler, name, None)):
            raise _misfit(f"{ResponseHandler.__name__}.{name}()")
    for name in _READS:
        if not hasattr(aiohttp.StreamReader, name):
            raise _misfit(f"{aiohttp.StreamReader.__name__}.{name}")


def _misfit(what: str) -> SetupError:
    return SetupError(
        f"this version of aiohttp ({aiohttp.__version__}) does not fit: {what} is missing"
    )


class Connector(aiohttp.TCPConnector):
    """Opens connections, and marks the `Use` of the request each one is opened for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = cast("partial[ResponseHandler]", partial(WorkerProtocol, loop=self._loop))

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        """aiohttp documents this method as one for subclasses to override.

        Raises:
            OutOfDescriptors: the system has none for it.
        """
        use = _use.get(None) or Use()
        use.is_fresh = use.is_connecting = True
        url = args[0].url
        try:
            opened = await super()._create_connection(*args, **kwargs)
        except BaseException as exc:  # or cancelled, as nothing answers
            # The name may have another address by now: a pod that was made again has.
            self.clear_dns_cache(url.raw_host, url.port)
            if not isinstance(exc, aiohttp.ClientConnectorError):
                raise
            if exc.os_error.errno not in OUT_OF_DESCRIPTORS:
                raise
            raise OutOfDescriptors("The router has no file descriptors left.") from exc
        use.is_connecting = False
        return opened
