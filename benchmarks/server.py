"""A server in a process of its own, and the CPU time that it has used."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.report import ROOT

START_TIMEOUT_S = 90.0  # a router loads a real vocabulary, perhaps beside other work
STOP_TIMEOUT_S = 10.0
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


class Server:
    """A child that listens on a port."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def cpu_s(self) -> float:
        """CPU seconds since it was started."""
        return cpu_s(self._process.pid)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def is_listening(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True


@contextmanager
def serving(module: str, *arguments: str) -> Iterator[Server]:
    """Run `python -m module arguments --port PORT` until the block ends.

    Raises:
        BenchmarkError: it does not begin to listen.
    """
    port = _free_port()
    command = [sys.executable, "-m", module, *arguments, "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log)
        try:
            server = Server(process, port)
            if not _wait_until_up(server):
                log.seek(0)
                words = log.read().decode(errors="replace").strip()[-1000:]
                raise BenchmarkError(f"{module} does not listen: {words or 'no reason given'}")
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
