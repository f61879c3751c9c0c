"""Background tasks: each has a name and an owner, and no failure ends one.

    running --returns--> gone
    running --fails--> waiting: logged with its cause, counted --after a delay--> running
    any --stopped--> gone, and awaited

The delay grows while a task keeps failing, so a broken one costs little and fills no log.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, TypeAlias

from slime_router.pool.backoff import Backoff

logger = logging.getLogger(__name__)

Work: TypeAlias = Callable[[], Awaitable[object]]

RESTARTS = Backoff(initial_s=0.5, factor=2.0, max_s=60.0, jitter=0.1)
STEADY_S = 300.0  # a task that ran for this long without a failure starts over with short delays
STOP_TIMEOUT_S = 10.0  # for a task to end after its cancellation


class Supervisor:
    """Runs background tasks for the length of an `async with` block, and beyond no failure.

    Args:
        backoff: the delays between a failure and the next start of the same task.
        steady_s: how long a task must run before its failures count from zero again.
        stop_timeout_s: how long a cancelled task may take to end before it is left alone.
        clock, sleep, random: handed in by tests.
    """

    def __init__(
        self,
        *,
        backoff: Backoff = RESTARTS,
        steady_s: float = STEADY_S,
        stop_timeout_s: float = STOP_TIMEOUT_S,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.failures: Counter[str] = Counter()  # by the kind of task
        self._backoff = backoff
        self._steady_s = steady_s
        self._stop_timeout_s = stop_timeout_s
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Supervisor of {len(self)} tasks, {self.failures.total()} failures>"

    def __len__(self) -> int:
        return len(self._tasks)

    async def __aenter__(self) -> Supervisor:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(self._tasks)

    def start(self, kind: str, work: Work, *, about: str = "") -> asyncio.Task[None]:
        """Starts a task that runs `work` until it returns, and again whenever it fails.

        `kind` names what it does, `about` whom for. The caller may `stop` it; the end of the
        supervisor does so at the latest.
        """
        name = f"{kind} {about}".strip()
        task = asyncio.create_task(self._keep(kind, name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def every(
        self, interval_s: float, kind: str, work: Callable[[], Awaitable[object] | None]
    ) -> asyncio.Task[None]:
        """Starts a task that calls `work` again and again, `interval_s` after it was done."""
        return self.start(kind, partial(self._repeat, interval_s, work))

    async def stop(
        self, tasks: Collection[asyncio.Task[Any]], *, timeout_s: float | None = None
    ) -> None:
        """Cancels tasks and waits for their ends; one that does not end in time is reported.

        Each time that this is cancelled itself, they are cancelled once more. It still waits for
        them: whoever saw `stop` end may rely on nothing of theirs being left.
        """
        limit_s = self._stop_timeout_s if timeout_s is None else timeout_s
        clock = asyncio.get_running_loop().time
        deadline = clock() + limit_s
        late = {task for task in tasks if not task.done()}
        cancelled: asyncio.CancelledError | None = None
        for task in late:
            task.cancel()
        while late and (rest_s := deadline - clock()) > 0:
            try:
                _, late = await asyncio.wait(late, timeout=rest_s)
            except asyncio.CancelledError as exc:
                cancelled = exc
                for task in late:
                    task.cancel()
        for task in late:
            logger.error("background task %s does not end", task.get_name())
        if cancelled is not None:
            raise cancelled

    async def _repeat(
        self, interval_s: float, work: Callable[[], Awaitable[object] | None]
    ) -> None:
        while True:
            await self._sleep(interval_s)
            if (pending := work()) is not None:
                await pending

    async def _keep(self, kind: str, name: str, work: Work) -> None:
        """One run after the other, until one returns."""
        in_a_row = 0
        clock = self._clock or asyncio.get_running_loop().time
        while True:
            start = clock()
            try:
                await work()
            except asyncio.CancelledError as exc:
                if _is_stopped():
                    raise
                failure: BaseException = exc  # of something that it awaited
            except (Exception, SystemExit) as exc:  # noqa: BLE001 - it is logged, and the task goes on
                failure = exc
            else:
                return
            in_a_row = 1 if clock() - start >= self._steady_s else in_a_row + 1
            delay_s = self._backoff.delay_s(in_a_row - 1, self._random)
            self._note(kind, name, failure, delay_s, is_first=in_a_row == 1)
            await self._sleep(delay_s)

    def _note(
        self, kind: str, name: str, failure: BaseException, delay_s: float, *, is_first: bool
    ) -> None:
        self.failures[kind] += 1
        logger.error(
            "background task %s failed, and starts again in %.1f s: %s: %s",
            name,
            delay_s,
            type(failure).__name__,
            " ".join(str(failure).split()) or "no reason given",
            exc_info=failure if is_first else None,
        )


def _is_stopped() -> bool:
    """Whether the current task itself was cancelled, and not only what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
