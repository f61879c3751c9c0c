"""The router that a file's tests share where none of them changes it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from slime_router.testing import FakeWorker
from tests.integration.gateway import Served, served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unchanged() -> AsyncIterator[tuple[Served, FakeWorker]]:
    """A router and its worker, for requests that are refused: after each they are as before.

    Its tests run in the loop of their file: `@pytest.mark.asyncio(loop_scope="module")`.
    """
    async with served() as both:
        router, worker = both
        before = router.footprint(), len(router.gateway.store.sessions)
        yield both
        assert (router.footprint(), len(router.gateway.store.sessions)) == before
        assert [each for each in worker.requests if each.path == "/generate"] == []
