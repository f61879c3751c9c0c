"""How long a request rests between its tries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from slime_router.errors import WorkerFailed
from slime_router.failover.attempts import (
    MAX_BROKEN,
    STEADY_S,
    Attempts,
    Dispatcher,
    RelaySettings,
    Run,
)
from slime_router.pool.failures import BreakerSettings
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Need, Worker


def resting(*urls: str) -> tuple[Attempts, list[int]]:
    """The tries of a request, and which delays it was given."""
    retries: list[int] = []

    def no_delay(retry: int, _: object) -> float:
        retries.append(retry)
        return 0.0

    dispatcher = Dispatcher(
        WorkerPool(urls, breaker=BreakerSettings(is_enabled=False)),
        RelaySettings(request_timeout_s=1e6),
        cast("Any", SimpleNamespace(delay_s=no_delay, max_retries=5)),
        on_suspicion=lambda _: None,
        random=lambda: 0.5,
    )
    return Attempts(dispatcher, Need(), Run()), retries


async def test_a_worker_that_aborts_soon_is_asked_less_and_less_often():
    """Where it had sampled for long, weights were updated: that counts from the beginning."""
    attempts, retries = resting("http://w")
    now = 0.0
    attempts._clock = lambda: now
    for stay_s in (1.0, STEADY_S - 1.0, STEADY_S, 1.0, 1.0, STEADY_S + 1.0):
        with await attempts.lease():
            now += stay_s
        await attempts.rest_after_abort()
    assert retries == [0, 1, 0, 1, 2, 0]


@pytest.mark.parametrize("count", [1, 2, 8])
async def test_workers_that_fail_after_each_token_are_asked_less_and_less_often(count):
    """A token shows that a worker samples, not that the request gets anywhere."""
    attempts, retries = resting(*(f"http://w{index}" for index in range(count)))
    now = 0.0
    attempts._clock = lambda: now
    for _ in range(30):
        with await attempts.lease() as lease:
            attempts.progress(lease)
            now += 0.01
        await attempts.failed(WorkerFailed("It broke."))
    assert len(retries) >= 30 - MAX_BROKEN - count
    assert retries[-1] >= 30 - MAX_BROKEN - count


async def test_a_worker_that_fails_late_is_left_without_a_delay():
    attempts, retries = resting("http://w", "http://v")
    now = 0.0
    attempts._clock = lambda: now
    for _ in range(30):
        with await attempts.lease() as lease:
            attempts.progress(lease)
            now += STEADY_S
        await attempts.failed(WorkerFailed("It broke."))
    assert set(retries) <= {0}


@pytest.mark.parametrize(("urls", "blamed"), [(["http://w"], 2), (["http://w", "http://v"], 0)])
async def test_what_breaks_in_the_middle_again_is_to_blame_unless_another_breaks_alike(
    urls, blamed, monkeypatch
):
    attempts, _ = resting(*urls)
    failed: list[Worker] = []
    monkeypatch.setattr(attempts._pool, "failed", failed.append)
    for _ in range(3):
        with await attempts.lease() as lease:
            attempts.progress(lease)
        await attempts.failed(WorkerFailed("It broke."))
    assert len(failed) == blamed
