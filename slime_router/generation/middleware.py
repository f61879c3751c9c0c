"""The seam for plug-ins: a middleware wraps one generation.

    async def middleware(call, call_next):
        async for chunk in call_next(call):
            yield chunk

It may change the call, answer by itself, ask again, or change what the client sees. It works on
typed values, never on HTTP bytes. `call_next` may be called several times; every stream it opens is
closed with the request, even if the client leaves.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeAlias

from slime_router.types import GenerateCall, GenerateChunk

Chunks: TypeAlias = AsyncIterator[GenerateChunk]
CallNext: TypeAlias = Callable[[GenerateCall], AsyncGenerator[GenerateChunk, None]]
Middleware: TypeAlias = Callable[[GenerateCall, CallNext], AsyncGenerator[GenerateChunk, None]]
HttpPlugin: TypeAlias = Callable[..., Awaitable[object]]  # aiohttp's kind; the server calls it
Dispatch: TypeAlias = Callable[[GenerateCall], AsyncGenerator[GenerateChunk, None]]
