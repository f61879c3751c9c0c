"""How the log reaches standard error."""

from __future__ import annotations

import logging

import pytest

from slime_router.cli.log import start_log
from slime_router.telemetry.log_format import formatter

# The documented attributes of a record, without those about code, threads and processes.
SHOWN = "%(asctime)s %(created)f %(msecs)d %(name)s %(levelname)s %(levelno)d %(message)s"
OTHERS = (
    "%(pathname)s %(filename)s %(module)s %(funcName)s %(lineno)d %(thread)s %(threadName)s"
    " %(process)s %(processName)s %(relativeCreated)d"
)


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> logging.Handler:
    """What the log is written by, as the command line starts it."""
    found: list[logging.Handler] = []
    monkeypatch.setattr(logging, "basicConfig", lambda *, handlers: found.extend(handlers))
    monkeypatch.setattr(logging, "_srcfile", logging._srcfile)
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    monkeypatch.setattr(logging.getLogger("aiohttp.server"), "filters", [])
    logger = logging.getLogger("slime_router")
    level = logger.level
    start_log("info")
    logger.setLevel(level)
    [handler] = found
    return handler


def record(message: object, *args: object) -> logging.LogRecord:
    make = logging.getLogRecordFactory()
    return make("slime_router", logging.INFO, "", 0, message, args, None)


def test_each_record_is_a_line_at_once(
    handler: logging.Handler, capsys: pytest.CaptureFixture[str]
) -> None:
    handler.handle(record("one: %d", 1))
    assert capsys.readouterr().err.endswith(" INFO one: 1\n")
    handler.handle(record("two"))
    assert capsys.readouterr().err.endswith(" INFO two\n")


def test_a_record_that_cannot_be_written_fails_nobody(
    handler: logging.Handler, capsys: pytest.CaptureFixture[str]
) -> None:
    handler.handle(record("one: %d", "x"))
    assert "Logging error" in capsys.readouterr().err


@pytest.mark.usefixtures("handler")
@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("one", ()),
        ("%s and %s", ("one", "two")),
        ("%s", ((),)),
        ("%s", ({},)),
        ("%(one)s", ({"one": 1},)),
        ("%s %s", ({"one": 1}, {})),
    ],
)
def test_a_record_says_what_one_of_python_says(
    monkeypatch: pytest.MonkeyPatch, message: str, args: tuple[object, ...]
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_790_000_000.9996)
    ours = record(message, *args)
    theirs = logging.LogRecord("slime_router", logging.INFO, "", 0, message, args, None)
    assert logging.Formatter(SHOWN).format(ours) == logging.Formatter(SHOWN).format(theirs)
    assert formatter("text").format(ours) == formatter("text").format(theirs)


@pytest.mark.usefixtures("handler")
def test_a_handler_of_a_plug_in_may_ask_a_record_for_all_that_python_documents() -> None:
    made = logging.getLogger("slime_router").makeRecord(
        "a", 20, "", 0, "one", (), None, extra={"b": 2}
    )
    assert logging.Formatter(f"{OTHERS} %(b)d %(message)s").format(made).endswith(" 2 one")
    assert vars(logging.makeLogRecord({"lineno": 7}))["lineno"] == 7
