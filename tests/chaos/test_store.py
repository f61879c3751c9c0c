"""Two routers on one Redis; conversations go from one to the other, and any of the three may die.

`SLIME_ROUTER_CHAOS=4` kills them twelve times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.chaos.chats import Chat, new_chats
from tests.chaos.fleet import FLAGS, Fleet
from tests.chaos.processes import POLL_S, RouterProcess
from tests.chaos.test_journal import SCALE, SEED, TURNS, PatientAgents
from tests.integration.gateway import checkpoint
from tests.redis_server import RedisServer
from tests.sglang.child import say

CHATS = 12  # for each kill
OVERDUE_S = 200.0
KILLS = 3  # one of each

pytestmark = [
    pytest.mark.timeout(240 + 120 * SCALE),
    pytest.mark.slow,
    pytest.mark.redis,
]


class SpreadAgents(PatientAgents):
    """Each request goes to one of the routers, whichever had the one before."""

    def __init__(self, urls: list[str], random: Random) -> None:
        self._urls = urls
        self._random = random
        super().__init__(urls[0])

    async def _ask(self, chat: Chat, fields: dict[str, Any], is_streamed: bool) -> tuple[str, str]:
        while True:
            try:
                return await super()._ask(chat, fields, is_streamed)
            except AssertionError as exc:  # a stream that could not be kept ends with an error
                if "journal_failed" not in str(exc):
                    raise
                self.tries += 1
            await asyncio.sleep(POLL_S)

    @property
    def _url(self) -> str:
        return self._random.choice(self._urls)

    @_url.setter
    def _url(self, _: str) -> None:
        """There are several."""


class SharedFleet(Fleet):
    """Two routers and a Redis."""

    def __init__(self, checkpoint: Path, directory: Path) -> None:
        self.redis = RedisServer(directory / "redis")
        store = ("--store", self.redis.url, "--store-on-error", "stop")
        super().__init__(checkpoint, directory, *store)
        urls = [worker.url for worker in self.workers]
        self.other = RouterProcess(
            checkpoint, directory / "other.log", "--worker-urls", *urls, *FLAGS, *store
        )

    async def start(self) -> None:
        self.redis.start()
        await asyncio.to_thread(self.redis.wait_ready)
        self.other.start()
        await super().start()
        await self.other.wait_ready()

    def kill(self) -> None:
        super().kill()
        self.other.kill()
        self.redis.kill()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[SharedFleet]:
    fleet = SharedFleet(checkpoint(), tmp_path)
    yield fleet
    fleet.kill()


@pytest.mark.parametrize("seed", range(SEED, SEED + SCALE))
async def test_every_turn_that_was_read_is_in_the_rows_whoever_was_killed(fleet, seed):
    """Routers and Redis are killed in turn; each conversation goes on exact, on any router."""
    say(f"seed {seed}")
    random = Random(f"store {seed}")
    chats: list[Chat] = []
    await fleet.start()
    async with SpreadAgents([fleet.router.url, fleet.other.url], random) as agents:
        async with asyncio.timeout(OVERDUE_S):
            for number in range(KILLS):  # each in the middle of other chats
                some = new_chats(f"store {seed} {number}", CHATS, TURNS)
                chats += some
                holding = asyncio.create_task(agents.hold_all(some))
                await fleet.busy_worker(random)
                await asyncio.wait([holding], timeout=random.uniform(0.05, 0.5))
                victim = (fleet.router, fleet.redis, fleet.other)[number % 3]
                victim.kill()
                victim.start()
                if victim is fleet.redis:
                    await asyncio.to_thread(victim.wait_ready)
                else:
                    await victim.wait_ready()
                await holding
        assert agents.tries > 0, "no kill was felt"
        fleet.other.kill()  # what it had in memory counts as well
        await fleet.wait_read()
        await fleet.check(agents_of(agents, fleet), chats)
    fleet.check_log()


def agents_of(agents: SpreadAgents, fleet: SharedFleet) -> SpreadAgents:
    """They ask the router that is left."""
    agents._urls = [fleet.router.url]
    return agents
