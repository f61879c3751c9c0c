"""Standard input, output and error, as whoever started the router left them."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def fill_standard_streams() -> None:
    """Lead those that are closed nowhere, and let none fail for a letter that it cannot write.

    The next files that are opened would have the numbers of closed ones, and uvloop ends the
    process where it has to close a socket with such a number.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        stream = getattr(sys, name)
        if stream is None:
            _lead_nowhere(number)
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - to the end
            setattr(sys, name, stream)
        elif isinstance(stream, TextIOWrapper) and mode == "w":
            stream.reconfigure(errors="backslashreplace")


def show(text: str) -> None:
    """Write it to standard output; where nobody can read it, nothing more goes there."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:  # a full disk, or a pipe whose reader has gone
        _lead_nowhere(sys.stdout.fileno())  # Python flushes what is left when it ends


def _lead_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
