"""Other gateways from PyPI, each in its own environment below `.cache/peers`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load
from benchmarks.report import ROOT
from benchmarks.server import BenchmarkError, Server, free_port, running
from benchmarks.short_chat import CHAT, body

ENVIRONMENTS = ROOT / ".cache" / "peers"
INSTALL_TIMEOUT_S = 600.0
READY_TIMEOUT_S = 60.0  # it listens, but has yet to find its worker
_POLL_S = 0.2
_QUIET = {
    "PYTHONPATH": "",
    "LITELLM_LOG": "ERROR",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # it serves this machine only
}

Command = Callable[[Path, int, str], Sequence[str]]  # of its bin folder, its port, the worker's URL


@dataclass(frozen=True, slots=True)
class Gateway:
    """What is installed, and how it is started."""

    name: str
    packages: tuple[str, ...]
    command: Command
    speaks: tuple[str, ...] = (CHAT, "/generate")
    slowness: int = 1  # so much less is asked of it, for the time's sake

    @property
    def environment(self) -> Path:
        return ENVIRONMENTS / self.name.replace(" ", "-")

    def install(self) -> None:
        """Make its environment, unless it is there.

        Raises:
            BenchmarkError: it cannot be installed; one line says why.
        """
        done, place = self.environment / "installed", str(self.environment.resolve())
        if done.exists() and done.read_text() == place:  # scripts name the place they were made in
            return
        python = str(self.environment / "bin" / "python")
        self._uv("venv", "--clear", "--python", sys.executable, str(self.environment))
        self._uv("pip", "install", "--python", python, *self.packages)
        done.write_text(place)

    def _uv(self, *words: str) -> None:
        if importlib.util.find_spec("uv") is None:
            raise BenchmarkError(f"{self.name} cannot be installed: uv is not there")
        command = [sys.executable, "-m", "uv", *words, "--quiet"]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{self.name} cannot be installed: it takes too long") from None
        if done.returncode:
            reason = " ".join(done.stderr.split())[:200]
            raise BenchmarkError(f"{self.name} cannot be installed: {reason}")

    @contextmanager
    def serving(self, worker_url: str) -> Iterator[Server]:
        """Run it before a worker until the block ends.

        Raises:
            BenchmarkError: it does not start, or answers nothing but errors.
        """

        def command(port: int) -> Sequence[str]:
            return self.command(self.environment / "bin", port, worker_url)

        with (
            tempfile.TemporaryDirectory() as home,
            running(self.name, command, environment={**_QUIET, "HOME": home}) as server,
        ):
            self._await_an_answer(server)
            server.settle()
            yield server

    def _await_an_answer(self, server: Server) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                load.send(server.port, [load.post(CHAT, body(0))], 1)
                return
            except* ConnectionError as errors:
                if time.monotonic() > deadline or not server.is_alive():
                    reason = " ".join(str(errors.exceptions[0]).split())[:200]
                    raise BenchmarkError(f"{self.name} answers with errors: {reason}") from None
            time.sleep(_POLL_S)


def _sglang_router(bin_folder: Path, port: int, worker_url: str) -> list[str]:
    module = (str(bin_folder / "python"), "-m", "sglang_router.launch_router")
    return [*module, *_rust_flags(port, worker_url)]


def _smg(bin_folder: Path, port: int, worker_url: str) -> list[str]:
    return [*_script(bin_folder, "smg"), "launch", *_rust_flags(port, worker_url)]


def _rust_flags(port: int, worker_url: str) -> list[str]:
    values = {
        "host": "127.0.0.1",
        "port": port,
        "worker-urls": worker_url,
        "policy": "cache_aware",
        "prometheus-port": free_port(),
        "log-level": "error",
    }
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def _litellm(bin_folder: Path, port: int, worker_url: str) -> list[str]:
    """It reads its workers from a file."""
    config = bin_folder.parent / "config.yaml"
    config.write_text(
        "model_list:\n- model_name: default\n  litellm_params:\n    model: openai/default\n"
        f"    api_base: {worker_url}/v1\n    api_key: none\n"
        "litellm_settings:\n  telemetry: false\n"
    )
    flags = ("--config", str(config), "--host", "127.0.0.1", "--port", str(port))
    return [*_script(bin_folder, "litellm"), *flags]


def _script(bin_folder: Path, name: str) -> list[str]:
    """Its first line names the folder it was installed into, which may have moved."""
    return [str(bin_folder / "python"), str(bin_folder / name)]


def _fastapi(bin_folder: Path, port: int, worker_url: str) -> list[str]:
    program = str(Path(__file__).with_name("fastapi_proxy.py"))
    return [str(bin_folder / "python"), program, "--port", str(port), "--worker-url", worker_url]


SGLANG_ROUTER = Gateway("sglang-router 0.3.2", ("sglang-router==0.3.2",), _sglang_router)
SMG = Gateway("smg 1.13.0", ("smg==1.13.0",), _smg)
FASTAPI = Gateway(
    "FastAPI + httpx",
    ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop", "httptools", "httpx==0.28.1"),
    _fastapi,
)
LITELLM = Gateway("LiteLLM 1.108.7", ("litellm[proxy]==1.108.7",), _litellm, (CHAT,), slowness=8)
GATEWAYS = (SGLANG_ROUTER, SMG, FASTAPI, LITELLM)
