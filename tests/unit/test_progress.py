"""Progress bars: on a terminal only, on standard error only, and gone when all is done."""

from __future__ import annotations

import io
import sys

import pytest

from slime_router.cli.terminal.progress import tracked


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("has_terminal", [True, False])
def test_a_bar_is_drawn_where_somebody_sees_it(has_terminal, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    shown = Terminal() if has_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    items = tracked(range(3), 3, "journal")
    assert next(items) == 0
    assert [*items] == [1, 2]
    assert ("journal" in shown.getvalue()) is has_terminal
    assert capsys.readouterr().out == ""
