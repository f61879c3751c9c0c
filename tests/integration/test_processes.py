"""`--processes N` as its user sees it: one router, several processes, none left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.integration.test_launcher import WORKER, Book, ask, is_alive, parent_of, worker_python
from tests.ports import free_port
from tests.unit.test_cli import ended, hang_ups, read_banner, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PATIENCE_S = 60.0
MARK = "slime_router.cli.processes.child"


def wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.02)


def children_of(parent: int) -> list[int]:
    """The processes that serve, in order of their numbers; their leashes are left out."""
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdecimal():
            continue
        with suppress(OSError, IndexError):
            argv = (directory / "cmdline").read_bytes().decode().split("\0")
            pid = int(directory.name)
            if MARK in argv and not any("leash" in word for word in argv):
                found[argv[argv.index(MARK) + 2], parent_of(parent_of(pid))] = pid
    return [pid for (_, whose), pid in sorted(found.items()) if whose == parent]


@contextmanager
def two(*flags: str) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """A router of two processes that is up; its port and its banner."""
    port = free_port()
    process = started("--processes", "2", *flags, port=port)
    try:
        yield process, port, read_banner(process)
    finally:
        process.kill()
        process.communicate()


def status(port: int, path: str) -> int:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as reply:
        return int(reply.status)
    return 0


def health(port: int) -> int:
    return status(port, "/health")


def test_two_processes_are_one_router_that_ends_as_one():
    with two() as (process, port, banner):
        assert banner.count("slime_router is up") == 1
        children = children_of(process.pid)
        assert len(children) == 2
        assert {status(port, "/v1/models") for _ in range(20)} == {200}
        process.send_signal(signal.SIGTERM)
        code, err = ended(process)
        assert code == 0
        assert "Traceback" not in err
        assert "[1] GET /v1/models 200" in err
        assert "[2] GET /v1/models 200" in err
        assert not any(map(is_alive, children))


def test_one_that_is_killed_is_started_again_and_the_other_serves_meanwhile():
    with two() as (process, port, _):
        first, second = children_of(process.pid)
        os.kill(first, signal.SIGKILL)
        wait(lambda: not is_alive(first))
        wait(lambda: health(port) == 200)  # the socket of a dead one takes a moment to close
        wait(lambda: len(children_of(process.pid)) == 2)
        assert children_of(process.pid)[1] == second
        process.send_signal(signal.SIGINT)
        code, err = ended(process)
    assert code == 0
    assert "process 1 was ended by SIGKILL" in err
    assert "process 1 starts again in 0.1 s" in err


def test_none_outlives_a_parent_that_is_killed():
    with two() as (process, _, _):
        children = children_of(process.pid)
        process.kill()
        process.wait()
        wait(lambda: not any(map(is_alive, children)))


def test_why_none_can_serve_is_said_once():
    command = ("--processes", "2", "--hf-checkpoint", "/nowhere")
    process = started(*command, port=free_port())
    code, err = ended(process)
    assert code == 1
    assert err.count("slime-router: error: ") == 1
    assert "/nowhere" in err


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_port_that_another_router_has_is_not_shared_with_it(is_shared):
    """The kernel would give each of them a part of the clients."""
    if not is_shared:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            code, err = ended(started("--processes", "2", port=port))
    else:
        with two() as (_, port, _):
            code, err = ended(started("--processes", "2", port=port))
    assert code == 1
    assert err.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in err


def test_the_directory_of_the_processes_is_gone_with_them(monkeypatch):
    with tempfile.TemporaryDirectory() as place:  # pytest's own are too long for sockets
        monkeypatch.setenv("TMPDIR", place)
        with two() as (process, _, _):
            assert len(list(Path(place).glob("slime-router-*/*.sock"))) == 2
            process.send_signal(signal.SIGTERM)
            ended(process)
        assert list(Path(place).iterdir()) == []


@pytest.mark.timeout(240)
def test_workers_are_launched_once_for_all_and_end_with_them(tmp_path):
    book = Book(tmp_path / "book")
    flags = ("--launch-workers", "1", "--worker-python", worker_python(book, WORKER))
    port = free_port()
    process = started("--processes", "2", *flags, port=port)
    try:
        banner = read_banner(process)
        [[pid, worker_port, *_]] = book.lines()
        assert f"http://127.0.0.1:{worker_port}" in banner
        assert {ask(port) for _ in range(12)} == {200}, "whichever process is asked"
        os.kill(int(pid), signal.SIGKILL)
        wait(lambda: len(book.lines()) == 2)
        wait(lambda: {ask(port) for _ in range(12)} == {200})
        process.send_signal(signal.SIGTERM)
        code, err = ended(process)
    finally:
        process.kill()
        process.communicate()
    assert code == 0, err
    assert not any(map(is_alive, book.pids()))


def until_all_reload(process: subprocess.Popen[str]) -> None:
    """Reads the log until both processes have read their settings again."""
    assert process.stderr is not None
    seen: set[str] = set()
    while seen != {"[1]", "[2]"}:
        line = process.stderr.readline()
        assert line, "it ended"
        if "settings are read again: 1 keys" in line:
            seen.add(line.split()[3])


def test_a_hang_up_reloads_the_settings_of_all(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann: key-of-ann-0123456789\n")
    with hang_ups(signal.SIG_DFL), two("--api-keys-file", str(keys)) as (process, _, _):
        process.send_signal(signal.SIGHUP)
        until_all_reload(process)
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0


def test_a_hang_up_at_the_start_is_for_those_that_are_not_up_yet(tmp_path):
    """They may have read the settings before they changed: others would have other keys."""
    keys = tmp_path / "keys"
    keys.write_text("ann: key-of-ann-0123456789\n")
    flags = ("--processes", "2", "--api-keys-file", str(keys))
    with hang_ups(signal.SIG_DFL):
        process = started(*flags, port=free_port())
    try:
        assert process.stderr is not None
        while "process 2 starts at" not in (line := process.stderr.readline()):
            assert line, "it ended"
        process.send_signal(signal.SIGHUP)
        until_all_reload(process)
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0
    finally:
        process.kill()
        process.communicate()
