"""Prefill and decode on separate workers: both get the request, and meet in a room.

The prefill worker computes the prompt and hands its cache to the decode worker through its
bootstrap server; the room is a number that both know. The decode worker's answer is what counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from random import SystemRandom
from urllib.parse import urlsplit

from slime_router.engine.client import WorkerClient
from slime_router.engine.exchange import NotTaken
from slime_router.errors import RouterError
from slime_router.pool.lease import Lease
from slime_router.pool.worker import Worker
from slime_router.types import GenerateCall
from slime_router.values import replace

logger = logging.getLogger(__name__)

ROOMS = 2**63  # SGLang takes integers below this

_rooms = SystemRandom()


def paired(call: GenerateCall, prefill: Worker) -> GenerateCall:
    """The call as both workers of a pair get it, with a new room."""
    fields = {
        "bootstrap_host": urlsplit(prefill.url).hostname,
        "bootstrap_port": prefill.bootstrap_port,
        "bootstrap_room": _rooms.randrange(ROOMS),
    }
    return call.asking({**call.asked, **fields})


@asynccontextmanager
async def prefilling(
    client: WorkerClient,
    lease: Lease,
    call: GenerateCall,
    *,
    timeout_s: float,
    on_failure: Callable[[Worker], None],
) -> AsyncIterator[None]:
    """While the block runs, the leased worker computes the prompt of the `paired` call.

    Then the lease ends. If the prefill worker fails, the decode worker is left waiting, so
    `on_failure(prefill)` is called.
    """
    task = asyncio.create_task(
        _prefill(client, lease, call, timeout_s, on_failure), name=f"prefill {call.rid}"
    )
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])  # not the task itself: whoever waits may be cancelled, too


async def _prefill(
    client: WorkerClient,
    lease: Lease,
    call: GenerateCall,
    timeout_s: float,
    on_failure: Callable[[Worker], None],
) -> None:
    prefill, whole = lease.worker, replace(call, stream=False)
    try:
        async with aclosing(client.generate(prefill, whole, timeout_s=timeout_s)) as chunks:
            async for _ in chunks:
                pass
    except (NotTaken, RouterError) as exc:
        logger.warning("prefill failed: worker=%s rid=%s reason=%s", prefill.url, call.rid, exc)
        on_failure(prefill)
    except Exception:  # a fault of ours: the decode worker must not wait for its cache
        logger.exception("prefill failed: worker=%s rid=%s", prefill.url, call.rid)
        on_failure(prefill)
    finally:
        lease.close()
