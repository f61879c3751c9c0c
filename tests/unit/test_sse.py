"""Event streams: framing, and what a client that left means."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from aiohttp import ClientConnectionResetError, HttpVersion10, HttpVersion11, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpVersion, StreamWriter
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from slime_router.api import sse
from slime_router.auth.access import Access
from slime_router.server.boundary import CLIENT_LEFT, Boundary


@given(st.dictionaries(st.text(), st.text()))
def test_an_event_is_one_data_line_whatever_the_text_holds(payload):
    event = sse.event(payload)
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    assert len(event.decode().splitlines()) == 2, "for readers that know Unicode's line ends, too"
    assert orjson.loads(event.removeprefix(b"data: ")) == payload


def test_a_named_event_is_two_lines():
    event = sse.named_event({"type": "ping", "text": "a\x85b\u2028c\u2029d"})
    first, second, last = event.decode().splitlines()
    assert (first, last) == ("event: ping", "")
    assert orjson.loads(second.removeprefix("data: "))["text"] == "a\x85b\u2028c\u2029d"


class _Gone(web.StreamResponse):
    async def write(self, data):
        raise ClientConnectionResetError("Cannot write to closing transport")


async def test_a_write_to_nobody_says_that_the_client_left():
    """It must not be taken for a broken connection to a worker."""
    stream = sse.EventStream(_Gone())
    with pytest.raises(sse.ClientLeft):
        await stream.send(b"data: {}\n\n")
    with pytest.raises(sse.ClientLeft):
        await stream.end()


class _Sink(asyncio.Transport):
    """Keeps what is written to it, as a client that reads nothing makes a socket do."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_shut = False

    def write(self, data):
        self.writes.append(bytes(data))

    def get_write_buffer_size(self):
        return sum(map(len, self.writes))

    def is_closing(self):
        return self.is_shut


async def _opened(
    sink: _Sink, protocol: BaseProtocol, version: HttpVersion = HttpVersion11
) -> sse.EventStream:
    protocol.connection_made(sink)
    writer = StreamWriter(protocol, asyncio.get_running_loop())
    request = make_mocked_request("POST", "/", version=version, writer=writer, transport=sink)
    return await sse.EventStream.open(request, {})


@pytest.mark.parametrize(
    ("version", "framed"), [(HttpVersion11, b"7\r\n: one\n\n\r\n"), (HttpVersion10, b": one\n\n")]
)
async def test_an_event_is_one_write_in_the_framing_of_its_stream(version, framed):
    sink = _Sink()
    stream = await _opened(sink, BaseProtocol(asyncio.get_running_loop()), version)
    head, *_ = sink.writes
    assert (b"chunked" in head) == (version == HttpVersion11)
    await stream.send(b": one\n\n")
    assert sink.writes == [head, framed]


async def test_a_stream_waits_for_a_client_that_reads_nothing_and_ends_when_it_leaves():
    sink = _Sink()
    protocol = BaseProtocol(asyncio.get_running_loop())
    stream = await _opened(sink, protocol)
    protocol.pause_writing()  # as a transport does when its buffer is full
    await stream.send(b"x" * 100)
    waiting = asyncio.create_task(stream.send(b"y" * sse.MAX_UNSENT_LEN))
    await asyncio.sleep(0)
    assert not waiting.done()
    sink.is_shut = True
    protocol.connection_lost(None)
    await waiting
    with pytest.raises(sse.ClientLeft):
        await stream.send(b"z")


async def test_a_client_that_left_before_the_status_line_is_no_fault_of_ours():
    """It must not become a 500 with a traceback in the log: the boundary says 499."""

    async def reply(_):
        raise ClientConnectionResetError("Cannot write to closing transport")

    boundary, request = Boundary(Access((), needs_key=False)), make_mocked_request("GET", "/")
    with pytest.raises(ConnectionError):
        await boundary.answered(request, reply)
    assert (await boundary.logged(request, reply)).status == CLIENT_LEFT
