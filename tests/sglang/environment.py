"""The worker's environment and its models, made once under `.cache/sglang` and used again."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.sglang.child import ROOT, SIGN_OF_LIFE_S, Child, ChildFailed, say
from tests.venv import INSTALL_TIMEOUT_S, interpreter, make_venv

HERE = Path(__file__).parent
CACHE = ROOT / ".cache" / "sglang"
VENV = CACHE / "venv"
VENV_PYTHON = interpreter(VENV)
LOG = CACHE / "prepare.log"
REQUIREMENTS = HERE / "requirements.txt"
CHECKPOINT_SOURCES = (HERE / "checkpoint.py", ROOT / "tests" / "tiny.py")
SEEDS = {"checkpoint": 0, "checkpoint-b": 1}  # the second has the weights of a next step
STAMP = "made-from"  # a file that is written last and says what a folder was made from
CHECKPOINT_TIMEOUT_S = 180.0
LOCK_TIMEOUT_S = INSTALL_TIMEOUT_S + CHECKPOINT_TIMEOUT_S

WORKER_ENV = {
    "PYTHONPATH": f"{HERE / 'shim'}",
    "SGLANG_USE_CPU_ENGINE": "1",
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0",  # else each /health takes a second
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # threads gain a tiny model nothing, and wait for busy cores
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # three processes import all of it at each start
}


def prepare() -> None:
    """Install the worker and build its models. Returns at once when all is there.

    Raises:
        ChildFailed: a step failed; the message ends with its log.
    """
    with _lock():
        _install()
        _build()


def checkpoint(name: str = "checkpoint") -> Path:
    """Where `prepare` puts the model of that name."""
    return CACHE / name


def _install() -> None:
    key = _digest(sys.version, VENV.resolve(), REQUIREMENTS.read_text(encoding="utf-8"))
    if _is_made(VENV, key):
        return
    make_venv("sglang", VENV, REQUIREMENTS, log=LOG, by_pip=("torch",))
    _run("sglang", "importing it", [str(VENV_PYTHON), "-c", "import torch, torchvision, sglang"])
    _mark_made(VENV, key)


def _build() -> None:
    sources = [path.read_text(encoding="utf-8") for path in CHECKPOINT_SOURCES]
    keys = {name: _digest(sys.version, seed, *sources) for name, seed in SEEDS.items()}
    missing = [name for name, key in keys.items() if not _is_made(checkpoint(name), key)]
    if not missing:
        return
    for name in missing:
        shutil.rmtree(checkpoint(name), ignore_errors=True)
    models = [f"{checkpoint(name)}={SEEDS[name]}" for name in missing]
    make = [str(VENV_PYTHON), "-m", "tests.sglang.checkpoint", *models]
    _run(", ".join(missing), "making tiny models", make)
    for name in missing:
        _mark_made(checkpoint(name), keys[name])


def _run(name: str, doing: str, command: list[str]) -> None:
    with Child(name, command, log=LOG, env=WORKER_ENV) as child:
        child.finish(doing, timeout_s=INSTALL_TIMEOUT_S)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _is_made(directory: Path, key: str) -> bool:
    stamp = directory / STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == key


def _mark_made(directory: Path, key: str) -> None:
    (directory / STAMP).write_text(key, encoding="utf-8")


@contextmanager
def _lock() -> Iterator[None]:
    """One process prepares; others wait for it. The kernel frees the lock of one that dies."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as file:
        start = last_sign = time.monotonic()
        while not _try_lock(file.fileno()):
            now = time.monotonic()
            if now - start > LOCK_TIMEOUT_S:
                raise ChildFailed(f"{file.name} is held by another process")
            if now - last_sign > SIGN_OF_LIFE_S:
                last_sign = now
                say(f"sglang: another process is preparing it ... {now - start:.0f} s")
            time.sleep(0.5)
        yield


def _try_lock(file_descriptor: int) -> bool:
    try:
        fcntl.flock(file_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
