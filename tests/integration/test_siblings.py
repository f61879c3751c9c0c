"""Two processes of one router, each asked by itself: control at one is control at both."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from slime_router.config import Config
from slime_router.siblings.place import Place
from slime_router.siblings.portions import portion_of
from tests.integration.gateway import CHAT, tiny_worker, until, user
from tests.integration.siblings import family


@asynccontextmanager
async def two(**settings):
    async with tiny_worker() as worker, family(worker.url, **settings) as (one, other):
        await until(lambda: one.gateway.pool.can_serve() and other.gateway.pool.can_serve())
        yield one, other, worker


async def test_a_worker_that_is_registered_at_one_serves_at_both_before_the_answer():
    async with family() as (one, other), tiny_worker() as worker:
        status, made = await one.post("/workers", {"url": worker.url, "priority": 7})
        assert status == 202
        [there] = other.gateway.pool.list()
        assert (there.id, there.registration.priority) == (made["worker_id"], 7)
        async with other.http.delete(f"/workers/{made['worker_id']}") as reply:
            assert reply.status == 202
        assert one.gateway.pool.list() == other.gateway.pool.list() == ()


async def test_a_pause_a_flush_and_new_weights_at_one_are_known_to_both():
    async with two() as (one, other, _):
        [here], [there] = one.gateway.pool.list(), other.gateway.pool.list()
        assert (await one.post("/pause_generation", {"mode": "abort"}))[0] == 200
        assert (here.is_paused, there.is_paused) == (True, True)
        assert (await other.post("/continue_generation", {}))[0] == 200
        assert (here.is_paused, there.is_paused) == (False, False)
        await one.post("/update_weight_version", {"new_version": "v7"})
        assert here.weight_version == there.weight_version == "v7"
        assert here.updates == there.updates == 1
        assert other.gateway.weights.current == "v7"
        assert other.gateway.weights.epoch == one.gateway.weights.epoch
        assert other.gateway.pool.interruptions == one.gateway.pool.interruptions == 2


async def test_each_worker_is_asked_once_whoever_takes_the_request():
    async with two() as (one, _, worker):
        await one.post("/continue_generation", {})
        assert [call.path for call in worker.controls].count("/continue_generation") == 1


@pytest.mark.parametrize("body", [{"rid": "mine"}, {"abort_all": True}])
async def test_an_abort_reaches_the_process_that_has_the_generation(body):
    async with two() as (one, other, worker):
        worker.hold(after_tokens=1)
        asked = {"text": "hi", "rid": "mine", "sampling_params": {"max_new_tokens": 9}}
        running = asyncio.create_task(one.post("/generate", asked))
        await worker.wait_running(1)
        status, _ = await other.post("/abort_request", body)
        assert status == 200
        status, reply = await running
        assert reply["meta_info"]["finish_reason"]["type"] == "abort"


async def test_whoever_is_asked_answers_for_both():
    async with two() as (one, other, worker):
        for router in (one, one, other):
            await router.chat([user("hi")])
        worker.hold(after_tokens=1)
        running = asyncio.create_task(one.post(CHAT, {"messages": [user("hi")]}))
        await worker.wait_running(1)
        for router in (one, other):
            _, figures = await router.get("/metrics")
            assert figures["chat_completion"]["started"] == 4
            assert figures["router"]["active_workers"] == 1
            assert figures["router"]["worker_loads"] == {worker.url: 1}
            assert figures["processes"]["answering"] == figures["processes"]["count"] == 2
            _, listed = await router.get("/workers")
            assert [(w["url"], w["load"]) for w in listed["workers"]] == [(worker.url, 1)]
            async with router.http.get("/metrics/prometheus") as reply:
                assert 'slime_router_generations_started_total{door="chat"} 4.0' in (
                    await reply.text()
                )
            _, ready = await router.get("/readiness")
            assert ready == {"status": "ready", "healthy_workers": 1, "total_workers": 1}
            _, health = await router.get("/health")
            assert health["processes"] == {"count": 2, "answering": 2}
        worker.release()
        await running


async def test_the_load_of_one_is_known_to_the_other():
    async with two() as (one, other, worker):
        worker.hold(after_tokens=1)
        running = asyncio.create_task(one.post(CHAT, {"messages": [user("hi")]}))
        await worker.wait_running(1)
        [there] = other.gateway.pool.list()
        await until(lambda: there.busy_with == 1)
        assert there.in_flight == 0
        worker.release()
        await running
        await until(lambda: there.busy_with == 0)


@pytest.mark.parametrize("policy", ["cache_aware", "consistent_hashing", "least_inflight"])
async def test_a_session_has_the_same_worker_in_both(policy):
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(tiny_worker()) for _ in range(4)]
        urls = [worker.url for worker in workers]
        one, other = await stack.enter_async_context(family(*urls, policy=policy))
        await until(lambda: all(w.was_greeted for r in (one, other) for w in r.gateway.pool.list()))
        for number in range(8):
            before = [len(worker.requests) for worker in workers]
            path = f"/sessions/s{number}{CHAT}"
            await one.chat([user("hi")], path=path)
            await one.gateway.together.exchange.tell()
            await other.chat([user("something else")], path=path)
            used = [
                len(worker.requests) - count for worker, count in zip(workers, before, strict=True)
            ]
            assert sorted(used) == [0, 0, 0, 2], number


async def test_one_that_is_not_there_is_reported_and_takes_the_state_when_it_comes():
    async with tiny_worker() as worker, family(worker.url, count=3) as routers:
        one, other, gone = routers
        await gone.gateway.siblings.__aexit__()
        assert (await one.post("/pause_generation", {"mode": "abort"}))[0] == 200
        _, listed = await other.get("/workers")
        assert listed["silent_processes"] == {"3": "it is not there"}
        _, ready = await one.get("/readiness")
        assert ready["silent_processes"] == {"3": "it is not there"}
        assert one.gateway.together.registry.behind == {3}
        assert not gone.gateway.pool.list()[0].is_paused
        async with gone.gateway.siblings:
            await until(lambda: gone.gateway.pool.list()[0].is_paused)
            await until(lambda: not one.gateway.together.registry.behind)
        _, figures = await one.get("/metrics")
        assert figures["processes"]["silences"] >= 2


async def test_a_conversation_goes_on_exact_at_whichever_process_it_arrives():
    async with two() as (one, other, _):
        await one.post("/sessions", {"session_id": "s"})
        messages = [user("hi")]
        for router in (one, other, one, other):
            text, receipt = await router.chat(messages, path=f"/sessions/s{CHAT}")
            assert receipt["status"] == ("fresh" if len(messages) == 1 else "extended"), receipt
            messages += [{"role": "assistant", "content": text}, user("more")]
        for router in (one, other):
            _, shown = await router.get("/sessions/s")
            assert shown["turns"] == 4
            _, listed = await router.get("/sessions")
            assert [session["turns"] for session in listed["sessions"]] == [4]


async def test_a_close_waits_for_what_runs_in_the_other_process():
    async with two() as (one, other, worker):
        await one.post("/sessions", {"session_id": "s"})
        worker.hold(after_tokens=1)
        body = {"messages": [user("hi")]}
        running = asyncio.create_task(one.post(f"/sessions/s{CHAT}", body))
        await worker.wait_running(1)
        closing = asyncio.create_task(other.post("/sessions/s/close", {"timeout_secs": 60}))
        await until(lambda: one.gateway.store.sessions.get("s").state == "closing")
        status, error = await one.post(f"/sessions/s{CHAT}", body)
        assert (status, error["error"]["code"]) == (409, "session_closed")
        assert not closing.done()
        worker.release()
        status, shown = await closing
        assert (status, shown["state"], shown["turns"]) == (200, "closed", 1)
        assert (await running)[0] == 200
        assert one.gateway.store.sessions.get("s").state == "closed"
        status, _ = await one.post(f"/sessions/s{CHAT}", body)
        assert status == 409


@pytest.mark.parametrize("how", ["cancel", "delete"])
async def test_what_runs_in_the_other_process_is_ended_by_a_cancelling_close_or_a_delete(how):
    async with two() as (one, other, worker):
        await one.post("/sessions", {"session_id": "s"})
        worker.hold(after_tokens=1)
        body = {"messages": [user("hi")]}
        running = asyncio.create_task(one.post(f"/sessions/s{CHAT}", body))
        await worker.wait_running(1)
        if how == "cancel":
            status, _ = await other.post("/sessions/s/close", {"in_flight": "cancel"})
            assert status == 200
            assert (await running)[0] == 409
        else:
            async with other.http.delete("/sessions/s") as reply:
                assert reply.status == 200
            assert (await running)[0] == 404
            assert (await one.get("/sessions/s"))[0] == 404


async def test_a_session_whose_close_was_given_up_is_open_in_both():
    async with two() as (one, other, worker):
        await one.post("/sessions", {"session_id": "s"})
        worker.hold(after_tokens=1)
        body = {"messages": [user("hi")]}
        running = asyncio.create_task(one.post(f"/sessions/s{CHAT}", body))
        await worker.wait_running(1)
        closing = asyncio.create_task(other.post("/sessions/s/close", {"timeout_secs": 60}))
        await until(lambda: one.gateway.store.sessions.get("s").state == "closing")
        closing.cancel()
        await until(lambda: other.gateway.store.sessions.get("s").state == "open")
        worker.release()
        assert (await running)[0] == 200
        await until(lambda: one.gateway.store.sessions.get("s").state == "open")


async def test_a_stored_response_is_continued_shown_and_deleted_at_either():
    async with two() as (one, other, _):
        _, first = await one.post("/v1/responses", {"input": "hi"})
        body = {"input": "more", "previous_response_id": first["id"]}
        status, second = await other.post("/v1/responses", body)
        assert (status, second["previous_response_id"]) == (200, first["id"])
        said = second["output"][-1]["id"]
        named = {"input": [{"type": "item_reference", "id": said}, user("so?")]}
        assert (await one.post("/v1/responses", named))[0] == 200
        assert (await one.get(f"/v1/responses/{second['id']}"))[1]["id"] == second["id"]
        _, items = await one.get(f"/v1/responses/{second['id']}/input_items")
        assert len(items["data"]) == 3
        async with one.http.delete(f"/v1/responses/{second['id']}") as reply:
            assert reply.status == 200
        assert (await other.get(f"/v1/responses/{second['id']}"))[0] == 404
        assert (await one.get(f"/v1/responses/{second['id']}"))[0] == 404


async def test_a_response_is_deleted_at_a_process_that_could_not_be_told():
    async with two() as (one, other, _):
        _, first = await one.post("/v1/responses", {"input": "hi"})
        path = f"/v1/responses/{first['id']}"
        assert (await other.get(path))[0] == 200
        one.gateway.siblings._sessions.clear()  # it hears nothing
        async with one.http.delete(path) as reply:
            assert reply.status == 200
        assert (await other.get(path))[0] == 404


async def test_a_reload_at_one_is_a_reload_at_both(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann: key-of-ann-0123456789\n")
    async with family(api_keys_file=str(keys), admin_api_key="key-of-admin-0123456789") as routers:
        keys.write_text("ann: another-key-of-ann-0123\n")
        headers = {"Authorization": "Bearer key-of-admin-0123456789"}
        status, reply = await routers[0].post("/reload", headers=headers)
        assert (status, "silent_processes" in reply) == (200, False), reply
        for router in routers:
            for key, expected in (("another-key-of-ann-0123", 200), ("key-of-ann-0123456789", 401)):
                headers = {"Authorization": f"Bearer {key}"}
                async with router.http.get("/v1/models", headers=headers) as answer:
                    assert answer.status == expected


@pytest.mark.parametrize("steps", range(4))
async def test_all_are_asked_even_if_whoever_asks_leaves(steps, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann: key-of-ann-0123456789\n")
    async with family(api_keys_file=str(keys)) as (one, other):
        keys.write_text("ann: another-key-of-ann-0123\nben: key-of-ben-0123456789\n")
        asking = asyncio.create_task(one.gateway.siblings.ask("reload"))
        for _ in range(1 + steps):
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: len(other.gateway.access) == 2)


async def test_the_slots_of_all_processes_are_those_of_the_router(tmp_path):
    config = Config(hf_checkpoint="m", max_concurrent_requests=5, queue_size=0, max_memory=9)
    parts = [portion_of(config, Place(tmp_path, number, 3)) for number in (1, 2, 3)]
    assert [part.max_concurrent_requests for part in parts] == [2, 2, 1]
    assert [part.queue_size for part in parts] == [0, 0, 0]
    assert [part.max_memory for part in parts] == [3, 3, 3]
    assert {part.max_stored_tokens for part in parts} == {None}
    assert {part.journal for part in parts} == {str(tmp_path / "journal")}
    few = Config(hf_checkpoint="m", max_concurrent_requests=1, store="redis://x")
    assert portion_of(few, Place(tmp_path, 2, 2)).max_concurrent_requests == 1
    assert portion_of(few, Place(tmp_path, 2, 2)).journal is None
