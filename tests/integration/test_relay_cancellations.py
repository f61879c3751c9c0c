"""A request that is given up at any step of a failover leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from slime_router.engine.client import WorkerClient
from slime_router.failover.attempts import RelaySettings
from slime_router.failover.health import Health, HealthSettings
from slime_router.failover.relay import Relay
from slime_router.pool.backoff import Backoff
from slime_router.pool.pool import WorkerPool
from slime_router.supervisor import Supervisor
from slime_router.testing import FakeWorker
from slime_router.types import GenerateCall, Prompt, Receipt, Sampling, token_ids
from tests.integration.gateway import until
from tests.integration.storytellers import LETTERS, tell
from tests.relayed import open_text

COUNT = 4


def call(stream: bool) -> GenerateCall:
    return GenerateCall(
        rid="r",
        turn_id="t",
        stream=stream,
        sampling=Sampling(max_tokens=COUNT),
        prompt=Prompt(ids=token_ids([70, 71]), receipt=Receipt("fresh", 0, 2, "t", "")),
    )


async def one_run(step: int, *, stream: bool) -> tuple[bool, int]:
    """Cancels after that many steps of the loop; whether it came to that, and what was read."""
    others = asyncio.all_tasks()
    read = 0
    async with (
        FakeWorker(reply=tell, vocab_size=max(LETTERS) + 1, notices_disconnect=False) as dying,
        FakeWorker(reply=tell, vocab_size=max(LETTERS) + 1, notices_disconnect=False) as other,
    ):
        pool = WorkerPool([dying.url, other.url])
        client = WorkerClient(
            vocab_size=1000, capture="full", request_timeout_s=60.0, abort_timeout_s=1.0
        )
        settings = HealthSettings(is_enabled=False, timeout_s=1.0)
        health = Health(pool, client, settings, Supervisor())
        async with client, health:
            relay = Relay(
                pool,
                client,
                RelaySettings(request_timeout_s=60.0, worker_wait_s=1.0),
                open_text=open_text,
                backoff=Backoff(initial_s=0.001),
                on_suspicion=health.suspect,
            )
            dying.die_next(after_tokens=2)

            async def ask() -> None:
                nonlocal read
                async for chunk in relay.generate(call(stream)):
                    read += len(chunk.output_ids)

            task = asyncio.create_task(ask())
            for _ in range(step):
                await asyncio.sleep(0)
            was_cancelled = task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() is was_cancelled
            assert pool.total_in_flight == 0
            assert relay.running == 0
            assert all(worker.pending_tokens == 0 for worker in pool.list())
            await until(lambda: not client._aborts)
        await until(lambda: not client._exchanges and not health._watches)
        await other.wait_running(0)
    await until(lambda: asyncio.all_tasks() == others)
    return was_cancelled, read


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_cancelled_at_every_step_of_a_failover(stream):
    """Lease, exchange, run, watch and task: all are returned, in the second try too."""
    outcomes = set()
    was_cancelled, step = True, 0
    while was_cancelled:
        was_cancelled, read = await one_run(step, stream=stream)
        outcomes.add(read)
        step += 1
    assert outcomes >= ({0, COUNT} if not stream else {0, 2, COUNT})
    assert step > 10
