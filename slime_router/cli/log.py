"""What is logged, and how: one line for each event, on standard error."""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError

from slime_router.choices import LogFormat
from slime_router.telemetry.log_format import formatter


def start_log(level: str, log_format: LogFormat = "text", *, number: int | None = None) -> None:
    """Our own log at `level`; from libraries only warnings. `number`: of one process of several."""
    # No line says where in the code it was logged, nor by which thread or process: Python's guide
    # to logging, "Optimization", has these switches, which spare that work.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(log_format, number))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("slime_router").setLevel(level.upper())
    logging.getLogger("aiohttp.server").addFilter(_without_headers)


def _without_headers(record: logging.LogRecord) -> bool:
    """aiohttp shows the header that it cannot read: there may be a key in it."""
    exc = record.exc_info[1] if record.exc_info else None
    if isinstance(exc, HttpProcessingError):
        record.msg, record.args, record.exc_info = "a request that is not HTTP", (), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True
