"""Whenever a generation is cancelled: the lease is back, the worker stops, no task is left."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from slime_router.pool.pool import WorkerPool
from slime_router.testing import FakeWorker
from slime_router.types import GenerateCall, Prompt, Receipt, token_ids
from tests.relayed import Relayed


def call(stream=True):
    prompt = Prompt(token_ids([1, 5]), Receipt("fresh", 0, 2, "t", ""))
    return GenerateCall(rid="r", turn_id="t", prompt=prompt, stream=stream)


async def consume(client, given):
    async with aclosing(client.relay.generate(given)) as chunks:
        return [chunk async for chunk in chunks]


async def cancel_after(steps, client, given):
    """Cancels a generation after `steps` turns of the event loop; False: it was over before."""
    task = asyncio.create_task(consume(client, given))
    for _ in range(steps):
        await asyncio.sleep(0)
    was_cancelled = task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() is was_cancelled
    return was_cancelled


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("first", ["live", "dead", "stale"])
async def test_cancelled_at_every_step_while_it_runs(first, stream):
    """From before the connection, over a worker that is passed over, to the wait for a token."""
    reached = []
    others = asyncio.all_tasks()
    for steps in range(40):
        async with FakeWorker() as dead, FakeWorker(notices_disconnect=False) as worker:
            await dead.refuse_connections()
            pool = WorkerPool([dead.url, worker.url] if first == "dead" else [worker.url])
            async with Relayed(pool, capture="full", request_timeout_s=60.0) as client:
                if first == "stale":
                    await consume(client, call())
                    worker.drop_next()  # closes the kept connection under the next request
                worker.hold(after_tokens=3)
                assert await cancel_after(steps, client, call(stream)), "held: it cannot end"
                assert pool.total_in_flight == 0
            await worker.wait_running(0)  # it notices no lost client: only an abort ends it
            reached.append(len(worker.requests))
        assert asyncio.all_tasks() == others
    assert reached[0] < reached[-1], "from not yet sent to running"


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelled_at_every_step_until_its_end(stream):
    """A generation that ends by itself is not aborted; one that is cancelled does not go on."""
    others = asyncio.all_tasks()
    was_cancelled, steps = True, 0
    while was_cancelled:
        async with FakeWorker(notices_disconnect=False) as worker:
            pool = WorkerPool([worker.url])
            async with Relayed(pool, capture="full", request_timeout_s=60.0) as client:
                was_cancelled = await cancel_after(steps, client, call(stream))
                assert pool.total_in_flight == 0
            await worker.wait_running(0)
        assert asyncio.all_tasks() == others
        steps += 1
    assert worker.aborted == []
    assert steps > 5


async def test_closing_the_client_waits_for_its_aborts_but_not_for_ever():
    """A worker that does not answer an abort cannot keep the router from stopping."""
    others = asyncio.all_tasks()
    async with FakeWorker(notices_disconnect=False) as worker:
        worker.hold(after_tokens=1)
        worker.hold_aborts()
        pool = WorkerPool([worker.url])
        client = Relayed(pool, capture="full", request_timeout_s=60.0, abort_timeout_s=0.05)
        async with asyncio.timeout(60), client, aclosing(client.relay.generate(call())) as chunks:
            await anext(chunks)
        assert (client.aborts_sent, worker.aborted) == (1, [])
        worker.release()
    assert asyncio.all_tasks() == others
