"""One request to a worker: who has it, what the worker is known to run, and what may come of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from multidict import CIMultiDictProxy

from slime_router.errors import WorkerFailed
from slime_router.types import WeightVersion
from slime_router.workers.worker import Worker

GIVEN_UP = "The worker was given up: it answers no probe."


class Closable(Protocol):
    """An answer that can be broken off from outside."""

    def close(self) -> object:
        """Breaks the connection."""


A = TypeVar("A", bound=Closable)


class NotTaken(Exception):
    """The worker did not take the request: another one may be asked.

    `is_stale`: a kept connection was closed under us; a fresh one to the same worker may do.
    `is_refused`: nobody listens there.
    """

    def __init__(self, reason: str, *, is_stale: bool = False, is_refused: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_stale = is_stale
        self.is_refused = is_refused


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """A worker's whole answer, as it came."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Exchange:
    """One request under way at a worker; it can be cut from outside.

    `weight_version` is what that worker was known to run at dispatch, then what it said last.
    """

    __slots__ = (
        "_answer", "_at_dispatch", "_leash", "_updates", "rid", "weight_version", "worker",
    )  # fmt: skip

    def __init__(self, worker: Worker, rid: str = "") -> None:
        self.worker = worker
        self.rid = rid  # of a generation
        self.weight_version = self._at_dispatch = worker.weight_version
        self._updates = worker.updates
        self._leash: asyncio.Timeout | None = None
        self._answer: Closable | None = None

    async def opening(self, answer: Awaitable[A]) -> A:
        """The head of the answer, for as long as nobody cuts the exchange.

        Raises:
            WorkerFailed: it was cut.
        """
        try:
            async with asyncio.timeout(None) as self._leash:
                opened = await answer
        except TimeoutError:
            raise WorkerFailed(GIVEN_UP) from None
        finally:
            self._leash = None
        self._answer = opened
        return opened

    def cut(self) -> None:
        """The worker is given up: whoever waits for its answer gets an error now."""
        if self._leash is not None:
            self._leash.reschedule(0.0)
        elif self._answer is not None:
            self._answer.close()

    def version_before_update(self) -> WeightVersion | None:
        """What the worker ran at dispatch, where it got new weights through the router since."""
        return self._at_dispatch if self.worker.updates != self._updates else None

    def hear(self, version: WeightVersion | None) -> None:
        """The worker says what it runs; believed where nobody else changed that meanwhile.

        Replies overtake each other and control calls: an old one must not set the worker back.
        """
        worker, before = self.worker, self.weight_version
        self.weight_version = version
        if version is not None and worker.weight_version == before:
            worker.weight_version = version


class Opened(Generic[A]):
    """An exchange and its answer, which is closed on leaving the block.

    For as long as that takes, the exchange is one of those that are `under_way`.
    """

    __slots__ = ("_answer", "_exchange", "_sending", "_under_way")

    _answer: A

    def __init__(
        self, exchange: Exchange, sending: Awaitable[A], under_way: dict[Worker, set[Exchange]]
    ) -> None:
        self._exchange = exchange
        self._sending = sending
        self._under_way = under_way

    async def __aenter__(self) -> tuple[Exchange, A]:
        exchange = self._exchange
        self._under_way.setdefault(exchange.worker, set()).add(exchange)
        try:
            self._answer = await exchange.opening(self._sending)
        except BaseException:  # cancelled, too: nobody leaves a block that was not entered
            self._forget()
            raise
        return exchange, self._answer

    async def __aexit__(self, *_: object) -> None:
        try:
            self._answer.close()  # keeps the connection where all was read
        finally:
            self._forget()

    def _forget(self) -> None:
        open_ones = self._under_way[self._exchange.worker]
        open_ones.discard(self._exchange)
        if not open_ones:
            del self._under_way[self._exchange.worker]
