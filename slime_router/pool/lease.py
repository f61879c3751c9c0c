"""The promise that one worker takes one request, and how many there may be at once. Pure."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from slime_router.pool.obstacles import Obstacle
from slime_router.pool.rank import Place, Rank
from slime_router.pool.worker import Worker


class Lessor(Protocol):
    """Whoever granted a lease."""

    def tried(self, worker: Worker) -> None:
        """The request that a breaker let through as a trial has ended, one way or another."""
        ...

    def returned(self, worker: Worker) -> None:
        """The worker no longer has the request."""
        ...


class Lease:
    """A worker's promise to take one request; `close` returns it, and may be called repeatedly."""

    __slots__ = ("_is_answered", "_is_trial", "_lessor", "_pending", "is_open", "rank", "worker")

    def __init__(
        self,
        lessor: Lessor,
        worker: Worker,
        pending: int,
        *,
        rank: Rank | None = None,
        is_trial: bool,
    ) -> None:
        self.worker = worker
        self.rank = rank  # None where the worker has but one
        self._lessor = lessor
        self._pending = pending
        self._is_trial = is_trial
        self.is_open = True
        self._is_answered = False

    @property
    def place(self) -> Place:
        """Where the prompt is computed."""
        return self.worker if self.rank is None else self.rank

    def answered(self) -> None:
        """The first token arrived, or something else showed that the worker does its job."""
        if not self._is_answered:
            self._is_answered = True
            self.worker.computed(self._pending)
            if self.rank is not None:
                self.rank.pending_tokens -= self._pending
            if self._is_trial:
                self._lessor.tried(self.worker)

    def close(self) -> None:
        """The worker no longer has the request."""
        if self.is_open:
            self.is_open = False
            self.answered()
            if self.rank is not None:
                self.rank.in_flight -= 1
            self._lessor.returned(self.worker)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
        if self.most is None:
            return  # nobody asks how many there are at one worker
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
