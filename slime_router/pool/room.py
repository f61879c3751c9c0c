"""How many requests a worker may have at once, and how many all of them have room for. Pure."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping

from slime_router.pool.obstacles import Obstacle
from slime_router.pool.worker import Worker


class Room:
    """At most `most` requests at each worker; None: as many as come.

    Attributes:
        pinned: requests that wait for room at the one worker that may take them.
        taken: requests at all workers, also at those that have left.
    """

    __slots__ = ("_taken_at", "most", "pinned", "taken")

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.pinned = self.taken = 0
        self._taken_at: Counter[str] = Counter()  # by URL: one that left and came back is the same

    def __repr__(self) -> str:
        return f"<Room for {self.most} at each worker>"

    def took(self, worker: Worker, change: int) -> None:
        """Counts `change` more requests at the worker; fewer if it is negative."""
        self.taken += change
        self._taken_at[worker.url] += change
        if not self._taken_at[worker.url]:
            del self._taken_at[worker.url]

    def is_full(self, worker: Worker) -> bool:
        """Whether it has as many as it may."""
        return self.most is not None and self._taken_at[worker.url] >= self.most

    def places(self, workers: Mapping[Worker, Obstacle | None]) -> int:
        """How many requests may be under way, so that none of them waits for room.

        Those at workers that take no more count, also at removed ones, and so do pinned ones. While
        no worker can take any, it is as if all could: that many wait until one can, or get the
        error.
        """
        if self.most is None:
            return sys.maxsize
        places, elsewhere = 0, self.taken + self.pinned
        for worker, obstacle in workers.items():
            if obstacle in (None, Obstacle.FULL):
                places += self.most
                elsewhere -= self._taken_at[worker.url]
            elif worker.kind == "prefill":  # its requests are at decode workers, too
                elsewhere -= self._taken_at[worker.url]
        return places + elsewhere if places else self.most * max(len(workers), 1)
