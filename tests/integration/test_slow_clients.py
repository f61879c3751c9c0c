"""Clients that stand still, bodies that are too long, and what they may cost."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from slime_router.server.slow_clients import LOOKS, UNSENT_LEN
from tests.integration.gateway import CHAT, FOUR_KEYS, Served, served, until, user

LIMIT = 1000  # bytes of a body
LONG = json.dumps({"text": "x" * 2 * LIMIT}).encode()
PASSED = "/echo"  # no route: it goes to a worker
DOORS = (CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/generate", "/tokenize")
OTHERS = ("/sessions", "/rows", "/update_weight_version", "/workers", "/diagnose", PASSED)
STALLED = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"


@asynccontextmanager
async def connected(
    router: Served, *, buffer_len: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection to the gateway; with a small receive buffer where one is asked for."""
    url = router.http._base_url
    assert url is not None
    assert url.host is not None
    sock = socket.socket()
    if buffer_len is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_len)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (url.host, url.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    try:
        yield reader, writer
    finally:
        writer.close()


def post(path: str, body: Any) -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(raw)}"
    return f"{head}\r\n\r\n".encode() + raw


async def looks(router: Served, count: int) -> None:
    """As if so many of the pauses between two looks had passed."""
    for _ in range(count):
        router.gateway.slow_clients.look()
        for _ in range(5):
            await asyncio.sleep(0)


async def looks_until_cut(router: Served) -> None:
    """A client that stands still once the buffers on the way to it are full."""
    for _ in range(100):
        await asyncio.sleep(0.005)
        await looks(router, 1)
        if router.gateway.slow_clients.cut:
            return
    raise AssertionError("it was not cut")


# Bodies


@pytest.mark.parametrize("path", [*DOORS, *OTHERS])
@pytest.mark.parametrize("form", ["plain", "chunked", "gzip"])
async def test_a_body_over_the_limit_is_a_413_however_it_comes(path, form):
    """With its length in front, without one, and when it is longer than it came."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(LONG), 100):
            yield LONG[start : start + 100]

    headers = {"Content-Type": "application/json"}
    data: Any = {"plain": LONG, "chunked": None, "gzip": gzip.compress(LONG)}[form]
    if form == "gzip":
        headers["Content-Encoding"] = "gzip"
        assert len(data) < LIMIT
    async with served(max_payload_size=LIMIT) as (router, worker):
        before = router.footprint()
        async with router.http.post(path, data=data or pieces(), headers=headers) as response:
            body = await response.json()
            assert response.status == 413, body
        if path == "/v1/messages":
            assert body["error"]["type"] == "request_too_large"
        elif path != "/generate":
            assert set(body["error"]) == FOUR_KEYS
            assert body["error"]["code"] == "request_too_large"
        assert router.footprint() == before
        assert [r for r in worker.requests if r.path == path] == []
        assert (await router.get("/health"))[0] == 200


@pytest.mark.parametrize("path", [*DOORS, *OTHERS])
async def test_a_client_that_sends_no_more_of_its_body_is_cut_with_a_408(path):
    async with (
        served() as (router, _),
        connected(router) as (reader, writer),
    ):
        writer.write(STALLED % path.encode())
        await until(lambda: len(router.gateway.slow_clients) == 1)
        await looks(router, 2)
        writer.write(b" ")  # it moves: it has all the time again
        await until(lambda: any_body(router) == 2)
        await looks(router, LOOKS)
        assert router.gateway.slow_clients.cut == 0
        await looks(router, 1)
        assert router.gateway.slow_clients.cut == 1
        async with asyncio.timeout(60):
            reply = await reader.read()  # to the end: the connection is closed
        head, _, body = reply.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"request body" in body
        if path not in ("/generate", "/v1/messages"):
            assert json.loads(body)["error"]["code"] == "request_timeout"
        await until(lambda: router.gateway.pool.total_in_flight == 0)
    assert router.gateway.slow_clients.cut == 1


def any_body(router: Served) -> int:
    """How much of a body has come on the only connection."""
    [client] = [c for c in router.gateway.slow_clients._clients.values() if c.request is not None]
    assert client.request is not None
    return client.request.content.total_bytes


# Heads


@pytest.mark.parametrize("sent", [b"", b"PO", b"POST / HTTP/1.1\r\nHost: x\r\nX: "])
async def test_a_client_that_sends_no_whole_head_is_disconnected(sent):
    async with served() as (router, _), connected(router) as (reader, writer):
        writer.write(sent)
        await until(lambda: len(router.gateway.slow_clients._new) == 1)
        await looks(router, LOOKS)
        writer.write(sent[-1:])  # a little of it at a time
        assert router.gateway.slow_clients.cut == 0
        await looks(router, 1)
        assert router.gateway.slow_clients.cut == 1
        with suppress(ConnectionResetError):
            async with asyncio.timeout(60):
                assert await reader.read() == b""


async def test_a_client_that_has_asked_once_may_idle_and_one_that_leaves_is_forgotten():
    async with served() as (router, _):
        slow = router.gateway.slow_clients
        async with connected(router) as (reader, writer), connected(router):
            await until(lambda: len(slow._new) == 2)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            assert len(slow._new) == 1
        await until(lambda: all(getattr(each, "transport", None) is None for each in slow._new))
        await looks(router, 3 * LOOKS)
        assert (slow.cut, len(slow._new), len(slow)) == (0, 0, 0)


# Replies


def long_reply(worker: Any, count: int = 4000) -> dict[str, Any]:
    """What asks for a reply of so many tokens."""
    worker.script([100] * count, finish="length")
    return {"text": "Hi", "sampling_params": {"max_new_tokens": count, "ignore_eos": True}}


@pytest.mark.parametrize("path", ["/generate", CHAT])
async def test_a_client_that_reads_no_more_of_its_stream_is_cut_and_its_generation_ended(path):
    """Until then little of the stream is in memory; afterwards nothing is left of it."""
    async with (
        served({"context_len": 100_000}) as (router, worker),
        connected(router, buffer_len=4096) as (reader, writer),
    ):
        body: dict[str, Any] = long_reply(worker, 60_000)
        if path == CHAT:
            body = {"messages": [user("Hi")], "max_tokens": 60_000, "logprobs": True}
        writer.write(post(path, {**body, "stream": True}))
        await reader.readexactly(200)
        client = next(iter(router.gateway.slow_clients._clients))
        await until(lambda: client.get_write_buffer_size() >= 2**16)
        await looks(router, LOOKS)
        assert client.get_write_buffer_size() < 2**18
        assert router.gateway.pool.total_in_flight == 1
        await looks_until_cut(router)
        await until(lambda: router.gateway.pool.total_in_flight == 0)
        await until(lambda: len(worker.aborted) == 1)
        assert router.gateway.slow_clients.cut == 1
        assert router.gateway.admission.figures.running == 0
        await looks(router, 1)
        assert len(router.gateway.slow_clients) == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/sessions/big/rows", "/rows"])
async def test_a_client_that_reads_slowly_is_never_cut(path):
    """As often as not it has taken nothing since the last look."""
    async with (
        served({"context_len": 100_000}) as (router, worker),
        connected(router, buffer_len=4096) as (reader, writer),
    ):
        writer.write(await _asks_for_much(path, router, worker))
        size, seen = 0, 0
        async with asyncio.timeout(100):
            while data := await reader.read(2**16):
                size += len(data)
                if size - seen > UNSENT_LEN * 2 // LOOKS:
                    seen = size
                    await looks(router, 1)
        assert size > 2**19
        assert router.gateway.slow_clients.cut == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/sessions/big/rows", "/rows", PASSED])
async def test_a_client_that_does_not_read_a_big_reply_is_cut(path):
    """One that is written after the handler has returned, rows line by line, a worker's own."""
    async with (
        served({"context_len": 100_000}) as (router, worker),
        connected(router, buffer_len=4096) as (_, writer),
    ):
        request = await _asks_for_much(path, router, worker)
        writer.write(request)
        watched = router.gateway.slow_clients
        await until(lambda: any(t.get_write_buffer_size() for t in watched._clients))
        await looks_until_cut(router)
        await until(lambda: router.gateway.pool.total_in_flight == 0)
        await looks(router, 1)
        assert len(watched) == 0


async def _asks_for_much(path: str, router: Served, worker: Any) -> bytes:
    """A request whose reply no socket buffer can hold."""
    count = 8_000 if path == CHAT else 40_000
    if path == PASSED:
        return post(path, {"echo": "x" * 2**24})
    worker.script([100] * count, finish="length")
    body = {"messages": [user("Hi")], "max_tokens": count, "logprobs": True}
    if path == CHAT:
        return post(path, body)
    status, _ = await router.post("/sessions/big" + CHAT, body)
    assert status == 200
    if path == "/rows":
        return post(path, {"session_ids": ["big"]})
    return b"GET /sessions/big/rows HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def test_a_worker_that_waits_for_a_client_is_not_the_client_that_waits():
    """A kept connection without a request, and a reply that has yet to begin, are never cut."""
    async with served() as (router, worker):
        assert (await router.get("/health"))[0] == 200
        worker.hold(after_tokens=0)
        asked = asyncio.create_task(router.post("/generate", {"text": "Hi"}))
        await worker.wait_running(1)
        await looks(router, 3 * LOOKS)
        worker.release()
        assert (await asked)[0] == 200
        assert router.gateway.slow_clients.cut == 0


async def test_it_looks_by_itself():
    """Without a test that does it."""
    async with served(client_timeout_s=0.02) as (router, _), connected(router) as (reader, writer):
        writer.write(STALLED % b"/generate")
        async with asyncio.timeout(60):
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
