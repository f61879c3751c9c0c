"""No request is lost, doubled or shortened, whatever becomes of the workers: real processes.

`SLIME_ROUTER_CHAOS=10` makes the storm ten times as long, `SLIME_ROUTER_CHAOS_SEED=7` another one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from random import Random

import pytest

from tests.chaos.chats import Chat, new_chats
from tests.chaos.faults import FAULTS, storm
from tests.chaos.fleet import SPARE_FILES, Fleet
from tests.chaos.processes import eventually
from tests.integration.gateway import checkpoint
from tests.sglang.child import ROOT, say

SCALE = int(os.environ.get("SLIME_ROUTER_CHAOS", "1"))
SEED = int(os.environ.get("SLIME_ROUTER_CHAOS_SEED", "1"))
STORM_CHATS, NEXT_CHATS, STORM_TURNS = 200, 100, 5
FEW_CHATS, FEW_TURNS = 20, 3
PARTS = 3  # times that they are held, at most, until the fault has shown
MAX_GROWTH = 1.1  # of the router's memory, from one storm to the next
OVERDUE_S = 60.0
GAUGES = ("up", "paused")  # as before when all is over
SIGNS = {  # of each fault: what grows in `/metrics` under `fleet`, and what the log says
    "answers garbage": ("retried", "retrying: "),
    "talks nonsense mid-stream": ("moved", "retrying: "),
    "resets before it answers": ("retried", "retrying: "),
    "resets mid-stream": ("moved", "retrying: "),
    "answers 500": ("retried", "The worker failed with status 500."),
    "answers 503": ("retried", "retrying: "),
    "answers 429": ("retried", "retrying: "),
    "is killed": ("deaths", "is down: it refuses connections"),
    "and all others are killed": ("waited", "is down: it refuses connections"),
    "hangs": ("deaths", "is down: it answers no probe"),
    "pauses in place": ("paused", "POST /pause_generation 200"),
    "pauses and aborts": ("resumed", "runs weights"),
    "gets new weights": ("resumed", "runs weights"),
    "leaves and joins": ("up", "leaves, "),
}

pytestmark = [pytest.mark.timeout(180 + 60 * SCALE), pytest.mark.slow]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One fleet for all tests: each leaves it whole."""
    fleet = Fleet(checkpoint(), tmp_path_factory.mktemp("chaos"))
    try:
        asyncio.run(fleet.start())
        yield fleet
        fleet.check_log()
    finally:
        fleet.kill()


@pytest.fixture
async def fleet(processes: Fleet) -> Fleet:
    """Whole, also when the test before has failed."""
    await processes.mend()
    await processes.forget_sessions()
    await processes.wait_whole()
    return processes


@pytest.mark.parametrize("name", FAULTS)
async def test_no_token_is_lost_or_doubled_when_a_worker(fleet, name):
    """Whole and streamed chats, and their rows, are what the model says of them; it heals.

    The log and `/metrics` show the fault as `docs/operations.md` says.
    """
    say(f"seed {SEED}")
    count, words = SIGNS[name]
    before, log_len = await fleet.router.get("/metrics"), len(fleet.log())
    for part in range(PARTS):  # a fault waits for requests: those under way may have been the last
        await _hold_through(fleet, name, new_chats(f"{name} {SEED} {part}", FEW_CHATS, FEW_TURNS))
        after = await fleet.router.get("/metrics")
        if count in GAUGES or after["fleet"][count] > before["fleet"][count]:
            break
    else:
        pytest.fail(f"no sign of it: {after['fleet']}")
    assert words in fleet.log()[log_len:]
    assert after["chat_completion"]["failed"] == before["chat_completion"]["failed"]


async def _hold_through(fleet: Fleet, name: str, chats: list[Chat]) -> None:
    """Chats, and a fault while they are under way; then all is as it was."""
    async with fleet.agents() as agents:
        async with asyncio.timeout(OVERDUE_S), asyncio.TaskGroup() as group:
            group.create_task(agents.hold_all(chats))
            victim = await fleet.busy_worker(Random(f"{SEED} {name}"))
            await FAULTS[name](fleet, victim)
        await fleet.check(agents, chats)
    await fleet.wait_whole()


def test_the_operators_page_names_each_sign():
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.partition("## What each failure looks like")[2].partition("\n## ")[0]
    for count, words in SIGNS.values():
        assert f"`{count}`" in section
        assert words.strip() in section


async def test_a_storm_of_all_faults_costs_no_token_and_no_memory(fleet):
    """200 chats at once, and more in further storms: then the router is as after the first."""
    files = fleet.router.open_files()
    memory_kib = []
    for seed in range(SEED, SEED + 1 + SCALE):
        say(f"seed {seed}")
        await hold_chats_in_a_storm(fleet, STORM_CHATS if seed == SEED else NEXT_CHATS, seed)
        memory_kib.append(fleet.router.memory_kib())
    assert memory_kib[-1] <= memory_kib[0] * MAX_GROWTH, memory_kib

    async def are_closed() -> None:  # idle connections are kept for a few seconds
        assert fleet.router.open_files() <= files + SPARE_FILES

    await eventually(are_closed, "connections closed", process=fleet.router)


async def hold_chats_in_a_storm(fleet: Fleet, count: int, seed: int) -> None:
    chats = new_chats(f"storm {seed}", count, STORM_TURNS)
    events: list[str] = []
    async with fleet.agents() as agents:
        blowing = asyncio.create_task(storm(fleet, Random(seed), events))
        try:
            async with asyncio.timeout(OVERDUE_S):
                await agents.hold_all(chats)
        finally:
            say("\n".join(events))
            blowing.cancel()
            with suppress(asyncio.CancelledError):
                await blowing
        await fleet.mend()
        await fleet.check(agents, chats)
    await fleet.wait_whole()
