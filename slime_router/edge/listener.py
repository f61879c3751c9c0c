"""Where clients connect: a listener that accepts no more of them than there are descriptors for.

Those that find no room stay in the kernel's queue until another one leaves. An event loop's own
server would accept and reset them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from aiohttp import web

from slime_router.edge.descriptors import DescriptorWatch
from slime_router.errors import OUT_OF_DESCRIPTORS
from slime_router.supervisor import Supervisor

# Connections that the kernel keeps until they are accepted; it may allow fewer (Linux:
# net.core.somaxconn). One that finds no place is tried again after one second, then three.
BACKLOG = 4096
AT_ONCE = 64  # accepted, before others have a turn
LOOK_S = 0.05  # between two looks for room
# Of the one connection: accept(2) says that a server goes on after these.
_PASSING = (
    errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH,
    errno.EPERM, errno.EINTR, errno.ETIMEDOUT,
)  # fmt: skip


class Listener(web.BaseSite):
    """A site of aiohttp's that accepts by itself, as long as there is room.

    Args:
        protocols: makes one for each connection, of the runner's server.
        host: a name or an address; a name may have several.
        on_connection: called with the protocol of each connection, before that has begun.
        on_full: called repeatedly while there is no room; it may close idle connections.
        is_shared: other processes listen there too, and the kernel gives each its clients.
        supervisor: keeps accepting; it must run when the listener is started.
    """

    def __init__(
        self,
        runner: web.AppRunner,
        protocols: Callable[[], asyncio.Protocol],
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        descriptors: DescriptorWatch,
        supervisor: Supervisor,
        on_connection: Callable[[asyncio.Protocol], None] = lambda _: None,
        on_full: Callable[[], None] = lambda: None,
        is_shared: bool = False,
    ) -> None:
        super().__init__(runner, ssl_context=tls, backlog=BACKLOG)
        self._address = (host, port)
        self._is_shared = is_shared
        self._tls = tls
        self._descriptors = descriptors
        self._supervisor = supervisor
        self._protocols = protocols
        self._on_connection = on_connection
        self._on_full = on_full
        self._most: int | None = None
        self._room = 0  # known to be left, without counting again
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._opening: set[asyncio.Task[None]] = set()  # in their TLS handshakes

    @property
    def name(self) -> str:
        """The URL that it listens at."""
        return f"{'http' if self._tls is None else 'https'}://{self._address}"

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each socket."""
        return [sock.getsockname()[:2] for sock in self._sockets]

    async def start(self) -> None:
        """Listens, and begins to accept.

        Raises:
            OSError: the name is unknown, or an address of it cannot be used.
        """
        await super().start()
        self._sockets = await bound(*self._address, is_shared=self._is_shared)
        for sock in self._sockets:
            sock.listen(BACKLOG)
        self._most = self._descriptors.most_clients()
        for sock in self._sockets:
            work = partial(self._accept, sock)
            self._accepting.append(self._supervisor.start("listener", work))

    async def stop(self) -> None:
        """Accepts nothing more; connections in their handshakes are dropped."""
        await self._supervisor.stop([*self._accepting, *self._opening])
        for sock in self._sockets:
            sock.close()
        await super().stop()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wait_for_room()
            try:
                first, _ = await loop.sock_accept(listening)
            except OSError as exc:
                if exc.errno in OUT_OF_DESCRIPTORS:
                    await asyncio.sleep(LOOK_S)  # `DescriptorWatch` says so
                elif exc.errno not in _PASSING:
                    raise
                continue
            # A busy loop takes long for one turn, and uvloop accepts one connection a turn.
            for connection in (first, *_queued(listening, min(self._room, AT_ONCE) - 1)):
                self._room -= 1
                task = loop.create_task(self._open(connection))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
            await asyncio.sleep(0)

    async def _open(self, connection: socket.socket) -> None:
        """Hands an accepted connection to the server; one that fails meanwhile is closed."""
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(self._protocol, connection, ssl=self._tls)
        except OSError:  # that of TLS is one, too
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise

    def _protocol(self) -> asyncio.Protocol:
        protocol = self._protocols()
        self._on_connection(protocol)
        return protocol

    async def _wait_for_room(self) -> None:
        if self._room > 0:
            return
        self._room = self._counted_room()
        if self._room <= 0 and self._most is not None:
            self._descriptors.note_pause(self._most - self._room)
        while self._room <= 0:
            self._on_full()
            await asyncio.sleep(LOOK_S)
            self._room = self._counted_room()

    def _counted_room(self) -> int:
        if self._most is None:
            return sys.maxsize
        server = self._runner.server
        open_ones = 0 if server is None else len(server.connections)
        return self._most - open_ones - len(self._opening)


def _queued(listening: socket.socket, most: int) -> list[socket.socket]:
    """Connections that wait to be accepted, up to `most`; an error is left to who accepts next."""
    accepted: list[socket.socket] = []
    with suppress(OSError):  # usually: there are no more
        while len(accepted) < most:
            accepted.append(listening.accept()[0])
    return accepted


async def bound(host: str, port: int, *, is_shared: bool) -> list[socket.socket]:
    """One socket for each address of `host`, none of which blocks or listens.

    Raises:
        OSError: the name is unknown, or an address of it cannot be used.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except UnicodeError:  # of the codec for names, which fails where a part has 64 letters or none
        raise OSError("it is not the name of a host") from None
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError:  # the system has no such family, say IPv6
                continue
            sockets.append(sock)
            if os.name == "posix":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                with suppress(OSError):  # or "::" would take IPv4's port, too
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)
            try:
                sock.bind(address)
            except OSError as exc:  # ::1 of localhost, say, where the system's IPv6 is switched off
                if exc.errno != errno.EADDRNOTAVAIL:
                    raise
                sockets.pop().close()
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    if not sockets:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return sockets


def reason_of(exc: OSError) -> str:
    """Why an address cannot be used, without the address: an event loop says it again."""
    if exc.errno is not None and exc.errno > 0:  # a resolver's numbers are negative
        return os.strerror(exc.errno)
    return str(exc.strerror or exc)
