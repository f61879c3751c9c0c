"""The seam for plug-ins: what wraps the pipeline of a generation.

Without plug-ins, a generation is the pipeline itself. With them, each request owns every stream
that the layers open for it: otherwise, a layer that stops reading early (or a client that leaves)
would leave the worker's lease to the garbage collector.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from copy import deepcopy
from typing import TypeAlias

from slime_router.generation.middleware import CallNext, Dispatch, Middleware
from slime_router.template.heard import Heard
from slime_router.types import GenerateCall, GenerateChunk
from slime_router.values import replace

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

    def generate(self, call: GenerateCall) -> aclosing[AsyncGenerator[GenerateChunk, None]]:
        """The stream of one generation; leaving the block closes every layer.

        Raises:
            RouterError: from the stream, whatever the layers raise.
        """
        if not self._middlewares:
            return aclosing(self._dispatch(call))
        return aclosing(self._wrapped(replace(call, shortcut=None)))  # they see every chunk

    async def _wrapped(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        streams: _Streams = []
        if isinstance(call.messages, Heard):  # other requests share them, and plug-ins may write
            call = replace(call, messages=deepcopy(tuple(call.messages)))
        try:
            async for chunk in self._link(0, streams)(call):
                yield chunk
        finally:
            await _close(streams)

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


async def _close(streams: _Streams) -> None:
    """Closes all streams, the last one first, even if closing one of them fails."""
    try:
        while streams:
            await streams.pop().aclose()
    finally:
        if streams:
            await _close(streams)
