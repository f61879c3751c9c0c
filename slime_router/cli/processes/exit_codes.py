"""How the router's processes end."""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

EXIT_FAILED = 1
EXIT_GAVE_UP = 3  # of one process of several: none of them may go on
EXIT_INTERRUPTED = 130


def leave(code: int) -> NoReturn:
    """Ends the process, also where a thread still works: what is worth a wait was awaited before.

    A library that loads a vocabulary takes seconds and cannot be stopped; Python would wait for it.
    """
    main = threading.main_thread()
    if all(thread is main or thread.daemon for thread in threading.enumerate()):
        sys.exit(code)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it
            stream.flush()
    os._exit(code)
