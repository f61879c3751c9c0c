"""Splits server-sent events into the payloads of their `data:` lines. Pure: bytes in, bytes out.

Workers send one JSON object per line, so each line is a payload; event names, ids and comments are
skipped. Of an incomplete line of data, up to `max_len` bytes are buffered; of any other, nothing.
"""

from __future__ import annotations

from slime_router.errors import WorkerFailed

MAX_PAYLOAD_LEN = 256 * 2**20  # bytes; routed experts of a long output take 100 MiB
DONE = b"[DONE]"
_DATA = b"data:"
_NO_DATA = b":"  # stands for all that came of a line which is not data, however long it is


class EventSplitter:
    """Reads `data:` lines, which end with LF, CRLF or CR, perhaps split between reads."""

    def __init__(self, max_len: int = MAX_PAYLOAD_LEN) -> None:
        self._max_len = max_len
        self._rest: list[bytes] = []  # the pieces of an incomplete line
        self._rest_len = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes.

        Raises:
            WorkerFailed: a line is longer than `max_len` bytes.
        """
        if (payload := self.only(data)) is not None:
            return [payload]  # most reads are one
        if b"\r" in data:  # never within JSON; an extra empty line ends no payload
            data = data.replace(b"\r", b"\n")
        *lines, tail = data.split(b"\n")
        if lines and self._rest:
            lines[0] = b"".join((*self._rest, lines[0]))
            self._rest.clear()
            self._rest_len = 0
        if tail:
            self._keep(tail)
        payloads = []
        for line in lines:
            if line.startswith(_DATA):
                payloads.append(line[5:].strip())  # noqa: PERF401 - a comprehension is a call
        return payloads

    def only(self, data: bytes) -> bytes | None:
        """The payload of the one event that `data` is; None, and nothing is read, if it is not."""
        if self._rest or data.find(b"\n") != len(data) - 2 or not data.endswith(b"\n\n"):
            return None
        if b"\r" in data:  # a line end, too
            return None
        return data[5:].strip() if data.startswith(b"data:") else None

    def end(self) -> list[bytes]:
        """The payload of a last line without a line end."""
        return self.feed(b"\n")

    def _keep(self, piece: bytes) -> None:
        if self._rest_len < len(_DATA):
            piece = b"".join((*self._rest, piece))
            self._rest.clear()
            self._rest_len = 0
            if not piece.startswith(_DATA[: len(piece)]):
                piece = _NO_DATA
        self._rest_len += len(piece)
        if self._rest_len > self._max_len:
            raise WorkerFailed("The worker sent a line that is too long.")
        self._rest.append(piece)


class BodyJoiner:
    """A body that is not a stream: the same two methods, with one payload at the end."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._len = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Buffers `data`; returns nothing.

        Raises:
            WorkerFailed: the body is longer than `MAX_PAYLOAD_LEN`.
        """
        self._len += len(data)
        if self._len > MAX_PAYLOAD_LEN:
            raise WorkerFailed("The worker sent a body that is too long.")
        self._pieces.append(data)
        return []

    def only(self, _data: bytes) -> bytes | None:
        """None: no part of it is whole."""
        return None

    def end(self) -> list[bytes]:
        """The whole body."""
        return [b"".join(self._pieces)]
