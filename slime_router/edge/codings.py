"""Content codings: packed bytes, unpacked in small steps with bounds on what comes of them.

A few hundred kilobytes can unpack to gigabytes. So no step makes more than `STEP_LEN` bytes, and
the whole may be neither longer than a limit nor much longer than what it was packed into.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from typing import Protocol

from slime_router.errors import BadRequest, PayloadTooLarge, UnsupportedCoding

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
else:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

CODINGS = ("gzip", "deflate", "zstd")  # those that are read
STEP_LEN = 2**18  # bytes of one step: about a millisecond
WINDOW_LEN = 2**16  # packed bytes that a decompressor is given at once
MAX_RATIO = 100  # unpacked to packed; JSON of text or numbers seldom reaches 20
FREE_LEN = 16 * 2**20  # bytes to which a body may unpack at any ratio
MAX_MEMBERS = 1024  # concatenated streams of one body

_GZIP_BITS = 16 + zlib.MAX_WBITS
_DEFLATE_METHOD = 8  # in the low half of the first byte of a zlib header
_ZSTD_WINDOW_LOG = 23  # 8 MiB: as much as RFC 9659 lets a sender ask for
_SYNONYMS = {"x-gzip": "gzip"}


class _Member(Protocol):
    """One compressed stream. A body may be several of them, one after the other."""

    @property
    def eof(self) -> bool:
        """Whether its end has been read."""

    @property
    def rest(self) -> bytes:
        """What follows its end."""

    def step(self, data: bytes) -> tuple[bytes, bool]:
        """At most `STEP_LEN` bytes, and whether there is more to come without further data."""


class _Zlib:
    """A gzip or deflate stream."""

    def __init__(self, bits: int) -> None:
        self._inflate = zlib.decompressobj(bits)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def rest(self) -> bytes:
        return self._inflate.unused_data

    def step(self, data: bytes) -> tuple[bytes, bool]:
        made = self._inflate.decompress(self._inflate.unconsumed_tail + data, STEP_LEN)
        has_more = bool(self._inflate.unconsumed_tail) or len(made) == STEP_LEN
        return made, has_more and not self._inflate.eof


class _Zstd:
    """A frame of Zstandard."""

    def __init__(self) -> None:
        limits: dict[int, int] = {DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        self._frame = ZstdDecompressor(options=limits)

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def rest(self) -> bytes:
        return self._frame.unused_data

    def step(self, data: bytes) -> tuple[bytes, bool]:
        made = self._frame.decompress(data, STEP_LEN)
        return made, not self._frame.eof and not self._frame.needs_input


class Unpacker:
    """Unpacks one body, given piece by piece.

    `max_len` is the limit for the unpacked body, in bytes.
    """

    def __init__(self, coding: str, max_len: int) -> None:
        self._coding = coding
        self._max_len = max_len
        self._packed_len = 0
        self._len = 0
        self._members = 0
        self._member: _Member | None = None

    def __repr__(self) -> str:
        return f"<Unpacker {self._coding}, {self._packed_len} bytes to {self._len}>"

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The steps that unpack the next packed bytes; some make nothing.

        Raises:
            BadRequest: the data is corrupt, or unpacks to far more than it should.
            PayloadTooLarge: there is more than `max_len` of it.
        """
        for start in range(0, len(data), WINDOW_LEN):
            window = data[start : start + WINDOW_LEN]
            self._packed_len += len(window)
            yield from self._unpacked(window)

    def finish(self) -> None:
        """Raises BadRequest if the body ends in the middle of a stream."""
        if self._member is not None and not self._member.eof:
            raise self._corrupt("it ends too early")

    def _unpacked(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member is None or self._member.eof:
                self._member = self._next_member(data)
            has_more = True
            while has_more:
                try:
                    made, has_more = self._member.step(data)
                except (zlib.error, ZstdError) as exc:
                    raise self._corrupt("it cannot be unpacked") from exc
                data = b""
                self._count(len(made))
                yield made
            data = self._member.rest if self._member.eof else b""

    def _next_member(self, data: bytes) -> _Member:
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise self._corrupt(f"it has more than {MAX_MEMBERS} streams")
        if self._coding == "zstd":
            return _Zstd()
        if self._coding == "gzip":
            return _Zlib(_GZIP_BITS)
        has_header = data[0] & 0x0F == _DEFLATE_METHOD  # some clients leave it out
        return _Zlib(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)

    def _count(self, length: int) -> None:
        self._len += length
        if self._len > self._max_len:
            raise PayloadTooLarge(
                f"The request body is longer than {self._max_len} bytes when unpacked."
            )
        if self._len > FREE_LEN + MAX_RATIO * self._packed_len:
            raise BadRequest(
                f"The request body unpacks to more than {MAX_RATIO} times its length.",
                param="content-encoding",
            )

    def _corrupt(self, reason: str) -> BadRequest:
        return BadRequest(
            f"The request body is not valid {self._coding}: {reason}.", param="content-encoding"
        )


def coding_of(header: str) -> str | None:
    """The coding that a Content-Encoding header names; None if the body is not packed.

    Raises:
        UnsupportedCoding: it names one that is not read, or several.
    """
    names = [name for part in header.split(",") if (name := part.strip().lower())]
    names = [_SYNONYMS.get(name, name) for name in names if name != "identity"]
    if not names:
        return None
    if len(names) > 1 or names[0] not in CODINGS:
        raise UnsupportedCoding(header, CODINGS)
    return names[0]
