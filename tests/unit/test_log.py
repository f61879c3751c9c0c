"""How the log reaches standard error."""

from __future__ import annotations

import logging

import pytest

from slime_router.cli.log import start_log

CHANGED = ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing")


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> logging.Handler:
    """What the log is written by, as the command line starts it."""
    found: list[logging.Handler] = []
    monkeypatch.setattr(logging, "basicConfig", lambda *, handlers: found.extend(handlers))
    for name in CHANGED:
        monkeypatch.setattr(logging, name, getattr(logging, name))
    monkeypatch.setattr(logging.getLogger("aiohttp.server"), "filters", [])
    logger = logging.getLogger("slime_router")
    level = logger.level
    start_log("info")
    logger.setLevel(level)
    [handler] = found
    return handler


def record(message: object, *args: object) -> logging.LogRecord:
    return logging.LogRecord("slime_router", logging.INFO, "", 0, message, args, None)


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
