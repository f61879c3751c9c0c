"""Nothing that a test or the demo starts is left behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.sglang.child import ROOT, Child, ChildFailed

PATIENCE_S = 20.0
SLEEPER = "import time; time.sleep(600)"
# Starts its own process, which refuses to end, and prints the ids of both.
FAMILY = f"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}])
print(os.getpid(), grandchild.pid, flush=True)
time.sleep(600)
"""


def eventually(is_true: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE_S
    while not is_true() and time.monotonic() < end:
        time.sleep(0.02)
    return is_true()


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def python(code: str, log: Path) -> Child:
    return Child("child", [sys.executable, "-c", code], log=log, grace_s=0.1)


def test_leaving_the_block_ends_the_whole_family(tmp_path: Path) -> None:
    """A child that ignores SIGTERM is killed, and so are the processes that it started."""
    log = tmp_path / "log"
    with python(FAMILY, log) as child:
        child.wait_until(lambda: log.read_text().endswith("\n"), "start", timeout_s=PATIENCE_S)
        pids = [int(pid) for pid in log.read_text().split()]
        assert all(is_alive(pid) for pid in pids)
    assert eventually(lambda: not any(is_alive(pid) for pid in pids))


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL leaves the parent no time to clean up; the child ends anyway."""
    log = tmp_path / "log"
    parent_code = (
        "import sys, time; from pathlib import Path; from tests.sglang.child import Child;"
        f"child = Child('child', [sys.executable, '-c', {FAMILY!r}], log=Path({str(log)!r}));"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code], cwd=ROOT)
    try:
        assert eventually(lambda: log.exists() and log.read_text().endswith("\n"))
        child_pid, grandchild_pid = (int(pid) for pid in log.read_text().split())
        assert is_alive(child_pid)
    finally:
        parent.kill()
        parent.wait()
    try:
        assert eventually(lambda: not is_alive(child_pid))
    finally:  # the grandchild, a plain sleeper, knows nothing of the leash
        for pid in (child_pid, grandchild_pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_child_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with (
        python("import sys; print('no such model'); sys.exit(3)", tmp_path / "log") as child,
        pytest.raises(ChildFailed, match=r"(?s)failed \(3\).*no such model"),
    ):
        child.finish("work", timeout_s=PATIENCE_S)


def test_waiting_for_a_child_that_ends_is_an_error_at_once(tmp_path: Path) -> None:
    with (
        python("print('bye')", tmp_path / "log") as child,
        pytest.raises(ChildFailed, match=r"(?s)ended \(0\).*bye"),
    ):
        child.wait_until(lambda: False, "start", timeout_s=PATIENCE_S)


def test_waiting_has_an_end(tmp_path: Path) -> None:
    with (
        python(SLEEPER, tmp_path / "log") as child,
        pytest.raises(ChildFailed, match="not done with start"),
    ):
        child.wait_until(lambda: False, "start", timeout_s=0.1)
