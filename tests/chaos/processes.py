"""The processes of a chaos test: a router and scripted workers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from tests.ports import HOST, free_port
from tests.sglang.child import LEASH, ROOT

START_TIMEOUT_S = 100.0  # a router imports transformers, beside other work
PATIENCE_S = 60.0  # for what should take a fraction of a second
POLL_S = 0.02
BEGUN_LEN = 3  # tokens
ASK_TIMEOUT = aiohttp.ClientTimeout(total=20.0)
LOG_TAIL_LEN = 3000  # characters


class Process:
    """A command that can be killed, stopped and started again; its output is appended to `log`."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        self._command = [sys.executable, str(LEASH), str(os.getpid()), *command]
        self._popen: subprocess.Popen[bytes] | None = None

    async def wait_ready(self) -> None:
        """Until it answers."""
        await eventually(self._answers, "an answer", process=self, timeout_s=START_TIMEOUT_S)

    async def _answers(self) -> None:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """Of the command itself: the leash becomes it."""
        assert self._popen is not None
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended since."""
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Starts it; it need not be ready yet."""
        assert not self.is_running, "it runs already"
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, also where it is stopped. Returns when it is gone."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

    def stop(self) -> None:
        """SIGSTOP: its connections stay, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)


class WorkerProcess(Process):
    """A scripted worker; `diary` is what it said in all its lives."""

    def __init__(self, checkpoint: Path, directory: Path, name: str, pace_ms: float) -> None:
        port, control_port = free_port(), free_port()
        self.url = f"http://{HOST}:{port}"
        self.diary = directory / f"{name}.jsonl"
        self._control_url = f"http://{HOST}:{control_port}"
        command = [sys.executable, "-m", "tests.chaos.worker", "--checkpoint", str(checkpoint)]
        command += ["--port", str(port), "--control-port", str(control_port)]
        command += ["--log", str(self.diary), "--pace-ms", str(pace_ms)]
        super().__init__(command, directory / f"{name}.log")

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.url}>"

    async def fail(self, kind: str, **how: Any) -> None:
        """Its next generations fail; see `ChaosWorker.fail`."""
        await ask("POST", f"{self._control_url}/fault", {"kind": kind, **how})

    async def heal(self) -> None:
        """It fails no more."""
        await ask("POST", f"{self._control_url}/heal")

    async def state(self) -> dict[str, Any]:
        """See `ChaosWorker.state`."""
        state: dict[str, Any] = await ask("GET", f"{self._control_url}/state")
        return state

    async def _answers(self) -> None:
        await self.state()

    async def is_mid_stream(self) -> bool:
        """Whether it has sampled some tokens of a generation and not all."""
        return any(count >= BEGUN_LEN for count in (await self.state())["running"].values())


class RouterProcess(Process):
    """The router as a user starts it."""

    def __init__(self, checkpoint: Path, log: Path, *flags: str) -> None:
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        command = [sys.executable, "-m", "slime_router", "--hf-checkpoint", str(checkpoint)]
        command += ["--tool-call-parser", "none", "--reasoning-parser", "none"]
        super().__init__([*command, "--port", str(port), *flags], log)

    async def get(self, path: str) -> Any:
        """The JSON of a GET that must succeed."""
        return await ask("GET", self.url + path)

    async def post(self, path: str, json: Any = None) -> Any:
        """The JSON of a POST that must succeed."""
        return await ask("POST", self.url + path, json)

    async def delete(self, path: str) -> Any:
        """The JSON of a DELETE that must succeed."""
        return await ask("DELETE", self.url + path)

    async def _answers(self) -> None:
        await self.get("/health")

    def memory_kib(self) -> int:
        """What it has in RAM now."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line)

    def open_files(self) -> int:
        """Connections among them."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


async def ask(method: str, url: str | URL, json: Any = None) -> Any:
    """The JSON of an answer below 300; None where it has no body.

    Raises:
        AssertionError: another status.
    """
    async with (
        aiohttp.ClientSession(timeout=ASK_TIMEOUT) as http,
        http.request(method, url, json=json) as answer,
    ):
        assert answer.status < 300, (method, url, answer.status, await answer.text())
        raw = await answer.read()
        return await answer.json(content_type=None) if raw else None


async def eventually(
    holds: Callable[[], Awaitable[object]],
    what: str,
    *,
    process: Process | None = None,
    timeout_s: float = PATIENCE_S,
) -> None:
    """Waits until `await holds()` raises nothing.

    Raises:
        AssertionError: it did not come to that; says why, and what the process said last.
    """
    end = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            await holds()
            return
        except (AssertionError, aiohttp.ClientError, OSError, TimeoutError) as exc:
            is_over = asyncio.get_running_loop().time() > end
            if is_over or (process is not None and not process.is_running):
                said = "" if process is None else tail(process.log)
                raise AssertionError(f"{what}: not within {timeout_s} s: {exc!r}\n{said}") from exc
        await asyncio.sleep(POLL_S)


def tail(log: Path) -> str:
    """The end of what was logged."""
    return log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_LEN:]
