"""Cuts off clients that send no request, stop sending it, or stop reading their reply.

The invariant: a client that takes `UNSENT_LEN` bytes in `timeout_s` is never cut off; one that
makes no progress for this long is, and nothing is left of its request: its generation is aborted as
if it had closed the connection. Until then it costs little: a reply waits when the socket's buffer
is full, and so does the worker that it comes from.

A connection on which nothing was ever asked has as long for the head of its first request; aiohttp
closes one that idles after that. Where other clients wait for a place, that is done sooner.

Progress is checked a few times in that period, and on the socket: the last of a reply is written
only after every handler and middleware has returned.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from itertools import islice, takewhile

from aiohttp import web

from slime_router.api.request import ClientTimeout
from slime_router.server.boundary import Handler
from slime_router.supervisor import Supervisor

logger = logging.getLogger(__name__)

LOOKS = 4  # without any progress before a client is cut off
UNSENT_LEN = 128 * 2**10  # bytes in the kernel, which would buffer megabytes and hide progress
IDLE_S = 5.0  # a kept connection has as long before its place goes to a client that waits for one
CLOSED_AT_ONCE = 16  # of these
CUT_AT_ONCE = 64  # clients without a request: to cut one takes up to 0.1 ms of the event loop


@dataclass(slots=True)
class _Client:
    """What one connection looked like at the last check, and for how many checks it has stalled."""

    request: web.Request | None = None
    received: int = -1  # bytes of the body of `request`
    unsent: int = 0  # bytes that the socket has not taken
    silent: int = 0
    stuck: int = 0


class SlowClients:
    """Watches the connections whose requests pass through its middleware."""

    def __init__(self, timeout_s: float) -> None:
        self.cut = 0  # clients
        self._timeout_s = timeout_s
        self._clients: dict[asyncio.Transport, _Client] = {}
        self._idle: dict[asyncio.Transport, float] = {}  # since when, the longest first
        self._handled = 0  # requests, now
        self._new: dict[asyncio.BaseProtocol, int] = {}  # without a request for so many checks

    def __repr__(self) -> str:
        return f"<SlowClients {len(self._clients)} connections, {self.cut} cut>"

    def __len__(self) -> int:
        return len(self._clients)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """HTTP middleware."""
        transport = request.transport
        if transport is None:
            return await handler(request)
        client = self._clients.get(transport)
        if client is None:
            self._new.pop(request.protocol, None)
            client = self._clients[transport] = _Client()
            _keep_little_unsent(transport)
        self._idle.pop(transport, None)
        client.request, client.received = request, -1
        self._handled += 1
        try:
            return await handler(request)
        finally:
            self._handled -= 1
            client.request = None
            self._idle[transport] = asyncio.get_running_loop().time()

    def note_new(self, protocol: asyncio.BaseProtocol) -> None:
        """A client connects, and has to ask something."""
        self._new[protocol] = 0

    def start(self, supervisor: Supervisor) -> None:
        """Checks periodically, as long as the supervisor lasts."""
        supervisor.every(self._timeout_s / LOOKS, "slow clients", self.look)

    @property
    def has_requests(self) -> bool:
        """Whether any request is being handled. It is asked for at each look at the event loop."""
        return self._handled > 0

    def under_way(self) -> list[str]:
        """The requests being handled, each as method and path as sent."""
        requests = (client.request for client in self._clients.values())
        return [f"{r.method} {r.rel_url.raw_path:.100}" for r in requests if r is not None]

    def cut_all(self) -> int:
        """Closes the connections of all requests in progress; returns how many there were."""
        busy = [
            transport
            for transport, client in self._clients.items()
            if client.request is not None and not transport.is_closing()
        ]
        for transport in busy:
            transport.abort()
        return len(busy)

    def close_idle(self, for_s: float = IDLE_S) -> None:
        """Closes connections without a request for `for_s`: other clients wait for their places."""
        before = asyncio.get_running_loop().time() - for_s
        waiting = takewhile(lambda each: self._idle[each] <= before, self._idle)
        unused = (each for each in waiting if not each.get_write_buffer_size())
        for transport in tuple(islice(unused, CLOSED_AT_ONCE)):
            del self._idle[transport]
            transport.close()

    def look(self) -> None:
        """Checks every connection once; cuts off those that have stalled for `LOOKS` checks."""
        self._look_at_new()
        for transport in [each for each in self._idle if each.is_closing()]:
            del self._idle[transport]
        for transport, client in tuple(self._clients.items()):
            unsent = 0 if transport.is_closing() else transport.get_write_buffer_size()
            if transport.is_closing() or (client.request is None and not unsent):
                del self._clients[transport]
                continue
            client.stuck = client.stuck + 1 if unsent and unsent == client.unsent else 0
            client.unsent = unsent
            if client.stuck >= LOOKS:
                self._note("reads nothing of its reply", client)
                transport.abort()
            elif client.request is not None:
                self._look_at_body(transport, client, client.request)

    def _look_at_new(self) -> None:
        for protocol in self._new:
            self._new[protocol] += 1
        self._cut_mute(0)

    def _cut_mute(self, before: int) -> None:
        """Cuts those that have sent no request for too long, some at a time; so many were cut."""
        mute = [protocol for protocol, looks in self._new.items() if looks > LOOKS][:CUT_AT_ONCE]
        for protocol in mute:
            del self._new[protocol]
            transport: asyncio.Transport | None = getattr(protocol, "transport", None)
            if transport is not None and not transport.is_closing():  # else it has left
                transport.abort()
                self.cut += 1
                before += 1
        if len(mute) == CUT_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._cut_mute, before)
        elif before:  # one line: a scan of ports has thousands
            logger.info("%d clients cut: they sent no request", before)

    def _look_at_body(
        self, transport: asyncio.Transport, client: _Client, request: web.Request
    ) -> None:
        body = request.content
        # A transport that does not read is paused by us: a worker takes the body too slowly.
        if body.is_eof() or body.exception() is not None or not transport.is_reading():
            client.silent = 0
            return
        client.silent = client.silent + 1 if body.total_bytes == client.received else 0
        client.received = body.total_bytes
        if client.silent >= LOOKS:
            self._note("sends nothing of its request", client)
            body.set_exception(
                ClientTimeout(f"Nothing of the request body came for {self._timeout_s:g} s.")
            )

    def _note(self, what: str, client: _Client) -> None:
        self.cut += 1
        path = client.request.rel_url.raw_path if client.request is not None else "-"
        logger.warning("client cut: path=%s: it %s", path, what)


def _keep_little_unsent(transport: asyncio.Transport) -> None:
    """Lets the kernel hold at most `UNSENT_LEN` bytes that the client has not taken."""
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # of Linux and macOS
    if connection is not None and option is not None and connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, option, UNSENT_LEN)
