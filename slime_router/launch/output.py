"""What a worker prints: its own file or the router's log, and its last lines."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from typing import BinaryIO

from slime_router.errors import SetupError

logger = logging.getLogger(__name__)

TAIL_LINES = 25
HIDDEN = b"***"
MAX_LINE_LEN = 16 * 2**10  # bytes; what is longer becomes several lines


class Output:
    """Takes bytes as they come. With a `log_dir` they are appended to `NAME.log` there.

    Without one each line is logged at debug level, after the worker's name. `secret` is the
    worker's key, which SGLang prints with its arguments: it is replaced by `***` everywhere.

    Raises:
        SetupError: the file cannot be written.
    """

    def __init__(self, name: str, log_dir: Path | None, *, secret: str | None = None) -> None:
        self._name = name
        self._file = None if log_dir is None else _opened(log_dir / f"{name.replace(' ', '-')}.log")
        self._tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._rest = b""
        self._secret = (secret or "").encode("utf-8", "surrogateescape")
        self._held = b""  # may be the beginning of the secret

    def __repr__(self) -> str:
        return f"<Output of {self._name}>"

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines, the oldest first."""
        return tuple(_text(line) for line in self._tail)

    def begin(self) -> None:
        """A process starts; the output of the one before it is forgotten."""
        self._tail.clear()

    def feed(self, data: bytes) -> None:
        """Takes what was printed; this must not fail, or the worker would wait for us."""
        self._keep(self._without_secret(data))

    def _without_secret(self, data: bytes) -> bytes:
        if not self._secret:
            return data
        data = (self._held + data).replace(self._secret, HIDDEN)
        lengths = range(min(len(self._secret) - 1, len(data)), 0, -1)
        held = next((n for n in lengths if self._secret.startswith(data[-n:])), 0)
        self._held = data[len(data) - held :]
        return data[: len(data) - held]

    def _keep(self, data: bytes) -> None:
        if self._file is not None:
            self._write(self._file, data)
        # Progress bars end theirs with a return.
        *lines, rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        whole = len(rest) // MAX_LINE_LEN * MAX_LINE_LEN
        self._rest = rest[whole:]
        for line in (*lines, rest[:whole]):
            self._take(line)

    def end(self) -> None:
        """The process has ended; what follows its last line break is a line too."""
        held, self._held = self._held, b""
        self._keep(held)
        self._take(self._rest)
        self._rest = b""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, line: bytes) -> None:
        for start in range(0, len(line), MAX_LINE_LEN):
            piece = line[start : start + MAX_LINE_LEN]
            self._tail.append(piece)
            if self._file is None and logger.isEnabledFor(logging.DEBUG):
                logger.debug("%s | %s", self._name, _text(piece))

    def _write(self, file: BinaryIO, data: bytes) -> None:
        try:
            file.write(data)
        except OSError as exc:
            logger.warning("%s: its output goes to this log now: %s", self._name, exc)
            self.close()


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace")


def _opened(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)
    except OSError as exc:
        raise SetupError(f"--worker-log-dir: {path}: {exc.strerror}") from exc
