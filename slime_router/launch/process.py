"""One process of a worker, on its leash. It never outlives the block that it was started for."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from slime_router.launch.output import Output

LEASH = Path(__file__).with_name("leash.py")
READ_LEN = 64 * 2**10  # bytes
KILL_TIMEOUT_S = 10.0  # the kernel is slow to end one that sits in a driver
REST_TIMEOUT_S = 1.0  # for what is left in the pipe of one that ended


@asynccontextmanager
async def running(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    output: Output | None,
    grace_s: Callable[[], float],
) -> AsyncIterator[Process]:
    """Runs `command` for the length of the block; `env` is added to the router's own.

    What it prints goes to `output`, or where the router's own goes.

    On leaving the block its process group has `grace_s()` to end after SIGTERM. A cancellation in
    that time kills it at once.

    Raises:
        OSError: the system cannot start more processes.
    """
    if output is not None:
        output.begin()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(LEASH), *command),
        env={**os.environ, **env},
        stdin=PIPE,
        stdout=None if output is None else PIPE,
        stderr=None if output is None else STDOUT,
        start_new_session=True,  # Ctrl-C in a terminal is for the router alone
    )
    reading = asyncio.create_task(_read(process, output), name="output of a worker")
    try:
        yield process
    finally:
        try:
            await _end(process, grace_s())
            await asyncio.wait([reading], timeout=REST_TIMEOUT_S)
        finally:
            reading.cancel()
            if output is not None:
                output.end()


def ask_to_end(process: Process) -> None:
    """SIGTERM, for the whole group; each call sends one."""
    assert process.stdin is not None
    process.stdin.write(b".")


async def ended(process: Process, *, within_s: float) -> None:
    """Waits for the end of a process, but no longer than `within_s`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await process.wait()


def how_it_ended(code: int) -> str:
    """The exit code of a leash in words: a signal has a name."""
    try:
        return f"was ended by {signal.Signals(code - 128).name}"
    except ValueError:
        return f"ended with exit code {code}"


def ask_to_reload(process: Process) -> None:
    """SIGHUP, for the whole group."""
    assert process.stdin is not None
    process.stdin.write(b"h")


async def _read(process: Process, output: Output | None) -> None:
    if process.stdout is None or output is None:
        return
    while data := await process.stdout.read(READ_LEN):
        output.feed(data)


async def _end(process: Process, grace_s: float) -> None:
    leash = process.stdin
    assert leash is not None
    try:
        if process.returncode is None:
            ask_to_end(process)
            await ended(process, within_s=grace_s)
    finally:
        leash.close()  # SIGKILL, for all that is left
        await _killed(process)


async def _killed(process: Process) -> None:
    """Waits for the end of a process that is being killed; cancellations come after that."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + KILL_TIMEOUT_S
    cancelled: asyncio.CancelledError | None = None
    while process.returncode is None and (rest_s := deadline - clock()) > 0:
        try:
            await ended(process, within_s=rest_s)
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled
