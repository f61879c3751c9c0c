"""The seam for plug-ins: what wraps the pipeline of a generation.

Without plug-ins, a generation is the pipeline itself. With them, each request owns every stream
that the layers open for it: otherwise, a layer that stops reading early (or a client that leaves)
would leave the worker's lease to the garbage collector.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from copy import deepcopy
from typing import TypeAlias

from slime_router.errors import RouterError
from slime_router.generation.middleware import CallNext, Dispatch, Middleware
from slime_router.template.heard import Heard
from slime_router.template.messages import Plain
from slime_router.types import GenerateCall, GenerateChunk
from slime_router.values import replace
from slime_router.waiting.cancel_scope import CancelScope, Cut

Check: TypeAlias = Callable[[Sequence[GenerateCall]], Awaitable[None]]


class Router:
    """Runs generations through the middleware, outermost first, down to `dispatch`.

    `dispatch` is the pipeline; without plug-ins, it is all there is. `check` looks at the prompts
    of a request that has several, before the first of them is sent.

    Attributes:
        on_cancelled: given what ended a generation that has its own task, where a plug-in did it;
            says what its client is sent.
    """

    def __init__(
        self, middlewares: Sequence[Middleware], dispatch: Dispatch, *, check: Check | None = None
    ) -> None:
        self.on_cancelled: Callable[[BaseException], RouterError] = _cancelled
        self._middlewares = tuple(middlewares)
        self._dispatch = dispatch
        self._check = check

    def __repr__(self) -> str:
        names = [getattr(m, "__name__", type(m).__name__) for m in self._middlewares]
        return f"<Router {' -> '.join([*names, 'dispatch'])}>"

    async def check(self, calls: Sequence[GenerateCall]) -> None:
        """Whether all `calls` of one request can be served. Plug-ins may change prompts first.

        Raises:
            RouterError: one cannot.
        """
        if self._check is not None and not self._middlewares:
            await self._check(calls)

    def failure(self, exc: BaseException) -> Exception:
        """What a generation failed with that nobody wanted to end."""
        return exc if isinstance(exc, Exception) else self.on_cancelled(exc)

    def generate(self, call: GenerateCall) -> aclosing[AsyncGenerator[GenerateChunk, None]]:
        """The stream of one generation; leaving the block closes every layer.

        Raises:
            RouterError: from the stream, whatever the layers raise.
        """
        if not self._middlewares:
            return aclosing(self._dispatch(call))
        return aclosing(self._wrapped(replace(call, shortcut=None)))  # they see every chunk

    async def _wrapped(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        streams = _Streams()
        # Other requests share them, or what is known of them goes with them: plug-ins may write.
        if isinstance(call.messages, Heard | Plain):
            call = replace(call, messages=deepcopy(tuple(call.messages)))
        try:
            async for chunk in self._link(0, streams)(call):
                yield chunk
        finally:
            await streams.close()

    def _link(self, depth: int, streams: _Streams) -> CallNext:
        def call_next(call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
            if depth == len(self._middlewares):
                return streams.own(self._dispatch(call))
            return streams.own(self._middlewares[depth](call, self._link(depth + 1, streams)))

        return call_next


def _cancelled(_: BaseException) -> RouterError:
    return RouterError("The generation was cancelled.")


class _Streams:
    """The streams that the layers opened for one request."""

    def __init__(self) -> None:
        self._open: list[_Stream] = []
        self._is_closed = False

    def own(
        self, stream: AsyncGenerator[GenerateChunk, None]
    ) -> AsyncGenerator[GenerateChunk, None]:
        """The stream, which ends with the request whoever reads it then.

        Raises:
            RuntimeError: the request is over.
        """
        if self._is_closed:
            raise RuntimeError("the request of this call_next is over")
        self._open.append(owned := _Stream(stream))
        return owned.chunks()

    async def close(self) -> None:
        """Closes all streams, the last one first, even if closing one of them fails."""
        self._is_closed = True
        try:
            while self._open:
                await self._open.pop().close()
        finally:
            if self._open:
                await self.close()


class _Stream:
    """A stream that tasks of a plug-in may read; whoever does when it ends is cancelled."""

    def __init__(self, stream: AsyncGenerator[GenerateChunk, None]) -> None:
        self._stream = stream
        self._in_use = asyncio.Lock()  # a generator raises if it is closed while it runs
        self._reading: CancelScope | None = None

    async def chunks(self) -> AsyncGenerator[GenerateChunk, None]:
        """The chunks, for one reader.

        Raises:
            CancelledError: the request ended meanwhile.
        """
        try:
            while (chunk := await self._next()) is not None:
                yield chunk
        finally:
            await self.close()

    async def _next(self) -> GenerateChunk | None:
        async with self._in_use:
            try:
                with CancelScope() as self._reading:
                    return await anext(self._stream, None)
            except Cut:
                raise asyncio.CancelledError from None
            finally:
                self._reading = None

    async def close(self) -> None:
        """Ends whoever reads it, then the stream itself."""
        if self._reading is not None:
            self._reading.cut()
        async with self._in_use:
            await self._stream.aclose()
