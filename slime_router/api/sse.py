"""Server-sent events as clients read them; for chat and `/generate`, `data:` lines only.

Those clients never get an `id:`, `retry:` or `event:` line: once openai-python has seen one, it
takes the next comment frame for an event. APIs with named events write them themselves. Each event
is one write, and aiohttp turns Nagle's algorithm off on the server's sockets, so each leaves at
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web

DONE = b"data: [DONE]\n\n"

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # otherwise nginx would buffer events
}


def event(payload: Any) -> bytes:
    """One event with a JSON payload."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


class ClientLeft(Exception):
    """The connection to the client is closed: there is nobody to write to."""


class EventStream:
    """The response side of one stream of events. Its status line is already out."""

    def __init__(self, response: web.StreamResponse, ending: bytes = DONE) -> None:
        self.response = response
        self._ending = ending

    @classmethod
    async def open(
        cls, request: web.Request, headers: Mapping[str, str], *, ending: bytes = DONE
    ) -> EventStream:
        """Sends the status line 200 and the headers."""
        response = web.StreamResponse(headers={**_HEADERS, **headers})
        await response.prepare(request)
        return cls(response, ending)

    async def send(self, event: bytes) -> None:
        """One event, one write. Raises ClientLeft."""
        try:
            await self.response.write(event)
        except ConnectionError as exc:
            raise ClientLeft from exc

    async def end(self) -> None:
        """The last event, `[DONE]` unless another was asked for, and the end of the body.

        Raises:
            ClientLeft: the client did.
        """
        if self._ending:
            await self.send(self._ending)
        try:
            await self.response.write_eof()
        except ConnectionError as exc:
            raise ClientLeft from exc
