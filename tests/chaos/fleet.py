"""A router and three scripted workers, and what must hold of them when the storm is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import aiohttp
from yarl import URL

from tests.chaos.chats import Agents, Chat, Diaries, check
from tests.chaos.oracle import Oracle
from tests.chaos.processes import POLL_S, RouterProcess, WorkerProcess, ask, eventually, tail

WORKERS = 3
PACE_MS = 6.0
SPARE_FILES = 16  # connections that wait to be used again
CHAT = "/v1/chat/completions"
TRIAL = {"model": "m", "messages": [{"role": "user", "content": "Well?"}], "max_tokens": 4}
FLAGS = (
    *("--health-check-interval-secs", "1"),
    *("--health-check-timeout-secs", "0.7"),
    *("--health-failure-threshold", "2"),
    *("--cb-timeout-duration-secs", "1"),
    *("--radix-tree-max-size", "20000"),  # so that it is full, and memory flat, soon
    *("--max-stored-tokens", "1000000"),
)


class Fleet:
    """The processes; they run while its `async with` block does."""

    def __init__(self, checkpoint: Path, directory: Path, *flags: str) -> None:
        self.oracle = Oracle(checkpoint)
        self.workers = [
            WorkerProcess(checkpoint, directory, f"worker-{number}", PACE_MS)
            for number in range(WORKERS)
        ]
        urls = [worker.url for worker in self.workers]
        self.router = RouterProcess(
            checkpoint, directory / "router.log", "--worker-urls", *urls, *FLAGS, *flags
        )
        self._diaries = Diaries(self.oracle, [worker.diary for worker in self.workers])
        self._version = 0

    async def start(self) -> None:
        """Starts all, and waits until the router serves with all of them."""
        for process in (*self.workers, self.router):
            process.start()
        await asyncio.gather(*(process.wait_ready() for process in (*self.workers, self.router)))
        await self.wait_whole()

    def kill(self) -> None:
        """Ends all, however they are."""
        for process in (self.router, *self.workers):
            process.kill()

    @asynccontextmanager
    async def agents(self) -> AsyncIterator[Agents]:
        """Agents that talk to the router; a failure ends with what it logged."""
        async with Agents(self.router.url) as agents:
            try:
                yield agents
            except BaseException as exc:
                exc.add_note(f"{self.router.log} ends with:\n{tail(self.router.log)}")
                raise

    async def busy_worker(self, random: Random) -> WorkerProcess:
        """One that is in the middle of a generation; waits until there is one."""
        while True:
            for worker in random.sample(self.workers, WORKERS):
                if await worker.is_mid_stream():
                    return worker
            await asyncio.sleep(POLL_S)

    async def check(self, agents: Agents, chats: list[Chat]) -> None:
        """All chats are whole, to the last token; then their sessions are deleted."""
        self._diaries.read()
        for chat in chats:
            check(chat, await agents.rows(chat), self.oracle, self._diaries)
            await self.router.delete(f"/sessions/{chat.session_id}")

    async def mend(self) -> None:
        """Undoes what a fault has left behind that was cut short, or a test that failed."""
        for worker in self.workers:
            if not worker.is_running:
                worker.start()
            await worker.wait_ready()
            await worker.heal()
            await self.join(worker)
        await self.go_on()

    async def forget_sessions(self) -> None:
        """Deletes all that a test which failed has left."""
        for session in (await self.router.get("/sessions"))["sessions"]:
            await self.router.delete(f"/sessions/{session['session_id']}")

    async def wait_read(self) -> None:
        """Until the router has read its journal."""
        await eventually(self._is_read, "the journal read", process=self.router)

    async def _is_read(self) -> None:
        await self.router.get("/sessions")

    async def wait_whole(self) -> None:
        """Until the fleet is as it was: all serve, nobody does anything, nothing is kept."""
        await eventually(self._are_trusted, "closed circuit breakers", process=self.router)
        await eventually(self._is_whole, "a whole fleet", process=self.router)

    async def _are_trusted(self) -> None:
        """A circuit breaker that has opened closes by requests alone: here is one more."""
        states = {w["circuit_breaker"] for w in (await self.router.get("/workers"))["workers"]}
        if states != {"closed"}:
            session = f"/sessions/{uuid4().hex}"
            await self.router.post(session + CHAT, TRIAL)
            await self.router.delete(session)
        assert states == {"closed"}, states

    async def _is_whole(self) -> None:
        listed = (await self.router.get("/workers"))["workers"]
        assert {w["url"] for w in listed} == {w.url for w in self.workers}, listed
        for entry in listed:
            found = (entry["status"], entry["is_healthy"], entry["load"], entry["circuit_breaker"])
            assert found == ("ready", True, 0, "closed"), entry
        assert (await self.router.get("/readiness"))["status"] == "ready"
        figures = await self.router.get("/metrics")
        assert figures["router"]["total_in_flight"] == 0, figures["router"]
        assert set(figures["router"]["worker_loads"].values()) == {0}, figures["router"]
        trajectories = figures["trajectories"]
        assert (trajectories["sessions"], trajectories["turns"]) == (0, 0), trajectories
        counts = figures["chat_completion"]
        assert counts["started"] == counts["finished"] + counts["failed"], counts
        for worker in self.workers:
            state = await worker.state()
            assert not state["running"], (worker, state)
            assert state["faults"] == 0, (worker, state)
            assert not state["is_paused"], (worker, state)

    def log(self) -> str:
        """What the router has logged so far."""
        return self.router.log.read_text(encoding="utf-8")

    def check_log(self) -> None:
        """The router never met what it did not expect."""
        log = self.log()
        for words in ("Traceback", "never retrieved", "was never awaited", "Unclosed"):
            assert words not in log, log[max(log.index(words) - 500, 0) :][:3000]

    # What an operator does

    async def update_weights(self) -> None:
        """New weights, for which everything that runs is aborted."""
        self._version += 1
        fields = {
            "model_path": "next",
            "weight_version": f"v{self._version}",
            "abort_all_requests": True,
        }
        await self._tell_all("/update_weights_from_disk", fields)

    async def pause(self, mode: str) -> None:
        """Generation rests, on all workers that can hear it."""
        await self._tell_all("/pause_generation", {"mode": mode})

    async def go_on(self) -> None:
        """Generation goes on."""
        await self._tell_all("/continue_generation", {})

    async def leave(self, worker: WorkerProcess) -> None:
        """The worker gets nothing new, and is gone when it has nothing more to do."""
        url = f"{self.router.url}/workers/{quote(worker.url, safe='')}"
        await ask("DELETE", URL(url, encoded=True))

    async def join(self, worker: WorkerProcess) -> None:
        """The worker serves (again)."""
        await self.router.post("/workers", {"url": worker.url})

    async def _tell_all(self, path: str, body: dict[str, Any]) -> None:
        """Some of them may be dead: 207, or whatever the first of them came to."""
        async with (
            aiohttp.ClientSession(self.router.url) as http,
            http.post(path, json=body) as answer,
        ):
            await answer.read()
