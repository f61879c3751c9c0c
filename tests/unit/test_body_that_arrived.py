"""A body that has arrived whole is taken as it is; any other is left to aiohttp's reader."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from slime_router.edge.bodies import _arrived, body_so_far


def content(*pieces: bytes, is_over: bool = True) -> aiohttp.StreamReader:
    loop = asyncio.get_running_loop()
    reader = aiohttp.StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    for piece in pieces:
        reader.feed_data(piece)
    if is_over:
        reader.feed_eof()
    return reader


async def test_a_body_that_came_whole_is_taken_once_and_nothing_follows():
    reader = content(b'{"text": 1}')
    assert _arrived(reader) == b'{"text": 1}'
    assert _arrived(reader) is None
    assert reader.at_eof()
    assert await reader.readany() == b""


@pytest.mark.parametrize("pieces", [(), (b"ab", b"cd")])
async def test_an_empty_body_and_one_in_pieces_are_left(pieces):
    reader = content(*pieces)
    assert _arrived(reader) is None
    assert await reader.read() == b"".join(pieces)


async def test_a_body_that_is_not_over_is_left():
    reader = content(b"ab", is_over=False)
    assert _arrived(reader) is None
    reader.feed_eof()
    assert _arrived(reader) == b"ab"


async def test_a_body_of_which_something_was_read_is_left():
    reader = content(b"abcd")
    assert await reader.read(1) == b"a"
    assert _arrived(reader) is None
    assert await reader.read() == b"bcd"


async def test_a_broken_connection_is_raised_by_the_reader():
    reader = content(b"abcd")
    reader.set_exception(aiohttp.ClientConnectionError("cut"))
    assert _arrived(reader) is None
    with pytest.raises(aiohttp.ClientConnectionError):
        await reader.readany()


def test_of_a_request_without_a_body_nothing_is_here():
    """Its reader has no buffer at all: plug-ins see such requests, too."""
    assert body_so_far(make_mocked_request("GET", "/")) == b""
