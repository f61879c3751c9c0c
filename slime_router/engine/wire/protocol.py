"""A connection to a worker, with a tap: events can be taken off it before aiohttp reads them.

aiohttp's parser, its buffer and the wake-up of whoever reads it are half of what a streamed token
costs. Where the answer comes in whole chunks of HTTP (a worker writes one for each event), the
parser's state is the same after a chunk as before it, so it need not see those that are taken.
All else it gets byte for byte: heads, pieces of chunks, the end, and what nobody takes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from aiohttp.client_proto import ResponseHandler

_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")
_HEAD = b"HTTP/1.1 200 "
_HEAD_END = b"\r\n\r\n"
_EVENT_BEGIN = b"\r\ndata: {"  # after the size of its chunk
_EVENT_END = b"\n\n\r\n"  # and that of its chunk
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked *\r\n", re.IGNORECASE)


class Tap(Protocol):
    """Takes events off a connection."""

    def take_event(self, payload: bytes) -> bool:
        """Takes what came, one event with this payload, or leaves it to `take`."""

    def take(self, chunks: Sequence[bytes]) -> bool:
        """Takes what came, or leaves all of it to aiohttp's parser."""

    def rest(self) -> None:
        """Something goes to aiohttp's parser: nothing may be taken until it was read."""


class WorkerProtocol(ResponseHandler):
    """aiohttp's side of a connection to a worker; `tap` lasts as long as chunks come whole."""

    tap: Tap | None = None
    _has_head = False  # or some of it
    _is_whole = False  # the head, and every chunk up to here

    def set_response_params(self, **params: Any) -> None:
        """Another request is sent."""
        self.tap, self._has_head, self._is_whole = None, False, False
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        if self._is_whole:
            tap = self.tap
            if tap is not None:
                event = sole_event(data)
                if event is not None and tap.take_event(event):
                    return
            chunks = whole_chunks(data, 0)
            if chunks is None:
                self._is_whole = False
            elif tap is not None and tap.take(chunks):
                return
        elif not self._has_head:
            self._has_head, self._is_whole = True, _begins_whole(data)
        if self.tap is not None:
            self.tap.rest()
            if not self._is_whole:
                self.tap = None
        super().data_received(data)


def sole_event(data: bytes) -> bytes | None:
    """The payload, an object, of the one event that one chunk holds; None if that is not all."""
    at, end = data.find(_EVENT_BEGIN, 0, 16), len(data) - 4  # the payload's
    if at < 0 or data[:at] != b"%x" % (end - at):  # as workers write it
        return None
    if not data.endswith(_EVENT_END) or data.find(b"\n", at + 2) != end:
        return None
    return data[at + 8 : end]


def whole_chunks(data: bytes, start: int) -> list[bytes] | None:
    """What the chunks hold that `data[start:]` consists of; None if that is not all it is.

    Nor is there one of no length, which ends the answer.
    """
    chunks: list[bytes] = []
    while start < len(data):
        size = _SIZE.match(data, start)
        if size is None or not (length := int(size[1], 16)):
            return None
        begin = size.end()
        end = begin + length
        start = end + 2
        if data[end:start] != b"\r\n":
            return None
        chunks.append(data[begin:end])
    return chunks


def _begins_whole(data: bytes) -> bool:
    """Whether this is the whole head of an answer in chunks, and none or some that are whole."""
    end = data.find(_HEAD_END) + 2
    if end < 2 or not data.startswith(_HEAD) or not _CHUNKED.search(data, 0, end):
        return False
    return whole_chunks(data, end + 2) is not None
