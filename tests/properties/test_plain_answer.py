"""An answer that is taken without aiohttp's parser is what that would have made of it."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import ClientPayloadError
from aiohttp.client_proto import ResponseHandler
from hypothesis import given
from hypothesis import strategies as st

from slime_router.engine.connector import WorkerProtocol, plain_answer

LINES = [
    "Date: Mon, 30 Nov 2026 00:00:00 GMT", "server: uvicorn", "Content-Type: application/json",
    "content-type: text/plain; charset=utf-8", "x-request-id: 1 2", "X-A:b", "x-empty: ",
    "Content-Length: 3", "content-length: 4", "Content-Length: x", "content-length: 03",
    "Connection: close", "Connection: keep-alive", "Transfer-Encoding: chunked",
    "Content-Encoding: gzip", "Upgrade: x", " folded: 1", "no line",
]  # fmt: skip
STATUS = [
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200 Fine",
    "HTTP/1.0 200 OK",
    "HTTP/1.1 204 OK",
    "HTTP/1.1 503 No",
]
PARAMS: dict[str, Any] = {"read_until_eof": True, "auto_decompress": False}

answers = st.builds(
    lambda status, lines, body: "\r\n".join([status, *lines, "", body]).encode(),
    st.sampled_from(STATUS[:1] * 4 + STATUS),
    st.lists(st.sampled_from(LINES[:8] * 2 + LINES), max_size=6),
    st.sampled_from(["abc", "abc", "abc", "", "ab", "abcd", "3\r\nabc\r\n0\r\n\r\n"]),
)


def by_aiohttp(loop: asyncio.AbstractEventLoop, data: bytes) -> object:
    protocol = ResponseHandler(loop)
    protocol.connection_made(Mock())
    protocol.set_response_params(**PARAMS)
    protocol.data_received(data)
    message, content = protocol._buffer.popleft()[0]
    assert content.is_eof()
    assert not protocol.should_close
    return message.code, message.reason, message.headers, content.read_nowait()


@given(answers)
def test_a_plain_answer_is_read_as_aiohttp_reads_it(data):
    if (answer := plain_answer(data)) is None:
        return
    message, content = answer
    loop = asyncio.new_event_loop()
    try:
        body = loop.run_until_complete(content.readany())
        got = message.code, message.reason, message.headers, body
        assert got == by_aiohttp(loop, data)
    finally:
        loop.close()


def test_what_workers_write_is_plain():
    head = "\r\n".join([*STATUS[:1], *LINES[:3], "content-length: 2"])
    assert plain_answer(f"{head}\r\n\r\n{{}}".encode()) is not None
    assert plain_answer(f"{head}\r\n\r\n{{".encode()) is None, "there is more to come"
    assert plain_answer(f"{head}\r\nX-A: {'a' * 4096}\r\n\r\n{{}}".encode()) is None


async def test_what_follows_an_answer_that_nobody_waits_for_closes_the_connection():
    data = f"{STATUS[0]}\r\ncontent-length: 2\r\n\r\n{{}}".encode()
    protocol, transport = WorkerProtocol(asyncio.get_running_loop()), Mock()
    protocol.connection_made(transport)
    for _ in range(2):
        protocol.expect(**PARAMS)
        protocol.data_received(data)
        _, content = await protocol.read()
        assert await content.readany() == b"{}"
        assert content.at_eof()
        assert not protocol.should_close
    protocol.data_received(data)
    assert transport.abort.called
    assert not protocol.is_connected()


async def lost_after(body: bytes, exc: OSError | None) -> Any:
    """The body of an answer of three bytes, of which these came before the connection was lost."""
    protocol = WorkerProtocol(asyncio.get_running_loop())
    protocol.connection_made(Mock())
    protocol.set_response_params(**PARAMS)
    protocol.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n" + body)
    _, content = protocol._buffer[0][0]
    protocol.connection_lost(exc)
    return content


async def test_a_body_that_is_complete_survives_the_connection():
    assert await (await lost_after(b"abc", None)).readany() == b"abc"


async def test_a_connection_that_broke_in_a_body_is_named_as_aiohttp_names_it():
    content = await lost_after(b"ab", ConnectionResetError(104, "reset by peer"))
    with pytest.raises(ClientPayloadError, match="reset by peer"):
        await content.read()
