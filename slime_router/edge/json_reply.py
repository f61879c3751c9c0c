"""A whole reply of JSON, which goes out in one write where nobody else has a say in it.

aiohttp's own way makes a head from a dictionary in a dozen calls. It is taken where it does more
than that: where another part of the server changes headers, or the connection is to close.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE, StreamWriter

_JSON = "application/json"
_JOINED_LEN = 2**16  # bytes of a body that is copied, to be one buffer with its head
_HEAD = (
    "HTTP/1.1 200 OK\r\n"
    f"{{}}{hdrs.CONTENT_TYPE}: {_JSON}\r\n{hdrs.CONTENT_LENGTH}: {{}}\r\n"
    f"{hdrs.DATE}: {{}}\r\n{hdrs.SERVER}: {SERVER_SOFTWARE}\r\n\r\n"
)


class JsonReply(web.Response):
    """A reply to a GET or a POST with status 200, this body, and these headers besides its own."""

    def __init__(self, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(body=body, content_type=_JSON, headers=headers)
        self._given = headers
        self._is_out = False

    async def send(self, request: web.Request) -> None:
        """Sends all of it.

        Raises:
            ConnectionError: the client has left.
        """
        writer, body = request.writer, self.body
        transport = request.transport
        if (
            transport is None
            or transport.is_closing()
            or not isinstance(body, bytes)
            or not self._is_plain(request, writer)
        ):
            await self.prepare(request)
            await self.write_eof()
            return
        given = self._given
        lines = "".join(map("{}: {}\r\n".format, given.keys(), given.values()))
        head = _HEAD.format(lines, len(body), rfc822_formatted_time()).encode()
        self._is_out = True
        if len(body) < _JOINED_LEN:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        await writer.drain()

    def _is_plain(self, request: web.Request, writer: AbstractStreamWriter) -> bool:
        """Whether the reply is all that goes out, and the connection stays open."""
        return (
            isinstance(writer, StreamWriter)
            and request.keep_alive
            and request.version == HttpVersion11
            and not request.app.on_response_prepare
            and "".join(self._given.values()).isprintable()
        )

    # For aiohttp, which sends what a handler returns unless it is out

    @property
    def prepared(self) -> bool:
        """Whether its head is out."""
        return self._is_out or super().prepared

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection stays open after it; None where that is not known yet."""
        wanted = super().keep_alive
        return True if self._is_out and wanted is None else wanted

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Sends its head, unless it is out."""
        return None if self._is_out else await super().prepare(request)

    async def write_eof(self, data: bytes = b"") -> None:
        """Sends the rest, unless it is out."""
        if not self._is_out:
            await super().write_eof(data)
