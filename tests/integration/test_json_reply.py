"""A whole reply is the same, byte by byte, whether aiohttp writes it or it goes out at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from slime_router.edge.json_reply import JsonReply

HEADERS = {"x-request-id": "req_1", "x-slime-receipt": '{"a": "b"}'}
BODIES = [b"{}", b'"' + b"x" * 2**17 + b'"']
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@asynccontextmanager
async def replying(body: bytes, headers: dict[str, str], *, is_watched: bool) -> AsyncIterator[int]:
    """The port of a server; `is_watched`: somebody may change headers, so aiohttp writes them."""

    async def handle(request: web.Request) -> web.StreamResponse:
        reply = JsonReply(body, headers)
        await reply.send(request)
        assert reply.prepared
        return reply

    async def watch(_: web.Request, __: web.StreamResponse) -> None:
        pass

    app = web.Application()
    app.router.add_get("/", handle)
    if is_watched:
        app.on_response_prepare.append(watch)
    async with TestServer(app) as server:
        assert server.port is not None
        yield server.port


async def answers(port: int, *requests: bytes) -> list[tuple[list[bytes], bytes]]:
    """The replies on one connection: each one's head, in no order and without time, and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(requests))
    replies = []
    for _ in requests:
        head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        lines = [line for line in head if not line.startswith(b"Date: ")]
        assert len(lines) == len(head) - 1, "it has a time"
        [length] = [int(line[16:]) for line in lines if line.startswith(b"Content-Length: ")]
        replies.append((sorted(lines), await reader.readexactly(length)))
    writer.close()
    return replies


@pytest.mark.parametrize("body", BODIES, ids=["short", "long"])
@pytest.mark.parametrize(
    "request_line",
    [
        GET,
        GET.replace(b"1.1", b"1.0"),
        GET.replace(b"1.1\r\n", b"1.0\r\nconnection: keep-alive\r\n"),
        GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"),
    ],
    ids=["kept", "old", "old and kept", "closed"],
)
async def test_a_reply_is_what_aiohttp_would_write(body, request_line):
    both = []
    for is_watched in (False, True):
        async with replying(body, HEADERS, is_watched=is_watched) as port:
            both.append(await answers(port, GET, GET, request_line))
    assert both[0] == both[1]
    assert [said for _, said in both[0]] == [body] * 3


async def test_a_header_cannot_hold_another_one():
    async with replying(b"{}", {"x-a": "b\r\nx-c: d"}, is_watched=False) as port:
        [(lines, _)] = await answers(port, GET)
    assert b"HTTP/1.1 500 Internal Server Error" in lines
    assert b"x-c: d" not in lines
