"""What whoever starts the router leaves it: standard streams, and a working directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slime_router.cli.main import main

_SHOW = """\
import os, sys
from slime_router.cli.standard_streams import fill_standard_streams, show
fill_standard_streams()
opened = os.open(os.devnull, os.O_RDONLY)
show("ä€\\n")
show("more\\n")
sys.stderr.write("ended ä\\n")
sys.exit(3 if opened > 2 else 4)
"""


def run(redirections: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    command = ["bash", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, _SHOW]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environ}, timeout=60)


@pytest.mark.parametrize(
    ("redirections", "out", "err"),
    [
        ("", "ä€\nmore\n", "ended ä\n"),
        (">&-", "", "ended ä\n"),
        ("2>&-", "ä€\nmore\n", ""),
        ("<&- >&- 2>&-", "", ""),
        (">/dev/full", "", "ended ä\n"),
        ("> >(exec <&-; true)", None, "ended ä\n"),  # a pipe that nobody reads
    ],
)
def test_a_stream_that_cannot_be_used_keeps_nothing_from_serving(redirections, out, err):
    done = run(redirections, PYTHONUTF8="1")
    assert done.returncode == 3  # no file that was opened has the number of a stream
    assert done.stderr.decode() == err
    if out is not None:
        assert done.stdout.decode() == out


def test_a_letter_that_standard_output_has_not_is_escaped():
    done = run("", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert done.returncode == 3
    assert done.stdout == b"\\xe4\\u20ac\nmore\n"


def test_a_working_directory_that_is_gone_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    Path(gone).rmdir()
    try:
        assert main(["--hf-checkpoint", "m"]) == 1
        assert main(["check", "m"]) == 1
    finally:
        os.chdir(tmp_path)
    error = capsys.readouterr().err
    assert (
        error.splitlines()
        == ["slime-router: error: the working directory cannot be used: No such file or directory"]
        * 2
    )


def test_an_interrupt_while_the_command_is_imported_shows_no_traceback():
    """Imports take a second; somebody who sees a typo presses Ctrl-C before they are done."""
    program = """
import sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "slime_router.cli.main":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
from slime_router.__main__ import run
run()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")
