"""Background tasks that fail: each goes on, and says why."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import pytest

from slime_router.pool.backoff import Backoff
from slime_router.supervisor import Supervisor

DELAYS = Backoff(initial_s=1.0, factor=2.0, max_s=8.0, jitter=0.0)


class Clock:
    """Time that passes only when somebody sleeps; each sleep yields once."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        self.now += delay_s
        await asyncio.sleep(0)


def supervisor(clock: Clock, **settings: float) -> Supervisor:
    return Supervisor(
        backoff=DELAYS, clock=lambda: clock.now, sleep=clock.sleep, random=lambda: 0.5, **settings
    )


async def steps(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Broken:
    """Fails with these, one after the other, and then returns."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.runs = 0

    async def __call__(self) -> None:
        self.runs += 1
        if self.failures:
            raise self.failures.pop(0)


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("no\nsuch host"),
        OSError(24, "too many files"),
        SystemExit(3),
        RecursionError(),
        asyncio.CancelledError("of something else"),
        ExceptionGroup("several", [ValueError("one")]),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_no_failure_ends_a_task(failure, caplog):
    clock, work = Clock(), Broken(failure)
    async with supervisor(clock) as watching:
        task = watching.start("health watch", work, about="http://a")
        await steps()
        assert task.done()
        assert task.exception() is None
    assert work.runs == 2
    assert watching.failures == {"health watch": 1}
    [line] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "health watch http://a" in line.message
    assert type(failure).__name__ in line.message
    assert "\n" not in line.message
    assert line.exc_info is not None


async def test_a_task_that_keeps_failing_is_started_less_and_less_often(caplog):
    clock, work = Clock(), Broken(*[ValueError("x")] * 6)
    async with supervisor(clock) as watching:
        watching.start("sweep", work)
        await steps()
    assert clock.slept == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert (len(watching), watching.failures.total()) == (0, 6)
    assert [bool(record.exc_info) for record in caplog.records] == [True] + [False] * 5


async def test_a_failure_after_a_long_good_run_is_the_first_again():
    clock = Clock()
    runs = []

    async def work() -> None:
        runs.append(clock.now)
        if len(runs) > 4:
            return
        if len(runs) == 3:
            clock.now += 100.0
        raise ValueError

    async with supervisor(clock, steady_s=100.0) as watching:
        watching.start("sweep", work)
        await steps()
    assert clock.slept == [1.0, 2.0, 1.0, 2.0]


async def test_what_is_called_again_and_again_survives_a_failure():
    clock, seen = Clock(), []

    def look() -> None:
        seen.append(clock.now)
        if len(seen) == 2:
            raise RuntimeError("once")

    async with supervisor(clock) as watching:
        watching.every(5.0, "slow clients", look)
        while len(seen) < 4:  # noqa: ASYNC110 - the clock is ours
            await asyncio.sleep(0)
        assert len(watching) == 1
    assert seen == [5.0, 10.0, 16.0, 21.0]
    assert len(watching) == 0


async def test_the_end_cancels_all_and_waits_for_what_they_still_do():
    done: list[str] = []

    async def careful() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            done.append("closed")

    async with supervisor(Clock()) as watching:
        watching.start("one", careful)
        watching.start("two", Broken(*[ValueError()] * 1000))
        await steps()
        assert len(watching) == 2
    assert done == ["closed"]
    assert len(watching) == 0
    assert watching.failures["one"] == 0, "a stop is not a failure"


async def test_a_task_that_does_not_end_is_reported_and_left(caplog):
    ends = asyncio.Event()

    async def deaf() -> None:
        while not ends.is_set():
            try:
                await ends.wait()
            except asyncio.CancelledError:
                continue

    watching = Supervisor(stop_timeout_s=0.0)
    task = watching.start("deaf", deaf)
    await steps()
    await watching.stop([task])
    assert "background task deaf does not end" in caplog.text
    ends.set()
    await task


async def test_an_interrupted_stop_cancels_once_more():
    count = 0

    async def slow() -> None:
        nonlocal count
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                count += 1

    watching = Supervisor()
    task = watching.start("slow", slow)
    await steps()
    stopping = asyncio.create_task(watching.stop([task]))
    await steps()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert task.done()
    assert count == 2


async def test_a_stop_that_is_cancelled_waits_for_the_clean_up_all_the_same():
    """A process that is being killed, say: the next to use its port must find it gone."""
    is_clean = False

    async def slow() -> None:
        nonlocal is_clean
        for _ in range(2):
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        await steps()
        is_clean = True

    watching = Supervisor()
    task = watching.start("slow", slow)
    await steps()
    stopping = asyncio.create_task(watching.stop([task]))
    await steps()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert is_clean
