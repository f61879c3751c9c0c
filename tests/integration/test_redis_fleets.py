"""Several routers over a cluster of Redis, and over a primary that dies and has a replica."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
import redis.asyncio

from slime_router.archive.homes import home_of_session
from slime_router.archive.redis import RedisArchive
from tests.integration.gateway import CHAT, Served, assistant, tiny_worker, until, user
from tests.integration.test_several_routers import (
    alternate,
    answered,
    archive_of,
    deleted,
    routers,
    rows_of,
    store_of,
    until_answered,
    workers_of,
)
from tests.redis_fleet import WatchedRedis

pytestmark = [pytest.mark.redis, pytest.mark.slow]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[WatchedRedis]:
    watched = WatchedRedis(tmp_path)
    try:
        watched.start()
        yield watched
    finally:
        watched.kill()


def is_well(router: Served) -> bool:
    return not archive_of(router).figures()["degraded"]


@pytest.mark.parametrize("kind", ["redis_cluster", "redis_sentinel"])
async def test_routers_are_one_over_several_servers(kind, request):
    url = request.getfixturevalue(f"{kind}_url")
    shared: dict[str, Any] = {"store": url, "store_prefix": token_hex(4)}
    async with tiny_worker() as worker, tiny_worker() as more:
        async with routers(worker.url, shared) as (one, two):
            for name in ("a", "b", "c", "d", "e"):
                assert (await one.post("/sessions", {"session_id": name}))[0] == 201
                assert (await two.post("/sessions", {"session_id": name}))[0] == 409
                await alternate(worker, [two, one], f"/sessions/{name}{CHAT}", 4)
                assert await rows_of(one, name) == await rows_of(two, name)
            messages = await alternate(worker, [one, two], CHAT, 4)
            first = await answered(one, "first")
            second = await answered(two, "second", first)
            assert await deleted(one, second) == 200
            assert (await two.get(f"/v1/responses/{second}"))[0] == 404
            assert (await one.post(f"/add_worker?url={more.url}"))[0] == 200
            await two.gateway.together.enrolment.look()
            assert more.url in workers_of(two)
            assert (await one.post(f"/remove_worker?url={more.url}"))[0] == 200
            async with two.http.delete("/sessions/e") as reply:
                assert reply.status == 200
            assert (await one.get("/sessions/e"))[0] == 404
        async with routers(worker.url, shared, 1) as [late]:
            listed = (await late.get("/sessions"))[1]["sessions"]
            assert [each["session_id"] for each in listed] == ["a", "b", "c", "d"]
            assert (await late.chat(messages))[1]["status"] == "extended"


async def test_a_turn_is_on_a_replica_before_its_reply_ends_or_its_receipt_says_so(watched):
    shared: dict[str, Any] = {
        "store": watched.url,
        "store_wait_replicas": 1,
        "store_timeout_s": 1.0,
    }
    [replica] = [each for each in watched.servers if each is not watched.primary()]
    async with (
        tiny_worker() as worker,
        routers(worker.url, shared, 1) as [router],
        routers(worker.url, {**shared, "store_on_error": "stop"}, 1) as [strict],
    ):
        _, receipt = await router.chat([user("on two")], max_tokens=8)
        assert "notes" not in receipt
        assert is_well(router)
        await asyncio.to_thread(replica.kill)
        _, receipt = await router.chat([user("on one")], max_tokens=8)
        assert receipt["notes"] == ["degraded: 0 of 1 replicas have it"]
        assert not is_well(router)
        body = {"messages": [user("on one")], "max_tokens": 8}
        assert (await strict.post(CHAT, body))[0] == 503
        await asyncio.to_thread(replica.start)
        await asyncio.to_thread(replica.wait_ready)
        async with asyncio.timeout(60):
            while "notes" in receipt or not is_well(router):
                _, receipt = await router.chat([user("on two again")], max_tokens=8)


@pytest.mark.parametrize("on_error", ["degrade", "stop"])
async def test_a_conversation_goes_on_exact_when_the_primary_dies(watched, on_error):
    """The replica takes over; what it had not heard of is written again by whoever has it."""
    shared: dict[str, Any] = {
        "store": watched.url,
        "store_on_error": on_error,
        "store_timeout_s": 0.5,
    }
    path = f"/sessions/s{CHAT}"
    async with tiny_worker() as worker, routers(worker.url, shared) as opened:
        messages = await alternate(worker, opened, path, 4)
        await asyncio.to_thread(watched.fail_over)
        for router in opened:
            await until_answered(router)
            await until(partial(is_well, router))
        held: list[int] = []
        for number in range(4):
            router = opened[number % 2]
            text, receipt = await router.chat(messages, path=path, max_tokens=8)
            assert receipt["status"] == "extended"
            assert "notes" not in receipt
            prompt = worker.requests[-1].body["input_ids"]
            assert prompt[: len(held)] == held
            held = store_of(router).held_ids(receipt["turn"]).tolist()
            messages += [assistant(text), user(f"more {number}")]
        rows = [await rows_of(router, "s") for router in opened]
        assert rows[0] == rows[1]
        assert rows[0]["stats"]["turns"] == 8
        assert len(rows[0]["rows"]) == 1
    async with tiny_worker() as worker, routers(worker.url, shared, 1) as [late]:
        assert (await rows_of(late, "s"))["rows"] == rows[0]["rows"]


@pytest.mark.parametrize("on_error", ["degrade", "stop"])
async def test_a_key_that_holds_something_else_spoils_its_own_session_and_no_other(
    redis_url, on_error
):
    prefix = token_hex(4)
    shared = {"store": redis_url, "store_prefix": prefix, "store_on_error": on_error}
    async with (
        tiny_worker() as worker,
        routers(worker.url, shared, 2) as (one, two),
        redis.asyncio.Redis.from_url(redis_url) as client,
    ):
        archive = archive_of(one)._archive
        assert isinstance(archive, RedisArchive)
        await client.set(archive._log(home_of_session("bad")), "not a stream")
        bad = {"model": "tiny", "messages": [user("hi")]}
        for _ in range(3):
            async with one.http.post(f"/sessions/bad{CHAT}", json=bad) as response:
                assert response.status == (503 if on_error == "stop" else 200)
                said = response.headers.get("x-slime-receipt", "")
                assert ("degraded" in said) is (on_error == "degrade")
        await alternate(worker, [two, one], f"/sessions/good{CHAT}", 4)
        assert (await one.post("/sessions", {"session_id": "opened"}))[0] == 201
        status, listed = await two.get("/sessions")
        assert status == 200
        assert {"good", "opened"} <= {each["session_id"] for each in listed["sessions"]}
        assert await rows_of(one, "good") == await rows_of(two, "good")
        log = archive._log(home_of_session("good"))
        assert await client.xlen(log) == 1 + 4, "its state and turns, each written once"
        figures = archive_of(one).figures()
        assert (figures["waiting"], figures["failures"]) == (0, 0)
        assert (figures["lost"] > 0) is (on_error == "degrade"), "what was said of the bad session"
        assert (await one.get("/readiness"))[0] == 200
