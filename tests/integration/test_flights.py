"""Sessions and what runs in them: limits, closing, deleting, and calls that come too late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from slime_router.errors import Conflict, NotFound, RouterError, SessionLimit, StorageFull
from slime_router.generation import sessions
from slime_router.trajectory.session import Session, SessionSpec
from slime_router.types import Finish, GenerateCall, GenerateChunk, Sampling, token_ids
from tests.integration.gateway import CHAT, served, until, user
from tests.stack import Sample, Stack, pins

LENGTH = Finish("length")


class Worker:
    """Says one token, then waits until it may go on, then says another and ends."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running = 0
        self.calls: list[GenerateCall] = []

    async def dispatch(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        self.running += 1
        self.calls.append(call)
        try:
            yield GenerateChunk(output_ids=[100], logprobs=[-0.5])
            await self.go.wait()
            yield GenerateChunk(output_ids=[101], logprobs=[-0.5], finish=LENGTH)
        finally:
            self.running -= 1


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def stack(worker: Worker) -> Stack:
    return Stack(dispatch=worker.dispatch)


def opened(stack: Stack, **spec: Any) -> Session:
    return stack.store.open_session(SessionSpec(id="s", **spec))


async def begin(stack: Stack, worker: Worker, **fields: Any) -> asyncio.Task[str]:
    """A generation in the session that waits for its worker."""
    count = len(worker.calls)
    call = stack.call("Begin ", session_id="s", **fields)
    task = asyncio.create_task(stack.generate(call))
    while len(worker.calls) == count:  # noqa: ASYNC110 - a poll needs nothing of the worker
        await asyncio.sleep(0)
    for _ in range(5):  # the first token is read
        await asyncio.sleep(0)
    return task


def assert_nothing_is_left(stack: Stack, worker: Worker) -> None:
    assert worker.running == 0
    assert pins(stack.cache) == 0
    assert not stack.sessions._flights
    assert all(session.running == 0 for session in stack.store.sessions)
    stack.store.check_integrity()


async def test_closing_waits_for_what_runs_and_then_nothing_goes_in(stack, worker):
    session = opened(stack)
    running = await begin(stack, worker)
    closing = asyncio.create_task(stack.sessions.close("s", cancel=False, timeout_s=60))
    await asyncio.sleep(0)
    assert session.state == "closing"
    with pytest.raises(Conflict):
        await stack.generate(stack.call("late", session_id="s"))
    assert not closing.done()
    worker.go.set()
    await running
    assert (await closing).state == "closed"
    assert len(session.turns) == 1
    with pytest.raises(Conflict) as late:
        await stack.generate(stack.call("late", session_id="s"))
    assert (late.value.status, late.value.code) == (409, "session_closed")
    assert len(worker.calls) == 1, "a refused call reaches no worker"
    assert_nothing_is_left(stack, worker)


async def test_closing_can_cancel_what_runs_and_keeps_what_was_sampled(stack, worker):
    session = opened(stack)
    running = await begin(stack, worker)
    await stack.sessions.close("s", cancel=True, timeout_s=60)
    with pytest.raises(Conflict):
        await running
    assert not running.cancelled(), "the client gets an answer; its request is not torn down"
    [turn_id] = session.turns
    turn = stack.store.get(turn_id)
    assert turn is not None
    assert turn.output_ids.tolist() == [100]
    assert turn.finish.type == "abort"
    assert stack.rows("s").stats.left_out["undelivered"].tokens == 1
    assert_nothing_is_left(stack, worker)


async def test_what_still_runs_when_the_wait_is_over_is_cancelled(stack, worker):
    opened(stack)
    running = await begin(stack, worker)
    session = await stack.sessions.close("s", cancel=False, timeout_s=0)
    assert session.state == "closed"
    with pytest.raises(Conflict):
        await running
    assert_nothing_is_left(stack, worker)


@pytest.mark.parametrize("stream", [True, False])
async def test_only_what_has_said_nothing_yet_is_asked_for_its_last_words(stack, worker, stream):
    """A streamed turn was recorded piece by piece: it ends at once."""
    opened(stack)
    asked: list[str] = []

    def abort(call: GenerateCall) -> bool:
        asked.append(call.rid)
        worker.go.set()
        return True

    stack.sessions.abort = abort
    running = await begin(stack, worker, stream=stream)
    await stack.sessions.close("s", cancel=True, timeout_s=60)
    with pytest.raises(Conflict):
        await running
    assert asked == ([] if stream else [worker.calls[0].rid])
    assert_nothing_is_left(stack, worker)


@pytest.mark.parametrize("has_worker", [True, False])
async def test_what_ends_by_itself_has_no_more_time_than_what_is_cancelled(
    stack, worker, monkeypatch, has_worker
):
    """The last words are part of the ten seconds, which are all there is where none are due."""
    opened(stack)
    waits: list[float] = []

    async def landed(session_id: str, timeout_s: float) -> None:
        waits.append(timeout_s)

    monkeypatch.setattr(stack.sessions, "_landed", landed)
    stack.sessions.abort = lambda _: has_worker
    running = await begin(stack, worker, stream=False)
    await stack.sessions.land("s", cancel=True, timeout_s=60)
    assert sum(waits) == sessions.LANDING_TIMEOUT_S
    assert len(waits) == 1 + has_worker
    with pytest.raises(Conflict):
        await running


async def test_closing_that_is_cut_short_has_no_effect(stack, worker):
    session = opened(stack)
    running = await begin(stack, worker)
    closing = asyncio.create_task(stack.sessions.close("s", cancel=False, timeout_s=60))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert session.state == "open"
    worker.go.set()
    await running
    await stack.generate(stack.call("more", session_id="s"))
    assert len(session.turns) == 2
    assert_nothing_is_left(stack, worker)


async def test_deleting_ends_what_runs_with_a_404_and_nothing_is_recorded(stack, worker):
    opened(stack)
    running = await begin(stack, worker)
    await stack.sessions.delete("s")
    with pytest.raises(NotFound):
        await running
    assert len(stack.store) == 0
    assert stack.recording.counts.late == 1
    with pytest.raises(NotFound):
        await stack.sessions.delete("s")
    with pytest.raises(NotFound):
        await stack.generate(stack.call("late", session_id="s"))
    assert_nothing_is_left(stack, worker)


async def test_a_late_turn_of_a_deleted_session_does_not_enter_its_successor(stack, worker):
    """The id is opened again while the old generation still runs: it is not the same session."""
    opened(stack)
    running = await begin(stack, worker)
    stack.store.delete_session("s")  # without ending the flight: it will end by itself
    opened(stack)
    worker.go.set()
    await running
    assert len(stack.store) == 0
    assert stack.recording.counts.late == 1
    await stack.generate(stack.call("new", session_id="s"))
    assert len(stack.store.sessions.get("s").turns) == 1
    assert_nothing_is_left(stack, worker)


async def test_a_client_that_leaves_while_its_session_is_deleted_is_cancelled_as_ever(
    stack, worker
):
    opened(stack)
    running = await begin(stack, worker)
    running.cancel()
    await stack.sessions.delete("s")
    with pytest.raises(asyncio.CancelledError):
        await running
    assert_nothing_is_left(stack, worker)


async def test_a_generation_whose_reader_is_busy_ends_at_its_next_step(stack, worker):
    """The task is not cancelled while it writes to the client: that would tear the connection."""
    opened(stack)
    worker.go.set()
    async with stack.router.generate(stack.call("Begin ", session_id="s")) as chunks:
        await anext(chunks)
        await stack.sessions.delete("s")
        with pytest.raises(NotFound):
            await anext(chunks)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    assert_nothing_is_left(stack, worker)


async def test_turns_are_limited_and_a_request_for_several_counts_as_several(stack, worker):
    worker.go.set()
    session = opened(stack, max_turns=3)
    await stack.generate(stack.call("one", session_id="s"))
    with pytest.raises(SessionLimit) as over:
        await stack.generate(stack.call("n", session_id="s", request_id="r", samples=3))
    assert (over.value.status, over.value.is_final) == (429, True)
    assert (session.recorded_turns, session.running) == (1, 0)
    both = [stack.call("n", session_id="s", request_id="r", samples=2) for _ in range(2)]
    await asyncio.gather(*map(stack.generate, both))
    assert session.recorded_turns == 3
    with pytest.raises(SessionLimit):
        await stack.generate(stack.call("four", session_id="s"))
    assert_nothing_is_left(stack, worker)


async def test_sampled_tokens_are_limited_and_the_last_call_gets_what_is_left(stack, worker):
    worker.go.set()
    opened(stack, max_tokens=3)
    await stack.generate(stack.call("one", session_id="s"))
    await stack.generate(stack.call("two", session_id="s"))
    assert [call.token_limit for call in worker.calls] == [3, 1]
    with pytest.raises(SessionLimit):
        await stack.generate(stack.call("three", session_id="s"))


async def test_open_sessions_that_fill_the_store_are_told_and_can_still_be_exported(worker):
    worker.go.set()
    stack = Stack(budget_tokens=8, dispatch=worker.dispatch)
    opened(stack)
    while stack.store.pinned_tokens < 8:
        await stack.generate(stack.call("Begin ", session_id="s"))
    with pytest.raises(StorageFull) as full:
        await stack.generate(stack.call("Begin ", session_id="s"))
    assert full.value.status == 507
    session = stack.store.sessions.get("s")
    assert session.dropped_turns == 0
    assert stack.rows("s", keeps_retries=True).stats.trained_tokens == session.sampled_tokens
    with pytest.raises(StorageFull):
        stack.store.open_session(SessionSpec(id="t"))
    await stack.sessions.close("s", cancel=False, timeout_s=0)
    with pytest.raises(StorageFull):
        stack.store.open_session(SessionSpec(id="t"))
    assert session.dropped_turns == 0, "closed is not exported"
    stack.store.mark_exported("s")
    stack.store.open_session(SessionSpec(id="t"))


async def test_a_session_of_a_trainer_outlives_all_others_under_pressure(worker):
    worker.go.set()
    stack = Stack(budget_tokens=60, dispatch=worker.dispatch)
    opened(stack)
    for _ in range(3):
        await stack.generate(stack.call("Begin ", session_id="s"))
    for number in range(40):
        await stack.generate(stack.call(f"Noise {number}", session_id=f"implicit {number}"))
    session = stack.store.sessions.get("s")
    assert (len(session.turns), session.dropped_turns) == (3, 0)
    assert stack.store.dropped_turns > 0
    assert len(stack.store.sessions) < 41, "sessions without turns are forgotten"
    stack.store.check_integrity()


async def test_the_sampling_of_a_session_holds_where_the_client_does_not_say(stack, worker):
    worker.go.set()
    opened(stack, sampling=Sampling(temperature=0.7, stop=("END",), max_tokens=9))
    asked = Sampling(temperature=0.0, top_p=0.5)
    await stack.generate(stack.call("one", session_id="s", sampling=asked))
    sampling = worker.calls[0].sampling
    assert (sampling.temperature, sampling.top_p) == (0.0, 0.5)
    assert (sampling.stop, sampling.max_tokens) == (("END",), 9)


async def test_a_call_without_a_session_passes_by(stack, worker):
    worker.go.set()
    asked = Sampling(temperature=0.25)
    call = stack.call("", text=None, input_ids=token_ids([1, 2]), sampling=asked)
    await stack.generate(call, Sample([1]))
    assert worker.calls[0].sampling is asked
    assert len(stack.store.sessions) == 0


async def test_an_error_of_the_worker_leaves_the_session_as_it_was(worker):
    async def fails(call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        raise RouterError("it broke")
        yield GenerateChunk(output_ids=[])

    stack = Stack(dispatch=fails)
    session = opened(stack, max_turns=1)
    with pytest.raises(RouterError):
        await stack.generate(stack.call("one", session_id="s"))
    assert (session.running, session.recorded_turns) == (0, 0)
    assert_nothing_is_left(stack, worker)


WHOLE = [
    (CHAT, {"messages": [user("hi")]}),
    (CHAT, {"messages": [user("hi")], "n": 2}),
    ("/v1/completions", {"prompt": "hi"}),
    ("/v1/messages", {"messages": [user("hi")], "max_tokens": 8}),
    ("/v1/responses", {"input": "hi"}),
    ("/generate", {"text": "hi", "session_id": "s"}),
]


@pytest.mark.parametrize(("path", "body"), WHOLE)
@pytest.mark.parametrize("timeout_s", [None, 0])
async def test_what_a_whole_reply_had_sampled_is_kept_when_its_session_is_ended(
    path, body, timeout_s
):
    """Its worker has said nothing yet: it is asked."""
    async with served() as (router, worker):
        worker.hold(after_tokens=3)
        await router.post("/sessions", {"session_id": "s"})
        asked = {**body, "session_id": "s"}
        task = asyncio.create_task(router.post(path, asked))
        count = body.get("n", 1)
        await until(lambda: [run.count for run in worker._engine.runs.values()] == [3] * count)
        how = {"in_flight": "cancel"} if timeout_s is None else {"timeout_secs": timeout_s}
        status, summary = await router.post("/sessions/s/close", how)
        assert (status, summary["state"], summary["turns"]) == (200, "closed", count)
        assert (await task)[0] == 409
        _, summary = await router.get("/sessions/s")
        for turn in summary["turn_list"]:
            assert (turn["finish_reason"], turn["output_tokens"]) == ("abort", 3)
            assert not turn["is_delivered"]
        assert worker.running == []
        _, figures = await router.get("/metrics")
        assert figures["router"]["aborts_sent"] == count


async def test_a_worker_that_does_not_say_what_it_sampled_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr(sessions, "_LAST_WORDS_S", 0.0)
    async with served() as (router, worker):
        worker.hold(after_tokens=3)
        worker.hold_aborts()
        task = asyncio.create_task(router.post(f"/sessions/s{CHAT}", {"messages": [user("hi")]}))
        await worker.wait_running(1)
        status, summary = await router.post("/sessions/s/close", {"in_flight": "cancel"})
        assert (status, summary["state"], summary["turns"]) == (200, "closed", 0)
        assert (await task)[0] == 409
        worker.release()
