"""How long a request rests between its tries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from slime_router.failover.attempts import STEADY_S, Attempts, Dispatcher, RelaySettings, Run
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Need


async def test_a_worker_that_aborts_soon_is_asked_less_and_less_often():
    """Where it had sampled for long, weights were updated: that counts from the beginning."""
    retries: list[int] = []

    def no_delay(retry: int, _: object) -> float:
        retries.append(retry)
        return 0.0

    dispatcher = Dispatcher(
        WorkerPool(["http://w"]),
        RelaySettings(request_timeout_s=1e6),
        cast("Any", SimpleNamespace(delay_s=no_delay)),
        on_suspicion=lambda _: None,
        random=lambda: 0.5,
    )
    attempts, now = Attempts(dispatcher, Need(), Run()), 0.0
    attempts._clock = lambda: now
    for stay_s in (1.0, STEADY_S - 1.0, STEADY_S, 1.0, 1.0, STEADY_S + 1.0):
        with await attempts.lease():
            now += stay_s
        await attempts.rest_after_abort()
    assert retries == [0, 1, 0, 1, 2, 0]
