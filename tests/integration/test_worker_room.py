"""At most so many requests at each worker: what waits, where, and that no place is ever lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_router.errors import NoWorker, RouterError, TooManyRequests
from slime_router.failover.attempts import Attempts, Dispatcher, RelaySettings, Run
from slime_router.generation.admission import AdmissionQueue
from slime_router.pool.backoff import Backoff
from slime_router.pool.lease import Lease
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Need
from slime_router.waiting.fair_queue import Party
from tests.integration.gateway import CHAT, Served, serving, tiny_worker, until, user
from tests.integration.test_admission import steps

FOREVER_S = 1e6
HELLO = {"messages": [user("Hi")], "max_tokens": 3}


class House:
    """A fleet without sockets: each request has a slot, then a worker, until it is to end."""

    def __init__(self, workers: int, most: int, *, room_wait_s: float = FOREVER_S) -> None:
        self.most = most
        self.pool = WorkerPool([f"http://w{n}" for n in range(workers)], max_in_flight=most)
        waits = RelaySettings(
            request_timeout_s=FOREVER_S,
            worker_wait_s=FOREVER_S,
            pause_wait_s=FOREVER_S,
            room_wait_s=room_wait_s,
        )
        self.dispatcher = Dispatcher(
            self.pool, waits, Backoff(), on_suspicion=lambda _: None, random=lambda: 0.5
        )
        self.admission = AdmissionQueue(max_running=10**6, max_waiting=10**6, timeout_s=FOREVER_S)
        self.admission.keep_to(self.pool.places)
        self.pool.subscribe(self.admission.admit)
        self.held: dict[str, tuple[Lease, asyncio.Event]] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.moving: set[str] = set()
        self.order: list[str] = []

    async def run(self, name: str, owner: str = "", target: str | None = None) -> None:
        slot = await self.admission.enter(name, Party(owner, name))
        assert slot is not None
        with slot:
            slot.prepared()
            attempts = Attempts(self.dispatcher, Need(target=target), Run())
            while True:
                with await attempts.lease(name) as lease:
                    self.order.append(name)
                    self.held[name] = lease, asyncio.Event()
                    try:
                        await self.held[name][1].wait()
                    finally:
                        del self.held[name]
                if name not in self.moving:
                    return
                self.moving.discard(name)

    async def ask(self, name: str, owner: str = "", target: str | None = None) -> None:
        self.tasks[name] = asyncio.create_task(self.run(name, owner, target))
        await steps()

    async def end(self, name: str) -> None:
        self.held[name][1].set()
        await steps()

    async def move(self, name: str) -> None:
        """Its worker breaks off: it needs another one, or the same."""
        self.moving.add(name)
        await self.end(name)

    async def leave(self, name: str) -> None:
        self.tasks[name].cancel()
        await steps()

    def check(self) -> None:
        """The obvious rules, from what runs where."""
        at: dict[str, int] = {}
        for lease, _ in self.held.values():
            at[lease.worker.url] = at.get(lease.worker.url, 0) + 1
        assert all(count <= self.most for count in at.values())
        assert self.pool.total_in_flight == len(self.held)
        waiting = [n for n, t in self.tasks.items() if not t.done() and n not in self.held]
        roomy = [
            worker.url
            for worker in self.pool.list()
            if worker.is_there and not worker.is_resting and at.get(worker.url, 0) < self.most
        ]
        assert not (waiting and roomy), (waiting, roomy)


KINDS = ["ask"] * 4 + ["end"] * 2 + ["leave", "move", "add", "remove", "drain"]
KINDS += ["down", "up", "pause", "go"]
OPS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 50),
    ),
    max_size=60,
)


async def perform(house: House, op: str, number: int, name: str) -> None:
    def one(things: list[Any]) -> Any:
        return things[number % len(things)] if things else None

    worker = one(list(house.pool.list()))
    live = [n for n, task in house.tasks.items() if not task.done()]
    if op == "ask":
        await house.ask(name, owner="ab"[number % 2])
    elif op in ("end", "move") and house.held:
        await getattr(house, op)(one(list(house.held)))
    elif op == "leave" and live:
        await house.leave(one(live))
    elif op == "add":
        house.pool.add(f"http://w{number % 4}")
    elif op == "remove" and len(house.pool) > 1:
        house.pool.remove(worker.url)
    elif op == "drain" and len(house.pool) > 1:
        house.pool.drain(worker.url)
    elif op == "down":
        house.pool.mark_down(worker)
    elif op == "up":
        house.pool.mark_up(worker)
    elif op in ("pause", "go"):
        house.pool.rest(worker, is_paused=op == "pause", is_asleep=False)
    await steps()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(OPS, st.integers(1, 3), st.integers(1, 3))
def test_no_worker_has_too_many_and_nobody_waits_while_one_has_room(ops, workers, most):
    async def tried() -> None:
        house = House(workers, most)
        for number, (op, which) in enumerate(ops):
            # The last worker that takes requests stays: without one there is a 503, not a wait.
            leaves = op in ("remove", "drain")
            if leaves and sum(not w.is_draining for w in house.pool.list()) < 2:
                continue
            await perform(house, op, which, f"r{number}")
            house.check()
        for worker in house.pool.list():
            house.pool.mark_up(worker)
            house.pool.rest(worker, is_paused=False, is_asleep=False)
        house.pool.add("http://last")
        await steps()
        while house.held:
            house.check()
            await house.end(next(iter(house.held)))
        assert all(task.done() for task in house.tasks.values())
        figures = house.admission.figures
        assert (figures.running, figures.waiting, house.pool.total_in_flight) == (0, 0, 0)
        assert not house.dispatcher.line._places

    asyncio.run(tried())


async def test_owners_take_turns_at_a_place():
    house = House(1, 1)
    for name in ("a0", "a1", "a2", "b0", "b1"):
        await house.ask(name, owner=name[0])
    for _ in range(5):
        await house.end(next(iter(house.held)))
    assert house.order == ["a0", "a1", "b0", "a2", "b1"]


@pytest.mark.parametrize("before", range(6))
@pytest.mark.parametrize("after", range(8))
async def test_no_place_is_lost_when_one_that_moves_is_cancelled_at_any_step(before, after):
    house = House(2, 1)
    await house.ask("r0")
    await house.ask("r1")
    lost = house.held["r0"][0].worker
    house.pool.mark_down(lost)
    house.moving.add("r0")
    house.held["r0"][1].set()
    await steps(before)
    await house.ask("last")
    house.held["r1"][1].set()
    await steps(after)
    house.tasks["r0"].cancel()
    await steps()
    assert list(house.held) == ["last"]
    await house.end("last")
    assert house.admission.figures.running == house.pool.total_in_flight == 0


async def test_what_moves_comes_before_what_waits_in_the_queue():
    house = House(2, 1)
    for name in ("r0", "r1", "r2"):
        await house.ask(name)
    house.pool.mark_down(house.held["r0"][0].worker)
    await house.move("r0")
    assert list(house.held) == ["r1"]
    await house.end("r1")
    await house.end("r0")
    assert house.order == ["r0", "r1", "r0", "r2"]
    await house.end("r2")


async def test_a_worker_that_left_and_came_back_still_has_what_it_had():
    house = House(1, 1)
    for name in ("r0", "r1"):
        await house.ask(name)
    (url,) = house.pool.loads
    house.pool.remove(url)
    house.pool.add(url)
    await steps()
    assert list(house.held) == ["r0"]
    assert house.pool.full == 1
    await house.end("r0")
    assert list(house.held) == ["r1"]
    await house.end("r1")
    assert house.pool.full == house.pool.total_in_flight == 0


async def test_one_that_names_its_worker_waits_for_that_one_and_delays_nobody():
    house = House(2, 1)
    await house.ask("r0")
    await house.ask("named", target=house.held["r0"][0].worker.url)
    await house.ask("other")
    assert list(house.held) == ["r0", "other"]
    await house.end("other")
    assert list(house.held) == ["r0"]
    await house.end("r0")
    assert list(house.held) == ["named"]
    await house.end("named")


async def test_a_worker_that_does_not_free_a_place_in_time_is_a_429():
    house = House(2, 1, room_wait_s=0)
    await house.ask("r0")
    await house.ask("named", target=house.held["r0"][0].worker.url)
    with pytest.raises(TooManyRequests, match="as many requests as it may"):
        await house.tasks["named"]
    await house.end("r0")
    assert house.admission.figures.running == 0


async def test_without_any_worker_there_is_the_error_that_there_was_not_a_wait():
    house = House(0, 1)
    for name in ("r0", "r1"):
        await house.ask(name)
        with pytest.raises(NoWorker, match="No worker is registered"):
            await house.tasks[name]
    assert isinstance(house.tasks["r0"].exception(), RouterError)


# Over HTTP


@asynccontextmanager
async def limited(count: int, most: int, **more: Any) -> AsyncIterator[tuple[Served, list[Any]]]:
    workers = [tiny_worker() for _ in range(count)]
    async with AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(worker)
        urls = [worker.url for worker in workers]
        async with serving(*urls, max_inflight_per_worker=most, **more) as router:
            yield router, workers


async def test_each_worker_has_so_many_and_the_rest_waits():
    async with limited(2, 2) as (router, workers):
        for worker in workers:
            worker.hold(after_tokens=0)
        asked = [asyncio.create_task(router.post(CHAT, HELLO)) for _ in range(7)]
        await until(lambda: router.gateway.admission.figures.waiting == 3)
        for worker in workers:
            await worker.wait_running(2)
        loads = list(router.gateway.pool.loads.values())
        _, figures = await router.get("/metrics")
        info, _ = await router.get("/get_model_info")
        for worker in workers:
            worker.release()
        replies = await asyncio.gather(*asked)
        assert loads == [2, 2]
        assert figures["admission"]["places"] == 4
        assert (figures["fleet"]["full"], info) == (2, 200)
        assert [status for status, _ in replies] == [200] * 7
        assert router.gateway.admission.figures.running == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_more_samples_than_there_is_room_for_are_served_after_the_others(stream):
    async with limited(1, 2) as (router, (worker,)):
        params = {"max_new_tokens": 4, "n": 5}
        body = {"text": "Hi", "sampling_params": params, "stream": stream}
        async with asyncio.timeout(20), router.http.post("/generate", json=body) as response:
            raw = await response.read()
        assert response.status == 200
        assert raw.count(b'"finish_reason":{') >= 5
        assert len(worker.requests) == 5


async def test_a_session_whose_worker_is_full_goes_to_another():
    async with limited(2, 1) as (router, workers):
        headers = {"x-session-id": "s"}
        await router.post(CHAT, HELLO, headers=headers)
        for worker in workers:
            worker.hold(after_tokens=0)
        asked = [asyncio.create_task(router.post(CHAT, HELLO, headers=headers)) for _ in range(2)]
        for worker in workers:
            await worker.wait_running(1)
        for worker in workers:
            worker.release()
        assert [status for status, _ in await asyncio.gather(*asked)] == [200, 200]


async def test_one_more_than_may_wait_for_a_worker_is_a_429():
    async with limited(1, 1, queue_size=0) as (router, (worker,)):
        worker.hold(after_tokens=0)
        first = asyncio.create_task(router.post(CHAT, HELLO))
        await worker.wait_running(1)
        async with router.http.post(CHAT, json=HELLO) as response:
            status, retry_after = response.status, response.headers["retry-after"]
        embedding, _ = await router.post("/v1/embeddings", {"model": "tiny", "input": "Hi"})
        worker.release()
        assert (await first)[0] == 200
        assert (status, embedding, retry_after) == (429, 429, "1")
