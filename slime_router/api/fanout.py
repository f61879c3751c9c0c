"""Several generations read as one stream, and one stream read by several.

A generation is asked for its next chunk only once the reader has dealt with the previous one (with
several readers, once the fastest has), and for its end only once all have finished. So a stream
that was read to its end was also delivered, which is what recording relies on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from slime_router.errors import SESSION_CLOSED, Conflict, RouterError
from slime_router.generation.middleware import Chunks
from slime_router.generation.router import Router
from slime_router.types import GenerateCall, GenerateChunk


def generations(
    router: Router, calls: Sequence[GenerateCall]
) -> aclosing[AsyncGenerator[GenerateChunk, None]]:
    """The chunks of all `calls` as they come; each says of which sample it is.

    Leaving the block closes every generation.

    Raises:
        RouterError: from the stream, when one of the generations fails.
    """
    if len(calls) > 1:
        return aclosing(_several(router, calls))
    return router.generate(calls[0])


async def _several(
    router: Router, calls: Sequence[GenerateCall]
) -> AsyncGenerator[GenerateChunk, None]:
    """A finished generation is asked for its end only once all have finished.

    No reply is whole before that.
    """
    await router.check(calls)
    steps: asyncio.Queue[_Step] = asyncio.Queue()
    tasks = [
        asyncio.create_task(_pump(router, call, index, steps), name=f"generation {call.rid}")
        for index, call in enumerate(calls)
    ]
    held: list[asyncio.Event] = []  # of those that have finished
    running = count = len(calls)
    try:
        while running:
            step = await steps.get()
            if step.error is not None:
                if isinstance(step.error, Conflict) and step.error.code == SESSION_CLOSED:
                    await _rest(steps, running - len(held) - 1)
                raise router.failure(step.error)
            if step.chunk is None or step.is_taken is None:
                if len(held) < count:
                    return  # it ended without finishing: the reply can never be whole
                running -= 1
                continue
            yield step.chunk._replace(sample=step.index)
            if step.chunk.finish is None or len(held) == count:
                step.is_taken.set()
                continue
            held.append(step.is_taken)
            if len(held) == count:
                for is_taken in held:
                    is_taken.set()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Copies:
    """One stream for several readers: each reads all of it at its own pace."""

    def __init__(self) -> None:
        self._chunks: list[GenerateChunk] = []
        self._failure: Exception | None = None
        self._has_ended = False
        self._is_wanted = asyncio.Event()
        self._news = asyncio.Event()

    def reader(self) -> Chunks:
        """The stream from its beginning.

        Raises:
            RouterError: from the stream, for each reader, when the generation fails.
        """
        return _Reader(self)

    async def fill(self, chunks: Chunks) -> None:
        """Reads the stream, one chunk whenever a reader has dealt with all the previous ones."""
        try:
            while True:
                await self._is_wanted.wait()
                self._is_wanted.clear()
                self._chunks.append(await anext(chunks))
                self._tell()
        except StopAsyncIteration:
            pass
        except BaseException as exc:  # raised again for each reader; a plug-in may cancel
            self._failure = _failure(exc)
            if not isinstance(exc, Exception):
                raise
        finally:
            self._has_ended = True
            self._tell()

    async def chunk(self, position: int) -> GenerateChunk:
        """The chunk at `position`. Asking for it means that the ones before are dealt with.

        Raises:
            StopAsyncIteration: the stream ended before that.
            RouterError: the generation failed there.
        """
        while position == len(self._chunks):
            if self._failure is not None:
                raise self._failure
            if self._has_ended:
                raise StopAsyncIteration
            self._is_wanted.set()
            await self._news.wait()
        return self._chunks[position]

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class _Reader:
    """A position in the copies. Not a generator: left half read, one would have to be closed."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._position = 0

    def __aiter__(self) -> _Reader:
        return self

    async def __anext__(self) -> GenerateChunk:
        chunk = await self._copies.chunk(self._position)
        self._position += 1
        return chunk


@dataclass(slots=True)
class _Step:
    """One thing that happened in a generation: a chunk, its end, or what went wrong."""

    index: int
    chunk: GenerateChunk | None = None
    error: BaseException | None = None
    is_taken: asyncio.Event | None = None


async def _rest(steps: asyncio.Queue[_Step], count: int) -> None:
    """Waits for the last of `count` generations whose session was closed.

    The session ends each of them, once its worker has said what it has sampled.
    """
    while count > 0:  # it is negative if the close came after all had finished
        step = await steps.get()
        if step.chunk is not None and step.is_taken is not None and step.chunk.finish is None:
            step.is_taken.set()
        else:
            count -= 1


async def _pump(
    router: Router, call: GenerateCall, index: int, steps: asyncio.Queue[_Step]
) -> None:
    is_taken = asyncio.Event()
    try:
        async with router.generate(call) as chunks:
            async for chunk in chunks:
                is_taken.clear()
                steps.put_nowait(_Step(index, chunk, is_taken=is_taken))
                await is_taken.wait()  # also bounds the queue: one step per generation
        steps.put_nowait(_Step(index))
    except BaseException as exc:  # raised again where the stream is read; a plug-in may cancel
        steps.put_nowait(_Step(index, error=exc))
        if not isinstance(exc, Exception):
            raise


def _failure(exc: BaseException) -> Exception:
    return exc if isinstance(exc, Exception) else RouterError("The generation was cancelled.")
