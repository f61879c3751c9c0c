"""The router starts a real SGLang, serves with it, and takes it along when it goes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_launcher import is_alive
from tests.sglang.environment import VENV_PYTHON, WORKER_ENV, checkpoint, prepare
from tests.sglang.server import FLAGS, START_TIMEOUT_S
from tests.unit.test_cli import ROOT, free_port, read_banner

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(3 * START_TIMEOUT_S)]
STOP_TIMEOUT_S = 60.0


@pytest.fixture
def worker_python(tmp_path: Path) -> Path:
    """The worker's Python in its environment; the router's own stays as it is."""
    prepare()
    variables = (f"{name}={shlex.quote(value)}" for name, value in WORKER_ENV.items())
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n{" ".join(variables)} exec {VENV_PYTHON} "$@"\n')
    python.chmod(0o755)
    return python


def in_session_of(leader: int) -> list[int]:
    """The processes that a worker consists of: leash, server, scheduler, detokenizer."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            session = path.read_text().rpartition(")")[2].split()[3]
        except OSError:
            continue
        if int(session) == leader:
            found.append(int(path.parent.name))
    return found


def ask(port: int, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=START_TIMEOUT_S) as reply:
        return json.load(reply)


def chat(port: int) -> str:
    messages = [{"role": "user", "content": "hi"}]
    reply = ask(port, "/v1/chat/completions", {"messages": messages, "max_tokens": 4})
    return str(reply["choices"][0]["finish_reason"])


def wait_until_gone(pids: list[int]) -> None:
    end = time.monotonic() + STOP_TIMEOUT_S
    while any(map(is_alive, pids)):
        assert time.monotonic() < end, "a process of the worker is left"
        time.sleep(0.1)


def start(worker_python: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "slime_router", "--hf-checkpoint", str(checkpoint())]
    command += ["--launch-workers", "1", "--worker-python", str(worker_python)]
    return subprocess.Popen(
        [*command, "--port", str(port), "--", *FLAGS],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_one_command_serves_with_a_real_sglang_and_leaves_nothing_behind(how, worker_python):
    """It ends with the router, however that one ends."""
    port = free_port()
    router = start(worker_python, port)
    try:
        read_banner(router)
        [leash] = children(router.pid)
        pids = in_session_of(leash)
        assert len(pids) >= 4
        assert chat(port) in ("stop", "length")
        router.send_signal(how)
        _, err = router.communicate(timeout=STOP_TIMEOUT_S)
        assert router.returncode == (0 if how == signal.SIGTERM else -how)
        assert "makes the same tokens" in err
        assert "Traceback" not in err
        wait_until_gone(pids)
    finally:
        router.kill()
        router.communicate()


def test_a_real_sglang_that_is_killed_comes_back(worker_python):
    """The schedulers of the old one are gone, and the new one answers under the same URL."""
    port = free_port()
    router = start(worker_python, port)
    try:
        read_banner(router)
        [leash] = children(router.pid)
        pids, [server] = in_session_of(leash), children(leash)
        os.kill(server, signal.SIGKILL)
        wait_until_gone(pids)
        end = time.monotonic() + START_TIMEOUT_S
        while not children(router.pid) or not ask(port, "/workers")["workers"][0]["is_healthy"]:
            assert time.monotonic() < end, "it did not come back"
            time.sleep(0.5)
        assert chat(port) in ("stop", "length")
    finally:
        router.terminate()
        _, err = router.communicate(timeout=STOP_TIMEOUT_S)
    assert "worker 1 was ended by SIGKILL; its last lines:" in err
