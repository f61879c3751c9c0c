"""The router starts a real SGLang, serves with it, and takes it along when it goes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_launcher import is_alive
from tests.ports import free_port
from tests.sglang.child import Child
from tests.sglang.environment import VENV_PYTHON, WORKER_ENV, checkpoint, prepare
from tests.sglang.server import FLAGS, START_TIMEOUT_S

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


@contextmanager
def started(worker_python: Path, log: Path) -> Iterator[tuple[int, int]]:
    """A router with one worker, when it is up: its pid and its port."""
    port = free_port()
    command = [sys.executable, "-m", "slime_router", "--hf-checkpoint", str(checkpoint())]
    command += ["--launch-workers", "1", "--worker-python", str(worker_python)]
    command += ["--port", str(port), "--", *FLAGS]
    with Child("router", command, log=log, grace_s=STOP_TIMEOUT_S) as router:
        router.wait_until(
            lambda: "slime_router is up" in log.read_text(),
            "starting SGLang",
            timeout_s=START_TIMEOUT_S,
        )
        yield router._process.pid, port


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_one_command_serves_with_a_real_sglang_whatever_becomes_of_it(worker_python, tmp_path):
    """One that is killed comes back under the same URL; with the router it ends, all of it."""
    log = tmp_path / "log"
    with started(worker_python, log) as (router, port):
        [leash] = children(router)
        pids, [server] = in_session_of(leash), children(leash)
        assert len(pids) >= 4
        assert chat(port) in ("stop", "length")
        os.kill(server, signal.SIGKILL)
        wait_until_gone(pids)
        end = time.monotonic() + START_TIMEOUT_S
        while log.read_text().count("worker 1 is up at") < 2:
            assert time.monotonic() < end, "it did not come back"
            time.sleep(0.5)
        assert chat(port) in ("stop", "length")
        [leash] = children(router)
        pids = in_session_of(leash)
        os.kill(router, signal.SIGTERM)
        wait_until_gone([router, *pids])
    said = log.read_text()
    assert "worker 1 was ended by SIGKILL; its last lines:" in said
    assert "makes the same tokens" in said
    assert "Traceback" not in said
