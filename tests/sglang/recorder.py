"""A proxy in front of a worker that writes down what the worker was sent and what it replied.

It is the witness of a test: what a router says it sent is compared with what arrived. Bytes pass
as they come, streams too; when one side hangs up, so does the proxy towards the other.
"""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import ClientSession, ClientTimeout, web
from yarl import URL

from tests.ports import HOST

RECORDED_PATH = "/generate"
THREAD_TIMEOUT_S = 10.0
MAX_BODY_BYTES = 2**30
CONNECT_TIMEOUT_S = 5.0
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host"})
STREAM_END = b"[DONE]"


@dataclass(slots=True)
class Exchange:
    """One request to `/generate` and what came back, as bytes."""

    request: bytes
    headers: dict[str, str]
    status: int = 0  # 0 as long as the worker has not answered
    chunks: list[bytes] = field(default_factory=list)
    is_complete: bool = False  # the whole reply was handed on

    @property
    def reply(self) -> bytes:
        """The body of the reply so far."""
        return b"".join(self.chunks)

    def asked(self) -> Any:
        """The request's JSON."""
        return json.loads(self.request)

    def items(self) -> list[Any]:
        """The JSON objects of the reply: one, or one for each whole event of a stream so far."""
        if not self.reply.startswith(b"data:"):
            return [json.loads(self.reply)]
        *whole, _ = self.reply.split(b"\n\n")  # a stream may be cut inside an event
        events = (event.removeprefix(b"data:").strip() for event in whole)
        return [json.loads(event) for event in events if event not in (b"", STREAM_END)]


class RecordingProxy:
    """Listens at `url` for the length of a `with` block and hands everything to `upstream`.

    It has a thread and an event loop of its own, so tests of any kind can use it. `exchanges`
    grows by one with each request; `clear()` forgets them.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream.rstrip("/")
        self.url = ""
        self.exchanges: list[Exchange] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="recording-proxy")
        self._stack = AsyncExitStack()
        self._client: ClientSession | None = None

    def __enter__(self) -> RecordingProxy:
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(THREAD_TIMEOUT_S)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        closing = asyncio.run_coroutine_threadsafe(self._stack.aclose(), self._loop)
        try:
            closing.result(THREAD_TIMEOUT_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(THREAD_TIMEOUT_S)
            self._loop.close()

    def clear(self) -> None:
        """Forget the exchanges so far."""
        self.exchanges.clear()

    async def _open(self) -> None:
        timeout = ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)  # replies may be long
        self._client = await self._stack.enter_async_context(
            ClientSession(timeout=timeout, auto_decompress=False)
        )
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1, access_log=None)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, HOST, 0)
        await site.start()
        self.url = f"http://{HOST}:{runner.addresses[0][1]}"

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        assert self._client is not None
        body = await request.read()
        exchange = Exchange(body, dict(request.headers))
        if request.path == RECORDED_PATH:
            self.exchanges.append(exchange)
        async with self._client.request(
            request.method,
            URL(self.upstream + request.raw_path, encoded=True),
            data=body or None,
            headers=_end_to_end(request.headers),
            skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
            allow_redirects=False,
        ) as answer:
            exchange.status = answer.status
            reply = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
            reply.content_length = answer.content_length
            await reply.prepare(request)
            async for chunk in answer.content.iter_any():
                exchange.chunks.append(chunk)
                await reply.write(chunk)
            await reply.write_eof()
            exchange.is_complete = True
            return reply


def _end_to_end(headers: Any) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP]
