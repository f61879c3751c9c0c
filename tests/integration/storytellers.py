"""Workers that all run one model: each token follows from all before it, wherever it is sampled.

So whoever goes on with a generation must say what the first worker would have said.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain
from typing import Any

import orjson

from slime_router.engine.exchange import Exchange
from slime_router.testing import FakeWorker, Script
from slime_router.trajectory.turn import Turn
from tests.clock import Clock
from tests.integration.gateway import Served, Words, serving, tiny_worker, until
from tests.integration.scripted import events

LETTERS = range(65, 91)  # ids of the tiny tokenizer
STORY_LEN = 64

PROBE_S = 4.0  # seconds that a probe may take; aiohttp rounds what is longer

QUICK: dict[str, Any] = {  # no test waits for a clock
    "health_check_interval_s": 0.02,
    "health_check_timeout_s": PROBE_S,
    "sse_keepalive_s": 0.0,  # the clock is put forward
    "retry_initial_backoff_ms": 1.0,
    "retry_max_backoff_ms": 4.0,
    "worker_wait_s": 60.0,
    "pause_wait_s": 60.0,
}


def story(prompt: Sequence[int], count: int = STORY_LEN) -> tuple[list[int], list[float]]:
    """The `count` tokens that follow `prompt`, and their logprobs."""
    seed = zlib.crc32(orjson.dumps([*prompt]))
    ids, logprobs = [], []
    for _ in range(count):
        ids.append(LETTERS[seed % len(LETTERS)])
        logprobs.append(-(seed % 1024) / 1024)
        seed = zlib.crc32(orjson.dumps([*prompt, *ids]))
    return ids, logprobs


def text_of(ids: Sequence[int]) -> str:
    return Words().decode(ids)


def tell(body: dict[str, Any]) -> Script:
    ids, logprobs = story(body["input_ids"])
    return Script(ids=ids, logprobs=logprobs)


def teller(**settings: Any) -> FakeWorker:
    """A worker of that model, on the tiny vocabulary."""
    return tiny_worker(**{"reply": tell, **settings})


@asynccontextmanager
async def fleet(
    count: int, worker_settings: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[Served, list[FakeWorker]]]:
    """A router with that many storytellers, asked in turns; all were probed and greeted."""
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(teller(**(worker_settings or {}))) for _ in range(count)
        ]
        given = {"policy": "round_robin", **QUICK, **settings}
        urls = [worker.url for worker in workers]
        router = await stack.enter_async_context(serving(*urls, **given))
        await until(lambda: all(len(worker.controls) > 1 for worker in workers))
        await until(lambda: not len(router.gateway.fleet.greetings))
        yield router, workers
        await check_whole(router, workers)


async def check_whole(router: Served, workers: Sequence[FakeWorker]) -> None:
    """No lease, exchange or run is left, and no rid ran twice on one worker."""
    await until(lambda: router.gateway.pool.total_in_flight == 0)
    assert router.gateway.relay.running == 0
    for worker in workers:
        rids = [request.body["rid"] for request in worker.requests]
        assert len(rids) == len(set(rids))


def at_worker(router: Served, url: str) -> tuple[set[Exchange], set[Exchange], set[Exchange]]:
    """What is under way: generations and probes of that worker, and all that others have."""
    under_way = router.gateway.fleet.client._exchanges
    of_all = {each for rids in under_way.values() for each in chain.from_iterable(rids.values())}
    there = {each for each in of_all if each.worker.url == url}
    generations = {each for each in there if each.rid}
    return generations, there - generations, of_all - there


async def miss_a_probe(router: Served, worker: FakeWorker, clock: Clock) -> None:
    """What the router has just asked of a silent worker ends by its time-out, and nothing else."""
    probes: set[Exchange] = set()

    def are_alone() -> bool:
        nonlocal probes
        _, probes, others = at_worker(router, worker.url)
        return bool(probes) and not others

    await until(are_alone)
    clock.put_forward(PROBE_S)
    await until(lambda: not probes & at_worker(router, worker.url)[1])


async def miss_probes(router: Served, worker: FakeWorker, clock: Clock) -> None:
    """A silent worker misses as many as it takes to be given up, with what it runs."""
    await until(lambda: bool(at_worker(router, worker.url)[0]))
    while at_worker(router, worker.url)[0]:
        await miss_a_probe(router, worker, clock)


def request_of(text: str = "Tell me", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}


async def streamed(router: Served, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream that goes well."""
    async with router.http.post(path, json={**body, "stream": True}) as response:
        raw = await response.read()
        assert response.status == 200, raw
    assert raw.endswith(b"data: [DONE]\n\n")
    return events(raw)[:-1]


def only_turn(router: Served) -> Turn:
    """The one turn that was recorded."""
    (turn,) = router.gateway.store._turns.values()
    return turn


def down(router: Served) -> list[str]:
    """The URLs of the workers that count as down."""
    return [worker.url for worker in router.gateway.pool.list() if not worker.is_up]
