"""One request to a worker: which worker has it, which weights it runs, and how it can fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson
from multidict import CIMultiDict, CIMultiDictProxy

from slime_router.engine.connector import Use
from slime_router.engine.kept import Answer
from slime_router.engine.request import LONG_BODY_LEN, Body, LongBody
from slime_router.errors import WorkerFailed
from slime_router.pool.worker import Worker
from slime_router.types import WeightVersion
from slime_router.waiting.cancel_scope import CancelScope, Cut

GIVEN_UP = "The worker was given up: it answers no probe."
PIECE_LEN = 256 * 2**10  # bytes


def framed(headers: Mapping[str, str], body: Body | None) -> tuple[Mapping[str, str], Body | None]:
    """Headers and body for a session: a long body in pieces, with its length in a header."""
    if isinstance(body, bytes) and len(body) > LONG_BODY_LEN:
        body = LongBody(body)
    if not isinstance(body, LongBody):
        return headers, body
    sized = CIMultiDict(headers)
    sized["Content-Length"] = str(len(body))
    return sized, _pieces(body)


async def _pieces(body: LongBody) -> AsyncIterator[memoryview]:
    """One huge write would stall the loop."""
    for piece in body.take():
        view = memoryview(piece)
        for start in range(0, len(view), PIECE_LEN):
            yield view[start : start + PIECE_LEN]


# The exchanges of each worker by their rids; only those of generations have one that is not empty.
UnderWay: TypeAlias = "dict[Worker, dict[str, set[Exchange]]]"


class NotTaken(Exception):
    """The worker did not take the request, so it may be sent to another one.

    `is_stale`: a kept connection had been closed; a fresh one to the same worker may work.
    `is_refused`: nothing listens there.
    """

    def __init__(self, reason: str, *, is_stale: bool = False, is_refused: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_stale = is_stale
        self.is_refused = is_refused


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """A worker's whole answer, unchanged."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the JSON object that the body is; none if it is something else."""
        try:
            read = orjson.loads(self.body)
        except ValueError:
            return {}
        return read if isinstance(read, dict) else {}


class Exchange:
    """For the block, one request at a worker and its answer; it can be cut off from outside.

    Until it is left, it is one of those `under_way`. `sending` gives the answer once its head is
    there; it notes in `use` how it got its connection. `weight_version` is the version that the
    worker was known to run at dispatch, later the one that it reported last.
    """

    __slots__ = (
        "_answer", "_at_dispatch", "_scope", "_sending", "_under_way", "_updates", "_use", "rid",
        "weight_version", "worker",
    )  # fmt: skip

    def __init__(
        self,
        worker: Worker,
        rid: str,
        sending: Awaitable[Answer],
        use: Use,
        under_way: UnderWay,
    ) -> None:
        self.worker = worker
        self.rid = rid  # of a generation
        self.weight_version = self._at_dispatch = worker.weight_version
        self._updates = worker.updates
        self._sending = sending
        self._use = use
        self._under_way = under_way
        self._scope: CancelScope | None = None
        self._answer: Answer | None = None

    async def __aenter__(self) -> tuple[Exchange, Answer]:
        """Waits for the head of the answer.

        Raises:
            NotTaken: it was cut off before anything was sent.
            WorkerFailed: it was cut off.
        """
        self._under_way.setdefault(self.worker, {}).setdefault(self.rid, set()).add(self)
        try:
            with CancelScope() as self._scope:
                answer = self._answer = await self._sending
        except BaseException as exc:  # or cancelled: a block that was not entered is never left
            self._forget()
            if not isinstance(exc, Cut):
                raise
            if self._use.is_connecting:
                raise NotTaken("it was given up before it was reached") from None
            raise WorkerFailed(GIVEN_UP) from None
        finally:
            self._scope = None
        return self, answer

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._answer is not None:
                self._answer.close()  # keeps the connection if all was read
        finally:
            self._forget()

    def _forget(self) -> None:
        of_worker = self._under_way[self.worker]
        of_rid = of_worker[self.rid]
        of_rid.discard(self)
        if not of_rid:
            del of_worker[self.rid]
        if not of_worker:
            del self._under_way[self.worker]

    def cut(self) -> None:
        """Gives up on the worker: whoever waits for its answer gets an error now."""
        if self._scope is not None:
            self._scope.cut()
        elif self._answer is not None:
            self._answer.close()

    def sampled_under(self, named: WeightVersion) -> WeightVersion:
        """The weights of a whole reply that names these at its end.

        Those at dispatch, if the worker has got others through the router since. But a reply that
        does not name what the only update brought had ended before it.
        """
        updates, now = self.worker.updates - self._updates, self.worker.weight_version
        if not updates or self._at_dispatch is None:
            return named
        ended_before = updates == 1 and now is not None and now != named
        return named if ended_before else self._at_dispatch

    def hear(self, version: WeightVersion | None) -> None:
        """The worker reports its version; believed unless something else changed it meanwhile.

        Replies and control calls overtake each other: an old one must not set the worker back.
        """
        worker, before = self.worker, self.weight_version
        self.weight_version = version
        if version is not None:
            worker.observed(version, known=before)
