"""The router's chain: whatever a layer leaves open is closed with its request."""

from __future__ import annotations

import pytest

from slime_router.generation.router import Router
from slime_router.types import GenerateCall, GenerateChunk


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
