"""Keeps workers running: starts them, says when they answer, starts them again when they die.

A process that runs and does not answer is not its business: that may be a pause.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from slime_router.errors import SetupError
from slime_router.launch.command import WorkerCommand
from slime_router.launch.machine import HOST, free_port
from slime_router.launch.output import Output
from slime_router.launch.process import ended, how_it_ended, running

logger = logging.getLogger(__name__)

# Before each new start of one that died early, several times in a row; then it is given up.
RESTART_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
STEADY_S = 60.0  # a worker that has served for this long did not die early
POLL_S = 0.5
GRACE_S = 15.0  # between SIGTERM and SIGKILL; an idle SGLang takes about seven
WRONG_FLAGS = 2  # exit code: no new start would help


@dataclass(slots=True, eq=False)
class Launched:
    """One worker: many processes, one after the other. `port` stays once it has answered there."""

    name: str
    command: WorkerCommand
    output: Output
    port: int = 0
    was_up: bool = False
    is_up: bool = False

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}"


@dataclass(frozen=True, slots=True)
class Life:
    """How one process of a worker ended, and whether it had come to serve."""

    end: str
    served_s: float = 0.0
    is_last: bool = False


class Launcher:
    """Workers for the length of an `async with` block, which begins when the first of them answers.

    Args:
        commands: one for each worker.
        answers: whether the worker at a URL serves by now.
        on_up: called with the URL of a worker when it begins to serve, after a new start too.
        on_down: called with the URL of one that served and died. It comes back under the same URL,
            with an empty cache and the weights of its checkpoint, or not at all.
        startup_timeout_s: from the start of a process until it answers.
        log_dir: where their output goes, a file for each; None: to the router's log, at debug.
    """

    def __init__(
        self,
        commands: Sequence[WorkerCommand],
        *,
        answers: Callable[[str], Awaitable[bool]],
        on_up: Callable[[str], None],
        on_down: Callable[[str], None],
        startup_timeout_s: float,
        log_dir: Path | None = None,
        restart_delays_s: Sequence[float] = RESTART_DELAYS_S,
        steady_s: float = STEADY_S,
        poll_s: float = POLL_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._answers = answers
        self._on_up = on_up
        self._on_down = on_down
        self._startup_timeout_s = startup_timeout_s
        self._restart_delays_s = tuple(restart_delays_s)
        self._steady_s = steady_s
        self._poll_s = poll_s
        self._grace_s = grace_s
        names = [f"worker {number}" for number in range(1, len(commands) + 1)]
        self._workers = [
            Launched(name, command, Output(name, log_dir, secret=command.api_key))
            for name, command in zip(names, commands, strict=True)
        ]
        self._keepers: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()  # one is up, or all are given up

    def __repr__(self) -> str:
        return f"<Launcher {sum(w.is_up for w in self._workers)} of {len(self._workers)} up>"

    async def __aenter__(self) -> Launcher:
        """Starts all of them.

        Raises:
            SetupError: none of them came up.
        """
        self._keepers = [
            asyncio.create_task(self._keep(worker), name=worker.name) for worker in self._workers
        ]
        for keeper in self._keepers:
            keeper.add_done_callback(self._note_end)
        try:
            if self._keepers:
                await self._first_is_up()
        except BaseException:  # a stop while they start must not leave them behind
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def _first_is_up(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._startup_timeout_s):
                await self._news.wait()
        if any(worker.was_up for worker in self._workers):
            return
        reason = (
            "all were given up, see the log above"
            if self._news.is_set()
            else f"none answered within {self._startup_timeout_s:g} s "
            "(--worker-startup-timeout-secs)"
        )
        raise SetupError(f"no worker came up: {reason}")

    async def _stop(self) -> None:
        """Ends all at once; they have the same time to do so."""
        for keeper in self._keepers:
            keeper.cancel()
        try:
            await asyncio.gather(*self._keepers, return_exceptions=True)
        finally:
            for worker in self._workers:
                worker.output.close()

    def _note_end(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and (failure := keeper.exception()) is not None:
            logger.error("%s is watched no more", keeper.get_name(), exc_info=failure)
        if all(other.done() for other in self._keepers):
            self._news.set()

    async def _keep(self, worker: Launched) -> None:
        """One life after the other, until too many in a row were short."""
        early = 0
        while True:
            life = await self._live(worker)
            early = 1 if life.served_s >= self._steady_s else early + 1
            tail = "".join(f"\n  | {line}" for line in worker.output.tail)
            logger.warning("%s %s; its last lines:%s", worker.name, life.end, tail or " none")
            if life.is_last or early > len(self._restart_delays_s):
                times = f"it died early {early} times in a row" if early > 1 else life.end
                logger.error("%s is given up: %s", worker.name, times)
                return
            delay_s = self._restart_delays_s[early - 1]
            logger.info("%s starts again in %g s", worker.name, delay_s)
            await asyncio.sleep(delay_s)

    async def _live(self, worker: Launched) -> Life:
        """One process, from its start to its end."""
        clock = asyncio.get_running_loop().time
        try:
            if not worker.was_up:  # nobody knows its port yet
                worker.port = free_port({other.port for other in self._workers})
            async with running(
                worker.command.at(worker.port),
                env=worker.command.env,
                output=worker.output,
                grace_s=self._grace_s,
            ) as process:
                logger.info("%s starts at %s (pid %d)", worker.name, worker.url, process.pid)
                if not await self._comes_up(worker, process):
                    return self._stillborn(worker, process)
                start = clock()
                self._note_up(worker)
                code = await process.wait()
                self._note_down(worker)
                return Life(how_it_ended(code), served_s=clock() - start)
        except OSError as exc:
            return Life(f"cannot be started: {exc}")

    async def _comes_up(self, worker: Launched, process: Process) -> bool:
        """Whether it answers before it ends and before its time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._startup_timeout_s):
                while process.returncode is None:
                    if await self._answers(worker.url) and process.returncode is None:
                        return True
                    await ended(process, within_s=self._poll_s)
        return False

    def _stillborn(self, worker: Launched, process: Process) -> Life:
        code = process.returncode
        if code is None:
            return Life(f"did not answer within {self._startup_timeout_s:g} s")
        is_last = code == WRONG_FLAGS and not worker.was_up
        return Life(f"{how_it_ended(code)} before it answered", is_last=is_last)

    def _note_up(self, worker: Launched) -> None:
        worker.is_up = worker.was_up = True
        logger.info("%s is up at %s", worker.name, worker.url)
        self._on_up(worker.url)
        self._news.set()

    def _note_down(self, worker: Launched) -> None:
        worker.is_up = False
        self._on_down(worker.url)
