"""Long bodies to workers: on a kept connection as through aiohttp's session, and kept by nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from slime_router.engine.client import WorkerClient
from slime_router.engine.request import LONG_BODY_LEN, LongBody
from slime_router.errors import WorkerTimeout
from slime_router.pool.worker import Worker
from tests.integration.test_kept_connections import sessions

__all__ = ["sessions"]  # a fixture

HEADERS = {"Content-Type": "application/json"}
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REFUSAL = b"HTTP/1.1 413 Too Long\r\nContent-Length: 2\r\n\r\n{}"
HUGE = b"0123456789abcdef" * 2**20  # more than a socket takes at once


@dataclass
class Reading:
    """A worker that reads bodies; one for `/never` is answered unread, one for `/silent` never."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    handlers: set[asyncio.Task[None] | None] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.handlers.add(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"/never" in head:
                    writer.write(REFUSAL)
                    await reader.read()  # until it is closed
                    break
                if b"/silent" in head:
                    await self.is_over.wait()
                    break
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                writer.write(ANSWER)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def reading() -> AsyncIterator[tuple[Reading, WorkerClient]]:
    worker = Reading()
    server = await asyncio.start_server(worker.serve, "127.0.0.1", 0, limit=2**16)
    worker.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        async with WorkerClient(vocab_size=9, capture="off", request_timeout_s=5.0) as client:
            yield worker, client
        worker.is_over.set()
        await asyncio.gather(*filter(None, worker.handlers))


async def ask(
    client: WorkerClient,
    worker: Reading,
    body: bytes | LongBody,
    path: str = "/x",
    timeout_s: float = 5.0,
) -> int:
    answer = await client.send(
        Worker(worker.url),
        "POST",
        path,
        headers=HEADERS,
        body=body,
        timeout_s=timeout_s,
    )
    try:
        await answer.content.read()
        return answer.status
    finally:
        answer.close()


@pytest.mark.parametrize("length", [LONG_BODY_LEN, LONG_BODY_LEN + 1, len(HUGE)])
async def test_it_arrives_whole_with_and_without_a_session(length, sessions):
    body = HUGE[:length]
    async with reading() as (worker, client):
        for _ in range(3):
            assert await ask(client, worker, body) == 200
    assert worker.bodies == [body] * 3
    assert worker.connections == 1
    assert sessions == ["POST"]


async def test_pieces_are_put_together_in_order_and_kept_by_nobody():
    async with reading() as (worker, client):
        for _ in range(2):  # by a session, and on a kept connection
            body = LongBody(b"[", memoryview(HUGE)[: 3 * 10**5], b"]")
            assert await ask(client, worker, body) == 200
            assert body.take() == []
    assert worker.bodies == [b"[" + HUGE[: 3 * 10**5] + b"]"] * 2


async def test_an_answer_before_its_end_costs_the_connection(sessions):
    """What is left of the body would be taken for the next request."""
    async with reading() as (worker, client):
        await ask(client, worker, b"{}")
        assert await ask(client, worker, HUGE, "/never") == 413
        assert await ask(client, worker, b"{}") == 200
    assert worker.bodies == [b"{}", b"{}"]
    assert worker.connections == 2
    assert sessions == ["POST", "POST"]


async def test_a_worker_that_reads_nothing_has_as_long_as_it_was_given():
    async with reading() as (worker, client):
        await ask(client, worker, b"{}")
        with pytest.raises(WorkerTimeout):
            await ask(client, worker, HUGE, "/silent", timeout_s=0.05)
