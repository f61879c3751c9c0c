"""The promise that one worker takes one request."""

from __future__ import annotations

from typing import Protocol

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

    __slots__ = ("_is_answered", "_is_trial", "_lessor", "_pending", "is_open", "worker")

    def __init__(self, lessor: Lessor, worker: Worker, pending: int, *, is_trial: bool) -> None:
        self.worker = worker
        self._lessor = lessor
        self._pending = pending
        self._is_trial = is_trial
        self.is_open = True
        self._is_answered = False

    def answered(self) -> None:
        """The first token arrived, or something else showed that the worker does its job."""
        if not self._is_answered:
            self._is_answered = True
            self.worker.computed(self._pending)
            if self._is_trial:
                self._lessor.tried(self.worker)

    def close(self) -> None:
        """The worker no longer has the request."""
        if self.is_open:
            self.is_open = False
            self.answered()
            self._lessor.returned(self.worker)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
