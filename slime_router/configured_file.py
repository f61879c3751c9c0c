"""A file that a setting names: a wrong one can neither hold the router nor fill its memory."""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from pathlib import Path

MAX_BYTES = 16 * 2**20
PIPE_TIMEOUT_S = 5.0  # for all that comes through a pipe


def configured_text(path: Path, *, pipe_timeout_s: float = PIPE_TIMEOUT_S) -> str:
    """The text of a regular file, or what comes through a pipe, such as the shell's `<(...)`.

    Raises:
        OSError: it cannot be read, is another kind of file, is too long, or its pipe stays open or
            silent; `strerror` says which.
        UnicodeDecodeError: it is not UTF-8.
    """
    # Without O_NONBLOCK, a named pipe that nobody writes to is never opened.
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(file).st_mode
        if stat.S_ISDIR(mode):
            raise _refusal(errno.EISDIR, os.strerror(errno.EISDIR))
        if stat.S_ISFIFO(mode):
            data = _piped(file, pipe_timeout_s)
        elif stat.S_ISREG(mode):
            with os.fdopen(file, "rb", closefd=False) as opened:
                data = opened.read(MAX_BYTES + 1)
        else:
            raise _refusal(errno.EINVAL, "it is neither a regular file nor a pipe")
    finally:
        os.close(file)
    if len(data) > MAX_BYTES:
        raise _refusal(errno.EFBIG, f"it is longer than {MAX_BYTES} bytes")
    return data.decode("utf-8-sig")


def check_regular(path: Path) -> None:
    """For a file that a library opens by its name.

    Raises:
        OSError: it is not a regular file, or may not be read; `strerror` says which.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise _refusal(errno.EINVAL, "it is not a regular file")
    with path.open("rb"):
        pass


def _piped(file: int, timeout_s: float) -> bytes:
    """All that comes until the last writer closes its end, or a little more than the limit."""
    data = bytearray()
    deadline = time.monotonic() + timeout_s
    has_waited = False
    while len(data) <= MAX_BYTES:
        try:
            piece = os.read(file, 2**16)
        except BlockingIOError:
            piece = None
        if piece == b"" and (data or has_waited):  # before that, nobody may have opened it yet
            break
        if piece:
            data += piece
        elif _readable(file, deadline - time.monotonic()):
            has_waited = True
        else:
            raise _refusal(errno.ETIMEDOUT, f"its pipe did not end within {timeout_s:g} s")
    return bytes(data)


def _readable(file: int, timeout_s: float) -> bool:
    poll = select.poll()  # unlike select(), it takes descriptors above 1023
    poll.register(file, select.POLLIN)
    return timeout_s > 0 and bool(poll.poll(timeout_s * 1000))


def _refusal(number: int, words: str) -> OSError:
    return OSError(number, words)
