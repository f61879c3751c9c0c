"""What this machine has: GPUs, free ports, Pythons with SGLang."""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Collection
from contextlib import suppress

from slime_router.errors import SetupError

HOST = "127.0.0.1"
# Below those that the kernel gives to connections: a worker binds its port minutes after it was
# chosen. SGLang takes others up to a thousand above its own.
PORTS = range(20_000, 29_000)
PORT_TRIES = 1000
ASK_TIMEOUT_S = 60.0  # a driver that has to wake up
_HAS_SGLANG = "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"


def free_port(taken: Collection[int] = ()) -> int:
    """A port on which nothing listens now, and that is not in `taken`.

    Raises:
        OSError: none was found.
    """
    for port in random.sample(PORTS, PORT_TRIES):
        if port not in taken and _is_free(port):
            return port
    raise OSError("no free port was found")


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that a CUDA program would see, in the words of CUDA_VISIBLE_DEVICES."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(gpu.strip() for gpu in chosen.split(",") if gpu.strip())
    with suppress(OSError, subprocess.SubprocessError):  # without a driver there is no GPU
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=True
        )
        gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
        return tuple(str(index) for index in range(len(gpus)))
    return ()


def require_sglang(python: str) -> None:
    """Makes sure that `python` can run SGLang.

    Raises:
        SetupError: it cannot, or there is no such Python.
    """
    command = [python, "-c", _HAS_SGLANG, "sglang", "torch"]
    try:
        found = subprocess.run(command, capture_output=True, timeout=ASK_TIMEOUT_S, check=False)
    except OSError as exc:
        raise SetupError(f"--worker-python: cannot run {python}: {exc.strerror}") from exc
    except subprocess.TimeoutExpired as exc:
        raise SetupError(f"--worker-python: {python} did not start in time") from exc
    if found.returncode:
        raise SetupError(
            f"--launch-workers: {python} has no SGLang with torch: "
            "pip install 'slime-router[sglang]', or name a Python that has it with --worker-python"
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
