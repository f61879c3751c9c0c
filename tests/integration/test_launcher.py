"""Processes that the router starts: they come up, die, come back, and never outlive it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from slime_router.errors import SetupError
from slime_router.launch.command import WorkerCommand
from slime_router.launch.keeper import Keeper, Kept
from slime_router.launch.launcher import GRACE_S, Launcher
from slime_router.launch.output import Output
from slime_router.launch.process import running
from slime_router.supervisor import Supervisor
from tests.integration.gateway import CHAT, checkpoint, user
from tests.ports import free_port
from tests.unit.test_cli import SURE_TO_WAIT_S, ended, ended_late, read_banner, started

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0  # on a busy machine
LONG_S = 600.0

# Names itself and its child, then waits for the signal that it was made to heed.
BEGIN = """
import os, pathlib, signal, subprocess, sys, time
book, port = pathlib.Path(sys.argv[1]), sys.argv[sys.argv.index("--port") + 1]
gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
def note(line):
    with book.open("a") as file: file.write(f"{line}\\n")
"""
LOOP = "print('here I am', flush=True)\nwhile True: time.sleep(600)"
SERVES = f"{BEGIN}note(f'{{os.getpid()}} {{port}} {{gpus}}')\n{LOOP}"
STUBBORN = f"""{BEGIN}
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
note(f"{{child.pid}} {{port}} {{gpus}}")
note(f"{{os.getpid()}} {{port}} {{gpus}}")
{LOOP}"""
GRACEFUL = f"""{BEGIN}
def leave(*_):
    note("left")
    sys.exit()
signal.signal(signal.SIGTERM, leave)
note(f"{{os.getpid()}} {{port}} {{gpus}}")
{LOOP}"""


class Book:
    """What the processes of one test wrote of themselves, and what the launcher reported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.up: list[str] = []
        self.down: list[str] = []

    def command(self, code: str, gpus: str | None = None) -> WorkerCommand:
        return WorkerCommand((sys.executable, "-S", "-c", code, str(self.path)), gpus)

    def lines(self) -> list[list[str]]:
        text = self.path.read_text() if self.path.exists() else ""
        return [line.split() for line in text.splitlines()]

    def pids(self) -> list[int]:
        return [int(line[0]) for line in self.lines() if line[0].isdecimal()]

    async def answers(self, url: str) -> bool:
        """One that has written its port serves, while it lives."""
        port = url.rpartition(":")[2]
        return any(line[1:2] == [port] and is_alive(int(line[0])) for line in self.lines())


@pytest.fixture
def book(tmp_path):
    book = Book(tmp_path / "book")
    yield book
    for pid in book.pids():  # a test that fails must not leave its processes running
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def launcher(book: Book, *commands: WorkerCommand, **settings: Any) -> Launcher:
    given: dict[str, Any] = {
        "answers": book.answers,
        "on_up": book.up.append,
        "on_down": book.down.append,
        "startup_timeout_s": PATIENCE_S,
        "restart_delays_s": (0.0, 0.0),
        "steady_s": LONG_S,
        "poll_s": 0.01,
        "grace_s": PATIENCE_S,
    }
    return Launcher(commands, Supervisor(), **{**given, **settings})


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    with suppress(OSError):
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - a poll needs nothing of what is watched
            await asyncio.sleep(0.005)


@asynccontextmanager
async def two_up(book: Book, **settings: Any) -> AsyncIterator[Launcher]:
    commands = (book.command(SERVES, "0"), book.command(SERVES, "1"))
    async with launcher(book, *commands, **settings) as running:
        await until(lambda: len(book.up) == 2)
        yield running


async def test_the_block_begins_when_the_first_answers_and_ends_when_all_have_ended(book):
    async with two_up(book) as running:
        assert repr(running) == "<Launcher 2 of 2 up>"
        pids = book.pids()
        assert all(map(is_alive, pids))
        ports = {line[1] for line in book.lines()}
        assert {url.rpartition(":")[2] for url in book.up} == ports
        assert len(ports) == 2
        assert {line[2] for line in book.lines()} == {"0", "1"}, "each sees its own GPU"
    assert not any(map(is_alive, pids))
    assert book.down == [], "who is stopped has not died"


async def test_nobody_to_start_is_nothing_to_wait_for(book):
    async with launcher(book):
        pass


async def test_one_that_dies_comes_back_under_its_url_and_the_other_goes_on(book, caplog):
    async with two_up(book):
        first, other = book.pids()
        with caplog.at_level(logging.INFO):
            os.kill(first, signal.SIGKILL)
            await until(lambda: len(book.up) == 3)
        [url] = book.down
        assert book.up[2] == url
        assert is_alive(other)
        assert is_alive(book.pids()[2])
    assert "was ended by SIGKILL; its last lines:" in caplog.text
    assert "| here I am" in caplog.text
    assert "starts again in 0 s" in caplog.text


async def test_one_that_dies_early_too_often_is_given_up_and_the_other_serves_on(book, caplog):
    """Two delays: three deaths."""
    async with two_up(book) as running:
        victim = book.pids()[0]
        for times in (1, 2, 3):
            os.kill(victim, signal.SIGKILL)
            await until(lambda times=times: len(book.down) == times)  # type: ignore[misc]
            if times < 3:
                await until(lambda times=times: len(book.up) == 2 + times)  # type: ignore[misc]
                victim = book.pids()[-1]
        await until(lambda: "given up" in caplog.text)
        assert len(set(book.down)) == 1
        assert repr(running) == "<Launcher 1 of 2 up>"
        assert is_alive(book.pids()[1])
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(lines) == 1
    assert lines[0].endswith("is given up: it died early 3 times in a row")


async def test_who_served_long_enough_is_never_given_up(book):
    async with launcher(book, book.command(SERVES), restart_delays_s=(0.0,), steady_s=0.0):
        for times in range(1, 5):
            os.kill(book.pids()[-1], signal.SIGKILL)
            await until(lambda times=times: len(book.up) == 1 + times)  # type: ignore[misc]
    assert len(book.down) == 4


async def test_none_that_comes_up_is_an_error(book, caplog):
    """Each start has another port: whatever listens on the first may be why it failed."""
    dying = f"{BEGIN}\nprint('no such model', port)\nsys.exit(3)"
    with pytest.raises(SetupError, match="no worker came up: all were given up"):
        async with launcher(book, book.command(dying)):
            pytest.fail("the block begins")
    assert book.up == book.down == []
    deaths = [m for m in caplog.messages if "ended with exit code 3 before it answered" in m]
    assert len(deaths) == 3
    assert len({m for m in caplog.messages if "| no such model " in m}) == 3


async def test_wrong_flags_are_not_tried_again(book, caplog):
    wrong = f"{BEGIN}\nprint('unrecognized arguments')\nsys.exit(2)"
    with pytest.raises(SetupError):
        async with launcher(book, book.command(wrong)):
            pytest.fail("the block begins")
    assert sum("unrecognized arguments" in message for message in caplog.messages) == 1


async def test_one_that_never_answers_ends_the_start_and_is_not_left_behind(book):
    async def silent(_: str) -> bool:
        return False

    settings = {"answers": silent, "startup_timeout_s": 1.0}
    with pytest.raises(SetupError, match=r"none answered within 1 s \(--worker-startup-time"):
        async with launcher(book, book.command(SERVES), **settings):
            pytest.fail("the block begins")
    assert not any(map(is_alive, book.pids()))


async def test_one_that_hangs_at_its_new_start_is_ended_and_tried_again(book):
    """Its second process never answers."""

    async def answers(url: str) -> bool:
        return len(book.pids()) != 2 and await book.answers(url)

    patient = {"startup_timeout_s": 2.0, "restart_delays_s": (0.0,) * 20, "grace_s": 0.1}
    async with launcher(book, book.command(SERVES), answers=answers, **patient):
        os.kill(book.pids()[0], signal.SIGKILL)
        await until(lambda: len(book.up) == 2)
        assert not is_alive(book.pids()[1])
        assert is_alive(book.pids()[-1])


async def test_sigterm_comes_first(book):
    async with launcher(book, book.command(GRACEFUL)):
        pass
    assert book.lines()[-1] == ["left"]


async def test_who_refuses_to_end_is_killed_with_all_that_it_started(book):
    async with launcher(book, book.command(STUBBORN), grace_s=0.05):
        await until(lambda: len(book.pids()) == 2)
        assert all(map(is_alive, book.pids()))
    await until(lambda: not any(map(is_alive, book.pids())))


async def test_what_a_dead_one_started_dies_too(book):
    """A scheduler that outlives its server would hold the GPU."""
    async with launcher(book, book.command(STUBBORN), restart_delays_s=(), grace_s=0.0):
        await until(lambda: len(book.pids()) == 2)
        child, server = book.pids()
        os.kill(server, signal.SIGKILL)
        await until(lambda: not is_alive(child))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
async def test_a_leash_that_is_killed_takes_its_worker_along(book):
    """Two processes would fight for one port and one GPU."""
    async with launcher(book, book.command(SERVES)):
        [worker] = book.pids()
        leash = parent_of(worker)
        os.kill(leash, signal.SIGKILL)
        await until(lambda: len(book.up) == 2)
        await until(
            lambda: not is_alive(worker)
        )  # the signal is sent; a busy machine takes a while


async def test_a_start_that_is_cancelled_leaves_nothing_behind(book):
    async def silent(_: str) -> bool:
        return False

    async def enter() -> None:
        async with launcher(book, book.command(STUBBORN), answers=silent, grace_s=0.0):
            pytest.fail("the block begins")

    entering = asyncio.create_task(enter())
    await until(lambda: len(book.pids()) == 2)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    await until(lambda: not any(map(is_alive, book.pids())))


async def test_a_stop_that_is_cancelled_kills_at_once(book):
    """Pressing Ctrl-C again ends the wait for the grace."""

    async def serve() -> None:
        async with launcher(book, book.command(STUBBORN), grace_s=LONG_S):
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve())
    await until(lambda: len(book.pids()) == 2)
    serving.cancel()
    await asyncio.sleep(0.05)
    assert not serving.done()
    serving.cancel()
    await asyncio.wait([serving], timeout=PATIENCE_S)
    assert serving.cancelled()
    await until(lambda: not any(map(is_alive, book.pids())))


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.integration.test_launcher import Book, STUBBORN, launcher

async def main():
    book = Book(Path(sys.argv[1]))
    async with launcher(book, book.command(STUBBORN)):
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_workers_die_with_a_router_that_is_killed(book):
    """SIGKILL leaves it no time to clean up; the kernel closes its end of the leash."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(book.path)], cwd=ROOT)
    try:
        wait(lambda: len(book.pids()) == 2)
        assert all(map(is_alive, book.pids()))
    finally:
        parent.kill()
        parent.wait()
    wait(lambda: not any(map(is_alive, book.pids())))


# The whole router, with a Python whose SGLang is a worker without a model

WORKER = """
import asyncio, os, pathlib, sys
from slime_router.testing import FakeWorker

async def main(book, port):
    worker = FakeWorker(vocab_size=544)
    worker._port = port
    async with worker:
        with open(book, "a") as file: file.write(f"{os.getpid()} {port} {sys.argv[2:]}\\n")
        await asyncio.Event().wait()

asyncio.run(main(sys.argv[1], int(sys.argv[sys.argv.index("--port") + 1])))
"""


def worker_python(book: Book, code: str) -> str:
    """What `--worker-python` is given; asked whether it has SGLang, it says yes."""
    python = book.path.with_name("python")
    call = shlex.join([sys.executable, "-c", code, str(book.path)])
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] || exec {call} "$@"\n')
    python.chmod(0o755)
    return str(python)


def ask(port: int) -> int:
    """The status of a chat."""
    body = json.dumps({"messages": [user("hi")], "max_tokens": 2}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{CHAT}", body, {"Content-Type": "application/json"}
    )
    with suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=60) as reply:
        return int(reply.status)
    return 0


@pytest.mark.timeout(180)
def test_one_command_serves_and_goes_on_when_its_worker_dies(book):
    port = free_port()
    flags = ("--launch-workers", "1", "--worker-python", worker_python(book, WORKER))
    process = started(*flags, "--", "--tp", "1", port=port)
    try:
        banner = read_banner(process)
        [[pid, worker_port, *argv]] = book.lines()
        assert f"http://127.0.0.1:{worker_port}" in banner
        told = ["-m", "sglang.launch_server", "--model-path", str(checkpoint()), "--tp", "1"]
        assert " ".join(argv).startswith(str(told)[:-1])
        assert ask(port) == 200
        os.kill(int(pid), signal.SIGKILL)
        wait(lambda: len(book.pids()) == 2)
        wait(lambda: ask(port) == 200)
        process.terminate()
        code, err = ended(process)
        assert code == 0
        assert "was ended by SIGKILL" in err
        assert "Traceback" not in err
        assert not any(map(is_alive, book.pids()))
    finally:
        process.kill()
        process.wait()


# One that has a key, and says it, as SGLang does.
GUARDED = WORKER.replace("FakeWorker(", "Guarded(").replace(
    "async def main",
    """
from aiohttp import web
[key] = [arg.partition("=")[2] for arg in sys.argv if arg.startswith("--api-key=")]
print("here is", key, flush=True)

class Guarded(FakeWorker):
    @web.middleware
    async def _once_awake(self, request, handler):
        shown = request.headers.get("authorization")
        if request.path != "/health" and shown != f"Bearer {key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await super()._once_awake(request, handler)

async def main""",
)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("own", [(), ("--api-key=users-own",)])
def test_a_launched_worker_asks_for_the_routers_key_for_workers(own, book):
    port = free_port()
    flags = ("--launch-workers", "1", "--worker-python", worker_python(book, GUARDED))
    keys = ("--worker-api-key", "routers-own", "--log-level", "debug")
    process = started(*flags, *keys, "--", *own, port=port)
    try:
        read_banner(process)
        assert ask(port) == 200
        process.terminate()
        code, err = ended(process)
        assert code == 0
        assert "here is ***" in err
        assert "s-own" not in err
        assert ("users-own" if own else "routers-own") in book.path.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(180)
def test_a_router_whose_workers_do_not_start_ends_with_1_and_says_why(book):
    python = worker_python(book, "import sys; print('unknown flag'); sys.exit(2)")
    process = started("--launch-workers", "1", "--worker-python", python, port=free_port())
    code, err = ended_late(process)
    *_, last = err.splitlines()
    assert (code, "Traceback" in err) == (1, False)
    assert last == "slime-router: error: no worker came up: all were given up, see the log above"
    assert "worker 1 | unknown flag" in err


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_while_the_workers_start_ends_them_too(number, expected, book):
    python = worker_python(book, GRACEFUL)  # it never answers
    process = started("--launch-workers", "1", "--worker-python", python, port=free_port())
    try:
        wait(lambda: len(book.pids()) == 1)
        process.send_signal(number)
        code, err = ended(process)
        assert "Traceback" not in err
        assert code == expected
        assert book.lines()[-1] == ["left"]
        assert not any(map(is_alive, book.pids()))
    finally:
        process.kill()
        process.wait()


# One that serves, and does not mind SIGTERM.
DEAF = WORKER.replace("import asyncio,", "import signal, asyncio,").replace(
    "    async with worker:",
    "    signal.signal(signal.SIGTERM, lambda *_: None)\n    worker.hold(after_tokens=1)\n"
    "    async with worker:",
)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("code", [DEAF, STUBBORN], ids=["serves", "starts"])
def test_a_second_signal_kills_workers_that_do_not_end(code, book):
    python = worker_python(book, code)
    process = started("--launch-workers", "1", "--worker-python", python, port=free_port())
    try:
        wait(lambda: bool(book.pids()))
        if code == DEAF:
            read_banner(process)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):  # it waits for its workers
            process.wait(SURE_TO_WAIT_S)
        assert all(map(is_alive, book.pids()))
        process.send_signal(signal.SIGINT)
        process.wait(GRACE_S - SURE_TO_WAIT_S)
        exit_code, err = ended(process)
        assert exit_code == 130
        assert "Traceback" not in err
        assert not any(map(is_alive, book.pids()))
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(180)
def test_a_second_signal_kills_them_also_while_a_client_is_served(book):
    port = free_port()
    flags = ("--launch-workers", "1", "--worker-python", worker_python(book, DEAF))
    process = started(*flags, port=port)
    try:
        read_banner(process)
        body = json.dumps({"messages": [user("hi")], "max_tokens": 5, "stream": True}).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}{CHAT}", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as reply:
            reply.read(1)
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):  # it waits for the client
                process.wait(SURE_TO_WAIT_S)
            process.send_signal(signal.SIGINT)
            process.wait(GRACE_S - SURE_TO_WAIT_S)
        _, err = ended(process)
        assert "Traceback" not in err
        assert not any(map(is_alive, book.pids()))
    finally:
        process.kill()
        process.wait()


def wait(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


async def test_however_often_it_is_cancelled_the_end_of_the_process_is_awaited(tmp_path):
    """What is left to wait for is a SIGKILL."""
    book = Book(tmp_path / "book")
    begun: list[Process] = []

    async def run() -> None:
        command = book.command(STUBBORN).at(free_port())
        output = Output("worker", None)
        async with running(command, env={}, output=output, grace_s=lambda: LONG_S) as process:
            begun.append(process)
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    async with asyncio.timeout(PATIENCE_S):
        while len(book.pids()) < 2:  # noqa: ASYNC110 - a poll needs nothing of what is watched
            await asyncio.sleep(0.01)
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
    assert task.cancelled()
    assert begun[0].returncode is not None


class Hapless(Kept):
    """It dies as soon as it runs."""

    url = ""

    def arguments(self) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit(9)"]


class Patient(Kept):
    """It does nothing, for long."""

    url = ""

    def arguments(self) -> list[str]:
        return [sys.executable, "-c", f"import time; time.sleep({LONG_S})"]


async def _never(_: str) -> bool:
    return False


async def test_a_process_that_is_started_again_leaves_no_exit_code(caplog):
    """A router that ends in that moment has not failed."""
    keeper = Keeper(
        answers=_never,
        on_up=lambda _: None,
        on_down=lambda _: None,
        startup_timeout_s=LONG_S,
        grace_s=0.0,
        hopeless=(),
        restart_delays_s=(LONG_S,),
    )
    kept = Hapless("process 1")
    with caplog.at_level(logging.INFO):
        keeping = asyncio.create_task(keeper.keep(kept))
        await until(lambda: "process 1 starts again" in caplog.text)
    assert kept.code is None
    keeping.cancel()
    await asyncio.wait([keeping])


async def test_a_start_is_not_blamed_for_what_its_news_lead_to():
    def fails(_: Kept) -> None:
        raise OSError("the disk is full")

    async def answers(_: str) -> bool:
        return True

    kept = Patient("process 1")
    keeper = Keeper(
        answers=answers,
        on_up=fails,
        on_down=lambda _: None,
        startup_timeout_s=LONG_S,
        grace_s=0.0,
        hopeless=(),
    )
    with pytest.raises(OSError, match="the disk is full"):
        await keeper.keep(kept)
    assert kept.process is None
    assert not kept.is_up
