"""A Redis or Valkey server for tests: the system's, or Debian's package unpacked below `.cache`.

`python -m tests.redis_server` fetches it where there is none; that needs no root.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.ports import HOST, free_port

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".cache" / "redis"
NAMES = ("valkey-server", "redis-server")
PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")
START_TIMEOUT_S = 60.0


def program() -> str | None:
    """Where the server is, if it is anywhere."""
    unpacked = HOME / "usr" / "bin" / "redis-server"
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    return found or (str(unpacked) if unpacked.exists() else None)


def environment() -> dict[str, str]:
    """That of the server: what was unpacked has its libraries beside it."""
    libraries = [str(path) for path in sorted((HOME / "usr" / "lib").glob("*-linux-gnu"))]
    known = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": ":".join([*libraries, *([known] if known else [])])}


class RedisServer:
    """One server on a free port, whose data is in `directory`; it keeps its port when restarted.

    `sentinel`: the file of settings in `directory` of a sentinel, which keeps nothing.
    """

    def __init__(self, directory: Path, *flags: str, sentinel: str | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        # What is synced once a second can be lost where the server is killed: a write waits for the
        # sync before it, for up to two seconds.
        stored = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")
        self._flags = (*stored, *flags) if sentinel is None else (sentinel, "--sentinel", *flags)
        self.port = free_port()
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As `--store` takes it."""
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        """Starts it; it need not be ready yet."""
        found = program()
        assert found is not None
        with (self._directory / "redis.log").open("ab") as log:
            self._popen = subprocess.Popen(
                [found, *self._flags, "--port", str(self.port), "--bind", HOST],
                cwd=self._directory,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self) -> None:
        """Until it has read its data and answers; blocking."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100) == b"+PONG\r\n"
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
            self._popen = None


def fetch() -> str:
    """Unpacks the package; returns what was done, or why it was not."""
    if (found := program()) is not None:
        return f"{found} is here"
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return "no server: there is neither apt-get nor one on the path; its tests are skipped"
    HOME.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", *PACKAGES]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    for package in sorted(HOME.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(HOME)], check=True)
    if program() is None:
        return f"no server: apt-get could not ({done.stderr.strip():.200}); its tests are skipped"
    return f"{program()} is unpacked"


if __name__ == "__main__":
    sys.stdout.write(f"redis: {fetch()}\n")
