"""Why a worker cannot take a request, and what the error says where none can. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum

from slime_router.errors import NoWorker
from slime_router.pool.worker import Kind, Need, Worker


class Obstacle(IntEnum):
    """Why a worker cannot take a request: the later the obstacle, the nearer it comes to that."""

    KIND = 1  # it is not of the kind that is asked for
    EXCLUDED = 2  # it was tried
    AWAY = 3
    RESTS = 4
    OLD = 5  # its weights are
    FAILED = 6  # too often
    FULL = 7  # it has as many requests as it may


def stops(obstacle: Obstacle, need: Need) -> bool:
    """Whether an obstacle keeps this request from the worker."""
    if obstacle is Obstacle.FULL:
        return not need.is_light
    return not (obstacle is Obstacle.RESTS and need.only_asks)


def no_worker(
    obstacles: Mapping[Worker, Obstacle],
    kind: Kind | None,
    *,
    probe_s: float | None,
    tries_in_s: Callable[[Worker], float],
) -> NoWorker:
    """The error where each worker has an obstacle: it names that of those that come nearest.

    A worker that is away is looked at every `probe_s`; one that has failed is tried again in
    `tries_in_s`.
    """
    last = max(obstacles.values(), default=None)
    stopped = [worker for worker, obstacle in obstacles.items() if obstacle is last]
    if last is None:
        return NoWorker("No worker is registered.")
    if last is Obstacle.KIND:
        return NoWorker(f"No {kind or 'decode or regular'} worker is registered.")
    if last is Obstacle.EXCLUDED:
        return NoWorker("Every worker was tried.")
    if last is Obstacle.AWAY:
        misfits = [worker.misfit for worker in stopped if worker.misfit]
        if len(misfits) == len(stopped):
            return NoWorker(f"No worker can serve this model: {misfits[0]}.")
        return NoWorker("No worker can be reached.", is_temporary=True, retry_after_s=probe_s)
    if last is Obstacle.RESTS:
        return NoWorker("Generation is paused.", is_temporary=True, is_paused=True)
    if last is Obstacle.OLD:
        return NoWorker("No worker runs weights that are new enough.", is_temporary=True)
    if last is Obstacle.FULL:
        words = "Every worker has as many requests as it may."
        return NoWorker(words, is_temporary=True, is_full=True)
    waits_s = map(tries_in_s, stopped)
    retry_after_s = min((wait_s for wait_s in waits_s if wait_s > 0), default=None)
    words = "All workers failed too often."
    return NoWorker(words, is_temporary=True, retry_after_s=retry_after_s)
