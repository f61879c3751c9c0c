"""The router's chain: whatever a layer leaves open is closed with its request."""

from __future__ import annotations

import asyncio

import pytest

from slime_router.generation.router import Router
from slime_router.types import GenerateCall, GenerateChunk
from slime_router.values import replace


def layer(name, closed, *, fails=False):
    """A middleware that hands on what comes, and says when it is closed."""

    async def middleware(call, call_next):
        try:
            async for chunk in call_next(call):
                yield chunk
        finally:
            closed.append(name)
            if fails:
                raise RuntimeError(name)

    return middleware


def worker(closed):
    async def dispatch(call):
        try:
            while True:
                yield GenerateChunk(output_ids=[1])
        finally:
            closed.append("worker")

    return dispatch


CALL = GenerateCall(rid="r", turn_id="t")


async def test_a_half_read_generation_is_closed_from_the_worker_up():
    closed: list[str] = []
    router = Router([layer("outer", closed), layer("inner", closed)], worker(closed))
    async with router.generate(CALL) as chunks:
        await anext(chunks)
    assert closed == ["worker", "inner", "outer"]


async def test_every_stream_that_a_layer_opened_is_closed():
    closed: list[str] = []

    async def asks_twice(call, call_next):
        for _ in range(2):
            yield await anext(call_next(call))

    async with Router([asks_twice], worker(closed)).generate(CALL) as chunks:
        assert len([chunk async for chunk in chunks]) == 2
    assert closed == ["worker", "worker"]


async def test_a_layer_that_fails_at_closing_keeps_no_other_open():
    closed: list[str] = []
    layers = [layer("outer", closed), layer("bad", closed, fails=True)]
    with pytest.raises(RuntimeError, match="bad"):
        async with Router(layers, worker(closed)).generate(CALL) as chunks:
            await anext(chunks)
    assert closed == ["worker", "bad", "outer"]


async def read_all(stream):
    return [chunk async for chunk in stream]


def waiting_worker(closed, began):
    """A worker that fails for calls without a turn, once another one waits for its first token."""

    async def dispatch(call):
        if not call.turn_id:
            await began.wait()
            raise LookupError("the error")
        try:
            began.set()
            await asyncio.Event().wait()
            yield GenerateChunk(output_ids=[1])
        finally:
            closed.append("worker")

    return dispatch


@pytest.mark.parametrize("layers", [0, 2])
async def test_what_another_task_still_reads_is_ended_and_hides_no_error(layers):
    closed: list[str] = []
    tasks: list[asyncio.Future[object]] = []

    async def side_by_side(call, call_next):
        calls = (call, replace(call, turn_id=""))
        tasks.extend(asyncio.ensure_future(read_all(call_next(each))) for each in calls)
        await asyncio.gather(*tasks)
        yield GenerateChunk(output_ids=[])

    inner = [layer(str(n), closed) for n in range(layers)]
    router = Router([side_by_side, *inner], waiting_worker(closed, asyncio.Event()))
    with pytest.raises(LookupError, match="the error"):
        async with router.generate(CALL) as chunks:
            await anext(chunks)
    assert closed.count("worker") == 1
    await asyncio.wait(tasks)
    assert tasks[0].cancelled()


async def test_a_task_that_outlives_its_request_starts_no_generation():
    closed: list[str] = []
    kept = []

    async def leaves_a_task(call, call_next):
        kept.append(call_next)
        yield GenerateChunk(output_ids=[])

    async with Router([leaves_a_task], worker(closed)).generate(CALL) as chunks:
        await anext(chunks)
    with pytest.raises(RuntimeError, match="is over"):
        kept[0](CALL)


async def test_a_reader_that_is_cancelled_by_another_stays_cancelled():
    """The end of the request and a cancellation of the plug-in's own meet in one task."""
    closed: list[str] = []
    began = asyncio.Event()
    tasks: list[asyncio.Future[object]] = []

    async def cancels(call, call_next):
        tasks.append(asyncio.ensure_future(read_all(call_next(call))))
        await began.wait()
        tasks[0].cancel()
        yield GenerateChunk(output_ids=[])

    router = Router([cancels], waiting_worker(closed, began))
    async with router.generate(CALL) as chunks:
        await anext(chunks)
    assert closed == ["worker"]
    await asyncio.wait(tasks)
    assert tasks[0].cancelled()


async def test_a_stream_that_another_task_closes_just_then_hides_no_error():
    closed: list[str] = []
    may_close = asyncio.Event()
    tasks: list[asyncio.Future[object]] = []

    async def dispatch(call):
        try:
            yield GenerateChunk(output_ids=[1])
        finally:
            await may_close.wait()
            closed.append("worker")

    async def closes_one(call, call_next):
        stream = call_next(call)
        yield await anext(stream)
        tasks.append(asyncio.ensure_future(stream.aclose()))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(may_close.set)
        raise LookupError("the error")

    with pytest.raises(LookupError, match="the error"):
        async with Router([closes_one], dispatch).generate(CALL) as chunks:
            await read_all(chunks)
    assert closed == ["worker"]
    await tasks[0]
