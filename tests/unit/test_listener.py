"""How soon a busy loop accepts the connections that wait."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import uvloop
from aiohttp import web

from slime_router.edge import listener as listener_module
from slime_router.edge.descriptors import DescriptorWatch
from slime_router.edge.listener import Listener
from slime_router.server.boundary import protocols
from slime_router.supervisor import Supervisor

WAITING = 120


class Opened(asyncio.Protocol):
    """Counts itself."""

    def __init__(self, opened: list[asyncio.Transport]) -> None:
        self._opened = opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._opened.append(cast(asyncio.Transport, transport))  # uvloop's is not a subclass


async def turns_until_accepted() -> int:
    """Turns of the loop until all connections that waited are open."""
    opened: list[asyncio.Transport] = []
    runner = web.AppRunner(web.Application())
    await runner.setup()
    try:
        async with Supervisor() as supervisor:
            listener = Listener(
                runner,
                lambda: Opened(opened),
                "127.0.0.1",
                0,
                tls=None,
                descriptors=DescriptorWatch(None),
                supervisor=supervisor,
            )
            await listener.start()
            clients = [socket.create_connection(listener.addresses[0]) for _ in range(WAITING)]
            turns = 0
            while len(opened) < WAITING:
                await asyncio.sleep(0)
                turns += 1
            for transport in opened:
                transport.abort()
            for client in clients:
                client.close()
            return turns
    finally:
        await runner.cleanup()


def test_many_connections_are_accepted_in_one_turn():
    """Where each took its own turn, clients of a busy router waited for seconds."""
    assert uvloop.run(turns_until_accepted()) < WAITING / 4


async def test_where_all_places_are_taken_it_says_so_until_one_is_free(monkeypatch):
    monkeypatch.setattr(listener_module, "LOOK_S", 0.0)
    watch = DescriptorWatch(None)
    monkeypatch.setattr(watch, "most_clients", lambda: 1)
    runner = web.AppRunner(web.Application())
    await runner.setup()
    is_full = asyncio.Event()
    async with Supervisor() as supervisor:
        listener = Listener(
            runner,
            protocols(runner),
            "127.0.0.1",
            0,
            tls=None,
            descriptors=watch,
            supervisor=supervisor,
            on_full=is_full.set,
        )
        await listener.start()
        host, port = listener.addresses[0]
        _, first = await asyncio.open_connection(host, port)
        reader, second = await asyncio.open_connection(host, port)
        async with asyncio.timeout(10):
            await is_full.wait()
            first.close()
            second.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        second.close()
        await listener.stop()
    await runner.cleanup()
