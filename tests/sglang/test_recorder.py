"""The recording proxy is not part of what it watches: bytes and hang-ups pass as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from tests.sglang.recorder import RecordingProxy

PATIENCE_S = 10.0
FIRST = b'data: {"output_ids":[1]}\n\n'
REST = b'data: {"output_ids":[1,2]}\n\ndata: [DONE]\n\n'


class Upstream:
    """Streams `FIRST`, waits for `go_on`, streams `REST`; knows when its client has left."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.was_left = asyncio.Event()

    async def generate(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        try:
            await reply.write(FIRST)
            await self.go_on.wait()
            await reply.write(REST)
        except asyncio.CancelledError:
            self.was_left.set()
            raise
        return reply

    async def echo(self, request: web.Request) -> web.Response:
        return web.Response(
            status=418, body=request.raw_path.encode() + b"|" + await request.read()
        )


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[Upstream, str]]:
    behaviour = Upstream()
    app = web.Application()
    app.router.add_post("/generate", behaviour.generate)
    app.router.add_route("*", "/{path:.*}", behaviour.echo)
    async with TestServer(app) as server:
        await server.start_server(handler_cancellation=True)
        yield behaviour, str(server.make_url("/"))


async def test_a_stream_passes_piece_by_piece_and_is_recorded(
    upstream: tuple[Upstream, str],
) -> None:
    """The first piece arrives while the worker still holds back the rest."""
    worker, url = upstream
    with RecordingProxy(url) as proxy:
        async with (
            asyncio.timeout(PATIENCE_S),
            aiohttp.ClientSession() as client,
            client.post(f"{proxy.url}/generate", data=b'{"rid": "a"}') as reply,
        ):
            assert reply.content_type == "text/event-stream"
            assert await reply.content.readexactly(len(FIRST)) == FIRST
            worker.go_on.set()
            assert await reply.read() == REST
        (exchange,) = proxy.exchanges
        assert exchange.asked() == {"rid": "a"}
        assert exchange.reply == FIRST + REST
        assert exchange.items() == [{"output_ids": [1]}, {"output_ids": [1, 2]}]


async def test_a_client_that_hangs_up_is_hung_up_on(upstream: tuple[Upstream, str]) -> None:
    worker, url = upstream
    with RecordingProxy(url) as proxy:
        async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession() as client:
            async with client.post(f"{proxy.url}/generate", data=b"{}") as reply:
                await reply.content.readexactly(len(FIRST))
            await worker.was_left.wait()
        assert not proxy.exchanges[0].is_complete


async def test_other_paths_pass_unchanged_and_unrecorded(upstream: tuple[Upstream, str]) -> None:
    _, url = upstream
    with RecordingProxy(url) as proxy:
        async with (
            asyncio.timeout(PATIENCE_S),
            aiohttp.ClientSession() as client,
            client.put(URL(f"{proxy.url}/a%2Fb%7E?c=d%20e", encoded=True), data=b"body") as reply,
        ):
            assert (reply.status, await reply.read()) == (418, b"/a%2Fb%7E?c=d%20e|body")
        assert proxy.exchanges == []
