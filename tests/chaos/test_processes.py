"""One of two processes of a router is killed, again and again: real processes, `kill -9`.

`SLIME_ROUTER_CHAOS=4` kills twenty times.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import orjson
import pytest

from tests.chaos.chats import new_chats
from tests.chaos.fleet import Fleet
from tests.chaos.processes import POLL_S, eventually
from tests.chaos.test_journal import BREAKS, OVERDUE_S, SCALE, SEED, PatientAgents
from tests.integration.gateway import checkpoint
from tests.integration.test_processes import children_of
from tests.sglang.child import say

PROCESSES, KILLS, CHATS, TURNS, STRANGERS = 2, 5, 60, 8, 20

pytestmark = [pytest.mark.timeout(240 + 120 * SCALE), pytest.mark.slow]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    flags = ("--processes", str(PROCESSES), "--journal", str(tmp_path / "journal"))
    fleet = Fleet(checkpoint(), tmp_path, *flags)
    yield fleet
    fleet.kill()


async def wait_whole(fleet: Fleet) -> None:
    """Until all processes answer each other."""

    async def is_whole() -> None:
        health = await fleet.router.get("/health")
        assert health["processes"] == {"count": PROCESSES, "answering": PROCESSES}, health

    await eventually(is_whole, "all processes", process=fleet.router, timeout_s=60.0)


async def hold_stranger(url: str, name: str, turns: int) -> int:
    """A conversation without any name, each request on its own connection.

    Returns how often it had to ask again. Every turn but the first goes on with held tokens.
    """
    messages: list[dict[str, Any]] = []
    tries = 0
    while len(messages) < 2 * turns:
        asked = [*messages, {"role": "user", "content": f"{name}: {len(messages)}?"}]
        is_streamed = len(messages) % 4 == 0
        text: str | None = None
        receipt: dict[str, Any] = {}
        with suppress(*BREAKS, TimeoutError):
            text, receipt = await ask_once(url, asked, is_streamed)
        if text is None:
            tries += 1
            await asyncio.sleep(POLL_S)
            continue
        expected = "extended" if messages else "fresh"
        assert receipt["status"] in (expected, "branched"), (name, len(messages), receipt)
        assert not messages or receipt["reused"] > 0, (name, receipt)
        messages = [*asked, {"role": "assistant", "content": text}]
    return tries


async def ask_once(
    url: str, messages: list[dict[str, Any]], is_streamed: bool
) -> tuple[str | None, dict[str, Any]]:
    """The text and the receipt; no text where the router cannot serve at present."""
    body = {"model": "tiny", "messages": messages, "stream": is_streamed}
    limit = aiohttp.ClientTimeout(total=60.0)
    async with (
        aiohttp.ClientSession(timeout=limit) as http,
        http.post(f"{url}/v1/chat/completions", json=body) as answer,
    ):
        raw = await answer.read()
        if answer.status == 503:
            return None, {}
        assert answer.status == 200, raw
        receipt = orjson.loads(answer.headers["x-slime-receipt"])
    if not is_streamed:
        return orjson.loads(raw)["choices"][0]["message"]["content"], receipt
    blocks = raw.split(b"\n\n")
    assert blocks[-2:] == [b"data: [DONE]", b""], raw[-500:]
    chunks = [orjson.loads(block.removeprefix(b"data: ")) for block in blocks[:-2]]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks), receipt


@pytest.mark.parametrize("seed", range(SEED, SEED + SCALE))
async def test_nothing_that_was_read_is_lost_with_a_process(fleet, seed):
    """Named and nameless, streamed and whole; each goes on at whichever process it arrives."""
    say(f"seed {seed}")
    random = Random(f"processes {seed}")
    chats = new_chats(f"processes {seed}", CHATS, TURNS)
    await fleet.start()
    await wait_whole(fleet)
    async with PatientAgents(fleet.router.url) as agents, asyncio.timeout(2 * OVERDUE_S):
        strangers = [
            asyncio.create_task(hold_stranger(fleet.router.url, f"stranger {n}", TURNS))
            for n in range(STRANGERS)
        ]
        holding = asyncio.gather(agents.hold_all(chats), *strangers)
        for _ in range(KILLS):
            await asyncio.wait([holding], timeout=random.uniform(0.05, 1.0))
            victim = random.choice(children_of(fleet.router.pid))
            os.kill(victim, signal.SIGKILL)
            await wait_whole(fleet)
        await holding
        tries = sum(stranger.result() for stranger in strangers)
        say(f"asked again: {agents.tries} named, {tries} nameless")
        assert agents.tries + tries > 0, "no kill was felt"
        os.kill(children_of(fleet.router.pid)[0], signal.SIGKILL)  # what was read last counts
        await wait_whole(fleet)
        await fleet.check(agents, chats)
    figures = (await fleet.router.get("/metrics"))["processes"]
    assert figures["answering"] == PROCESSES
    fleet.check_log()
