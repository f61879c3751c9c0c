"""A router that drops from its journal what was exported."""

from __future__ import annotations

from typing import Any

import pytest

from slime_router.journal import retention
from slime_router.journal.reading import stats
from tests.integration.gateway import CHAT, serving, tiny_worker, until, user


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
