"""What is logged, and how: one line for each event, on standard error."""

from __future__ import annotations

import logging
import sys

from aiohttp.http_exceptions import HttpProcessingError

from slime_router.choices import LogFormat
from slime_router.telemetry.log_format import formatter


def start_log(level: str, log_format: LogFormat = "text", *, number: int | None = None) -> None:
    """Our own log at `level`; from libraries only warnings. `number`: of one process of several."""
    # No line says where in the code it was logged, nor by which thread or process: Python's guide
    # to logging, "Optimization", has these switches, which spare that work.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = _Lines()
    handler.setFormatter(formatter(log_format, number))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("slime_router").setLevel(level.upper())
    logging.getLogger("aiohttp.server").addFilter(_without_headers)


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
