"""Reads the bodies of requests, for every route: one that is packed is unpacked here.

The server's own parser would unpack as fast as data arrives, without letting anything else run.
Here the loop is free after each step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

from aiohttp import StreamReader, web

from slime_router.auth.caller import Visit, visit
from slime_router.edge.codings import Unpacker, coding_of
from slime_router.errors import PayloadTooLarge

SERVER_ARGS: Mapping[str, Any] = MappingProxyType({"auto_decompress": False})
_SHORT_LEN = 2**16  # bytes that come at once, mostly
LONG_LEN = 2**23  # bytes that take long enough to copy for a thread to do it


async def read_body(request: web.Request) -> bytes:
    """The whole body, unpacked. It can be asked for again, until it is forgotten.

    Raises:
        BadRequest: it is corrupt.
        PayloadTooLarge: it is over the server's limit, as sent or unpacked.
        UnsupportedCoding: it is packed in a way that is not read.
        ClientTimeout: the client stopped sending it.
    """
    kept = visit(request)
    if kept.body is not None:
        return kept.body
    unpacker = unpacker_of(request, request.client_max_size)
    try:
        raw = await _received(request, kept)
    except web.HTTPRequestEntityTooLarge as exc:
        raise PayloadTooLarge(exc.text or "The request body is too large.") from exc
    if unpacker is None:
        kept.body = raw
        return raw
    pieces = []
    for piece in unpacker.feed(raw):
        pieces.append(piece)
        await asyncio.sleep(0)
    unpacker.finish()
    is_long = sum(map(len, pieces)) > LONG_LEN
    body = await asyncio.to_thread(b"".join, pieces) if is_long else b"".join(pieces)
    kept.body = body
    return body


def share_body(request: web.Request) -> None:
    """Somebody else may read the body, too, by aiohttp's means: it is kept as long as it is."""
    visit(request).is_body_shared = True


def forget_body(request: web.Request) -> None:
    """Frees what `read_body` gave: the request may last long, and an idle connection keeps it."""
    kept = visit(request)
    if not kept.is_body_shared:
        kept.body = None


def body_so_far(request: web.Request) -> bytes:
    """What is here of the body, as it was sent or unpacked; whoever reads it gets it anyway.

    Empty where a part was taken by somebody who keeps it.
    """
    body = visit(request).body or request._read_bytes
    if body is not None:
        return body
    content = request.content
    is_whole = getattr(content, "_buffer_offset", 1) == 0 and content.total_bytes == content._size
    return b"".join(content._buffer) if is_whole else b""


async def _received(request: web.Request, kept: Visit) -> bytes:
    """The body as it was sent. Raises HTTPRequestEntityTooLarge."""
    content = request.content
    if kept.is_body_shared or content.at_eof():
        return await request.read()  # which keeps it for good
    limit = request.client_max_size
    if content.total_bytes <= _SHORT_LEN <= limit and (body := _arrived(content)) is not None:
        return body
    content.set_read_chunk_size(limit)
    pieces, length = [], 0
    while data := await content.readany():
        pieces.append(data)
        length += len(data)
        if limit and length > limit:
            raise web.HTTPRequestEntityTooLarge(limit, length)
    return b"".join(pieces)


def _arrived(content: StreamReader) -> bytes | None:
    """The body, taken out of its reader, if it came in one piece and none of it was read.

    To read it would ask the parser for more and let the transport go on, though nothing follows.
    """
    length = content.total_bytes
    if not content._eof or length != content._size or len(content._buffer) != 1:
        return None
    if content._exception is not None:
        return None
    content._size = 0
    return content._buffer.popleft()


async def unpacked(request: web.Request, max_len: int) -> AsyncIterator[bytes]:
    """The body piece by piece as it arrives, unpacked, up to `max_len` bytes.

    Raises:
        BadRequest: it is corrupt.
        PayloadTooLarge: there is more of it.
        UnsupportedCoding: it is packed in a way that is not read.
        ClientTimeout: the client stopped sending it.
    """
    unpacker = unpacker_of(request, max_len)
    length = 0
    async for data in request.content.iter_any():
        length += len(data)
        if length > max_len:
            raise PayloadTooLarge(f"The request body is longer than {max_len} bytes.")
        if unpacker is None:
            yield data
            continue
        for piece in unpacker.feed(data):
            if piece:
                yield piece
            await asyncio.sleep(0)
    if unpacker is not None:
        unpacker.finish()


def unpacker_of(request: web.Request, max_len: int) -> Unpacker | None:
    """What unpacks the body, to at most `max_len` bytes; None if it is not packed.

    Raises:
        UnsupportedCoding: it is packed in a way that is not read.
    """
    given = request.headers.getall("Content-Encoding", ())
    if not given or getattr(request.content, "total_compressed_bytes", None) is not None:
        return None  # the server's own parser has unpacked it, unless it is given `SERVER_ARGS`
    coding = coding_of(", ".join(given))
    return None if coding is None else Unpacker(coding, max_len)
