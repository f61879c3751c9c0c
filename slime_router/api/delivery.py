"""How a reply goes out, whichever API it is written for.

The status line waits for the first chunk of the first generation: a failure before that is a real
HTTP error, and the receipt goes in a header. A stream waits no longer than for its first sign of
life; then failures are events, and the receipt is a comment. The generations are read to their end
only after the last byte is written. For how long they outlive a client that left, see `retries`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from aiohttp import web

from slime_router.api import sse
from slime_router.api.context import EndpointContext
from slime_router.api.dialect import Dialect, StreamedReply, WholeReply
from slime_router.api.errors import our_fault
from slime_router.api.request import A
from slime_router.api.retries import Visit
from slime_router.edge.json_reply import JsonReply
from slime_router.errors import RouterError, WorkerFailed
from slime_router.generation.middleware import Chunks
from slime_router.shortcut.shortcut import Shortcut, ShortcutFailed
from slime_router.telemetry.request_record import note_failure
from slime_router.types import GenerateChunk

logger = logging.getLogger(__name__)


Whole: TypeAlias = tuple[bytes, Mapping[str, str]]  # a body, and the headers from its chunks


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
        with context.grace.scope():
            body, receipt = await visit.opened()
        if dialect.settled is not None:
            await dialect.settled()
        response = JsonReply(body, {**headers, **receipt})
        try:
            await response.send(request)
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
    async with (
        context.joiner.attend(request, asked, _opening, headers) as visit,
        sse.Line(
            request,
            headers,
            every_s=context.keepalive_s,
            sign=dialect.sign_of_life,
            ending=dialect.ending,
            on_sign=visit.note_sign,
        ) as line,
    ):
        reply = dialect.stream(visit.asked, context, headers["x-request-id"])
        try:
            with context.grace.scope():
                stream = await _play(dialect, visit, reply, line)
        except sse.ClientLeft:
            stream = await line.open({})  # the generations stay undelivered
        except Exception as exc:  # the edge of a request, reported in an event
            exc = _of_step(exc)
            if not line.is_out:
                raise
            if not isinstance(exc, RouterError):
                logger.exception("stream.failed")
                exc = our_fault()
            note_failure(exc)
            stream = await _send_failure(line, reply.failure(exc))
    return stream.response


async def _play(
    dialect: Dialect[A],
    visit: Visit[A, Sequence[GenerateChunk]],
    reply: StreamedReply,
    line: sse.Line,
) -> sse.EventStream:
    """Sends everything that a reply says."""
    begun = await visit.opened()
    chunks = visit.rest()
    events = [event for chunk in begun for event in reply.events(chunk)]
    left = len(visit.asked.calls) - sum(chunk.finish is not None for chunk in begun)
    if not left and dialect.settled is not None:
        await dialect.settled()
    stream = await line.open(_receipt_header(begun[-1]))
    await stream.send(*events)
    if left:
        if visit.shortcut is not None:
            _open_shortcut(visit.shortcut, reply, stream)
        async for chunk in chunks:
            made = reply.events(chunk)
            left -= chunk.finish is not None
            if not left and dialect.settled is not None:
                await dialect.settled()
            await stream.send(*made)
            if not left:
                break
        else:
            raise _ended()
    await stream.send(*reply.closing())
    await _read_to_end(chunks)  # the client has it all; many hang up before the end
    await stream.end()
    return stream


def _open_shortcut(
    shortcut: Shortcut[GenerateChunk], reply: StreamedReply, stream: sse.EventStream
) -> None:
    """From now on plain chunks may come while a task waits for them: they are written at once."""

    def write(chunk: GenerateChunk) -> None:
        for event in reply.events(chunk):
            stream.write(event)

    shortcut.is_clear, shortcut.write = stream.is_clear, write
    if (text_event := reply.text_event) is None:
        return

    def write_text(text: str, tokens: int) -> None:
        if event := text_event(text, tokens):
            stream.write(event)

    shortcut.has_texts, shortcut.write_text = True, write_text


async def _folded(reply: WholeReply, count: int, chunks: Chunks) -> Whole:
    receipt: dict[str, str] = {}
    left = count
    async for chunk in chunks:
        reply.add(chunk)
        if chunk.sample == 0:
            receipt = _receipt_header(chunk) or receipt
        left -= chunk.finish is not None
        if not left:
            return reply.body(), receipt
    raise _ended()


async def _opening(chunks: Chunks) -> Sequence[GenerateChunk]:
    """All chunks up to and including the first of sample 0."""
    opening = []
    async for chunk in chunks:
        opening.append(chunk)
        if chunk.sample == 0:
            return opening
    raise _ended()


def _of_step(exc: Exception) -> Exception:
    """The same; of the short way, what its step has raised."""
    cause = exc.__cause__ if isinstance(exc, ShortcutFailed) else None
    return cause if isinstance(cause, Exception) else exc


def _ended() -> WorkerFailed:
    return WorkerFailed("The generation ended without saying why.")


async def _send_failure(line: sse.Line, event: bytes) -> sse.EventStream:
    stream = await line.open({})
    with suppress(sse.ClientLeft):
        await stream.send(event)
        await stream.end()
    return stream


async def _read_to_end(chunks: Chunks) -> None:
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
