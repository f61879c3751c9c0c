"""Installs what was built into clean environments, and uses it as the README says.

    python -m tests.package.check DIST

DIST holds a wheel and a source distribution. Each supported Python that is on this machine gets the
wheel by pip; the oldest one also gets the source distribution, and the wheel with the oldest of all
its dependencies.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from slime_router import __version__
from tests.ports import HOST, free_port
from tests.readme import blocks, curl_commands
from tests.sglang.server import answers
from tests.tiny import build_tiny_checkpoint

PYTHONS = ("3.11", "3.12", "3.13")
AT_ONCE = 2  # environments
RUN_TIMEOUT_S = 600.0  # an installation, on a busy machine
START_TIMEOUT_S = 120.0
MAX_PACKAGES = 90  # with the parsers; SGLang's own requirements are more than two hundred
SETTINGS = {"HF_HUB_OFFLINE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
TEXT = "Hello there!"
WORKER = Path(__file__).with_name("worker.py")


class CheckFailed(Exception):
    """Something does not work; what was printed."""


class Environment:
    """A clean environment in a scratch directory. Commands run there, and see nothing else."""

    def __init__(self, name: str, python: str, directory: Path) -> None:
        self.name, self.scratch = name, directory
        self.bin = directory / "venv" / "bin"
        self.python = str(self.bin / "python")
        self.run(python, "-m", "venv", str(directory / "venv"))

    def run(self, *command: str, stdin: str = "") -> str:
        """What a command prints; it must end well."""
        done = subprocess.run(
            command,
            input=stdin,
            cwd=self.scratch,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            said = (done.stdout + done.stderr)[-3000:]
            raise CheckFailed(
                f"{self.name}: {' '.join(command)}: exit code {done.returncode}\n{said}"
            )
        return done.stdout

    @property
    def variables(self) -> dict[str, str]:
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        return {**kept, "PATH": f"{self.bin}:{kept['PATH']}", **SETTINGS}

    def pip(self, *arguments: str) -> str:
        return self.run(self.python, "-m", "pip", *arguments)

    @contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """A command that serves; it is ended with the block."""
        process = subprocess.Popen(
            command,
            cwd=self.scratch,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=START_TIMEOUT_S)


def check_commands(env: Environment, checkpoint: Path) -> None:
    """The commands that need no worker."""
    expected = f"slime-router {__version__}\n"
    for version in (
        env.run("slime-router", "--version"),
        env.run(env.python, "-m", "slime_router", "--version"),
    ):
        _expect(env, version == expected, f"--version says {version!r}")
    _expect(env, "--hf-checkpoint" in env.run("slime-router", "--help"), "--help lists no flags")
    where = env.run(env.python, "-c", "import slime_router; print(slime_router.__file__)")
    _expect(env, where.startswith(str(env.bin.parent)), f"another one was imported: {where}")
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(TEXT).ids
    question = json.dumps({"tokens": ids, "text": TEXT})
    flags = ("--hf-checkpoint", str(checkpoint))
    report = env.run("slime-router", "diagnose", "-", *flags, stdin=question)
    _expect(env, report.startswith("same: "), f"diagnose says {report!r}")


def check_serving(env: Environment, checkpoint: Path) -> None:
    """The README's requests, in front of a worker without a model."""
    port = free_port()
    command = ["slime-router", "--hf-checkpoint", str(checkpoint), "--port", str(port)]
    with env.running(env.python, str(WORKER), str(checkpoint)) as worker:
        assert worker.stdout is not None
        url = worker.stdout.readline().strip()
        with env.running(*command, "--worker-urls", url) as router:
            _wait_until_ready(env, router, f"http://{HOST}:{port}/readiness")
            for request in curl_commands(address=f"{HOST}:{port}"):
                env.run("sh", "-ec", request.replace("curl ", "curl -sSf "))
            for program in blocks(
                "python", address=f"{HOST}:{port}"
            ):  # openai came with the parsers
                env.run(env.python, "-c", program)


def check_parsers(env: Environment) -> None:
    """They come by one command, without torch."""
    said = env.run("slime-router", "install-parsers")
    _expect(env, "of tool calls" in said, f"install-parsers says {said!r}")
    packages = env.pip("list", "--format", "freeze").splitlines()
    names = {line.partition("==")[0].lower() for line in packages}
    _expect(env, "sglang" in names and "torch" not in names, f"these are installed: {names}")
    _expect(env, len(names) <= MAX_PACKAGES, f"{len(names)} packages are installed")


def find_python(version: str) -> str | None:
    """An interpreter of this version that can make environments; pyenv's shims may be empty."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *root.glob(f"{version}.*/bin/python")]
    for candidate in filter(None, found):
        probe = (str(candidate), "-c", "import ensurepip, venv")
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return str(candidate)
    return None


def check_one(name: str, python: str, install: Sequence[str], checkpoint: Path) -> None:
    """All of it in an environment of this name; `install` is the command that fills it."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="package-") as scratch:
        env = Environment(name, python, Path(scratch))
        env.run(*(part.replace("PYTHON", env.python) for part in install))
        check_commands(env, checkpoint)
        check_parsers(env)
        check_serving(env, checkpoint)
    print(f"package: {name}: works ({time.monotonic() - start:.0f} s)", flush=True)


def environments(dist: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, interpreter and the command that fills it, for each that can be made here."""
    [wheel], [sdist] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    by_pip = ("PYTHON", "-m", "pip", "install", "--quiet", "--no-compile")
    by_uv = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", "PYTHON")
    for version in PYTHONS:
        name, python = f"Python {version}", find_python(version)
        if python is None:
            print(f"package: {name}: skipped, it is not on this machine", flush=True)
            continue
        yield name, python, (*by_pip, str(wheel))
        if version == PYTHONS[0]:
            yield f"{name}, from source", python, (*by_pip, str(sdist))
            oldest = (*by_uv, "--resolution", "lowest-direct", f"{wheel}[parsers]")
            yield f"{name}, oldest dependencies", python, oldest


def main(dist: Path) -> int:
    """Check every Python that is here; returns the exit code."""
    try:
        with tempfile.TemporaryDirectory(prefix="tiny-") as scratch:
            checkpoint = build_tiny_checkpoint(Path(scratch))
            with ThreadPoolExecutor(AT_ONCE) as pool:  # much of it is downloads
                checks = [pool.submit(check_one, *each, checkpoint) for each in environments(dist)]
                for check in checks:
                    check.result()
    except CheckFailed as exc:
        sys.stderr.write(f"package: {exc}\n")
        return 1
    return 0


def _expect(env: Environment, is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise CheckFailed(f"{env.name}: {otherwise}")


def _wait_until_ready(env: Environment, router: subprocess.Popen[str], url: str) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while not answers(url):
        _expect(env, router.poll() is None, "the router ended")
        _expect(env, time.monotonic() < end, "the router is not ready")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
