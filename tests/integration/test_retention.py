"""A router that drops from its journal what was exported."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from slime_router.archive.database import SharedDatabase
from slime_router.archive.shared import SharedArchive
from slime_router.journal import retention
from slime_router.journal.reading import faults, stats
from tests.integration.gateway import CHAT, Served, assistant, serving, tiny_worker, until, user

LATER = 1e6  # seconds: more than anybody waits before going on


@pytest.mark.parametrize("is_shared", [False, True])
async def test_exported_sessions_leave_and_open_ones_stay(tmp_path, monkeypatch, is_shared):
    monkeypatch.setattr(retention, "PERIOD_S", 0.005)
    settings: dict[str, Any] = {"journal": str(tmp_path), "journal_shared": is_shared}
    async with tiny_worker() as worker:
        async with serving(worker.url, journal_max_bytes=1, **settings) as router:
            journal = router.gateway.journal
            assert journal is not None
            await journal.read()
            for name in ("exported", "closed", "open"):
                await router.post("/sessions", {"session_id": name})
                await router.chat([user("Hi")], path=f"/sessions/{name}{CHAT}", max_tokens=2)
            for name in ("exported", "closed"):
                await router.post(f"/sessions/{name}/close", {})
            await router.get("/sessions/exported/rows")
            await until(lambda: journal.figures()["dropped_sessions"] == 1)
            assert (await router.get("/sessions/exported"))[0] == 404
            assert (await router.get("/sessions/closed/rows"))[0] == 200  # and is exported thereby
            await until(lambda: journal.figures()["dropped_sessions"] == 2)
            _, listed = await router.get("/sessions")
            assert [each["session_id"] for each in listed["sessions"]] == ["open"]
            _, found = await router.get("/metrics?format=json")
            assert found["journal"]["dropped_sessions"] == 2
            assert found["journal"]["dropped_unexported_sessions"] == 0
            router.gateway.store.check_integrity()
        async with serving(worker.url, **settings) as router:
            assert router.gateway.journal is not None
            await router.gateway.journal.read()
            assert (await router.get("/sessions/exported"))[0] == 404
            status, _ = await router.get("/sessions/open/rows")
            assert status == 200
            found = stats(router.gateway.journal._archive.database)  # type: ignore[attr-defined]
            assert (found.sessions, found.dropped_sessions, found.dropped_turns) == (1, 2, 2)


@asynccontextmanager
async def journaled(
    url: str, directory: Path, ahead: list[float], **settings: Any
) -> AsyncIterator[tuple[Served, SharedArchive]]:
    """A router whose journal may hold nothing that is idle, on a clock that can be put ahead."""
    given = {"journal": str(directory), "journal_hard_bytes": 1, **settings}
    async with serving(url, **given) as router:
        journal = router.gateway.journal
        assert journal is not None
        closings = database_of(journal).closings
        now = closings.now
        closings.now = lambda: now() + ahead[0]
        await journal.read()
        yield router, journal


def database_of(journal: SharedArchive) -> SharedDatabase:
    database: SharedDatabase = journal._archive.database  # type: ignore[attr-defined]
    return database


async def test_what_nobody_closes_leaves_once_it_is_idle(tmp_path, monkeypatch):
    """A router that has it in memory goes on with it, and writes it again; others start afresh."""
    monkeypatch.setattr(retention, "PERIOD_S", 0.005)
    paths = {"anonymous": CHAT, "implicit": f"/sessions/implicit{CHAT}"}
    talks = {name: [user(f"Hi from {name}")] for name in paths}
    ahead = [0.0]

    async def go_on(router: Served) -> set[str]:
        """How the prompts of the next turns were made."""
        found = set()
        for name, path in paths.items():
            text, receipt = await router.chat(talks[name], path=path, max_tokens=2)
            talks[name] += [assistant(text), user("and then?")]
            found.add(receipt["status"])
        return found

    async with tiny_worker() as worker:
        async with journaled(worker.url, tmp_path, ahead) as (router, journal):
            await router.post("/sessions", {"session_id": "open"})
            await router.chat([user("Hi")], path=f"/sessions/open{CHAT}", max_tokens=2)
            assert await go_on(router) == {"fresh"}
            status, said = await router.post("/v1/responses", {"input": "Hi"})
            assert status == 200
            assert journal.figures()["dropped_turns"] == 0
            ahead[0] += LATER
            await until(lambda: journal.figures()["dropped_turns"] == 3)
            figures = journal.figures()
            assert (figures["dropped_sessions"], figures["dropped_unexported_sessions"]) == (1, 1)
            assert await go_on(router) == {"extended"}
            assert (await router.get("/sessions/implicit/rows"))[1]["stats"]["turns"] == 2
            assert (await router.get("/sessions/open/rows"))[1]["stats"]["turns"] == 1
            assert database_of(journal).count("turns") == 5
            assert list(faults(database_of(journal))) == []
            router.gateway.store.check_integrity()
        async with journaled(worker.url, tmp_path, ahead) as (router, journal):
            assert await go_on(router) == {"extended"}
            assert (await router.get("/sessions/implicit/rows"))[1]["stats"]["turns"] == 3
        ahead[0] += LATER
        async with journaled(worker.url, tmp_path, ahead) as (router, journal):
            await until(lambda: database_of(journal).count("turns") == 1)  # of the open session
            assert await go_on(router) == {"fresh"}
            assert (await router.get(f"/v1/responses/{said['id']}"))[0] == 200
            body = {"input": "and then?", "previous_response_id": said["id"]}
            assert (await router.post("/v1/responses", body))[0] == 200
            assert list(faults(database_of(journal))) == []


async def test_a_reply_that_outlasts_the_idle_time_is_whole(tmp_path, monkeypatch):
    """What it continues leaves the journal meanwhile, and is written again with it."""
    monkeypatch.setattr(retention, "PERIOD_S", 0.005)
    ahead = [0.0]
    async with (
        tiny_worker() as worker,
        journaled(worker.url, tmp_path, ahead) as (router, journal),
    ):
        text, _ = await router.chat([user("Hi")], max_tokens=2)
        talk = [user("Hi"), assistant(text), user("and then?")]
        worker.hold(after_tokens=1)
        asked = asyncio.create_task(router.chat(talk, max_tokens=2))
        await until(lambda: len(worker.requests) == 2)
        ahead[0] += LATER
        await until(lambda: journal.figures()["dropped_turns"] == 1)
        worker.release()
        assert (await asked)[1]["status"] == "extended"
        assert database_of(journal).count("turns") == 2
        assert list(faults(database_of(journal))) == []
