"""Prefill and decode workers serve in pairs, as slime registers them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from slime_router.failover.disaggregated import prefilling
from slime_router.pool.pool import WorkerPool
from slime_router.testing import FakeWorker
from slime_router.types import GenerateCall
from tests.integration.gateway import Served, serving, tiny_worker, until, user

PREFILL = "http://prefill:1"


@asynccontextmanager
async def paired(**settings: Any) -> AsyncIterator[tuple[Served, FakeWorker, FakeWorker]]:
    async with tiny_worker() as prefill, tiny_worker() as decode, serving(**settings) as router:
        added = {"url": prefill.url, "worker_type": "prefill", "bootstrap_port": 8998}
        assert (await router.post("/workers", added))[0] == 202
        await router.post("/workers", {"url": decode.url, "worker_type": "decode"})
        await until(lambda: bool(prefill.controls and decode.controls))
        yield router, prefill, decode


def bootstrap(worker: FakeWorker) -> dict[str, Any]:
    body = worker.requests[-1].body
    return {key: value for key, value in body.items() if key.startswith("bootstrap_")}


@pytest.mark.parametrize("stream", [False, True])
async def test_both_get_the_request_and_meet_in_a_room(stream):
    async with paired() as (router, prefill, decode):
        said, _ = await router.chat([user("hi")], stream=stream, max_tokens=4)
        assert said
        assert bootstrap(prefill) == bootstrap(decode)
        room = bootstrap(decode).pop("bootstrap_room")
        assert type(room) is int
        assert 0 <= room < 2**63, "SGLang takes whole numbers only"
        fields = {"bootstrap_host": "127.0.0.1", "bootstrap_port": 8998, "bootstrap_room": room}
        assert bootstrap(decode) == fields
        assert prefill.requests[-1].body["input_ids"] == decode.requests[-1].body["input_ids"]
        await router.chat([user("another")], stream=stream)
        assert bootstrap(decode)["bootstrap_room"] != room
        await until(lambda: not router.gateway.pool.total_in_flight)


async def test_generate_has_the_room_too_and_keeps_its_fields():
    async with paired() as (router, prefill, decode):
        body = {
            "input_ids": [5, 6, 7],
            "sampling_params": {"max_new_tokens": 2},
            "custom": {"a": 1},
        }
        status, _ = await router.post("/generate", body)
        assert status == 200
        assert decode.requests[-1].body["custom"] == {"a": 1}
        assert bootstrap(prefill) == bootstrap(decode) != {}


async def test_a_prefill_worker_alone_serves_nobody():
    async with tiny_worker() as prefill, serving() as router:
        added = {"url": prefill.url, "worker_type": "prefill", "bootstrap_port": 8998}
        await router.post("/workers", added)
        status, body = await router.post("/generate", {"input_ids": [5]})
        assert (status, "No decode or regular worker" in str(body)) == (503, True), body
        assert prefill.requests == []


async def test_a_decode_worker_alone_serves_nobody():
    async with tiny_worker() as decode, serving() as router:
        await router.post("/workers", {"url": decode.url, "worker_type": "decode"})
        status, _ = await router.post("/generate", {"input_ids": [5]})
        assert status == 503
        assert router.gateway.pool.total_in_flight == 0


async def test_a_prefill_worker_that_fails_does_not_leave_the_other_waiting():
    async with paired() as (router, prefill, decode), tiny_worker() as second:
        await router.post(
            "/workers", {"url": second.url, "worker_type": "prefill", "bootstrap_port": 8999}
        )
        await until(lambda: bool(second.controls))
        for bad in (prefill, second):
            bad.answer_next(500, b"{}")
        decode.hold()  # as one does that waits for a cache
        asked = asyncio.create_task(router.chat([user("hi")], max_tokens=4))
        await until(lambda: len(prefill.requests) + len(second.requests) > 2)
        decode.release()
        said, _ = await asked
        assert said
        await until(lambda: not router.gateway.pool.total_in_flight)


@pytest.mark.parametrize("number", range(4))
async def test_the_next_try_has_another_prefill_worker_than_the_one_that_failed(number):
    """This policy would choose the same one for a session again and again."""
    async with (
        paired(policy="consistent_hashing") as (router, prefill, decode),
        tiny_worker() as second,
    ):
        named = {"url": second.url, "worker_type": "prefill", "bootstrap_port": 8999}
        await router.post("/workers", named)
        workers = router.gateway.pool.list
        await until(lambda: len(workers()) == 3 and all(w.is_token_exact for w in workers()))
        path = f"/sessions/s{number}/v1/chat/completions"
        await router.chat([user("hi")], path=path, max_tokens=4)
        chosen, other = (prefill, second) if prefill.requests else (second, prefill)
        await until(lambda: not router.gateway.pool.total_in_flight)
        chosen.answer_next(500, b"{}")
        decode.hold()  # as one does that waits for a cache
        asked = asyncio.create_task(router.chat([user("hello")], path=path, max_tokens=4))
        await until(lambda: len(chosen.requests) + len(other.requests) == 3)
        decode.release()
        assert (await asked)[0]
        assert (len(chosen.requests), len(other.requests)) == (2, 1)


async def test_a_client_that_leaves_frees_both():
    async with paired() as (router, prefill, decode):
        prefill.hold()
        decode.hold()
        asked = asyncio.create_task(router.chat([user("hi")], stream=True))
        await prefill.wait_running(1)
        await decode.wait_running(1)
        asked.cancel()
        await asyncio.wait([asked])
        await until(lambda: not (prefill.running or decode.running))
        await until(lambda: not router.gateway.pool.total_in_flight)


async def test_one_that_is_cancelled_while_the_prefill_worker_is_let_go_stays_cancelled():
    """A cancellation of the prefill is ours; one of whoever waits for its end is not."""
    is_closing, may_close = asyncio.Event(), asyncio.Event()

    class Client:
        async def generate(self, *_: object, **__: object) -> AsyncIterator[None]:
            try:
                await asyncio.Event().wait()
                yield
            finally:
                is_closing.set()
                await may_close.wait()

    async def serve() -> None:
        lease = WorkerPool([PREFILL]).lease()
        call = GenerateCall(rid="r", turn_id="t")
        async with prefilling(Client(), lease, call, timeout_s=60.0, on_failure=print):  # type: ignore[arg-type]
            await asyncio.sleep(0)

    serving = asyncio.create_task(serve())
    await is_closing.wait()
    serving.cancel()
    await asyncio.sleep(0)
    may_close.set()
    await asyncio.wait([serving])
    assert serving.cancelled()
