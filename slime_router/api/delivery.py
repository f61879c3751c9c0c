"""How a reply goes out, whichever API it is written for.

The status line waits for the first chunk of the first generation: a failure before that is a real
HTTP error, and the receipt goes in a header. The generations are read to their end only after the
last byte is written. For how long they outlive a client that left, see `retries`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from slime_router.api import sse
from slime_router.api.context import EndpointContext
from slime_router.api.dialect import Dialect, StreamedReply, WholeReply
from slime_router.api.errors import our_fault
from slime_router.api.fanout import NumberedChunk, NumberedChunks
from slime_router.api.request import A
from slime_router.errors import RouterError, WorkerFailed
from slime_router.types import GenerateChunk

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Folded:
    """A whole reply: its body, and the headers that came with its chunks."""

    body: bytes
    receipt: Mapping[str, str]


async def deliver_whole(
    dialect: Dialect[A],
    context: EndpointContext,
    request: web.Request,
    asked: A,
    headers: dict[str, str],
) -> web.StreamResponse:
    """Runs the request, or joins an earlier try, and sends the reply in one piece.

    Raises:
        RouterError: before anything was sent.
    """
    opening = partial(_folded, dialect.write(asked, context), len(asked.calls))
    async with context.joiner.attend(request, asked, opening, headers) as visit:
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
    dialect: Dialect[A],
    context: EndpointContext,
    request: web.Request,
    asked: A,
    headers: dict[str, str],
) -> web.StreamResponse:
    """Runs the request, or joins an earlier try; each event is sent as soon as it is ready.

    Raises:
        RouterError: before anything was sent. Later errors are events.
    """
    async with context.joiner.attend(request, asked, _opening, headers) as visit:
        begun = await visit.opened()
        chunks = visit.rest()
        reply = dialect.stream(visit.asked, context, headers["x-request-id"])
        events = [event for index, chunk in begun for event in reply.events(index, chunk)]
        left = len(visit.asked.calls) - sum(chunk.finish is not None for _, chunk in begun)
        receipt = _receipt_header(begun[-1][1])
        stream = await sse.EventStream.open(request, {**headers, **receipt}, ending=dialect.ending)
        try:
            await _send(stream, events, chunks, reply, left)
        except sse.ClientLeft:
            pass  # the generations stay undelivered
        except RouterError as exc:
            await _send_failure(stream, reply.failure(exc))
        except Exception:  # the edge of a request, reported in an event
            logger.exception("stream.failed")
            await _send_failure(stream, reply.failure(our_fault()))
    return stream.response


async def _folded(reply: WholeReply, count: int, chunks: NumberedChunks) -> _Folded:
    receipt: dict[str, str] = {}
    left = count
    async for index, chunk in chunks:
        reply.add(index, chunk)
        if index == 0:
            receipt = _receipt_header(chunk) or receipt
        left -= chunk.finish is not None
        if not left:
            return _Folded(reply.body(), receipt)
    raise _ended()


async def _opening(chunks: NumberedChunks) -> Sequence[NumberedChunk]:
    """All chunks up to and including the first of generation 0."""
    opening = []
    async for index, chunk in chunks:
        opening.append((index, chunk))
        if index == 0:
            return opening
    raise _ended()


def _ended() -> WorkerFailed:
    return WorkerFailed("The generation ended without saying why.")


async def _send(
    stream: sse.EventStream,
    events: Iterable[bytes],
    chunks: NumberedChunks,
    reply: StreamedReply,
    left: int,
) -> None:
    for event in events:
        await stream.send(event)
    if left:
        async for index, chunk in chunks:
            for event in reply.events(index, chunk):
                await stream.send(event)
            left -= chunk.finish is not None
            if not left:
                break
        else:
            raise _ended()
    for event in reply.closing():
        await stream.send(event)
    await _read_to_end(chunks)  # the client has it all; many hang up before the stream ends
    await stream.end()


async def _send_failure(stream: sse.EventStream, event: bytes) -> None:
    with suppress(sse.ClientLeft):
        await stream.send(event)
        await stream.end()


async def _read_to_end(chunks: NumberedChunks) -> None:
    """Lets every layer finish. The client has its whole reply: a failure here is only logged."""
    try:
        async for _ in chunks:
            pass
    except Exception:  # the reply is out, there is nobody left to report to
        logger.exception("reply.tail_failed")


def _receipt_header(chunk: GenerateChunk) -> dict[str, str]:
    receipt = chunk.receipt
    if receipt is None and chunk.prompt is not None:
        receipt = chunk.prompt.receipt
    return {} if receipt is None else {"x-slime-receipt": receipt.to_json()}
