"""How many generations run at once, what waits or is refused, and that no slot is ever lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from slime_router.auth.caller import owned
from slime_router.errors import Conflict, TooManyRequests
from slime_router.generation.admission import AdmissionQueue
from slime_router.trajectory.session import SessionSpec
from slime_router.types import Finish, GenerateCall, GenerateChunk
from tests.integration.gateway import CHAT, FOUR_KEYS, served, until, user
from tests.stack import Stack

LENGTH = Finish("length")
FOREVER_S = 1e6
HELLO = {"messages": [user("Hi")], "max_tokens": 3}
DOORS = {
    CHAT: HELLO,
    "/v1/completions": {"prompt": "Hi", "max_tokens": 3},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 30},
    "/v1/messages": {**HELLO, "model": "tiny"},
    "/generate": {"text": "Hi", "sampling_params": {"max_new_tokens": 3}},
}
OPENAI_DOORS = [path for path in DOORS if path != "/generate"]


class Room:
    """A place that is entered through an admission; whoever is inside waits for a signal."""

    def __init__(self, n: int = 1, *, queue: int = 100, timeout_s: float = FOREVER_S) -> None:
        self.admission = AdmissionQueue(max_running=n, max_waiting=queue, timeout_s=timeout_s)
        self.stream = Stack(dispatch=self.dispatch, admission=self.admission).router._dispatch
        self.inside: dict[str, asyncio.Event] = {}
        self.entered: list[str] = []
        self.most = 0

    async def dispatch(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        self.entered.append(call.rid)
        self.inside[call.rid] = asyncio.Event()
        self.most = max(self.most, len(self.inside))
        try:
            yield GenerateChunk(output_ids=[1])
            await self.inside[call.rid].wait()
        finally:
            del self.inside[call.rid]
        yield GenerateChunk(output_ids=[2], finish=LENGTH)

    async def read(self, call: GenerateCall) -> None:
        async for _ in self.stream(call):
            pass

    async def ask(
        self, rid: str, session: str | None = None, *, owner: str = ""
    ) -> asyncio.Task[None]:
        """A generation that runs or waits; it has had all the steps it can use."""
        call = GenerateCall(
            rid=rid,
            turn_id=rid,
            request_id=rid,
            text="Hi",
            session_id=session,
            scope=owned(owner, ""),
        )
        task = asyncio.create_task(self.read(call))
        await steps()
        return task

    async def end(self, rid: str) -> None:
        self.inside[rid].set()
        await steps()

    def numbers(self) -> tuple[int, int]:
        figures = self.admission.figures
        return figures.running, figures.waiting


async def steps(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_no_more_than_n_are_inside_and_the_next_comes_in_when_one_ends():
    room = Room(2)
    tasks = [await room.ask(f"r{number}") for number in range(5)]
    assert list(room.inside) == ["r0", "r1"]
    assert room.numbers() == (2, 3)
    await room.end("r1")
    assert list(room.inside) == ["r0", "r2"]
    for rid in ("r0", "r2", "r3", "r4"):
        await room.end(rid)
    await asyncio.gather(*tasks)
    assert room.entered == ["r0", "r1", "r2", "r3", "r4"]
    assert (room.most, room.numbers()) == (2, (0, 0))
    assert room.admission.figures.waited == 3
    assert room.admission.figures.queue_time_s > 0


async def test_sessions_take_turns_and_a_request_without_one_is_a_party_of_its_own():
    room = Room()
    asked = [("x", "s"), *((f"a{n}", "a") for n in range(4)), ("b0", "b"), ("c", None), ("d", None)]
    tasks = [await room.ask(*ask) for ask in asked]
    for _ in asked:
        await room.end(next(iter(room.inside)))
    await asyncio.gather(*tasks)
    assert room.entered == ["x", "a0", "b0", "c", "d", "a1", "a2", "a3"]


async def test_a_key_that_fills_the_queue_takes_no_place_of_another_key():
    """Its requests have no session: each of them would be its own party."""
    room = Room(queue=20)
    flood = [await room.ask(f"a{n}", owner="ann") for n in range(21)]
    assert room.numbers() == (1, 20)
    other = [await room.ask(f"b{n}", owner="bob") for n in range(2)]
    assert room.numbers() == (1, 20)
    for lost in flood[-2:]:
        with pytest.raises(TooManyRequests):
            await lost
    for _ in range(21):
        await room.end(next(iter(room.inside)))
    await asyncio.gather(*flood[:-2], *other)
    assert room.entered[:5] == ["a0", "a1", "b0", "a2", "b1"]


async def test_samples_of_one_request_wait_as_one_party():
    room = Room()
    first = await room.ask("first")
    tasks = [
        asyncio.create_task(
            room.read(GenerateCall(rid=rid, turn_id=rid, request_id=name, text="Hi"))
        )
        for rid, name in [("k0", "k"), ("k1", "k"), ("other", "o")]
    ]
    await steps()
    for _ in range(4):
        await room.end(next(iter(room.inside)))
    await asyncio.gather(first, *tasks)
    assert room.entered == ["first", "k0", "other", "k1"]


async def test_one_more_than_may_wait_is_refused_at_once():
    room = Room(queue=1)
    running, waiting = await room.ask("r0"), await room.ask("r1")
    late = await room.ask("r2")
    with pytest.raises(TooManyRequests, match="1 generations wait"):
        await late
    assert room.admission.figures.refused == 1
    await room.end("r0")
    await room.end("r1")
    await asyncio.gather(running, waiting)
    assert room.numbers() == (0, 0)


async def test_who_is_refused_is_told_how_long_the_queue_before_it_may_take(monkeypatch):
    room = Room(2, queue=2)
    clock = 100.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock)

    async def refused() -> float | None:
        with pytest.raises(TooManyRequests) as caught:
            await (await room.ask("late"))
        return caught.value.retry_after_s

    tasks = [await room.ask(f"r{number}") for number in range(4)]
    assert await refused() is None, "nothing is known"
    clock += 20
    await room.end("r0")
    tasks.append(await room.ask("r4"))
    assert await refused() == 20 * 3 / 2
    clock += 8
    await room.end("r2")
    tasks.append(await room.ask("r5"))
    assert 8 * 3 / 2 < (await refused() or 0) < 20 * 3 / 2
    for _ in range(3):
        for rid in tuple(room.inside):
            await room.end(rid)
    await asyncio.gather(*tasks)
    assert room.numbers() == (0, 0)


async def test_a_burst_that_fills_the_queue_makes_room_for_others():
    room = Room(queue=3)
    burst = [await room.ask(f"a{number}", "a") for number in range(4)]
    other = await room.ask("b", "b")
    with pytest.raises(TooManyRequests):
        await burst[3]
    for rid in ("a0", "a1", "b", "a2"):
        await room.end(rid)
    await asyncio.gather(*burst[:3], other)


async def test_who_waited_too_long_is_refused_and_nothing_of_it_is_left():
    room = Room(timeout_s=0)
    running = await room.ask("r0")
    with pytest.raises(TooManyRequests, match="within 0 s"):
        await (await room.ask("r1"))
    assert room.numbers() == (1, 0)
    await room.end("r0")
    await running
    assert room.numbers() == (0, 0)
    last = await room.ask("r2")
    await room.end("r2")
    await last
    assert room.entered == ["r0", "r2"]


@pytest.mark.parametrize("before", range(6))
@pytest.mark.parametrize("after", range(8))
async def test_no_slot_is_lost_when_a_waiter_is_cancelled_at_any_step(before, after):
    """While it waits, while it is handed the slot, when it runs: another always gets it."""
    room = Room()
    first = await room.ask("first")
    call = GenerateCall(rid="gone", turn_id="", text="Hi")
    gone = asyncio.create_task(room.read(call))
    await steps(before)
    last = await room.ask("last") if before % 2 else None
    room.inside["first"].set()
    await steps(after)
    gone.cancel()
    await asyncio.wait([gone])
    assert gone.cancelled()
    last = last or await room.ask("last")
    await steps()
    assert list(room.inside) == ["last"]
    await room.end("last")
    await asyncio.gather(first, last)
    assert (room.most, room.numbers()) == (1, (0, 0))


@pytest.mark.parametrize("rid", ["r1", None])
async def test_what_is_aborted_in_the_queue_ends_as_one_that_has_sampled_nothing(rid):
    room = Room()
    first, waiting, other = [await room.ask(f"r{number}") for number in range(3)]
    room.admission.cancel("nobody")
    assert room.numbers() == (1, 2)
    stream = room.stream(GenerateCall(rid="r1", turn_id="", text="Hi"))
    chunk = asyncio.create_task(anext(stream))
    await steps()
    if rid is None:
        room.admission.cancel_all()
    else:
        room.admission.cancel(rid)
    await steps()
    assert (await chunk).finish == Finish("abort", message="Abort in waiting queue")
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await waiting
    await room.end("r0")
    if rid is not None:
        await room.end("r2")
    await asyncio.gather(first, other)
    assert room.entered == ["r0", "r2"][: 1 + (rid is not None)]
    assert room.numbers() == (0, 0)
    assert room.admission.figures.refused == 0
    assert not room.admission._tickets, "who has left the queue is forgotten"


async def test_a_slot_is_not_lost_on_one_that_is_aborted_as_it_is_handed_it():
    for is_first in (True, False):
        room = Room()
        first, second, last = [await room.ask(rid) for rid in ("first", "second", "last")]
        if is_first:
            room.admission.cancel("second")
        room.inside["first"].set()
        if not is_first:
            while room.admission.figures.waiting == 2:  # noqa: ASYNC110 - the step counts
                await asyncio.sleep(0)
            room.admission.cancel("second")  # too late: the slot is its own
        for _ in range(2):
            await steps()
            for rid in tuple(room.inside):
                await room.end(rid)
        await asyncio.gather(first, second, last)
        assert room.entered == ["first", *(["second"] * (not is_first)), "last"]
        assert room.numbers() == (0, 0)


async def test_a_slot_goes_past_all_those_that_left_in_the_same_step():
    room = Room()
    first = await room.ask("first")
    gone = [await room.ask(f"gone{number}") for number in range(3)]
    last = await room.ask("last")
    for task in gone:
        task.cancel()
    await room.end("first")
    assert list(room.inside) == ["last"]
    await room.end("last")
    await asyncio.gather(first, last)
    assert room.numbers() == (0, 0)


async def test_one_that_leaves_as_it_is_refused_leaves_nothing():
    room = Room(timeout_s=0)
    first = await room.ask("first")
    gone = asyncio.create_task(room.read(GenerateCall(rid="gone", turn_id="", text="Hi")))
    for _ in range(5):
        await asyncio.sleep(0)
        if room.admission.figures.refused:
            break
    gone.cancel()
    await asyncio.wait([gone])
    await room.end("first")
    await first
    assert room.numbers() == (0, 0)


async def test_a_stream_that_is_left_in_the_middle_gives_its_slot_back():
    room = Room()
    stream = room.stream(GenerateCall(rid="r", turn_id="", text="Hi"))
    await anext(stream)
    assert room.numbers() == (1, 0)
    await stream.aclose()
    assert room.numbers() == (0, 0)


async def test_one_that_has_finished_needs_no_slot_though_it_is_still_open():
    """Samples are kept open until all have finished: the last ones may wait for the first."""
    room = Room()
    stream = room.stream(GenerateCall(rid="r", turn_id="", text="Hi"))
    await anext(stream)
    waiting = await room.ask("next")
    room.inside["r"].set()
    assert (await anext(stream)).finish is LENGTH
    await steps()
    assert list(room.inside) == ["next"]
    await stream.aclose()
    assert room.numbers() == (1, 0), "it gives its slot back once"
    await room.end("next")
    await waiting


async def test_what_cannot_run_gives_its_slot_back():
    admission = AdmissionQueue(max_running=1, max_waiting=0, timeout_s=FOREVER_S)
    stack = Stack(admission=admission)
    stack.store.open_session(SessionSpec(id="s"))
    await stack.sessions.close("s", cancel=False, timeout_s=1)
    for _ in range(2):
        with pytest.raises(Conflict):
            await stack.generate(stack.call("Hi", session_id="s"))
    assert admission.figures.running == 0


# Through HTTP


@pytest.mark.parametrize("path", DOORS)
async def test_one_too_many_is_told_in_the_words_of_each_door(path):
    async with served(max_concurrent_requests=1, queue_size=0) as (router, worker):
        worker.hold(after_tokens=0)
        first = asyncio.create_task(router.post("/generate", {"text": "Hi"}))
        await worker.wait_running(1)
        async with router.http.post(path, json=DOORS[path]) as response:
            body = await response.json()
            assert response.status == 429
            assert response.headers["retry-after"] == "1"
        if path == "/generate":
            assert list(body["error"]) == ["message"]
        elif path == "/v1/messages":
            assert (body["type"], body["error"]["type"]) == ("error", "rate_limit_error")
        else:
            assert set(body["error"]) == FOUR_KEYS
            assert body["error"]["code"] == "rate_limit_exceeded"
        _, figures = await router.get("/metrics")
        worker.release()
        assert (await first)[0] == 200
        assert (await router.post(path, DOORS[path]))[0] == 200
    assert figures["admission"]["running"] == figures["admission"]["refused"] == 1
    assert len(worker.requests) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_more_samples_than_may_run_at_once_are_served_one_after_the_other(stream):
    async with served(max_concurrent_requests=2) as (router, worker):
        params = {"max_new_tokens": 4, "n": 5}
        body = {"text": "Hi", "sampling_params": params, "stream": stream}
        async with router.http.post("/generate", json=body) as response:
            assert response.status == 200
            raw = await response.read()
        assert raw.count(b'"finish_reason":{') >= 5
        assert len(worker.requests) == 5
        _, figures = await router.get("/metrics")
    assert (figures["admission"]["waited"], figures["admission"]["running"]) == (3, 0)


async def test_a_client_that_leaves_the_queue_leaves_nothing_there():
    async with served(max_concurrent_requests=1) as (router, worker):
        worker.hold(after_tokens=0)
        first = asyncio.create_task(router.post("/generate", {"text": "Hi"}))
        await worker.wait_running(1)
        gone = asyncio.create_task(router.post(CHAT, HELLO))
        await until(lambda: router.gateway.admission.figures.waiting == 1)
        gone.cancel()
        await until(lambda: router.gateway.admission.figures.waiting == 0)
        worker.release()
        assert (await first)[0] == 200
        assert router.gateway.admission.figures.running == 0
    assert len(worker.requests) == 1


@pytest.mark.parametrize("path", OPENAI_DOORS)
async def test_the_limit_of_the_chat_doors_counts_them_together(path):
    async with served(openai_max_concurrent_requests=1) as (router, worker):
        worker.hold(after_tokens=0)
        first = asyncio.create_task(router.post(CHAT, HELLO))
        await worker.wait_running(1)
        status, _ = await router.post(path, DOORS[path])
        assert status == 429
        other = asyncio.create_task(router.post("/generate", DOORS["/generate"]))
        await worker.wait_running(2)
        worker.release()
        assert (await first)[0] == (await other)[0] == 200
        assert (await router.post(path, DOORS[path]))[0] == 200


async def test_two_hundred_at_once_all_get_through_a_small_door():
    """Some leave while they wait, some while they run; the rest are served, and none waits on."""
    async with served(max_concurrent_requests=3) as (router, _):

        async def one(number: int) -> Any:
            path = (CHAT, "/generate")[number % 2]
            headers = {"x-session-id": f"s{number % 7}"} if number % 3 else {}
            asked = router.post(path, DOORS[path], headers=headers)
            if number % 5 == 0:
                try:
                    return await asyncio.wait_for(asked, 0.001 * (number % 50))
                except TimeoutError:
                    return None
            return await asked

        replies = await asyncio.gather(*(one(number) for number in range(200)))
        await until(lambda: router.gateway.admission.figures.running == 0)
        assert router.gateway.admission.figures.waiting == 0
        assert all(reply is None or reply[0] == 200 for reply in replies)
        assert sum(reply is not None for reply in replies) >= 160
