"""How a record of the log is written: as a line of text or as a JSON object.

Modules use the standard library's loggers. Each record becomes an event with the id of the request
that it was said for; a message that has fields, such as a request's line, becomes those.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeAlias

import orjson

from slime_router.choices import LogFormat
from slime_router.errors import printable
from slime_router.telemetry.bodies import BodyLine
from slime_router.telemetry.request_line import RequestLine
from slime_router.telemetry.request_record import current_request

Event: TypeAlias = dict[str, Any]

_INDENT = "    | "  # before each line of a traceback: none of them looks like a record


def formatter(log_format: LogFormat, process: int | None = None) -> logging.Formatter:
    """What writes the records of all loggers, ours and those of libraries.

    `process` is the number of one process of several.
    """
    return _Lines(process, _as_json if log_format == "json" else _as_text)


class _Lines(logging.Formatter):
    """Makes an event of a record, and has it written."""

    def __init__(
        self, process: int | None, write: Callable[[logging.LogRecord, Event], str]
    ) -> None:
        super().__init__()
        self._process, self._write = process, write

    def format(self, record: logging.LogRecord) -> str:
        """The record as it stands in the log."""
        event: Event = {"event": record.getMessage(), "process": self._process}
        if (request := current_request()) is not None:
            event["request"] = request.id
        if record.exc_info:  # without the values of variables: no secrets
            event["exception"] = self.formatException(record.exc_info)
        return self._write(record, event)


def _as_json(record: logging.LogRecord, event: Event) -> str:
    said = record.msg if isinstance(record.msg, RequestLine | BodyLine) else None
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event["event"] if said is None else said.EVENT,
    }
    if event["process"] is not None:
        line["process"] = event["process"]
    if "request" in event:
        line["request"] = event["request"]
    line |= {} if said is None else said.fields
    if "exception" in event:
        line["exception"] = event["exception"]
    try:
        return orjson.dumps(line).decode()
    except TypeError:  # halves of emojis
        return orjson.dumps({name: printable(str(value)) for name, value in line.items()}).decode()


def _as_text(record: logging.LogRecord, event: Event) -> str:
    at = f"{_at_second(int(record.created))},{record.msecs:03.0f}"
    who = "" if event["process"] is None else f"[{event['process']}] "
    line = f"{at} {record.levelname} {who}{printable(event['event'])}"
    if "request" in event and not isinstance(record.msg, RequestLine):
        line += f" request={event['request']}"
    if "exception" in event:
        line += "".join(f"\n{_INDENT}{printable(each)}" for each in event["exception"].splitlines())
    return line


@lru_cache(maxsize=1)  # a busy router writes a thousand lines a second
def _at_second(seconds: int) -> str:
    """The local time, as `logging` writes it."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
