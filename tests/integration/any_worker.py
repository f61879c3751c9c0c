"""A worker that serves every path: it notes what it was sent, and answers as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.test_utils import TestServer

PROBES = (
    "/ping",
    "/tokenize",
    "/model_info",
    "/v1/loads",
    "/v1/models",
    "/health",
    "/health_generate",
    "/generate",
)


class Heard(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class AnyWorker:
    """`pieces` are written one by one; those from `hold_before` on wait for `go`.

    With 0 the status line does too.
    """

    url: str = ""
    status: int = 200
    pieces: list[bytes] = field(default_factory=lambda: [b'{"id": 1,  "odd spacing":1}'])
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    hold_before: int = 1_000
    go: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    heard: list[Heard] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        # Greeting and probes; what a client asks comes with the headers of one.
        is_ours = request.path in PROBES
        if is_ours and "Accept" not in request.headers:
            return web.Response(status=405 if request.path == "/generate" else 404)
        body = await request.read()
        self.heard.append(Heard(request.method, request.raw_path, {**request.headers}, body))
        response = web.StreamResponse(status=self.status, headers=self.headers)
        try:
            if not self.hold_before:
                await self.go.wait()
            await response.prepare(request)
            for number, piece in enumerate(self.pieces):
                if number >= self.hold_before:
                    await self.go.wait()
                await response.write(piece)
            return response
        except asyncio.CancelledError:
            self.gone.set()
            raise


@asynccontextmanager
async def any_worker(**settings: Any) -> AsyncIterator[AnyWorker]:
    worker = AnyWorker(**settings)
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", worker.handle)
    async with TestServer(app, handler_cancellation=True) as server:
        worker.url = str(server.make_url("")).rstrip("/")
        yield worker
        worker.go.set()
