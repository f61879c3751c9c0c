"""One line of the log is one record, whatever a client or a worker has put into it."""

from __future__ import annotations

import logging

from slime_router.errors import printable

PACKAGE = "slime_router"


def keep_lines_apart() -> None:
    """Escapes what is not printable in all messages of the package's loggers that exist so far.

    A filter of a parent does not see what its children log, so each logger has it.
    """
    for name, logger in logging.Logger.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.partition(".")[0] == PACKAGE:
            logger.addFilter(escape)


def escape(record: logging.LogRecord) -> bool:
    """A filter that lets every record pass, and makes it one line."""
    text = record.getMessage()
    if not text.isprintable():
        record.msg, record.args = printable(text), ()
    return True
