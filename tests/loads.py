"""Workers in a given state, reached the way the pool gets them there."""

from __future__ import annotations

from slime_router.pool.worker import Worker


def load(worker: Worker, *, in_flight: int = 0, pending: int = 0, last_lease: int = 0) -> Worker:
    """The worker with that many requests and prompt tokens to compute."""
    while worker.in_flight:
        worker.returned()
    worker.computed(worker.pending_tokens)
    for _ in range(in_flight):
        worker.leased(last_lease, 0)
    worker.leased(last_lease, pending)
    worker.returned()
    return worker
