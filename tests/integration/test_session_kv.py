"""`--session-kv`: workers learn the session of a request, and when it has ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from slime_router.auth.caller import name_of_root
from slime_router.failover.session_kv import MAX_WAITING, SessionKv, kv_name
from slime_router.testing import FakeWorker
from tests.integration.gateway import (
    CHAT,
    Served,
    assistant,
    served,
    serving,
    tiny_worker,
    until,
    user,
)


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
        [_, turn] = router.gateway.store._turns
        assert names_sent(worker)[-2:] == [kv_name("a"), kv_name(name_of_root(turn))]
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


@pytest.mark.parametrize(("status", "failed"), [(200, 0), (399, 0), (400, 2), (404, 2), (500, 2)])
async def test_what_a_worker_answers_tells_whether_it_released_a_session(status, failed):
    async def ask(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(status=status)

    workers = [SimpleNamespace(url=f"http://w{number}") for number in range(2)]
    pool: Any = SimpleNamespace(list=lambda: workers)
    kv = SessionKv(pool, cast("Any", SimpleNamespace(ask=ask)))
    await kv._release("s")
    assert (kv.released, kv.failed) == (1, failed)


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


async def talk(router: Served, name: str, turns: int, **fields: Any) -> None:
    """A conversation of an agent that sends nothing but its messages, as OpenAI's client does."""
    messages = [user(f"Hi, I am {name}")]
    for number in range(turns):
        text, _ = await router.chat(messages, max_tokens=6, **fields)
        messages += [assistant(text), user(f"and {number}?")]


@pytest.mark.parametrize("history", ["held", "template"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_without_a_name_is_known_by_its_first_turn(history, stream):
    async with served(session_kv=True, history=history) as (router, worker):
        await talk(router, "a", 3, stream=stream)
        await talk(router, "b", 2, stream=stream)
        first, *_ = router.gateway.store._turns
        names = names_sent(worker)
        assert names[:3] == [kv_name(name_of_root(first))] * 3
        assert names[3] == names[4] != names[0]
        for _ in range(250):  # one sweep a minute, for four hours
            await router.gateway.upkeep.sweep()
        assert len(router.gateway.store) == 0
        await until(lambda: sorted(closed_at(worker)) == sorted({names[0], names[3]}))


@pytest.mark.parametrize("policy", ["round_robin", "consistent_hashing", "random", "cache_aware"])
async def test_an_agent_without_a_name_stays_with_its_worker(policy):
    async with (
        tiny_worker() as first,
        tiny_worker() as second,
        serving(first.url, second.url, policy=policy) as router,
    ):
        for name in map(str, range(8)):
            before = len(first.requests), len(second.requests)
            await talk(router, name, 3)
            grown = (len(first.requests) - before[0], len(second.requests) - before[1])
            assert sorted(grown) == [0, 3], "one worker has all of it"
        if policy == "random":  # eight in a row go to one worker now and then
            while not (first.requests and second.requests):
                await talk(router, "one more", 1)
        if policy != "consistent_hashing":
            assert first.requests
            assert second.requests


async def test_a_request_that_nobody_can_continue_is_not_tagged():
    async with served(session_kv=True) as (router, worker):
        await router.post("/generate", {"input_ids": [1, 2]})
        await router.post("/v1/completions", {"prompt": "Hi", "max_tokens": 2})
        assert names_sent(worker)[-2:] == [None, None]
    async with served(session_kv=True, capture="off") as (router, worker):
        await talk(router, "a", 2)
        assert names_sent(worker)[-2:] == [None, None]


async def test_who_goes_on_with_a_sessions_turns_has_its_worker_and_not_its_tag():
    async with (
        tiny_worker() as first,
        tiny_worker() as second,
        serving(first.url, second.url, policy="round_robin", session_kv=True) as router,
    ):
        text, _ = await router.chat([user("Hi")], path=f"/sessions/s{CHAT}", max_tokens=6)
        await router.chat([user("Hi"), assistant(text), user("and?")], max_tokens=6)
        assert {len(first.requests), len(second.requests)} == {0, 2}
        assert names_sent(first) + names_sent(second) == [kv_name("s"), None]


async def test_the_name_of_a_conversation_outlives_the_router(tmp_path):
    settings: dict[str, Any] = {"journal": str(tmp_path), "session_kv": True}
    async with tiny_worker() as worker:
        messages = [user("Hi")]
        for number in range(2):
            async with serving(worker.url, **settings) as router:
                while (await router.get("/readiness"))[0] == 503:
                    pass
                text, _ = await router.chat(messages, max_tokens=6)
                messages += [assistant(text), user(f"and {number}?")]
        one, other = names_sent(worker)
        assert one == other
        assert one is not None
