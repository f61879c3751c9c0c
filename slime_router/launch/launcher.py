"""Keeps workers running: starts them, says when they answer, starts them again when they die.

A process that runs and does not answer is not its business: that may be a pause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

from slime_router.errors import SetupError
from slime_router.launch.command import WorkerCommand
from slime_router.launch.keeper import POLL_S, RESTART_DELAYS_S, STEADY_S, Keeper, Kept
from slime_router.launch.machine import HOST, free_port
from slime_router.launch.output import Output
from slime_router.launch.process import KILL_TIMEOUT_S, REST_TIMEOUT_S
from slime_router.supervisor import Supervisor

logger = logging.getLogger(__name__)

GRACE_S = 15.0  # between SIGTERM and SIGKILL; an idle SGLang takes about seven
WRONG_FLAGS = 2  # exit code: no new start would help


class Launched(Kept):
    """One worker. `port` stays once it has answered there."""

    def __init__(
        self, name: str, command: WorkerCommand, output: Output, taken: Callable[[], set[int]]
    ) -> None:
        super().__init__(name, env=command.env, output=output)
        self.printed = output
        self.port = 0
        self._command = command
        self._taken = taken  # ports of all workers

    @property
    def url(self) -> str:
        """The URL that the worker listens at."""
        return f"http://{HOST}:{self.port}"

    def arguments(self) -> Sequence[str]:
        """The command line of its next process. Raises OSError: there is no free port."""
        if not self.was_up:  # nobody knows its port yet
            self.port = free_port(self._taken())
        return self._command.at(self.port)


class Launcher:
    """Workers for the length of an `async with` block, which begins when the first of them answers.

    Args:
        commands: one for each worker.
        supervisor: keeps the tasks that keep the workers.
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
        supervisor: Supervisor,
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
        self._supervisor = supervisor
        self._on_up = on_up
        self._startup_timeout_s = startup_timeout_s
        self._keeper = Keeper(
            answers=answers,
            on_up=self._note_up,
            on_down=lambda worker: on_down(worker.url),
            startup_timeout_s=startup_timeout_s,
            grace_s=grace_s,
            hopeless=(WRONG_FLAGS,),
            restart_delays_s=restart_delays_s,
            steady_s=steady_s,
            poll_s=poll_s,
        )
        names = [f"worker {number}" for number in range(1, len(commands) + 1)]
        self._workers = [
            Launched(name, command, Output(name, log_dir, secret=command.api_key), self._ports)
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
            self._supervisor.start(
                "watch of", partial(self._keeper.keep, worker), about=worker.name
            )
            for worker in self._workers
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

    def hurry(self) -> None:
        """From now on, nobody is given time to end."""
        self._keeper.grace_s = 0.0

    def _ports(self) -> set[int]:
        return {worker.port for worker in self._workers}

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
        try:
            # By then all have ended.
            limit_s = self._keeper.grace_s + KILL_TIMEOUT_S + REST_TIMEOUT_S + 1.0
            await self._supervisor.stop(self._keepers, timeout_s=limit_s)
        finally:
            for worker in self._workers:
                worker.printed.close()

    def _note_end(self, _: object) -> None:
        if all(other.done() for other in self._keepers):
            self._news.set()

    def _note_up(self, worker: Kept) -> None:
        self._on_up(worker.url)
        self._news.set()
