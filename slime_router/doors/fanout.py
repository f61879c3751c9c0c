"""Several generations read as one stream of numbered chunks.

A generation is asked for its next chunk only when the reader has dealt with the one before. So a
stream that was read to its end was also delivered, which is what recording goes by.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

from slime_router.middleware.base import Chunks
from slime_router.router import Router
from slime_router.types import GenerateCall, GenerateChunk

NumberedChunks: TypeAlias = AsyncIterator[tuple[int, GenerateChunk]]


@asynccontextmanager
async def generations(
    router: Router, calls: Sequence[GenerateCall]
) -> AsyncIterator[NumberedChunks]:
    """The chunks of all `calls` as they come, each with the index of its call.

    On leaving the block every generation is closed.

    Raises:
        RouterError: from the stream, when one of the generations fails.
    """
    if len(calls) == 1:
        async with router.generate(calls[0]) as chunks, aclosing(_numbered(chunks)) as stream:
            yield stream
        return
    steps: asyncio.Queue[_Step] = asyncio.Queue()
    tasks = [
        asyncio.create_task(_pump(router, call, index, steps), name=f"generation {call.rid}")
        for index, call in enumerate(calls)
    ]
    try:
        async with aclosing(_merged(steps, len(calls))) as stream:
            yield stream
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(slots=True)
class _Step:
    """One thing that happened in a generation: a chunk, its end, or what went wrong."""

    index: int
    chunk: GenerateChunk | None = None
    error: Exception | None = None
    is_taken: asyncio.Event | None = None


async def _numbered(chunks: Chunks) -> AsyncGenerator[tuple[int, GenerateChunk], None]:
    async for chunk in chunks:
        yield 0, chunk


async def _pump(
    router: Router, call: GenerateCall, index: int, steps: asyncio.Queue[_Step]
) -> None:
    is_taken = asyncio.Event()
    try:
        async with router.generate(call) as chunks:
            async for chunk in chunks:
                is_taken.clear()
                steps.put_nowait(_Step(index, chunk, is_taken=is_taken))
                await is_taken.wait()  # also bounds the queue: one step for each generation
        steps.put_nowait(_Step(index))
    except Exception as exc:  # noqa: BLE001 - it is raised again where the stream is read
        steps.put_nowait(_Step(index, error=exc))


async def _merged(
    steps: asyncio.Queue[_Step], running: int
) -> AsyncGenerator[tuple[int, GenerateChunk], None]:
    while running:
        step = await steps.get()
        if step.error is not None:
            raise step.error
        if step.chunk is None or step.is_taken is None:
            running -= 1
            continue
        yield step.index, step.chunk
        step.is_taken.set()
