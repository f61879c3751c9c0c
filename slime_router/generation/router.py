"""The seam for plug-ins: what wraps the pipeline of a generation.

The chain is composed once. Each request owns every stream that the layers open for it: otherwise, a
layer that stops reading early (or a client that leaves) would leave the worker's lease to the
garbage collector.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TypeAlias

from slime_router.generation.middleware import CallNext, Chunks, Dispatch, Middleware
from slime_router.types import GenerateCall, GenerateChunk

_Streams: TypeAlias = list[AsyncGenerator[GenerateChunk, None]]


class Router:
    """Runs generations through the middleware, outermost first, down to `dispatch`.

    `dispatch` is the pipeline; without plug-ins, it is all there is.
    """

    def __init__(self, middlewares: Sequence[Middleware], dispatch: Dispatch) -> None:
        self._middlewares = tuple(middlewares)
        self._dispatch = dispatch

    def __repr__(self) -> str:
        names = [getattr(m, "__name__", type(m).__name__) for m in self._middlewares]
        return f"<Router {' -> '.join([*names, 'dispatch'])}>"

    def generate(self, call: GenerateCall) -> Generation:
        """The stream of one generation; leaving the block closes every layer.

        Raises:
            RouterError: from the stream, whatever the layers raise.
        """
        streams: _Streams = []
        return Generation(self._link(0, streams), call, streams)

    def _link(self, depth: int, streams: _Streams) -> CallNext:
        def call_next(call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
            stream: AsyncGenerator[GenerateChunk, None]
            if depth == len(self._middlewares):
                stream = self._dispatch(call)
            else:
                stream = self._middlewares[depth](call, self._link(depth + 1, streams))
            streams.append(stream)
            return stream

        return call_next


class Generation:
    """One generation in progress, for the block: owns the streams that the layers open for it.

    Not a generator, as each of those costs time, and every request has one of these.
    """

    __slots__ = ("_begin", "_call", "_streams")

    def __init__(self, begin: CallNext, call: GenerateCall, streams: _Streams) -> None:
        self._begin = begin
        self._call = call
        self._streams = streams

    async def __aenter__(self) -> Chunks:
        return self._begin(self._call)

    async def __aexit__(self, *_: object) -> None:
        await _close(self._streams)


async def _close(streams: _Streams) -> None:
    """Closes all streams, the last one first, even if closing one of them fails."""
    try:
        while streams:
            await streams.pop().aclose()
    finally:
        if streams:
            await _close(streams)
