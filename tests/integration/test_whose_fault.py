"""Whose fault a failure is: a request that several workers fail alike counts against none."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from slime_router.testing import FakeWorker
from tests.integration.gateway import CHAT, Served, until
from tests.integration.storytellers import fleet, request_of

TOKEN = {
    "text": "x",
    "output_ids": [7],
    "meta_info": {
        "finish_reason": None,
        "completion_tokens": 1,
        "output_token_logprobs": [[-0.5, 7, None]],
    },
}
ERROR = {"error": {"message": "boom", "code": 500}}
ANSWERS: dict[str, list[bytes]] = {
    "error after a token": [orjson.dumps(TOKEN), orjson.dumps(ERROR)],
    "garbage after a token": [orjson.dumps(TOKEN), b"garbage"],
    "end after a token": [orjson.dumps(TOKEN)],
    "error": [orjson.dumps(ERROR)],
    "garbage": [b"garbage"],
    "nothing": [],
}


def answer_next(worker: FakeWorker, payloads: list[bytes]) -> None:
    body = b"".join(b"data: %s\n\n" % each for each in payloads)
    worker.answer_next(200, body, "text/event-stream")


def states(router: Served) -> list[str]:
    pool = router.gateway.pool
    return [pool.breaker_state(worker) for worker in pool.list()]


async def ask(router: Served, **fields: Any) -> tuple[int, bytes]:
    async with router.http.post(CHAT, json=request_of(stream=True, **fields)) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("payloads", ANSWERS.values(), ids=ANSWERS)
async def test_a_request_that_all_workers_fail_alike_counts_against_none(payloads):
    async with fleet(3, cb_failure_threshold=1, retry_max_retries=2) as (router, workers):
        for _ in range(4):
            for worker in workers:
                for _ in range(4):
                    answer_next(worker, payloads)
            status, raw = await ask(router, max_tokens=3)
            assert status == 502 or raw.count(b'"error"') <= 1
            for worker in workers:
                worker._answers.clear()
        assert states(router) == ["closed"] * 3
        status, raw = await ask(router)
        assert (status, raw.count(b'"error"')) == (200, 0)


@pytest.mark.parametrize("payloads", ANSWERS.values(), ids=ANSWERS)
async def test_a_worker_that_fails_what_another_ends_is_at_fault(payloads):
    async with fleet(
        2, cb_failure_threshold=1, policy="round_robin", health_check_interval_s=60.0
    ) as (router, workers):
        for _ in range(2):
            answer_next(workers[0], payloads)
            for _ in range(2):
                status, raw = await ask(router)
                assert (status, raw.count(b'"error"')) == (200, 0)
        assert states(router) == ["open", "closed"]


async def test_a_worker_that_broke_off_is_at_fault_though_the_client_leaves_the_next_one():
    async with fleet(
        2, cb_failure_threshold=1, policy="round_robin", health_check_interval_s=60.0
    ) as (router, workers):
        answer_next(workers[0], ANSWERS["end after a token"])
        workers[1].hold(after_tokens=1)
        asked = [asyncio.create_task(ask(router)) for _ in range(2)]
        await workers[1].wait_running(2)
        assert states(router) == ["closed"] * 2, "it is not known yet"
        for each in asked:
            each.cancel()
        await until(lambda: states(router) == ["open", "closed"])
        await asyncio.wait(asked)


async def test_a_worker_alone_that_fails_again_and_again_is_at_fault():
    payloads = ANSWERS["error after a token"]
    async with fleet(1, cb_failure_threshold=3, worker_wait_s=0.0) as (router, [worker]):
        for _ in range(9):
            answer_next(worker, payloads)
        status, raw = await ask(router)
        assert status == 200
        assert raw.count(b'"error"') == 1
        assert len(worker.requests) == 4, "the first may have been the request's fault"
        assert states(router) == ["open"]
