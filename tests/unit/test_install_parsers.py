"""`slime-router install-parsers`: what it runs, and what it says where it cannot."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from slime_router.checkpoint.sglang_entry import import_from_sglang
from slime_router.cli import install_parsers
from slime_router.cli.install_parsers import SGLANG
from slime_router.cli.main import main
from slime_router.errors import SetupError
from slime_router.replies.sglang_parsers import MISSING

ROOT = Path(__file__).parents[2]
REQUIRES = [
    "aiohttp>=3",
    "msgspec>=0.18; extra == 'parsers'",
    'tqdm; extra == "parsers"',
    "x; extra == 'parsers2'",
]


class Runs:
    """Stands in for `subprocess.run`, and notes the commands."""

    def __init__(self, failing: str | None = None) -> None:
        self.commands: list[Sequence[str]] = []
        self._failing = failing

    def __call__(self, command: Sequence[str], **_: Any) -> None:
        self.commands.append(command)
        if self._failing is not None and self._failing in command:
            raise subprocess.CalledProcessError(1, command)


@pytest.fixture
def requires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: REQUIRES)


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in names else find(name)
    )


@pytest.mark.parsers
def test_it_installs_what_the_parsers_import_and_sglang_alone(requires, monkeypatch, capsys):
    runs = Runs()
    monkeypatch.setattr(subprocess, "run", runs)
    assert main(["install-parsers"]) == 0
    small, sglang = runs.commands
    assert small[:4] == sglang[:4] == [sys.executable, "-m", "pip", "install"]
    assert list(small[-2:]) == ["msgspec>=0.18", "tqdm"]
    assert "--no-deps" not in small
    assert list(sglang[-2:]) == ["--no-deps", SGLANG]
    assert re.search(r"reads \d\d of tool calls, \d\d of reasoning", capsys.readouterr().out)


def test_a_dry_run_prints_the_commands_and_runs_none(requires, monkeypatch, capsys):
    runs = Runs()
    monkeypatch.setattr(subprocess, "run", runs)
    assert main(["install-parsers", "--dry-run"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("'msgspec>=0.18' tqdm")
    assert second.endswith(f"--no-deps {SGLANG}")
    assert runs.commands == []


def test_uv_does_it_where_there_is_no_pip(requires, monkeypatch):
    hide(monkeypatch, "pip")
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    for command in install_parsers.install_commands():
        assert command[:3] == ["/bin/uv", "pip", "install"]
        assert command[command.index("--python") + 1] == sys.executable


def test_without_pip_and_uv_it_says_how_to_get_one(requires, monkeypatch, capsys):
    hide(monkeypatch, "pip")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main(["install-parsers"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("slime-router install-parsers: error: neither pip nor uv")


def test_a_command_that_fails_is_named_and_the_next_is_not_run(requires, monkeypatch, capsys):
    runs = Runs(failing="tqdm")
    monkeypatch.setattr(subprocess, "run", runs)
    assert main(["install-parsers"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "this failed: " in line
    assert len(runs.commands) == 1


def test_a_router_that_was_not_installed_is_said(monkeypatch):
    def unknown(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", unknown)
    with pytest.raises(SetupError, match="slime-router is not installed here"):
        install_parsers.install_commands()


def test_wrong_use_ends_with_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["install-parsers", "--engine"])
    assert caught.value.code == 2


def test_the_worker_of_the_tests_runs_the_same_sglang():
    pins = (ROOT / "tests/sglang/requirements.txt").read_text(encoding="utf-8").splitlines()
    assert SGLANG in pins


def test_the_version_stands_in_one_place():
    """The Makefile and the pages name the command, not the version."""
    pages = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "README.md"]
    pages += [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    assert [p.name for p in pages if re.search(r"sglang==", p.read_text(encoding="utf-8"))] == []


def test_what_lacks_the_parsers_names_the_command():
    assert "slime-router install-parsers" in MISSING


@pytest.mark.parsers
def test_a_trainers_torch_does_not_need_sglangs_engine(monkeypatch):
    """torch is here, what SGLang's engine needs besides is not."""
    find = importlib.util.find_spec
    torch = importlib.util.find_spec("tomllib")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: torch if name == "torch" else find(name)
    )
    others = {
        name: module for name, module in sys.modules.items() if name.partition(".")[0] != "sglang"
    }
    with mock.patch.dict(sys.modules, others, clear=True):
        for _ in range(2):  # the second time it is entered already
            assert import_from_sglang("function_call.core_types").ToolCallItem
