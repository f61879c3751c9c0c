"""One request to a worker: who has it, what the worker is known to run, and what may come of it."""

from __future__ import annotations

from dataclasses import dataclass

from multidict import CIMultiDictProxy

from slime_router.types import WeightVersion
from slime_router.workers.pool import Worker


class NotTaken(Exception):
    """The worker did not take the request: another one may be asked.

    `is_stale`: a kept connection was closed under us; a fresh one to the same worker may do.
    """

    def __init__(self, reason: str, *, is_stale: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_stale = is_stale


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """A worker's whole answer, as it came."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Exchange:
    """One request under way: the worker that has it, and whether its answer is complete.

    `weight_version` is what that worker was known to run at dispatch, then what it said last.
    """

    __slots__ = ("is_over", "weight_version", "worker")

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.weight_version: WeightVersion | None = None
        self.is_over = False

    def send_to(self, worker: Worker) -> None:
        """The request goes to `worker` now."""
        self.worker = worker
        self.weight_version = worker.weight_version

    def hear(self, version: WeightVersion | None) -> None:
        """The worker says what it runs; believed where nobody else changed that meanwhile.

        Replies overtake each other and control calls: an old one must not set the worker back.
        """
        worker, before = self.worker, self.weight_version
        self.weight_version = version
        if worker is not None and version is not None and worker.weight_version == before:
            worker.weight_version = version
