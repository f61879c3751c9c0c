"""A server in its own process, and the CPU time that it has used."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import ROOT

START_TIMEOUT_S = 90.0  # a router loads a real vocabulary, perhaps beside other work
STOP_TIMEOUT_S = 10.0
SETTLE_TIMEOUT_S = 60.0
SETTLE_POLL_S = 0.2
SETTLE_POLLS = 3  # in a row, with less than this share of a core used
SETTLE_SHARE = 0.05
_POLL_S = 0.05


class BenchmarkError(Exception):
    """Nothing can be measured; one line says why."""


def cpu_s(pid: int) -> float:
    """CPU seconds of another process, all its threads together, to the nanosecond.

    Raises:
        BenchmarkError: not on Linux.
    """
    if sys.platform != "linux":
        raise BenchmarkError("the benchmarks read the CPU clock of other processes: Linux only")
    return time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid(3) returns there


def descendants(pid: int) -> list[int]:
    """A process and all that it has started, and so on."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for each in found:  # grows
        found += children.get(each, [])
    return found


class Server:
    """A child that listens on a port, with the processes that it starts."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.pid = process.pid
        self._process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def cpu_s(self) -> float:
        """CPU seconds since it was started."""
        return sum(cpu_s(pid) for pid in descendants(self.pid))

    def memory(self) -> int:
        """Bytes that are resident now."""
        return self._status("VmRSS")

    def peak_memory(self) -> int:
        """The most bytes that were resident since it was started."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        [line] = [line for line in lines if line.startswith(f"{name}:")]
        return int(line.split()[1]) * 1024

    def settle(self) -> None:
        """Wait until it is at rest: a request does not cost what a server does after its start.

        One that is still busy after `SETTLE_TIMEOUT_S` is measured anyway.
        """
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        calm = 0
        while calm < SETTLE_POLLS and time.monotonic() < deadline:
            before_s = self.cpu_s()
            time.sleep(SETTLE_POLL_S)
            calm = calm + 1 if self.cpu_s() - before_s < SETTLE_SHARE * SETTLE_POLL_S else 0

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def is_listening(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True


@contextmanager
def serving(
    module: str, *arguments: str, root: Path = ROOT, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run `python -m module arguments --port PORT`, with the code in `root`, until the block ends.

    Raises:
        BenchmarkError: it does not begin to listen.
    """

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", module, *arguments, "--port", str(port)]

    with running(module, command, root=root, environment=environment) as server:
        yield server


@contextmanager
def router(checkpoint: Path, *flags: str, root: Path = ROOT) -> Iterator[Server]:
    """Run this router, or the one in `root`, until the block ends; it is at rest at first.

    Raises:
        BenchmarkError: it does not begin to listen.
    """
    arguments = ("--hf-checkpoint", str(checkpoint), *flags)
    with serving("slime_router", *arguments, root=root) as server:
        server.settle()
        yield server


@contextmanager
def running(
    name: str,
    command: Callable[[int], Sequence[str]],
    *,
    root: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run the command for a free port, in `root`, until the block ends.

    Raises:
        BenchmarkError: it does not begin to listen.
    """
    port = free_port()
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command(port),
                cwd=root,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=None if environment is None else {**os.environ, **environment},
            )
        except OSError as exc:
            raise BenchmarkError(f"{name} cannot be started: {exc}") from exc
        try:
            server = Server(process, port)
            if not _wait_until_up(server):
                log.seek(0)
                words = log.read().decode(errors="replace").strip()[-1000:]
                raise BenchmarkError(f"{name} does not listen: {words or 'no reason given'}")
            yield server
        finally:
            _stop(process)


def _wait_until_up(server: Server) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.is_alive() and time.monotonic() < deadline:
        if server.is_listening():
            return True
        time.sleep(_POLL_S)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
