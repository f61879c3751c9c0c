"""Event streams: framing, and what a client that left means."""

from __future__ import annotations

import orjson
import pytest
from aiohttp import ClientConnectionResetError, web
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
    assert b"\r" not in event
    assert orjson.loads(event.removeprefix(b"data: ")) == payload


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


async def test_a_client_that_left_before_the_status_line_is_no_fault_of_ours():
    """It must not become a 500 with a traceback in the log: the boundary says 499."""

    async def reply(_):
        raise ClientConnectionResetError("Cannot write to closing transport")

    boundary, request = Boundary(Access((), needs_key=False)), make_mocked_request("GET", "/")
    with pytest.raises(ConnectionError):
        await boundary.answered(request, reply)
    assert (await boundary.logged(request, reply)).status == CLIENT_LEFT
