"""Upkeep: idle turns go, tokens of old weights go, and what a trainer opened stays."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from slime_router.pool.backoff import Backoff
from slime_router.pool.worker import Worker
from slime_router.server.upkeep import Upkeep
from slime_router.supervisor import Supervisor
from slime_router.trajectory.session import SessionSpec
from tests.integration.gateway import served, until, user
from tests.stack import Sample, Stack


def upkeep(stack: Stack, *, idle_s: float = 1e6, lag: int | None = None) -> Upkeep:
    return Upkeep(stack.store, stack.cache, stack.weights, idle_s=idle_s, max_version_lag=lag)


async def say(stack: Stack, text: str, version: str, session_id: str | None = None) -> str:
    """The id of a turn that was sampled under `version`."""
    call = stack.call(text, session_id=session_id)
    await stack.generate(call, Sample([100, 101], version=version))
    return call.turn_id


async def test_tokens_of_old_weights_go_and_those_of_an_open_session_stay():
    stack = Stack()
    stack.store.open_session(SessionSpec(id="s"))
    kept = await say(stack, "The first question", "v1", "s")
    stale = await say(stack, "Another matter altogether", "v1")
    await say(stack, "A third one, later", "v2")
    at_v2 = stack.cache.size.tokens
    keeping = upkeep(stack, lag=1)
    await keeping.drop_stale()
    assert stale in stack.store, "one update old is not too old"
    assert stack.cache.size.tokens == at_v2
    await say(stack, "A fourth, later still", "v3")
    at_v3 = stack.cache.size.tokens
    await keeping.drop_stale()
    assert stale not in stack.store
    assert kept in stack.store
    assert stack.cache.counts.stale_nodes > 0
    assert stack.cache.size.tokens < at_v3
    assert stack.cache.pin_turn(kept) is not None, "its path is still found"
    stack.store.check_integrity()
    stack.cache.check_integrity()


async def test_without_a_lag_old_weights_stay():
    stack = Stack()
    old = await say(stack, "The first question", "v1")
    for version in ("v2", "v3", "v4"):
        await say(stack, f"Later, under {version}", version)
    await upkeep(stack).drop_stale()
    assert old in stack.store
    assert stack.cache.counts.stale_nodes == 0


async def test_what_is_idle_goes_and_an_open_session_stays():
    """With real requests: the implicit session expires, the opened one does not."""
    async with served(session_idle_s=0.05) as (router, _):
        store = router.gateway.store
        await router.post("/sessions", {"session_id": "s"})
        await router.chat([user("hi")], path="/sessions/s/v1/chat/completions", max_tokens=2)
        await router.chat([user("ho")], path="/sessions/t/v1/chat/completions", max_tokens=2)
        await until(lambda: store.expired_turns == 1)
        assert store.sessions.find("t") is None
        assert len(store.sessions.get("s").turns) == 1


async def test_a_failure_is_logged_and_upkeep_goes_on(monkeypatch, caplog):
    stack = Stack()
    swept = asyncio.Event()
    outcomes = [RuntimeError("it broke")]

    def sweep(max_age: int) -> Iterator[int]:
        if outcomes:
            raise outcomes.pop()
        swept.set()
        return iter(())

    monkeypatch.setattr(stack.store, "sweep", sweep)
    at_once = Supervisor(backoff=Backoff(initial_s=0.0))
    async with at_once:
        upkeep(stack, idle_s=0.01).start(at_once)
        with caplog.at_level(logging.ERROR):
            await asyncio.wait_for(swept.wait(), 60)
    assert "sweep failed" in caplog.text
    assert at_once.failures == {"sweep": 1}


async def test_a_clean_up_that_fails_is_tried_again(monkeypatch):
    stack = Stack()
    for version in ("v1", "v2", "v3"):
        await say(stack, f"Under {version}", version)
    keeping = upkeep(stack, lag=0)
    drop_older = stack.store.drop_older
    outcomes = [RuntimeError("it broke")]

    def drop(oldest: int) -> Iterator[int]:
        if outcomes:
            raise outcomes.pop()
        return drop_older(oldest)

    monkeypatch.setattr(stack.store, "drop_older", drop)
    at_once = Supervisor(backoff=Backoff(initial_s=0.0))
    async with at_once:
        keeping.start(at_once)
        keeping.on_weights(Worker("http://a"), "v3", False)
        await until(lambda: len(stack.store) == 1)
    assert at_once.failures.total() == 1


async def test_an_update_through_the_router_moves_the_version_and_old_turns_go():
    async with served(max_version_lag=0) as (router, _):
        gateway = router.gateway
        await router.chat([user("hi")], max_tokens=2)
        assert len(gateway.store) == 1
        status, _ = await router.post("/update_weight_version", {"new_version": "v2"})
        assert status == 200
        await until(lambda: len(gateway.store) == 0)
        assert (await router.get("/metrics"))[1]["weights"]["current"] == "v2"
        assert gateway.cache.counts.stale_nodes > 0
