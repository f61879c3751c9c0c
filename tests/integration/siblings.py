"""Several gateways in one event loop that are the processes of one router."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from slime_router.siblings.place import Place
from tests.integration.gateway import Served, serving


@asynccontextmanager
async def family(*urls: str, count: int = 2, **settings: Any) -> AsyncIterator[list[Served]]:
    """The processes, each on its own port, so that a test can choose whom it asks."""
    with tempfile.TemporaryDirectory(prefix="family-", dir="/tmp") as directory:
        shared: dict[str, Any] = {"journal": f"{directory}/journal", "journal_shared": True}
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(
                    serving(
                        *urls, place=Place(Path(directory), number, count), **shared, **settings
                    )
                )
                for number in range(1, count + 1)
            ]
