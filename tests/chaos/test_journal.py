"""No turn that a client has read is lost when the router is killed: real processes, `kill -9`.

`SLIME_ROUTER_CHAOS=4` kills it twenty times.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import httpx
import openai
import pytest

from tests.chaos.chats import Agents, Chat, Unready, new_chats
from tests.chaos.fleet import Fleet
from tests.chaos.processes import POLL_S
from tests.integration.gateway import checkpoint
from tests.sglang.child import say

SCALE = int(os.environ.get("SLIME_ROUTER_CHAOS", "1"))
SEED = int(os.environ.get("SLIME_ROUTER_CHAOS_SEED", "1"))
KILLS, CHATS, TURNS = 5, 100, 8
OVERDUE_S = 120.0
BREAKS = (aiohttp.ClientError, ConnectionError, httpx.HTTPError, openai.APIError)

pytestmark = [pytest.mark.timeout(240 + 120 * SCALE), pytest.mark.slow]


class PatientAgents(Agents):
    """They ask again for as long as the router is not there."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.tries = 0

    async def _open(self, chat: Chat) -> None:
        body = {"session_id": chat.session_id}
        while True:
            try:
                async with self._http.post(f"{self._url}/sessions", json=body) as answer:
                    if answer.status in (201, 409):  # or it was opened, and could not say so
                        return
                    assert answer.status == 503, await answer.text()
            except BREAKS:
                self.tries += 1
            await asyncio.sleep(POLL_S)

    async def _ask(self, chat: Chat, fields: dict[str, Any], is_streamed: bool) -> tuple[str, str]:
        while True:
            try:
                return await super()._ask(chat, fields, is_streamed)
            except (*BREAKS, Unready):
                self.tries += 1
            await asyncio.sleep(POLL_S)

    async def _ask_sdk(
        self, chat: Chat, fields: dict[str, Any], is_streamed: bool
    ) -> tuple[str, str]:
        while True:
            try:
                return await super()._ask_sdk(chat, {**fields}, is_streamed)
            except BREAKS:
                self.tries += 1
            await asyncio.sleep(POLL_S)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(checkpoint(), tmp_path, "--journal", str(tmp_path / "journal"))
    yield fleet
    fleet.kill()


@pytest.mark.parametrize("seed", range(SEED, SEED + SCALE))
async def test_every_turn_that_was_read_is_in_the_rows_of_a_router_that_was_killed(fleet, seed):
    """100 sessions, streamed and whole; each goes on with the earlier tokens, to the last one."""
    say(f"seed {seed}")
    random = Random(f"kills {seed}")
    chats = new_chats(f"kills {seed}", CHATS, TURNS)
    await fleet.start()
    async with PatientAgents(fleet.router.url) as agents:
        async with asyncio.timeout(OVERDUE_S):
            holding = asyncio.create_task(agents.hold_all(chats))
            for _ in range(KILLS):
                await asyncio.wait([holding], timeout=random.uniform(0.05, 1.0))
                await fleet.busy_worker(random)
                fleet.router.kill()
                fleet.router.start()
                await fleet.router.wait_ready()
            await holding
        assert agents.tries > 0, "no kill was felt"
        fleet.router.kill()  # what was read last counts as well
        fleet.router.start()
        await fleet.router.wait_ready()
        await fleet.wait_read()
        await fleet.check(agents, chats)
    fleet.check_log()
