"""Several routers that share one archive: any of them extends any turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from secrets import token_hex
from typing import Any, TypeAlias

import pytest
import redis

from slime_router.archive.shared import SharedArchive
from slime_router.archive.store import ArchivedStore
from slime_router.errors import NotDurable
from slime_router.testing import FakeWorker
from tests.integration.gateway import CHAT, Served, assistant, serving, tiny_worker, until, user
from tests.redis_server import RedisServer

Routers: TypeAlias = list[Served]
Opened: TypeAlias = Callable[..., Any]


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def shared(request, tmp_path) -> dict[str, Any]:
    """The settings by which routers share an archive."""
    if request.param == "sqlite":
        return {"journal": str(tmp_path), "journal_shared": True}
    return {"store": request.getfixturevalue("redis_url"), "store_prefix": token_hex(4)}


@asynccontextmanager
async def routers(
    url: str, shared: dict[str, Any], count: int = 2, **settings: Any
) -> AsyncIterator[Routers]:
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(serving(url, **shared, **settings))
            for _ in range(count)
        ]
        for router in opened:
            await archive_of(router).read()
        yield opened
        for router in opened:
            store_of(router).check_integrity()


def archive_of(router: Served) -> SharedArchive:
    archive = router.gateway.journal
    assert isinstance(archive, SharedArchive)
    return archive


def store_of(router: Served) -> ArchivedStore:
    store = archive_of(router).store
    assert store is not None
    return store


async def rows_of(router: Served, session: str) -> dict[str, Any]:
    rows: dict[str, Any]
    status, rows = await router.get(f"/sessions/{session}/rows")
    assert status == 200, rows
    return rows


async def alternate(
    worker: FakeWorker, routers: Routers, path: str, turns: int, *, stream: bool = False
) -> list[dict[str, Any]]:
    """A conversation that goes from router to router; each prompt begins with all held tokens."""
    messages = [user("the weather?")]
    held: list[int] = []
    for number in range(turns):
        router = routers[number % len(routers)]
        text, receipt = await router.chat(messages, path=path, stream=stream, max_tokens=8)
        prompt = worker.requests[-1].body["input_ids"]
        if number:
            assert (receipt["status"], receipt["reused"]) == ("extended", len(held)), number
            assert prompt[: len(held)] == held
        held = store_of(router).held_ids(receipt["turn"]).tolist()
        assert held[: len(prompt)] == prompt
        messages += [assistant(text), user(f"and then? {number}")]
    return messages


@pytest.mark.parametrize("stream", [False, True])
async def test_a_session_alternates_between_routers_and_is_one_row(shared, stream):
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
        status, _ = await one.post("/sessions", {"session_id": "s", "metadata": {"a": 1}})
        assert status == 201
        await alternate(worker, [two, one], f"/sessions/s{CHAT}", 6, stream=stream)
        rows = await rows_of(one, "s")
        assert [row["row_id"] for row in rows["rows"]] == [rows["rows"][0]["row_id"]]
        assert await rows_of(two, "s") == rows
        for router in (one, two):
            _, found = await router.get("/sessions/s")
            assert (found["turns"], found["metadata"]) == (6, {"a": 1})


@pytest.mark.parametrize("count", [2, 3])
async def test_a_conversation_without_a_session_alternates_between_routers(shared, count):
    async with tiny_worker() as worker, routers(worker.url, shared, count) as opened:
        await alternate(worker, opened, CHAT, 6)


async def test_two_routers_that_extend_one_turn_at_once_make_two_branches(shared):
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
        path = f"/sessions/s{CHAT}"
        text, _ = await one.chat([user("hi")], path=path)
        messages = [user("hi"), assistant(text), user("go on")]
        receipts = await asyncio.gather(
            *(router.chat(messages, path=path) for router in (one, two))
        )
        assert {receipt["status"] for _, receipt in receipts} == {"extended"}
        assert await rows_of(one, "s") == await rows_of(two, "s")
        _, found = await one.get("/sessions/s")
        assert len({turn["seq"] for turn in found["turn_list"]}) == 3
        assert len({turn["base"] for turn in found["turn_list"]}) == 2


async def test_a_session_is_opened_once_closed_once_and_deleted_for_all(shared):
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
        answers = await asyncio.gather(
            *(
                router.post("/sessions", {"session_id": "s", "metadata": {"by": number}})
                for number, router in enumerate((one, two, one, two))
            )
        )
        assert sorted(status for status, _ in answers) == [201, 409, 409, 409]
        [opened] = [body for status, body in answers if status == 201]
        for router in (one, two):
            assert (await router.get("/sessions/s"))[1]["metadata"] == opened["metadata"]
        await one.chat([user("hi")], path=f"/sessions/s{CHAT}")
        await one.post("/sessions/s/reward", {"reward": 0.5})
        await two.post("/sessions/s/close")
        status, answer = await one.post(f"/sessions/s{CHAT}", {"messages": [user("more")]})
        assert (status, answer["error"]["code"]) == (409, "session_closed")
        _, found = await one.get("/sessions/s")
        assert (found["state"], found["reward"]) == ("closed", 0.5)
        listed = [(await router.get("/sessions"))[1]["total"] for router in (one, two)]
        assert listed == [1, 1]
        async with two.http.delete("/sessions/s") as reply:
            assert reply.status == 200
        for router in (one, two):
            assert (await router.get("/sessions/s"))[0] == 404
            status, answer = await router.post(f"/sessions/s{CHAT}", {"messages": [user("x")]})
            assert (status, answer["error"]["code"]) == (404, "session_not_found")
        assert (await one.post("/sessions", {"session_id": "s"}))[0] == 201
        _, receipt = await two.chat([user("hi")], path=f"/sessions/s{CHAT}")
        assert receipt["status"] != "extended"
        assert (await one.get("/sessions/s"))[1]["turns"] == 1


async def test_a_router_that_comes_later_reads_only_what_is_asked_for(shared):
    async with tiny_worker() as worker:
        async with routers(worker.url, shared) as opened:
            for name in ("a", "b"):
                await alternate(worker, opened, f"/sessions/{name}{CHAT}", 3)
            messages = await alternate(worker, opened, CHAT, 3)
            before = await rows_of(opened[0], "a")
        async with routers(worker.url, shared, 1) as [late]:
            assert len(store_of(late)) == 0
            assert await rows_of(late, "a") == before
            assert len(store_of(late)) == 3
            _, receipt = await late.chat(messages)
            assert receipt["status"] == "extended"
            await until(lambda: archive_of(late).writer.waiting == 0)


async def test_a_turn_of_a_session_that_was_closed_elsewhere_is_kept_and_said(shared):
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
        worker.hold(after_tokens=2)
        path = f"/sessions/s{CHAT}"
        await one.post("/sessions", {"session_id": "s"})
        call = asyncio.create_task(two.chat([user("hi")], path=path, max_tokens=12))
        await worker.wait_running(1)
        assert (await one.post("/sessions/s/close"))[0] == 200
        worker.release()
        _, receipt = await call
        rows = await rows_of(one, "s")
        assert rows["stats"]["turns"] == 1
        _, figures = await two.get("/metrics")
        assert figures["trajectories"]["recorded_after_close"] == 1
        _, found = await two.get("/sessions/s")
        [turn] = found["turn_list"]
        assert turn["turn_id"] == receipt["turn"]
        assert "closed meanwhile" in str(receipt["notes"])


async def test_what_leaves_the_memory_is_fetched_again(shared):
    async with tiny_worker() as worker, routers(worker.url, shared, 1, max_memory=1) as [router]:
        names = [f"s{number}" for number in range(4)]
        for name in names:
            await router.post("/sessions", {"session_id": name})
        held = {
            name: await alternate(worker, [router], f"/sessions/{name}{CHAT}", 3) for name in names
        }
        assert store_of(router).evicted_turns > 0
        for name in names:
            rows = await rows_of(router, name)
            assert len(rows["rows"]) == 1
            _, receipt = await router.chat(held[name], path=f"/sessions/{name}{CHAT}")
            assert receipt["status"] == "extended"
        assert len(store_of(router)) <= 8
        _, figures = await router.get("/metrics")
        assert figures["journal"]["evicted_turns"] > 0
        assert figures["journal"]["fetched_turns"] > 0


@pytest.mark.redis
@pytest.mark.parametrize("on_error", ["degrade", "stop"])
async def test_a_store_that_goes_away_and_comes_back(tmp_path, on_error):
    """Serving goes on from memory, and says so; what was said meanwhile is written later."""
    server = RedisServer(tmp_path)
    server.start()
    shared = {
        "store": server.url,
        "store_on_error": on_error,
        "store_timeout_s": 0.5,
        "store_prefix": "p",
    }
    path = f"/sessions/s{CHAT}"
    try:
        await asyncio.to_thread(server.wait_ready)
        async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
            messages = await alternate(worker, [one, two], path, 2)
            server.kill()
            status, answer = await one.post(path, {"messages": messages, "model": "tiny"})
            ready, _ = await one.get("/readiness")
            if on_error == "stop":
                assert (status, answer["error"]["code"]) == (503, "journal_failed")
                assert ready == 503
            else:
                assert (status, ready) == (200, 200)
                messages += [answer["choices"][0]["message"], user("and now?")]
                _, receipt = await one.chat(messages)
                assert "degraded: not in the store" in str(receipt["notes"])
                figures = (await one.get("/metrics"))[1]["journal"]
                assert figures["degraded"] == 1
                assert figures["failed_lookups"] > 0
                assert figures["waiting"] > 0
            server.start()
            await asyncio.to_thread(server.wait_ready)
            await until(lambda: archive_of(one).writer.waiting == 0)
            await until_answered(one)
            await until_answered(two)
            assert (await one.get("/readiness"))[0] == 200
            rows = [await rows_of(router, "s") for router in (one, two)]
            assert rows[0] == rows[1]
            assert rows[0]["stats"]["turns"] == (2 if on_error == "stop" else 3)
            assert archive_of(one).writer.counts.lost == 0
    finally:
        server.kill()


async def until_answered(router: Served) -> None:
    """Until it asks its archive again, and gets an answer."""
    fetch = archive_of(router).fetch
    assert fetch is not None
    async with asyncio.timeout(60):
        while True:
            with suppress(NotDurable), await fetch.of_session("s") as trouble:
                if trouble is None:
                    return
            await asyncio.sleep(0.05)


async def test_a_stored_response_is_continued_at_any_router(shared):
    """With all that it continues; after a restart, too. Nobody invents what is gone."""
    async with tiny_worker() as worker:
        async with routers(worker.url, shared) as (one, two):
            previous = None
            for router, text in ((one, "first"), (two, "second"), (one, "third")):
                given = {"input": text, "max_output_tokens": 4, "previous_response_id": previous}
                status, reply = await router.post("/v1/responses", given)
                assert status == 200, reply
                previous = reply["id"]
        async with routers(worker.url, shared, count=1) as (fresh,):
            held = worker.requests[-1].body["input_ids"]
            given = {"input": "fourth", "max_output_tokens": 4, "previous_response_id": previous}
            status, reply = await fresh.post("/v1/responses", given)
            assert status == 200, reply
            assert worker.requests[-1].body["input_ids"][: len(held)] == held
            assert (await fresh.get(f"/v1/responses/{previous}"))[0] == 200
            given["previous_response_id"] = "resp_of_nobody"
            assert (await fresh.post("/v1/responses", given))[0] == 400


async def test_an_output_item_can_be_named_at_any_router(shared):
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
        first = await answered(one, "first")
        _, shown = await one.get(f"/v1/responses/{first}")
        name = shown["output"][-1]["id"]
        for router in (one, two):
            given = {"input": [{"type": "item_reference", "id": name}, user("so?")]}
            status, reply = await router.post("/v1/responses", given)
            assert status == 200, reply
        item: dict[str, Any] = {"type": "item_reference", "id": f"{name[:-1]}f"}
        given = {"input": [item, user("so?")]}
        assert (await two.post("/v1/responses", given))[0] == 404


async def answered(router: Served, text: str, previous: str | None = None) -> str:
    """The id of a response."""
    given = {"input": text, "max_output_tokens": 4, "previous_response_id": previous}
    status, reply = await router.post("/v1/responses", given)
    assert status == 200, reply
    name: str = reply["id"]
    return name


async def deleted(router: Served, name: str) -> int:
    async with router.http.delete(f"/v1/responses/{name}") as reply:
        return reply.status


async def test_a_response_that_is_deleted_at_one_router_is_gone_at_all(shared):
    """Also where they have it in memory; what continues it goes on, wherever that was made."""
    async with tiny_worker() as worker:
        async with routers(worker.url, shared) as (one, two):
            first = await answered(one, "first")
            status, shown = await two.get(f"/v1/responses/{first}")
            assert status == 200
            second = await answered(two, "second", first)
            assert await deleted(one, first) == 200
            item: dict[str, Any] = {"type": "item_reference", "id": shown["output"][-1]["id"]}
            for router in (one, two):
                assert (await router.get(f"/v1/responses/{first}"))[0] == 404
                assert (await router.get(f"/v1/responses/{first}/input_items"))[0] == 404
                given: dict[str, Any] = {"input": "x", "previous_response_id": first}
                assert (await router.post("/v1/responses", given))[0] == 400
                given = {"input": [item, user("x")]}
                assert (await router.post("/v1/responses", given))[0] == 404
                assert await deleted(router, first) == 404
            await answered(two, "third", second)
            held = worker.requests[-1].body["input_ids"]
        async with routers(worker.url, shared, count=1) as (fresh,):
            assert (await fresh.get(f"/v1/responses/{first}"))[0] == 404
            await answered(fresh, "third", second)
            assert worker.requests[-1].body["input_ids"] == held


async def test_what_one_router_forgets_for_want_of_room_others_continue(shared):
    async with tiny_worker() as worker:
        async with routers(worker.url, shared, max_stored_responses=2) as (one, two):
            first = await answered(one, "first")
            second = await answered(two, "second", first)
            for number in range(3):  # one has room for two of them
                await answered(one, str(number))
            await answered(two, "third", second)
            held = worker.requests[-1].body["input_ids"]
        async with routers(worker.url, shared, count=1) as (fresh,):
            await answered(fresh, "third", second)
            assert worker.requests[-1].body["input_ids"] == held


def workers_of(router: Served) -> dict[str, str]:
    return {worker.url: worker.state for worker in router.gateway.pool.list()}


async def test_workers_come_and_go_at_all_routers(shared):
    """Whoever was asked to add or remove one; what is asked last holds."""
    async with tiny_worker() as worker, tiny_worker() as more:
        async with routers(worker.url, shared) as (one, two):
            look = two.gateway.together.enrolment.look
            body = {"url": more.url, "priority": 7, "api_key": "k"}
            assert (await one.post("/workers", body))[0] == 202
            await until(lambda: more.url in workers_of(two))  # in the background
            [found] = [each for each in two.gateway.pool.list() if each.url == more.url]
            assert (found.registration.priority, found.api_key) == (7, "k")
            for remover, other in ((two, one), (one, two)):
                assert (await remover.post(f"/remove_worker?url={more.url}"))[0] == 200
                await other.gateway.together.enrolment.look()
                assert workers_of(other).keys() == {worker.url}
                assert (await other.post(f"/add_worker?url={more.url}"))[0] == 200
                await remover.gateway.together.enrolment.look()
                assert workers_of(remover).keys() == {worker.url, more.url}
            assert (await one.post(f"/remove_worker?url={worker.url}"))[0] == 200
            await look()  # also one that all were started with
            assert workers_of(two).keys() == {more.url}
        async with routers(worker.url, shared, 1) as [late]:
            assert workers_of(late).keys() == {worker.url, more.url}
            assert (await late.post(f"/remove_worker?url={more.url}"))[0] == 200
        async with routers(worker.url, shared, 1) as [later]:
            assert workers_of(later).keys() == {worker.url}


async def test_a_worker_that_was_removed_here_does_not_come_back(shared):
    async with (
        tiny_worker() as worker,
        tiny_worker() as more,
        routers(worker.url, shared) as (one, two),
    ):
        assert (await two.post(f"/add_worker?url={more.url}"))[0] == 200
        archive = archive_of(one)
        told = archive.news_of_workers

        async def late(seen: str) -> Any:  # it is removed while the answer is on its way
            news = await told(seen)
            await one.gateway.together.registry.remove(more.url)
            return news

        await one.gateway.together.registry.add(more.url)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(archive, "news_of_workers", late)
            await one.gateway.together.enrolment.look()
        assert workers_of(one).keys() == {worker.url}
        for router in (one, two):
            await router.gateway.together.enrolment.look()
            assert workers_of(router).keys() == {worker.url}


@pytest.mark.redis
async def test_turns_that_the_store_has_evicted_are_counted_and_said(redis_url, caplog):
    """A server with another `maxmemory-policy` than `noeviction` drops whole keys."""
    prefix = token_hex(4)
    shared = {"store": redis_url, "store_prefix": prefix}
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
        await one.post("/sessions", {"session_id": "s"})
        await alternate(worker, [one, two], f"/sessions/s{CHAT}", 3)
        client = redis.Redis.from_url(redis_url)
        client.delete(*client.scan_iter(f"{prefix}:*:turns"))
        client.close()
        async with serving(worker.url, **shared) as late:
            await archive_of(late).read()
            assert (await rows_of(one, "s"))["stats"]["sampled_tokens"] > 0  # it has them
            assert (await rows_of(late, "s"))["rows"] == []
            _, found = await late.get("/sessions/s")
            assert (found["turns"], found["dropped_turns"]) == (0, 3)
            _, metrics = await late.get("/metrics")
            assert metrics["journal"]["skipped"] == 3
        assert caplog.messages.count("the store has lost 3 turns of session s") == 1
