"""Server-sent events as clients read them; for chat and `/generate`, `data:` lines only.

Those clients never get an `id:`, `retry:` or `event:` line: once openai-python has seen one, it
takes the next comment frame for an event. APIs with named events write them themselves. What comes
at once is one write, each event in its own chunk, and aiohttp turns Nagle's algorithm off on
the server's sockets, so each write leaves at once.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter

from slime_router.json_text import one_line

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"  # clients read over it
_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\r\r")  # an event ends with one
_TAIL_LEN = 4  # bytes: the longest of them
MAX_UNSENT_LEN = 64 * 2**10  # bytes; with more of them, the next event waits for the client
_ID = re.compile(rb"(?:^|[\r\n])id[:\r\n]")

logger = logging.getLogger(__name__)

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # otherwise nginx would buffer events
}


def event(payload: Any) -> bytes:
    """One event with a JSON payload."""
    return b"data: " + one_line(orjson.dumps(payload)) + b"\n\n"


def named_event(payload: Mapping[str, Any]) -> bytes:
    """One event that is named by its `type`, as the SDKs of Responses and Messages need it."""
    return b"event: %b\n%b" % (payload["type"].encode(), event(payload))


class ClientLeft(Exception):
    """The connection to the client is closed: there is nobody to write to."""


class EventStream:
    """The response side of one stream of events. Its status line is already out."""

    def __init__(
        self,
        response: web.StreamResponse,
        ending: bytes = DONE,
        writer: AbstractStreamWriter | None = None,
    ) -> None:
        self.response = response
        self._writer = writer  # of chunks that are written past it, where that is possible
        self._transport = None if writer is None else _transport(response, writer)
        self._time = asyncio.get_running_loop().time
        self.sent_at = self._time()  # the last event
        self.is_over = False
        self._ending = ending

    @property
    def may_sign(self) -> bool:
        """Whether a sign of life breaks nothing now."""
        return not self.is_over

    @classmethod
    async def open(
        cls, request: web.Request, headers: Mapping[str, str], *, ending: bytes = DONE
    ) -> EventStream:
        """Sends the status line 200 and the headers."""
        response = web.StreamResponse(headers={**_HEADERS, **headers})
        return cls(response, ending, await response.prepare(request))

    def is_clear(self) -> bool:
        """Whether `write` may be called now."""
        transport = self._transport
        if transport is None or transport.is_closing() or self.is_over:
            return False
        return transport.get_write_buffer_size() <= MAX_UNSENT_LEN

    def write(self, event: bytes) -> None:
        """One event, one write, which waits for nobody: see `is_clear`."""
        assert self._transport is not None, "it is clear"
        self.sent_at = self._time()
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))

    async def send(self, *events: bytes) -> None:
        """These events in one write, where that is possible. Raises ClientLeft."""
        if not events:
            return
        transport = self._transport
        self.sent_at = self._time()
        try:
            if transport is None or self._writer is None:
                for event in events:
                    await self.response.write(event)
                return
            if transport.is_closing():
                raise ClientLeft
            transport.write(b"".join([b"%x\r\n%b\r\n" % (len(event), event) for event in events]))
            if transport.get_write_buffer_size() > MAX_UNSENT_LEN:
                await self._writer.drain()
        except ConnectionError as exc:
            raise ClientLeft from exc

    async def end(self) -> None:
        """The last event, `[DONE]` unless another was asked for, and the end of the body.

        Raises:
            ClientLeft: the client did.
        """
        self.is_over = True
        if self._ending:
            await self.send(self._ending)
        try:
            await self.response.write_eof()
        except ConnectionError as exc:
            raise ClientLeft from exc


def _transport(
    response: web.StreamResponse, writer: AbstractStreamWriter
) -> asyncio.WriteTransport | None:
    """Where chunks can be written past aiohttp's writer, which takes four calls for each.

    None where it does more than to frame them: the client speaks HTTP/1.0, or a plug-in had the
    stream compressed.
    """
    if not isinstance(writer, StreamWriter) or not writer.chunked or response.compression:
        return None
    return writer.transport


class PassedStream(EventStream):
    """A stream that somebody else writes, in pieces that may end anywhere."""

    def __init__(self, response: web.StreamResponse) -> None:
        super().__init__(response)
        self._tail = b""  # the last bytes that were sent
        self._has_ids = False

    @property
    def may_sign(self) -> bool:
        """Between whole events, unless they have ids: see the module."""
        is_whole = not self._tail or self._tail.endswith(_BLANK_LINES)
        return super().may_sign and is_whole and not self._has_ids

    async def pass_on(self, data: bytes) -> None:
        """Raises ConnectionError where the client has left."""
        self._has_ids = self._has_ids or _ID.search(self._tail + data) is not None
        self._tail = (self._tail + data[-_TAIL_LEN:])[-_TAIL_LEN:]
        self.sent_at = self._time()
        await self.response.write(data)


class Line:
    """An event stream that is to come, and that is never silent for long, for the block.

    Its status line waits for `open`: until then a failure can be a real HTTP error. Where there was
    nothing to send for `every_s`, `sign` is sent instead, after the status line if need be. A timer
    looks whether that is so, so an event costs no more for it; 0 s: never.
    Where the status line is out already, `stream` is what it belongs to. `on_sign` is called with
    each sign.
    """

    def __init__(
        self,
        request: web.Request,
        headers: Mapping[str, str],
        *,
        every_s: float,
        sign: bytes = COMMENT,
        ending: bytes = DONE,
        stream: EventStream | None = None,
        on_sign: Callable[[], None] = lambda: None,
    ) -> None:
        self._request = request
        self._headers = headers
        self._every_s = every_s
        self._sign = sign
        self._ending = ending
        self._stream = stream
        self._on_sign = on_sign
        self._opening = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._signing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Line:
        if self._every_s:
            self._wait(self._every_s)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._signing is not None and not self._signing.done():
            self._signing.cancel()
            await asyncio.wait([self._signing])

    @property
    def is_out(self) -> bool:
        """Whether the status line is: what fails from now on is an event."""
        return self._stream is not None or self._opening.locked()

    async def open(self, headers: Mapping[str, str]) -> EventStream:
        """The stream. `headers` that come too late for its head are comments.

        Raises:
            ConnectionError: the client has left.
            ClientLeft: it has, since the head was sent.
        """
        was_out = self.is_out
        stream = await self._opened(headers)
        if was_out:
            for name, value in headers.items():
                await stream.send(f": {name}: {value}\n\n".encode())
        return stream

    async def _opened(self, headers: Mapping[str, str]) -> EventStream:
        async with self._opening:
            if self._stream is None:
                self._stream = await EventStream.open(
                    self._request, {**self._headers, **headers}, ending=self._ending
                )
        return self._stream

    def _wait(self, delay_s: float) -> None:
        self._timer = self._loop.call_later(delay_s, self._look)

    def _look(self) -> None:
        silent_since = self._stream.sent_at if self._stream is not None else self._began
        left_s = silent_since + self._every_s - self._loop.time()
        if left_s > 0:
            self._wait(left_s)
            return
        if self._signing is None or self._signing.done():  # else the client reads nothing
            self._signing = self._loop.create_task(self._show_life(), name="sign of life")
        self._wait(self._every_s)

    async def _show_life(self) -> None:
        try:
            self._on_sign()
            stream = await self._opened({})
            if stream.may_sign:
                await stream.send(self._sign)
        except (ClientLeft, ConnectionError):
            pass  # the handler learns of it, too
        except Exception:  # a plug-in's hook on the headers may raise anything
            logger.exception("stream.no_sign_of_life")
