"""Which worker takes the next request: pure functions from a fleet to one of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Loaded(Protocol):
    """What a policy sees of a worker."""

    @property
    def in_flight(self) -> int:
        """Requests that it is answering."""

    @property
    def last_lease(self) -> int:
        """Number of the lease that it got last; greater is later."""


W = TypeVar("W", bound=Loaded)


def least_in_flight(workers: Sequence[W]) -> W:
    """The worker with the least in flight; of several, the one that waited longest for a lease.

    Raises:
        ValueError: `workers` is empty.
    """
    return min(workers, key=lambda worker: (worker.in_flight, worker.last_lease))
