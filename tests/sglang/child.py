"""A child process: its output in a log file, a sign of life while one waits, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

LEASH = Path(__file__).with_name("leash.py")
ROOT = Path(__file__).parents[2]
POLL_S = 0.2
SIGN_OF_LIFE_S = 5.0
LOG_TAIL_LINES = 25


class ChildFailed(RuntimeError):
    """A child process ended, or did not do its work in time. The message ends with its log."""


class Child:
    """A running command. Leaving its `with` block ends it and all that it started."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        grace_s: float = 3.0,
    ) -> None:
        """Start `command` in the repository's root; it has `grace_s` to end when it is asked to."""
        self.name = name
        self.log = log
        self.grace_s = grace_s
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(LEASH), str(os.getpid()), *command],
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its group can be killed whole, and Ctrl-C is ours
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def finish(self, doing: str, *, timeout_s: float) -> None:
        """Wait until the command has ended well."""
        self._wait(doing, lambda: self._process.poll() is not None, timeout_s)
        if self._process.returncode:
            raise ChildFailed(self._report(f"failed ({self._process.returncode})"))

    def wait_until(self, is_ready: Callable[[], bool], doing: str, *, timeout_s: float) -> None:
        """Wait until `is_ready()`; it is an error when the command ends before."""

        def is_ready_or_dead() -> bool:
            return self._process.poll() is not None or is_ready()

        self._wait(doing, is_ready_or_dead, timeout_s)
        if self._process.returncode is not None:
            raise ChildFailed(self._report(f"ended ({self._process.returncode})"))

    def kill(self) -> None:
        """SIGKILL to the command itself; `stop` takes what it started along."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the command and its whole process group. It may have ended before."""
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(self.grace_s)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _wait(self, doing: str, is_over: Callable[[], bool], timeout_s: float) -> None:
        start = last_sign = time.monotonic()
        say(f"{self.name}: {doing} ...")
        while not is_over():
            now = time.monotonic()
            if now - start > timeout_s:
                raise ChildFailed(self._report(f"not done with {doing} in {timeout_s:.0f} s"))
            if now - last_sign > SIGN_OF_LIFE_S:
                last_sign = now
                say(f"{self.name}: {doing} ... {now - start:.0f} s")
            time.sleep(POLL_S)
        say(f"{self.name}: {doing}: {time.monotonic() - start:.0f} s")

    def _report(self, what: str) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(f"  | {line}" for line in lines[-LOG_TAIL_LINES:])
        return f"{self.name} {what}; {self.log} ends with:\n{tail}"


def say(line: str) -> None:
    """Print at once: a person is waiting."""
    print(line, flush=True)
