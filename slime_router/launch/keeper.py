"""Keeps processes running: starts each, sees it come up, and starts it again when it dies.

starting ──answers──► up ──dies──► waits a little ──► starting
    └─ dies, or does not answer in time ──┘   └─ too often in a row: given up
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

from slime_router.launch.output import Output
from slime_router.launch.process import ask_to_end, ended, how_it_ended, running

logger = logging.getLogger(__name__)

# Before each new start of one that died early, several times in a row; then it is given up.
RESTART_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
STEADY_S = 60.0  # one that has served for this long did not die early
POLL_S = 0.5


class Kept(ABC):
    """What is kept running: many processes, one after the other.

    `env` is added to the router's own; `output` None: they print where the router does.
    """

    def __init__(
        self, name: str, *, env: Mapping[str, str] | None = None, output: Output | None = None
    ) -> None:
        self.name = name
        self.env = env or {}
        self.output = output
        self.was_up = False
        self.is_up = False
        self.starts = 0
        self.code: int | None = None  # of the last process, unless another takes its place
        self.process: Process | None = None  # that runs now

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL that the worker answers at."""

    @abstractmethod
    def arguments(self) -> Sequence[str]:
        """The command line of its next process. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Life:
    """How one process ended, and whether it had come to serve."""

    end: str
    served_s: float = 0.0
    is_last: bool = False


class Keeper:
    """Keeps any number of processes, each in a call of `keep`.

    Args:
        answers: whether what is kept at a URL serves by now.
        on_up: called when one begins to serve, after a new start too.
        on_down: called when one that served has died.
        startup_timeout_s: from the start of a process until it answers.
        hopeless: exit codes after which no new start helps one that never served.
    """

    def __init__(
        self,
        *,
        answers: Callable[[str], Awaitable[bool]],
        on_up: Callable[[Kept], None],
        on_down: Callable[[Kept], None],
        startup_timeout_s: float,
        grace_s: float,
        hopeless: Collection[int],
        restart_delays_s: Sequence[float] = RESTART_DELAYS_S,
        steady_s: float = STEADY_S,
        poll_s: float = POLL_S,
    ) -> None:
        self.grace_s = grace_s  # between SIGTERM and SIGKILL
        self.is_ending = False  # who ends by now is not started again
        self._answers = answers
        self._on_up = on_up
        self._on_down = on_down
        self._startup_timeout_s = startup_timeout_s
        self._hopeless = frozenset(hopeless)
        self._restart_delays_s = tuple(restart_delays_s)
        self._steady_s = steady_s
        self._poll_s = poll_s

    async def keep(self, kept: Kept) -> None:
        """One life after the other, until too many in a row were short."""
        early = 0
        while True:
            life = await self._live(kept)
            if self.is_ending:
                return
            early = 1 if life.served_s >= self._steady_s else early + 1
            _note_end(kept, life)
            if life.is_last or early > len(self._restart_delays_s):
                times = f"it died early {early} times in a row" if early > 1 else life.end
                logger.error("%s is given up: %s", kept.name, times)
                return
            delay_s = self._restart_delays_s[early - 1]
            logger.info("%s starts again in %g s", kept.name, delay_s)
            kept.code = None  # that one was made good
            await asyncio.sleep(delay_s)
            if self.is_ending:
                return

    async def _live(self, kept: Kept) -> Life:
        """One process, from its start to its end."""
        kept.starts += 1
        async with AsyncExitStack() as stack:
            try:
                command = kept.arguments()
                process = await stack.enter_async_context(
                    running(command, env=kept.env, output=kept.output, grace_s=lambda: self.grace_s)
                )
            except OSError as exc:
                return Life(f"cannot be started: {exc}")
            logger.info("%s starts at %s (pid %d)", kept.name, kept.url, process.pid)
            kept.process = process
            try:
                if self.is_ending:
                    ask_to_end(process)
                if not await self._comes_up(kept, process):
                    return self._stillborn(kept, process)
                return await self._serves(kept, process)
            finally:
                kept.process = None

    async def _serves(self, kept: Kept, process: Process) -> Life:
        """The rest of its life, once it answers."""
        clock = asyncio.get_running_loop().time
        start = clock()
        try:
            self._note_up(kept)
            code = await process.wait()
        except Exception:  # whatever it was: the process ends here
            self._note_down(kept)
            raise
        self._note_down(kept)
        kept.code = code
        return Life(how_it_ended(code), served_s=clock() - start)

    async def _comes_up(self, kept: Kept, process: Process) -> bool:
        """Whether it answers before it ends and before its time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._startup_timeout_s):
                while process.returncode is None:
                    if await self._answers(kept.url) and process.returncode is None:
                        return True
                    await ended(process, within_s=self._poll_s)
        return False

    def _stillborn(self, kept: Kept, process: Process) -> Life:
        code = process.returncode
        if code is None:
            return Life(f"did not answer within {self._startup_timeout_s:g} s")
        kept.code = code
        is_last = code in self._hopeless and not kept.was_up
        return Life(f"{how_it_ended(code)} before it answered", is_last=is_last)

    def _note_up(self, kept: Kept) -> None:
        kept.is_up = kept.was_up = True
        logger.info("%s is up at %s", kept.name, kept.url)
        self._on_up(kept)

    def _note_down(self, kept: Kept) -> None:
        kept.is_up = False
        self._on_down(kept)


def _note_end(kept: Kept, life: Life) -> None:
    if kept.output is None:
        logger.warning("%s %s", kept.name, life.end)
        return
    tail = list(kept.output.tail)
    logger.warning("%s %s; its last lines:%s", kept.name, life.end, "" if tail else " none")
    for line in tail:
        logger.warning("%s | %s", kept.name, line)
