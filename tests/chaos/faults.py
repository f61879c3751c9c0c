"""What goes wrong in a fleet, each fault as a coroutine that has healed when it returns.

The worker that it is given is in the middle of a generation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from typing import TypeAlias

from tests.chaos.fleet import Fleet
from tests.chaos.processes import WorkerProcess

Fault: TypeAlias = Callable[[Fleet, WorkerProcess], Coroutine[None, None, None]]

DOWN_S = 0.3
HUNG_S = 30.0  # much longer than two probes take
PAUSED_S = 0.3
TIMES = 4


async def killed(_: Fleet, worker: WorkerProcess) -> None:
    """SIGKILL in the middle of what it says; it comes back under its old port."""
    worker.kill()
    await asyncio.sleep(DOWN_S)
    worker.start()
    await worker.wait_ready()


async def all_killed(fleet: Fleet, _: WorkerProcess) -> None:
    """Nobody is left for a while."""
    for victim in fleet.workers:
        victim.kill()
    await asyncio.sleep(DOWN_S)
    for victim in fleet.workers:
        victim.start()
    await asyncio.gather(*(victim.wait_ready() for victim in fleet.workers))


async def hung(fleet: Fleet, worker: WorkerProcess) -> None:
    """Its connections stay open and nothing comes, until the router gives it up."""

    async def deaths() -> int:
        return int((await fleet.router.get("/metrics"))["fleet"]["deaths"])

    before = await deaths()
    worker.stop()
    try:
        async with asyncio.timeout(HUNG_S):
            while await deaths() == before:  # noqa: ASYNC110 - another process sets no event
                await asyncio.sleep(0.1)
    finally:
        worker.go_on()


async def paused_in_place(fleet: Fleet, _: WorkerProcess) -> None:
    """Generation rests and goes on where it was."""
    await fleet.pause("in_place")
    await asyncio.sleep(PAUSED_S)
    await fleet.go_on()


async def paused_with_abort(fleet: Fleet, _: WorkerProcess) -> None:
    """What runs is aborted, and new requests wait; then weights change, as slime does it."""
    await fleet.pause("abort")
    await asyncio.sleep(PAUSED_S)
    await fleet.update_weights()
    await fleet.go_on()


async def updated(fleet: Fleet, _: WorkerProcess) -> None:
    """New weights without a pause: all that runs is aborted once."""
    await fleet.update_weights()


async def left_and_joined(fleet: Fleet, worker: WorkerProcess) -> None:
    """It is asked to leave while it talks; it ends what it has, and comes again."""
    await fleet.leave(worker)
    await asyncio.sleep(DOWN_S)
    await fleet.join(worker)


def _failing(kind: str, **how: int) -> Fault:
    async def fault(_: Fleet, worker: WorkerProcess) -> None:
        await worker.fail(kind, times=TIMES, **how)

    return fault


LIGHT: Mapping[str, Fault] = {
    "answers garbage": _failing("garbage"),
    "talks nonsense mid-stream": _failing("nonsense"),
    "resets before it answers": _failing("reset"),
    "resets mid-stream": _failing("reset", after_bytes=900),
    "answers 500": _failing("status", status=500),
    "answers 503": _failing("status", status=503),
    "answers 429": _failing("status", status=429),
}
HEAVY: Mapping[str, Fault] = {
    "is killed": killed,
    "and all others are killed": all_killed,
    "hangs": hung,
    "pauses in place": paused_in_place,
    "pauses and aborts": paused_with_abort,
    "gets new weights": updated,
    "leaves and joins": left_and_joined,
}
FAULTS: Mapping[str, Fault] = {**LIGHT, **HEAVY}


async def storm(fleet: Fleet, random: Random, events: list[str]) -> None:
    """One fault after the other, until it is cancelled; `events` grows by each.

    Of three workers one at a time is down or hangs, and another one answers badly: a request that
    breaks on four workers in a row is taken for one that breaks workers.
    """
    names = [name for name in HEAVY if name != "and all others are killed"]
    while True:
        victim = await fleet.busy_worker(random)
        other = random.choice([worker for worker in fleet.workers if worker is not victim])
        light, heavy = random.choice(list(LIGHT)), random.choice(names)
        events.append(f"{other.url} {light}; {victim.url} {heavy}")
        async with asyncio.TaskGroup() as group:
            group.create_task(LIGHT[light](fleet, other))
            group.create_task(HEAVY[heavy](fleet, victim))
        await other.heal()
        await asyncio.sleep(random.uniform(0, 0.2))
