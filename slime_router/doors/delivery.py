"""How a reply goes out, in whichever API's words it is written.

The status line waits for the first chunk of the first generation: what fails before it is a real
HTTP error, and the receipt stands in the header. The generations are read to their end only after
the last byte is written. How long they outlive a client that left is not said here: see `joining`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from aiohttp import web

from slime_router.doors import sse
from slime_router.doors.fanout import NumberedChunk, NumberedChunks
from slime_router.doors.joining import Joiner
from slime_router.errors import RouterError, TooManyRequests, WorkerFailed
from slime_router.types import GenerateCall, GenerateChunk

_log = logging.getLogger(__name__)

_OUR_FAULT = "The router failed; its log says why."


class StreamedReply(Protocol):
    """Writes chunks as events."""

    def events(self, index: int, chunk: GenerateChunk) -> Iterable[bytes]:
        """What the chunk of generation `index` becomes. Raises RouterError to end the stream."""

    def closing(self) -> Iterable[bytes]:
        """What stands between the last chunk's events and the end of the stream."""

    def failure(self, exc: RouterError) -> bytes:
        """The event that tells of an error after the first byte."""


class WholeReply(Protocol):
    """Folds chunks into one body."""

    def add(self, index: int, chunk: GenerateChunk) -> None:
        """Takes the chunk of generation `index`. Raises RouterError where there is no reply."""

    def body(self) -> bytes:
        """The JSON body; every generation has finished."""


class Admission:
    """Counts the requests inside the doors that share it.

    The one over the limit is turned away, unread, and `on_refusal` told.
    """

    def __init__(self, limit: int, on_refusal: Callable[[], None] = lambda: None) -> None:
        self._limit = limit
        self._on_refusal = on_refusal
        self._inside = 0

    def __repr__(self) -> str:
        return f"<Admission {self._inside}/{self._limit}>"

    def __enter__(self) -> None:
        if self._inside >= self._limit:
            self._on_refusal()
            raise TooManyRequests(f"More than {self._limit} requests at once; try again later.")
        self._inside += 1

    def __exit__(self, *_: object) -> None:
        self._inside -= 1


async def answered(
    reply: Awaitable[web.StreamResponse],
    to_error: Callable[[RouterError], web.Response],
    headers: Mapping[str, str],
) -> web.StreamResponse:
    """The reply, or the error it became.

    Raises:
        ConnectionError: the client left; nobody is there to be told.
    """
    try:
        return await reply
    except RouterError as exc:
        response = to_error(exc)
    except ConnectionError:
        raise
    except Exception:  # noqa: BLE001 - the edge of a request: log, tell the client, go on
        _log.exception("request.failed")
        response = to_error(RouterError(_OUR_FAULT))
    response.headers.update(headers)
    return response


@dataclass(frozen=True, slots=True)
class _Folded:
    """A whole reply: its body, and the headers that its chunks gave."""

    body: bytes
    receipt: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Begun:
    """The beginning of a stream: all up to the first chunk of generation 0, and how to write it."""

    chunks: Sequence[NumberedChunk]
    count: int  # of generations
    make_reply: Callable[[], StreamedReply]


async def deliver_whole(
    request: web.Request,
    joiner: Joiner,
    calls: Sequence[GenerateCall],
    reply: WholeReply,
    headers: dict[str, str],
) -> web.StreamResponse:
    """Runs the calls, or joins those of an earlier try, and sends the reply in one piece.

    Raises:
        RouterError: before anything was sent.
    """
    opening = partial(_folded, reply, len(calls))
    async with joiner.attend(request, calls, opening, headers) as visit:
        folded = await visit.opened()
        response = web.Response(
            body=folded.body,
            content_type="application/json",
            headers={**headers, **folded.receipt},
        )
        try:
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:
            return response  # the client left: the generations stay undelivered
        await _read_to_end(visit.rest())
    return response


async def deliver_stream(
    request: web.Request,
    joiner: Joiner,
    calls: Sequence[GenerateCall],
    make_reply: Callable[[], StreamedReply],
    headers: dict[str, str],
    *,
    ending: bytes = sse.DONE,
) -> web.StreamResponse:
    """Runs the calls, or joins those of an earlier try; each event is sent as soon as it is there.

    `ending` is the event behind the last one; empty for APIs that have none.

    Raises:
        RouterError: before anything was sent. Later errors are events.
    """
    opening = partial(_begun, make_reply, len(calls))
    async with joiner.attend(request, calls, opening, headers) as visit:
        begun = await visit.opened()
        chunks = visit.rest()
        reply = begun.make_reply()
        events = [event for index, chunk in begun.chunks for event in reply.events(index, chunk)]
        left = begun.count - sum(chunk.finish is not None for _, chunk in begun.chunks)
        receipt = _receipt_header(begun.chunks[-1][1])
        stream = await sse.EventStream.open(request, {**headers, **receipt}, ending=ending)
        try:
            await _send(stream, events, chunks, reply, left)
        except sse.ClientLeft:
            pass  # the generations stay undelivered
        except RouterError as exc:
            await _send_failure(stream, reply.failure(exc))
        except Exception:  # noqa: BLE001 - the edge of a request, told in an event
            _log.exception("stream.failed")
            await _send_failure(stream, reply.failure(RouterError(_OUR_FAULT)))
    return stream.response


async def _folded(reply: WholeReply, count: int, chunks: NumberedChunks) -> _Folded:
    receipt: dict[str, str] = {}
    left = count
    while left:
        index, chunk = await _next(chunks)
        reply.add(index, chunk)
        if index == 0:
            receipt = _receipt_header(chunk) or receipt
        left -= chunk.finish is not None
    return _Folded(reply.body(), receipt)


async def _begun(
    make_reply: Callable[[], StreamedReply], count: int, chunks: NumberedChunks
) -> _Begun:
    opening = [await _next(chunks)]
    while opening[-1][0] != 0:
        opening.append(await _next(chunks))
    return _Begun(opening, count, make_reply)


async def _next(chunks: NumberedChunks) -> NumberedChunk:
    try:
        return await anext(chunks)
    except StopAsyncIteration:
        raise WorkerFailed("The generation ended without saying why.") from None


async def _send(
    stream: sse.EventStream,
    events: Iterable[bytes],
    chunks: NumberedChunks,
    reply: StreamedReply,
    left: int,
) -> None:
    for event in events:
        await stream.send(event)
    while left:
        index, chunk = await _next(chunks)
        for event in reply.events(index, chunk):
            await stream.send(event)
        left -= chunk.finish is not None
    for event in reply.closing():
        await stream.send(event)
    await _read_to_end(chunks)  # the client has it all; many hang up before the stream ends
    await stream.end()


async def _send_failure(stream: sse.EventStream, event: bytes) -> None:
    with suppress(sse.ClientLeft):
        await stream.send(event)
        await stream.end()


async def _read_to_end(chunks: NumberedChunks) -> None:
    """Lets every layer finish. The client has its whole reply: what fails here is only logged."""
    try:
        async for _ in chunks:
            pass
    except Exception:  # noqa: BLE001 - the reply is out, nobody is left to be told
        _log.exception("reply.tail_failed")


def _receipt_header(chunk: GenerateChunk) -> dict[str, str]:
    receipt = chunk.receipt
    if receipt is None and chunk.prompt is not None:
        receipt = chunk.prompt.receipt
    return {} if receipt is None else {"x-slime-receipt": receipt.to_json()}
