"""A request on a kept connection, beside the same one through aiohttp's session."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from slime_router.engine.client import WorkerClient
from slime_router.engine.connector import Connector
from slime_router.engine.exchange import NotTaken
from slime_router.engine.kept import KeptAnswer, KeptConnections
from slime_router.errors import WorkerFailed, WorkerTimeout
from slime_router.pool.worker import Worker
from tests.clock import Clock
from tests.integration.gateway import tiny_worker, until

HEADERS = {"X-Request-Id": "é1", "Content-Type": "application/json"}
PRIME = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWERS = {
    "whole": b"HTTP/1.1 200 OK\r\nContent-Type: a/b; c=d\r\nX-A: 1\r\nContent-Length: 3\r\n\r\nabc",
    "in chunks": CHUNKED + b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
    "after others": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
    "up to the end": b"HTTP/1.1 200 OK\r\n\r\nabc",
    "empty": b"HTTP/1.1 204 No Content\r\n\r\n",
    "an error": b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno",
    "plain": b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 3\r\nX-A: 1 2\r\n\r\nabc",
    "nothing": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "the last": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 3\r\n\r\nabc",
    "two framings": CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "too much": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc",
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
    "cut chunks": CHUNKED + b"9\r\nabc",
    "not HTTP": b"HELLO\r\n\r\n",
    "a bad head": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "packed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
}  # fmt: skip


@dataclass
class Scripted:
    """A worker that answers `/prime`, and everything else with the same bytes; then it hangs up."""

    answer: bytes | None  # None: it never answers
    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    hangs_up: bool = True
    late: bytes = b""  # the rest of the answer, once `was_read`
    was_read: asyncio.Event = field(default_factory=asyncio.Event)
    handlers: set[asyncio.Task[None] | None] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.handlers.add(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                if b"/prime" in request:
                    writer.write(PRIME)
                    continue
                self.requests.append(request)
                if self.answer is not None:
                    writer.write(self.answer)
                    if self.late:
                        await self.was_read.wait()
                        writer.write(self.late)
                    if self.hangs_up:
                        break
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def scripted(answer: bytes | None) -> AsyncIterator[tuple[Scripted, WorkerClient]]:
    worker = Scripted(answer)
    server = await asyncio.start_server(worker.serve, "127.0.0.1", 0)
    worker.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        async with WorkerClient(vocab_size=9, capture="off", request_timeout_s=5.0) as client:
            yield worker, client
        await asyncio.gather(*filter(None, worker.handlers))


async def ask(client: WorkerClient, worker: Scripted, path: str, timeout_s: float = 5.0) -> object:
    """What came of it, so that it can be compared."""
    try:
        answer = await client.send(
            Worker(worker.url), "POST", path, headers=HEADERS, body=b"{}", timeout_s=timeout_s
        )
    except (NotTaken, WorkerFailed, WorkerTimeout) as exc:
        return type(exc), str(exc)
    try:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return answer.status, answer.content_type, headers, await answer.content.read()
    except (aiohttp.ClientError, TimeoutError) as exc:
        return answer.status, isinstance(exc, TimeoutError)
    finally:
        answer.close()


def lines(head: bytes) -> list[bytes]:
    """In order, and without the port."""
    return sorted(line for line in head.split(b"\r\n") if not line.startswith(b"Host: 127.0.0.1:"))


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of the requests that go through a session."""
    seen: list[str] = []
    usual = aiohttp.ClientSession._request

    async def request(self, method, *args, **kwargs):
        seen.append(method)
        return await usual(self, method, *args, **kwargs)

    monkeypatch.setattr(aiohttp.ClientSession, "_request", request)
    return seen


@pytest.mark.parametrize("kind", ANSWERS)
async def test_an_answer_is_the_same_with_and_without_a_session(kind, sessions):
    async with scripted(ANSWERS[kind]) as (worker, client):
        by_session = await ask(client, worker, "/x?y=%2F")
        [first] = worker.requests
    async with scripted(ANSWERS[kind]) as (worker, client):
        await ask(client, worker, "/prime")
        assert sessions == ["POST", "POST"]
        kept = await ask(client, worker, "/x?y=%2F")
        [second] = worker.requests
    assert sessions == ["POST", "POST"]
    assert kept == by_session
    assert lines(second) == lines(first)
    assert b"POST /x?y=%2F HTTP/1.1" in first


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_worker_has_few_heads_before_its_answer(is_kept):
    """Without an end to them, they keep the loop busy until the request's time is up."""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    for count in (16, 17, 5000):
        async with scripted(interim * count + ANSWERS["whole"]) as (worker, client):
            if is_kept:
                await ask(client, worker, "/prime")
            said = await ask(client, worker, "/x")
            is_answer = said[0] == 200  # type: ignore[index]
            assert is_answer == (count == 16), said
            if not is_answer:
                assert said == (WorkerFailed, "The connection to the worker broke.")
                assert len(worker.requests) == 1, "it has taken the request"


async def test_it_is_kept_again_once_all_was_read(sessions):
    async with scripted(b"") as (worker, client):
        for _ in range(3):
            await ask(client, worker, "/prime")
    assert worker.connections == 1
    assert sessions == ["POST"]


async def test_a_worker_that_goes_on_after_its_answer_does_not_answer_the_next_request(sessions):
    async with scripted(ANSWERS["plain"]) as (worker, client):
        worker.hangs_up = False
        await ask(client, worker, "/prime")
        assert await ask(client, worker, "/x") == await ask(client, worker, "/x")
        assert worker.connections == 1
        worker.answer, first = PRIME + ANSWERS["plain"], worker.answer
        assert (await ask(client, worker, "/x"))[-1] == b"{}"  # type: ignore[index]
        worker.answer = first
        assert (await ask(client, worker, "/x"))[-1] == b"abc"  # type: ignore[index]
    assert worker.connections == 2


async def test_a_kept_connection_that_is_closed_without_an_answer_is_stale():
    async with scripted(b"") as (worker, client):
        await ask(client, worker, "/prime")
        assert await ask(client, worker, "/x") == (NotTaken, "the connection was closed")


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_trailer_that_cannot_be_read_ends_the_answer(is_kept):
    """aiohttp closes the connection then, and tells nobody who waits for more of the body."""
    async with scripted(CHUNKED + b"3\r\nabc\r\n") as (worker, client):
        worker.late, worker.hangs_up = b"0\r\nContent-Length: 5\r\n\r\n", False
        if is_kept:
            await ask(client, worker, "/prime")
        answer = await client.send(
            Worker(worker.url), "POST", "/x", headers=HEADERS, body=b"{}", timeout_s=60.0
        )
        async with asyncio.timeout(10):
            assert await answer.content.readany() == b"abc"
            worker.was_read.set()
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.content.readany()
        answer.close()


async def test_it_has_as_long_as_it_was_given():
    async with scripted(None) as (worker, client):
        await ask(client, worker, "/prime")
        late = WorkerTimeout, "The worker did not answer in time."
        assert await ask(client, worker, "/x", timeout_s=0.05) == late


async def test_its_body_has_as_long_as_it_was_given():
    clock = Clock()
    async with scripted(ANSWERS["cut"]) as (worker, client):
        worker.hangs_up = False
        await ask(client, worker, "/prime")
        asked = asyncio.create_task(ask(client, worker, "/x", timeout_s=4.0))
        await until(lambda: bool(worker.requests))
        for _ in range(9):  # the head arrives
            await asyncio.sleep(0)
        clock.put_forward(4.0)
        assert await asked == (200, True)


async def test_what_was_read_or_failed_stays_so():
    """Nothing comes of its time any more, nor of its end."""
    async with scripted(ANSWERS["cut"]) as (worker, client):
        await ask(client, worker, "/prime")
        for path in ("/prime", "/x"):
            answer = await client.send(
                Worker(worker.url), "POST", path, headers=HEADERS, body=b"{}", timeout_s=5.0
            )
            with suppress(aiohttp.ClientPayloadError):
                await answer.content.read()
            fault = answer.content.exception()
            assert isinstance(answer, KeptAnswer)
            assert answer._timer.cancelled() is (fault is None)
            answer.close()
            assert answer.content.exception() is fault
            assert answer._timer.cancelled()
        assert isinstance(fault, aiohttp.ClientPayloadError)


async def test_an_address_with_a_password_is_left_to_the_session():
    async with aiohttp.TCPConnector() as connector:
        kept = KeptConnections(connector, 2**16)
        for url in ("http://a:b@x/", "http://a@x/", "http://:b@x/"):
            assert kept._place(url) is None
        assert kept._place("http://x/") is not None


class Names(AbstractResolver):
    """Every name has one address, which a test may change."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def resolve(self, host, port=0, family=socket.AF_INET):
        return [
            ResolveResult(
                hostname=host, host=self.address, port=port, family=family, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass


async def test_a_name_that_leads_nowhere_is_looked_up_again():
    """A pod that was made again has another address, well before the old one is forgotten."""
    names = Names("127.0.0.2")
    async with tiny_worker() as worker, Connector(resolver=names) as connector:
        url = f"http://worker.test:{urlsplit(worker.url).port}/health"
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(url)
            names.address = "127.0.0.1"
            async with session.get(url) as answer:
                assert answer.status == 200


async def test_few_addresses_are_remembered(monkeypatch):
    monkeypatch.setattr("slime_router.engine.kept.MOST_PLACES", 2)
    async with aiohttp.TCPConnector() as connector:
        kept = KeptConnections(connector, 2**16)
        for number in range(9):
            kept._place(f"http://x/{number}")
            assert len(kept._places) <= 2


async def test_a_client_that_leaves_closes_it(sessions):
    async with scripted(None) as (worker, client):
        await ask(client, worker, "/prime")
        asking = asyncio.create_task(ask(client, worker, "/x"))
        while not worker.requests:  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await ask(client, worker, "/prime")
    assert worker.connections == 2
    assert sessions == ["POST", "POST"]


@pytest.mark.parametrize(
    "headers",
    [{"Host": "elsewhere"}, {"Content-Length": "2"}, {"Connection": "close"}, {"X-A": "a\tb"}],
)
async def test_a_header_that_frames_the_message_is_left_to_the_session(headers, sessions):
    async with scripted(None) as (worker, client):
        await ask(client, worker, "/prime")
        answer = await client.send(
            Worker(worker.url), "POST", "/prime", headers=headers, body=b"{}", timeout_s=5.0
        )
        answer.close()
    assert sessions == ["POST", "POST"]


@pytest.mark.parametrize("headers", [{"X": "a\r\nY: b"}, {"X: a\r\nY": "b"}])
async def test_a_header_that_is_none_is_refused_as_ever(headers):
    async with scripted(None) as (worker, client):
        await ask(client, worker, "/prime")
        with pytest.raises(NotTaken):
            await client.send(
                Worker(worker.url), "POST", "/x", headers=headers, body=b"", timeout_s=5
            )
    assert not worker.requests
