"""`--session-kv`: workers hear which session a request is of, and when the session has ended."""

from __future__ import annotations

from typing import Any

import pytest

from slime_router.failover.session_kv import MAX_WAITING, SessionKv, kv_name
from slime_router.testing import FakeWorker
from tests.integration.gateway import CHAT, Served, served, serving, tiny_worker, until, user


def closed_at(worker: FakeWorker) -> list[str]:
    return [each.body["session_id"] for each in worker.controls if each.path == "/close_session"]


async def say(router: Served, session: str) -> None:
    await router.chat([user("Hi")], path=f"/sessions/{session}{CHAT}")


def names_sent(worker: FakeWorker) -> list[Any]:
    return [each.body.get("session_id") for each in worker.requests if "stream" in each.body]


async def test_a_worker_hears_of_a_session_and_of_its_end():
    async with served(session_kv=True) as (router, worker):
        await say(router, "a")
        await router.chat([user("Hi")])
        assert names_sent(worker)[-2:] == [kv_name("a"), None]
        await router.post("/sessions/a/close")
        await until(lambda: closed_at(worker) == [kv_name("a")])
        await say(router, "b")
        async with router.http.delete("/sessions/b") as response:
            assert response.status == 200
        await until(lambda: closed_at(worker) == [kv_name("a"), kv_name("b")])
        async with router.http.delete("/sessions/a") as response:
            assert response.status == 200
        await say(router, "c")
        await router.post("/sessions/c/close")
        await until(lambda: len(closed_at(worker)) == 3)
        assert closed_at(worker)[-1] == kv_name("c"), "what was closed is not released again"


async def test_an_idle_session_is_released():
    async with served(session_kv=True) as (router, worker):
        await say(router, "a")
        for _ in range(250):  # one sweep a minute, for four hours
            await router.gateway.upkeep.sweep()
        assert len(router.gateway.store) == 0
        await until(lambda: closed_at(worker) == [kv_name("a")])


async def test_every_worker_is_asked_and_a_failure_is_counted():
    async with (
        tiny_worker() as first,
        tiny_worker() as second,
        serving(first.url, second.url, session_kv=True) as router,
    ):
        await say(router, "a")
        await first.refuse_connections()
        await router.post("/sessions/a/close")
        await until(lambda: closed_at(second) == [kv_name("a")])
        await until(lambda: router.gateway.session_kv.released == 1)
        _, metrics = await router.get("/metrics")
        assert metrics["fleet"]["session_kv_failed"] == 1
        await first.accept_connections()


async def test_without_the_flag_nothing_is_said():
    async with served() as (router, worker):
        await say(router, "a")
        await router.post("/sessions/a/close")
        await say(router, "b")
        assert names_sent(worker)[-1] is None
        assert closed_at(worker) == []


async def test_a_native_client_keeps_its_own_session_parameters():
    async with served(session_kv=True) as (router, worker):
        body = {"input_ids": [1, 2], "session_params": {"id": "own"}}
        await router.post("/sessions/a/generate", body)
        assert "session_id" not in worker.requests[-1].body
        await router.post("/sessions/a/generate", {"input_ids": [1, 2]})
        assert worker.requests[-1].body["session_id"] == kv_name("a")


async def test_so_many_sessions_wait(caplog: pytest.LogCaptureFixture):
    kv = SessionKv(None, None)  # type: ignore[arg-type] # nobody is asked
    for number in range(MAX_WAITING + 2):
        kv.ended(str(number))
    assert kv.failed == 2
    assert caplog.text.count("more sessions end") == 1


def test_a_name_says_nothing_of_its_session():
    assert kv_name("owner\x1fs") != kv_name("s")
    assert "s" not in kv_name("s").removeprefix("slime_")
