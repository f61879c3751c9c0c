"""The connections to the workers, of which aiohttp need not read all.

A plain answer that comes whole, as short ones do, is taken as it is: no parser is made for it.

Of a stream, a tap can take events off before aiohttp reads them: its parser, its buffer and the
wake-up of whoever reads it are half of what a streamed token costs. Where the answer comes in whole
chunks of HTTP (a worker writes one for each event), the parser's state is the same after a chunk as
before it, so it need not see those that are taken. All else it gets byte for byte: heads, pieces of
chunks, the end, and what nobody takes.

Whether a request reused a connection or got a fresh one is noted here, too: aiohttp's tracing
reports the same, but at a cost to every request.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, cast

import aiohttp
from aiohttp import ClientPayloadError, HttpVersion11, StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import BadHttpMessage
from multidict import CIMultiDict, CIMultiDictProxy

from slime_router.errors import OUT_OF_DESCRIPTORS, OutOfDescriptors, SetupError

_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")
_HEAD = b"HTTP/1.1 200 "
_HEAD_END = b"\r\n\r\n"
_EVENT_BEGIN = b"\r\ndata: {"  # after the size of its chunk
_EVENT_END = b"\n\n\r\n"  # and that of its chunk
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked *\r\n", re.IGNORECASE)
_PLAIN_LINES = rb"(?:(?:date|server|content-type|x-[a-z0-9-]+): [!-~]+(?: [!-~]+)*\r\n)*"
_PLAIN = re.compile(
    b"HTTP/1\\.1 200 OK\r\n(%bcontent-length: ([0-9]{1,8})\r\n%b)\r\n"
    % (_PLAIN_LINES, _PLAIN_LINES),
    re.IGNORECASE,
)
_PLAIN_HEAD_LEN = 2048  # bytes; a longer head is left to aiohttp, which has limits
_LINE = re.compile("(.+?): (.+)\r\n")
_MOST_INTERIM = 16  # heads of 1xx before an answer: a worker sends one, if any


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
    _params: dict[str, Any] | None = None  # of a parser that nothing has needed yet
    _is_answered = False  # and nothing will
    _interim = 0  # heads that were no answer yet

    def expect(self, **params: Any) -> None:
        """Another request is sent; its answer is read by `ArrivedBody`'s methods alone.

        What `set_response_params` makes is only made where the answer is not whole and plain.
        """
        self._begin()
        self._parser, self._payload, self._params = None, None, params

    def set_response_params(self, **params: Any) -> None:
        """Another request is sent."""
        self._begin()
        super().set_response_params(**params)

    def _begin(self) -> None:
        self.tap, self._has_head, self._is_whole, self._is_answered = None, False, False, False
        self._params, self._interim = None, 0

    def feed_data(self, data: Any, size: int = 0) -> None:
        """A head came, with the body that follows it."""
        message: RawResponseMessage = data[0]
        self._interim += 100 <= message.code <= 199 and message.code != 101
        if self._interim <= _MOST_INTERIM:
            super().feed_data(data, size)
        elif self.exception() is None:  # nor is anything read that came after them
            self.abort()  # which forgets what was set before
            self.set_exception(BadHttpMessage("too many interim heads"))

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
            if self._is_answered:  # and it goes on: whatever that is, it answers no later request
                self.abort()
                return
            if (params := self._params) is not None:
                self._params = None
                if (answer := plain_answer(data)) is not None:
                    self._is_answered = True
                    self.feed_data(answer)
                    return
                super().set_response_params(**params)
            self._has_head, self._is_whole = True, _begins_whole(data)
        if self.tap is not None:
            self.tap.rest()
            if not self._is_whole:
                self.tap = None
        super().data_received(data)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Goes on, where reading was paused; aiohttp asks for it with each piece that is read.

        Otherwise its parser holds nothing back that it would have to be given another time.
        """
        if self._reading_paused or self._upgraded:
            super().resume_reading(resume_parser)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Whoever still waits for a body learns of it: of a bad trailer, aiohttp tells nobody."""
        body = self._payload
        super().connection_lost(exc)
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(ClientPayloadError("The body is not complete."))


class ArrivedBody(StreamReader):
    """A body that is all here: as much of a reader as answers are read with."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:  # without all that a reader makes to wait for more
        self._body = body
        self._exception = None

    def __repr__(self) -> str:
        return f"<ArrivedBody of which {len(self._body)} bytes are left>"

    def set_exception(self, exc: BaseException, *_: BaseException) -> None:
        """From now on whoever reads gets it."""
        self._exception = exc

    def on_eof(self, callback: Callable[[], None]) -> None:
        """Nothing more comes, so it is called at once."""
        callback()

    def is_eof(self) -> bool:
        """Nothing more comes."""
        return True

    def at_eof(self) -> bool:
        """Whether all was read."""
        return not self._body

    async def readany(self) -> bytes:
        """The whole body, then nothing. Raises what `set_exception` was given."""
        if self._exception is not None:
            raise self._exception
        body, self._body = self._body, b""
        return body

    async def read(self, n: int = -1) -> bytes:
        """The whole body: no part of one is asked for."""
        assert n < 0
        return await self.readany()


def plain_answer(data: bytes) -> tuple[RawResponseMessage, ArrivedBody] | None:
    """The answer that `data` is, if that is a plain one, and all of it: as aiohttp would read it.

    Its length is given, and no line of its head says anything of how the connection is used.
    """
    head = _PLAIN.match(data, 0, _PLAIN_HEAD_LEN)
    if head is None or int(head[2]) != len(data) - head.end():
        return None
    headers = CIMultiDictProxy(CIMultiDict(_LINE.findall(head[1].decode("ascii"))))
    message = RawResponseMessage(HttpVersion11, 200, "OK", headers, (), False, None, False, False)
    return message, ArrivedBody(data[head.end() :])


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


_OPENS = "_create_connection"
_TAKES = "_get"  # a connection that is kept
_EXPIRES = "_on_read_timeout"
_READS = ("_buffer", "_eof", "_exception", "_size")  # of a body: `edge/bodies.py`, `ArrivedBody`


class Use:
    """How one request got its connection."""

    __slots__ = ("is_connecting", "is_fresh")

    def __init__(self) -> None:
        self.is_fresh = False  # opened for it, not kept from an earlier request
        self.is_connecting = False  # it is being opened: nothing was sent


_use: ContextVar[Use] = ContextVar("slime_router.use")


def note_in(use: Use) -> None:
    """The next request of this task notes there how it got its connection."""
    _use.set(use)


def check_aiohttp(connector: type[aiohttp.BaseConnector] = aiohttp.TCPConnector) -> None:
    """Makes sure that aiohttp opens connections by the method that `Connector` overrides.

    Otherwise every connection would look like a kept one, and what a dead worker may have taken
    would be sent again. What `KeptConnections` uses must be there, too.

    Raises:
        SetupError: it does not.
    """
    for name in (_OPENS, _TAKES):
        if not inspect.iscoroutinefunction(getattr(connector, name, None)):
            raise _misfit(f"{connector.__name__}.{name}()")
    for name in ("set_response_params", "read", "abort", _EXPIRES):
        if not callable(getattr(ResponseHandler, name, None)):
            raise _misfit(f"{ResponseHandler.__name__}.{name}()")
    for name in _READS:
        if not hasattr(aiohttp.StreamReader, name):
            raise _misfit(f"{aiohttp.StreamReader.__name__}.{name}")


def _misfit(what: str) -> SetupError:
    return SetupError(
        f"this version of aiohttp ({aiohttp.__version__}) does not fit: {what} is missing"
    )


class Connector(aiohttp.TCPConnector):
    """Opens connections, and marks the `Use` of the request each one is opened for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = cast("partial[ResponseHandler]", partial(WorkerProtocol, loop=self._loop))

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        """aiohttp documents this method as one for subclasses to override.

        Raises:
            OutOfDescriptors: the system has none for it.
        """
        use = _use.get(None) or Use()
        use.is_fresh = use.is_connecting = True
        url = args[0].url
        try:
            opened = await super()._create_connection(*args, **kwargs)
        except BaseException as exc:  # or cancelled, as nothing answers
            # The name may have another address by now: a pod that was made again has.
            self.clear_dns_cache(url.raw_host, url.port)
            if not isinstance(exc, aiohttp.ClientConnectorError):
                raise
            if exc.os_error.errno not in OUT_OF_DESCRIPTORS:
                raise
            raise OutOfDescriptors("The router has no file descriptors left.") from exc
        use.is_connecting = False
        return opened
