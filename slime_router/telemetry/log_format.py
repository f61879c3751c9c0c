"""How a record of the log is written: as a line of text or as a JSON object, by structlog.

Modules use the standard library's loggers. Each record becomes an event with the id of the request
that it was said for; a message that has fields, such as a request's line, becomes those.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias

import orjson
import structlog

from slime_router.choices import LogFormat
from slime_router.telemetry.bodies import BodyLine
from slime_router.telemetry.request_line import RequestLine
from slime_router.telemetry.request_record import current_request

Event: TypeAlias = MutableMapping[str, Any]
Processor: TypeAlias = Callable[[Any, str, Event], Any]

_CLOCK = logging.Formatter()
_INDENT = "    | "  # before each line of a traceback: none of them looks like a record


def formatter(log_format: LogFormat, process: int | None = None) -> logging.Formatter:
    """What writes the records of all loggers, ours and those of libraries.

    `process` is the number of one process of several.
    """
    return _Lines(partial(_of_record, process), _as_json if log_format == "json" else _as_text)


class _Lines(structlog.stdlib.ProcessorFormatter):
    """structlog's formatter, but for the line of a request.

    There is one for each request, and it has nothing that structlog would have to work out.
    """

    def __init__(self, read: Processor, write: Processor) -> None:
        super().__init__(
            processors=[
                read,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,  # without the values of variables: no secrets
                write,
            ]
        )
        self._read, self._write = read, write

    def format(self, record: logging.LogRecord) -> str:
        """The record as it stands in the log."""
        if not isinstance(record.msg, RequestLine) or record.exc_info:
            return super().format(record)
        event: Event = {"event": str(record.msg), "_record": record}
        return str(self._write(None, "", self._read(None, "", event)))


def printable(text: str) -> str:
    """`text` with escapes for line ends, control characters, and what is not a character."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _of_record(process: int | None, _: Any, __: str, event: Event) -> Event:
    """Adds what the record itself says, and the request that it was said for."""
    record: logging.LogRecord = event["_record"]
    event["record"], event["process"] = record, process
    request = current_request()
    if isinstance(record.msg, RequestLine | BodyLine):
        event["fields"], event["kind"] = record.msg.fields, record.msg.EVENT
    if request is not None:
        event["request"] = request.id
    return event


def _as_json(_: Any, __: str, event: Event) -> str:
    record: logging.LogRecord = event["record"]
    fields = event.get("fields")
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event["event"] if fields is None else event["kind"],
    }
    if event["process"] is not None:
        line["process"] = event["process"]
    if "request" in event:
        line["request"] = event["request"]
    line |= fields or {}
    if "exception" in event:
        line["exception"] = event["exception"]
    try:
        return orjson.dumps(line).decode()
    except TypeError:  # halves of emojis
        return orjson.dumps({name: printable(str(value)) for name, value in line.items()}).decode()


def _as_text(_: Any, __: str, event: Event) -> str:
    record: logging.LogRecord = event["record"]
    at = _CLOCK.formatTime(record)
    who = "" if event["process"] is None else f"[{event['process']}] "
    line = f"{at} {record.levelname} {who}{printable(event['event'])}"
    if "request" in event and not isinstance(record.msg, RequestLine):
        line += f" request={event['request']}"
    if "exception" in event:
        line += "".join(f"\n{_INDENT}{printable(each)}" for each in event["exception"].splitlines())
    return line
