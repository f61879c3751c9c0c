"""Requests over connections that are kept, without aiohttp's session.

A session prepares each request, sends it from its own task and makes an object of the
answer: that is a tenth of what a short chat costs. Here the bytes are put together, written to a
connection of the session's pool, and read by its parser. A long body is handed to the transport in
pieces, which are not copied. Whatever is not the usual case is left to the session: a connection to
be opened, a long body to be encrypted, a header that frames the message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy
from yarl import URL

from slime_router.engine.connector import WorkerProtocol
from slime_router.engine.request import LONG_BODY_LEN, Body, LongBody
from slime_router.engine.sse import BodyJoiner, EventSplitter
from slime_router.errors import RouterError, WorkerFailed, WorkerTimeout

DRAIN_TIMEOUT_S = 1.0  # for the few bytes after the last item
MOST_PLACES = 4096  # more workers than anybody has
_FRAMING = frozenset(
    ("host", "connection", "content-length", "transfer-encoding", "expect", "upgrade", "trailer")
)


class KeptAnswer:
    """A worker's answer, as far as it is read: the part of `aiohttp.ClientResponse` that is used.

    Its connection is kept for the next request once all of it has come.
    """

    __slots__ = ("_connection", "_timer", "content", "headers", "reason", "status")

    def __init__(
        self,
        message: aiohttp.http.RawResponseMessage,
        content: aiohttp.StreamReader,
        connection: Connection,
        timer: asyncio.TimerHandle,
    ) -> None:
        self.status: int = message.code
        self.reason: str | None = message.reason
        self.headers: CIMultiDictProxy[str] = message.headers
        self.content = content
        self._connection: Connection | None = connection
        self._timer = timer
        content.on_eof(self._release)

    @property
    def connection(self) -> Connection | None:
        """The connection that it comes over, until all was read."""
        return self._connection

    @property
    def content_type(self) -> str:
        """The type of the body, without parameters."""
        said = self.headers.get("Content-Type", "application/octet-stream")
        return said.partition(";")[0].strip().lower()

    def close(self) -> None:
        """Closes the connection, unless all was read."""
        self._timer.cancel()
        if (connection := self._connection) is not None:
            self._connection = None
            if self.content.exception() is None:  # whoever still reads learns of it
                self.content.set_exception(aiohttp.ClientConnectionError("Connection closed"))
            connection.close()

    def _release(self) -> None:
        self._timer.cancel()
        if (connection := self._connection) is not None:
            self._connection = None
            transport = connection.transport
            if transport is not None and transport.get_write_buffer_size():
                connection.close()  # it was answered before all of it was sent
            else:
                connection.release()


Answer: TypeAlias = aiohttp.ClientResponse | KeptAnswer


@dataclass(frozen=True, slots=True)
class _Place:
    """Where requests go: the connections to it, and how each of them begins."""

    key: ConnectionKey
    head: bytes


class KeptConnections:
    """Posts over the connections that `connector` keeps; `read_len` bytes of an answer may wait."""

    def __init__(self, connector: aiohttp.BaseConnector, read_len: int) -> None:
        self._connector = connector
        self._read_len = read_len
        self._places: dict[str, _Place | None] = {}

    def __repr__(self) -> str:
        return f"<KeptConnections to {len(self._places)} places>"

    async def post(
        self, url: str, headers: Mapping[str, str], body: Body | None, *, timeout_s: float
    ) -> KeptAnswer | None:
        """The answer to a request, once its head is here; None where it takes a session.

        Then nothing was sent. `timeout_s` applies until the last byte of the answer.

        Raises:
            aiohttp.ClientError, TimeoutError: as a session's requests do.
        """
        if isinstance(body, bytes) and len(body) > LONG_BODY_LEN:
            body = LongBody(body)
        if not isinstance(body, (bytes, LongBody)) or (place := self._place(url)) is None:
            return None
        if place.key.is_ssl and type(body) is LongBody:
            return None
        head = _head(headers, len(body))
        if head is None or (connection := await self._connector._get(place.key, [])) is None:
            return None
        protocol, transport = connection.protocol, connection.transport
        assert isinstance(protocol, WorkerProtocol), "it was just taken from those that are open"
        assert transport is not None, "likewise"
        timer = asyncio.get_running_loop().call_later(timeout_s, protocol._on_read_timeout)
        try:
            protocol.expect(read_until_eof=True, auto_decompress=False, read_bufsize=self._read_len)
            if isinstance(body, LongBody):
                transport.writelines([place.head, head, *body.take()])
            else:
                transport.write(place.head + head + body)
            while True:
                message, content = await protocol.read()
                if message.code == 101 or not 100 <= message.code <= 199:
                    return KeptAnswer(message, content, connection, timer)
        except BaseException as exc:  # cancelled, too: what comes later belongs to nobody
            timer.cancel()
            connection.close()
            if isinstance(exc, HttpProcessingError):
                raise aiohttp.ClientPayloadError("The answer is not HTTP.") from exc
            raise

    def _place(self, url: str) -> _Place | None:
        """None for an address that says more than where it is."""
        if url not in self._places:
            if len(self._places) >= MOST_PLACES:
                self._places.clear()
            self._places[url] = _new_place(url)
        return self._places[url]


def _new_place(url: str) -> _Place | None:
    try:
        address = URL(url, encoded=True)
        if address.user is not None or address.password is not None:
            return None
        request = aiohttp.ClientRequest("POST", address, loop=asyncio.get_running_loop())
        head = f"POST {address.raw_path_qs} HTTP/1.1\r\nHost: {request.headers['Host']}\r\n"
        return _Place(request.connection_key, head.encode("ascii"))
    except (aiohttp.ClientError, ValueError):  # the session says what is wrong with it
        return None


def _head(headers: Mapping[str, str], body_len: int) -> bytes | None:
    """The rest of the head; None where a header frames the message, or cannot be sent."""
    names, values = headers.keys(), headers.values()
    is_framed = not _FRAMING.isdisjoint(map(str.lower, names))
    if is_framed or not "".join(chain(names, values)).isprintable():
        return None
    lines = "".join(map("{}: {}\r\n".format, names, values))
    return f"{lines}Content-Length: {body_len}\r\n\r\n".encode()


# Reading an answer, whoever has opened its connection


def lines_of(answer: Answer) -> EventSplitter | BodyJoiner:
    """What makes payloads of its bytes."""
    is_stream = answer.content_type == "text/event-stream"
    return EventSplitter() if is_stream else BodyJoiner()


async def read_some(answer: Answer) -> bytes:
    """What has arrived since the last read, at least one byte; empty at the end.

    Raises:
        WorkerFailed: the connection broke.
        WorkerTimeout: it has taken too long.
    """
    try:
        return await answer.content.readany()
    except (aiohttp.ClientError, OSError) as exc:  # TimeoutError is an OSError
        raise translation(exc) from exc


async def read_whole(answer: Answer) -> bytes:
    """The whole body, up to a limit. Raises what `read_some` and `BodyJoiner.feed` raise."""
    joiner = BodyJoiner()
    while data := await read_some(answer):
        joiner.feed(data)
    return joiner.end()[0]


async def drain(answer: Answer) -> None:
    """Reads what follows the last item, so that the connection can be kept."""
    if answer.content.at_eof():
        return
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            while await answer.content.readany():
                pass
    except (TimeoutError, aiohttp.ClientError):
        pass  # the generation is complete; only the connection is lost


def translation(exc: Exception) -> RouterError:
    """An aiohttp error in our own words: a worker's URL is not the client's business."""
    if isinstance(exc, TimeoutError):
        return WorkerTimeout("The worker did not answer in time.")
    return WorkerFailed("The connection to the worker broke.")
