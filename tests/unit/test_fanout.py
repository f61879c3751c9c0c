"""Several samples of a request, read as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from slime_router.api.fanout import generations
from slime_router.errors import SESSION_CLOSED, Conflict
from slime_router.generation.router import Router
from slime_router.types import Finish, GenerateChunk


async def finished(call: Any) -> AsyncGenerator[GenerateChunk, None]:
    """Each call finishes; the last one's session is closed after that."""
    yield GenerateChunk((7,), finish=Finish("stop"))
    if call.is_last:
        await asyncio.sleep(0)
        raise Conflict("It was closed.", code=SESSION_CLOSED)


async def test_a_close_after_all_samples_have_finished_ends_the_request():
    calls: list[Any] = [SimpleNamespace(rid=str(i), is_last=i == 1) for i in range(2)]
    async with asyncio.timeout(30), generations(Router((), finished), calls) as chunks:
        with pytest.raises(Conflict):
            async for _ in chunks:
                pass
