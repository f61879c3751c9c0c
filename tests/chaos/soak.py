"""A soak: storms of all faults, one after the other, and clients that leave, for many minutes.

    python -m tests.chaos.soak --minutes 20

At the end the router holds no more memory than after the first quarter (within a tenth), no more
files than at the start, and nothing runs. Each storm's chats are checked to the last token.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from tests.chaos.chats import new_chats
from tests.chaos.faults import storm
from tests.chaos.fleet import SPARE_FILES, Fleet
from tests.chaos.processes import eventually
from tests.integration.gateway import checkpoint
from tests.sglang.child import say

CHATS, TURNS = 200, 5  # of each storm
LEAVERS = 40  # clients at a time that hang up in the middle
MAX_GROWTH = 1.1
OVERDUE_S = 180.0
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Footprint:
    """What the router holds when all is quiet."""

    memory_kib: int
    files: int
    turns: int  # recorded since the start
    sessions: int  # that there have been since the start

    def __str__(self) -> str:
        return (
            f"{self.memory_kib / 1024:.0f} MiB, {self.files} files,"
            f" {self.turns} turns, {self.sessions} sessions"
        )


async def soak(fleet: Fleet, minutes: float) -> list[Footprint]:
    """One storm after the other; what is held after each."""
    end = time.monotonic() + 60 * minutes
    found: list[Footprint] = []
    while time.monotonic() < end or len(found) < 4:
        number = len(found) + 1
        await _storm(fleet, number)
        found.append(await _footprint(fleet, (CHATS + LEAVERS) * number))
        say(f"storm {number}: {found[-1]}")
    return found


async def _storm(fleet: Fleet, seed: int) -> None:
    chats = new_chats(f"soak {seed}", CHATS, TURNS)
    events: list[str] = []
    async with fleet.agents() as agents:
        blowing = asyncio.create_task(storm(fleet, Random(seed), events))
        leaving = asyncio.create_task(_leave(fleet.router.url, seed))
        try:
            async with asyncio.timeout(OVERDUE_S):
                await agents.hold_all(chats)
        finally:
            for task in (blowing, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await fleet.mend()
        await fleet.check(agents, chats)
    await fleet.forget_sessions()
    await fleet.wait_whole()


async def _leave(url: str, seed: int) -> None:
    """Clients that ask, read a little, and hang up, again and again, each in its own session."""
    random = Random(seed)
    async with aiohttp.ClientSession(url) as http:
        while True:
            names = (f"leaver {seed} {number}" for number in range(LEAVERS))
            await asyncio.gather(*(_hang_up(http, random, name) for name in names))


async def _hang_up(http: aiohttp.ClientSession, random: Random, session: str) -> None:
    body = {
        "messages": [{"role": "user", "content": f"leaver {random.random()}"}],
        "stream": random.random() < 0.7,
        "max_tokens": 50,
    }
    headers = {"x-session-id": session}
    with suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
        async with asyncio.timeout(random.uniform(0.05, 1.0)):
            async with http.post(CHAT, json=body, headers=headers) as response:
                await response.content.readany()


async def _footprint(fleet: Fleet, sessions: int) -> Footprint:
    figures: dict[str, Any] = await fleet.router.get("/metrics")
    assert figures["fleet"]["running"] == 0, figures["fleet"]
    assert figures["router"]["total_in_flight"] == 0, figures["router"]
    assert figures["admission"]["running"] == 0, figures["admission"]
    return Footprint(
        fleet.router.memory_kib(),
        fleet.router.open_files(),
        figures["trajectories"]["recorded_turns"],
        sessions,
    )


async def run(minutes: float, directory: Path) -> int:
    """The exit status: 0 if nothing grew."""
    fleet = Fleet(checkpoint(), directory)
    try:
        await fleet.start()
        files = fleet.router.open_files()
        found = await soak(fleet, minutes)
        fleet.check_log()

        async def are_closed() -> None:  # idle connections are kept for a few seconds
            assert fleet.router.open_files() <= files + SPARE_FILES

        await eventually(are_closed, "connections closed", process=fleet.router)
    finally:
        fleet.kill()
    quarter, last = found[len(found) // 4], found[-1]
    growth = last.memory_kib / quarter.memory_kib
    say(f"memory at the end over that at a quarter: {growth:.3f}")
    return int(growth > MAX_GROWTH)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (default: 20)")
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(run(parser.parse_args().minutes, Path(directory)))


if __name__ == "__main__":
    sys.exit(main())
