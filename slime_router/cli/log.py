"""What is logged, and how: one line for each event, on standard error."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from aiohttp.http_exceptions import HttpProcessingError

from slime_router.choices import LogFormat
from slime_router.telemetry.log_format import formatter


def start_log(level: str, log_format: LogFormat = "text", *, number: int | None = None) -> None:
    """Our own log at `level`; from libraries only warnings. `number`: of one process of several."""
    # No line says where in the code it was logged: Python's guide to logging, "Optimization", has
    # this switch, which spares the look for it.
    logging._srcfile = None
    logging.setLogRecordFactory(_Record)
    handler = _Lines()
    handler.setFormatter(formatter(log_format, number))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("slime_router").setLevel(level.upper())
    logging.getLogger("aiohttp.server").addFilter(_without_headers)


_BLANK = {
    **vars(logging.LogRecord("", 0, "(unknown file)", 0, "", (), None)),
    **dict.fromkeys(("process", "processName", "thread", "threadName")),
}


class _Record(logging.LogRecord):
    """What a line says. Python's own records work out eleven things more, which no line does.

    A handler of a plug-in that asks for them learns what `_BLANK` has.
    """

    def __init__(
        self,
        name: str,
        level: int,
        _path: str,
        _line: int,
        msg: object,
        args: Any,
        exc_info: Any,
        *_: object,
    ) -> None:
        vars(self).update(_BLANK)
        is_by_name = args and len(args) == 1 and isinstance(args[0], Mapping) and args[0]
        self.name, self.msg, self.args = name, msg, args[0] if is_by_name else args
        self.levelno, self.levelname = level, logging.getLevelName(level)
        self.exc_info = exc_info
        self.created = now = time.time()
        self.msecs = int(now % 1 * 1000)


class _Lines(logging.Handler):
    """Writes each record to standard error at once and in one piece, which needs no lock.

    Standard error passes each line on by itself. `logging.StreamHandler` locks it and flushes it
    for every record, which is a tenth of what a request's line costs.
    """

    def handle(self, record: logging.LogRecord) -> bool:
        """Writes the record; nothing that goes wrong with it gets out."""
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:  # noqa: BLE001 - as `logging` has it: whoever logs must not fail
            self.handleError(record)
        return True


def _without_headers(record: logging.LogRecord) -> bool:
    """aiohttp shows the header that it cannot read: there may be a key in it."""
    exc = record.exc_info[1] if record.exc_info else None
    if isinstance(exc, HttpProcessingError):
        record.msg, record.args, record.exc_info = "a request that is not HTTP", (), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True
