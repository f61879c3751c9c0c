"""Admission: how many generations run at once, and which ones wait, for how long.

Each generation that a plug-in asks for waits for its own slot. Invariants: none comes in while
`places` or more are inside; while any waits, at least that many are. A returned slot is handed to
the next in the same step, so no slot is free while somebody waits, and none is lost with a waiter
that left or was aborted. Where each worker has room for so many only, the places are theirs: they
come and go with the workers, and what waits here does not wait in front of one.
A generation returns its slot with its last chunk, not when it is closed: a finished sample is kept
open until the other samples of its request finish, and these may still be waiting for a slot.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Literal, TypeAlias

from slime_router.auth.caller import owner_of
from slime_router.config import LimitSettings
from slime_router.errors import TooManyRequests
from slime_router.failover.stitch import IN_QUEUE
from slime_router.types import Finish, GenerateCall, GenerateChunk
from slime_router.waiting.fair_queue import FairQueue, Party

RECENT = 0.1  # weight of the latest generation against all earlier ones

# None: the waiter has the slot; False: its abort was requested.
_Ticket: TypeAlias = "asyncio.Future[TooManyRequests | Literal[False] | None]"


@dataclass(slots=True)
class AdmissionFigures:
    """Counts of generations. `refused`: no room to wait, or the wait took too long."""

    running: int = 0
    waiting: int = 0
    waited: int = 0  # including those that left or were refused
    refused: int = 0
    queue_time_s: float = 0.0  # the total of all waits


class Slot:
    """A place among the running generations. Returned once: with the last chunk, or on leaving.

    Attributes:
        rid: of the generation.
        is_aborted: its abort was requested before its prompt was made.
    """

    __slots__ = ("_admission", "_began", "_is_held", "is_aborted", "rid")

    def __init__(self, admission: AdmissionQueue, began: float, rid: str) -> None:
        self._admission = admission
        self._began = began  # by the loop's clock, in seconds
        self._is_held = True
        self.rid = rid
        self.is_aborted = False

    def __enter__(self) -> Slot:
        return self

    def prepared(self) -> bool:
        """The prompt is made, and whoever runs it learns of aborts; returns whether to run it."""
        self._admission.preparing.discard(self)
        return not self.is_aborted

    def finish(self) -> None:
        """The generation has finished, and may be kept open for a while."""
        if self._is_held:
            self._is_held = False
            self._admission.finished(self._began)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._admission.preparing.discard(self)
        if self._is_held:
            self._is_held = False
            self._admission.leave()


class AdmissionQueue:
    """Lets at most `max_running` generations in; at most `max_waiting` wait, `timeout_s` each.

    Attributes:
        preparing: what got in, and has no prompt yet.
    """

    def __init__(self, *, max_running: int, max_waiting: int, timeout_s: float) -> None:
        self._max_running = max_running
        self._timeout_s = timeout_s
        self._room: Callable[[], int] | None = None
        self._queue: FairQueue[_Ticket] = FairQueue(max_waiting)
        self._counts = AdmissionFigures()
        self._took_s: float | None = None  # recent average, of those that finished
        self._tickets: dict[str, set[_Ticket]] = {}  # of those that wait, by rid
        self.preparing: set[Slot] = set()

    @classmethod
    def of(cls, config: LimitSettings) -> AdmissionQueue:
        """The queue that these settings ask for."""
        return cls(
            max_running=config.max_concurrent_requests,
            max_waiting=config.queue_size,
            timeout_s=config.queue_timeout_s,
        )

    @classmethod
    def unlimited(cls) -> AdmissionQueue:
        """A queue in which nobody ever waits."""
        return cls(max_running=sys.maxsize, max_waiting=0, timeout_s=0.0)

    def __repr__(self) -> str:
        return f"<AdmissionQueue {self._counts.running}/{self.places} {self._queue!r}>"

    @property
    def figures(self) -> AdmissionFigures:
        """The current figures."""
        self._counts.waiting = len(self._queue)
        return self._counts

    @property
    def places(self) -> int:
        """How many may be inside at the moment."""
        return self._max_running if self._room is None else min(self._max_running, self._room())

    def keep_to(self, room: Callable[[], int]) -> None:
        """Lets no more in than there is room for; when that has grown, `admit` is to be called."""
        self._room = room

    async def enter(self, rid: str, party: Party) -> Slot | None:
        """Waits for a slot; None if the abort of this rid was requested meanwhile.

        Raises:
            TooManyRequests: no slot became free in time, or there was no room to wait for one.
        """
        clock = asyncio.get_running_loop().time
        if self._queue:
            self.admit()
        if self._counts.running < self.places:
            self._counts.running += 1
        elif not await self._wait(rid, party):
            return None
        self.preparing.add(slot := Slot(self, clock(), rid))
        return slot

    def finished(self, began: float) -> None:
        """A generation that has finished returns its slot."""
        took_s = asyncio.get_running_loop().time() - began
        before_s = took_s if self._took_s is None else self._took_s
        self._took_s = before_s + RECENT * (took_s - before_s)
        self.leave()

    def leave(self) -> None:
        """A slot is free: the next one gets it."""
        self._counts.running -= 1
        self.admit()

    def admit(self) -> None:
        """Gives free slots to those who wait, skipping any that left but are still queued."""
        if not self._queue:
            return
        places = self.places
        while self._queue and self._counts.running < places:
            ticket = self._queue.pop()
            if not ticket.done():
                self._counts.running += 1
                ticket.set_result(None)

    def cancel(self, rid: str) -> None:
        """Nothing that waits under this rid, or has no prompt yet, runs: it ends as aborted."""
        for slot in self.preparing:
            slot.is_aborted |= slot.rid == rid
        for ticket in self._tickets.get(rid, ()):
            _abort(ticket)

    def cancel_all(self) -> None:
        """Nothing that waits now, or has no prompt yet, runs."""
        for slot in self.preparing:
            slot.is_aborted = True
        for ticket in chain.from_iterable(self._tickets.values()):
            _abort(ticket)

    async def _wait(self, rid: str, party: Party) -> bool:
        """Waits in the queue; returns whether it got a slot."""
        loop = asyncio.get_running_loop()
        ticket: _Ticket = loop.create_future()
        if (out := self._queue.push(party, ticket)) is not None:
            self._refuse(party, out, f"{len(self._queue)} generations wait already")
        self._tickets.setdefault(rid, set()).add(ticket)
        began = loop.time()
        late = f"no other generation ended within {self._timeout_s:g} s"
        timer = loop.call_later(self._timeout_s, self._refuse, party, ticket, late)
        try:
            answer = await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled() and ticket.result() is None:
                self.leave()  # it was handed a slot that it no longer needs
            raise
        finally:
            timer.cancel()
            self._queue.discard(party, ticket)
            self._forget(rid, ticket)
            self._counts.waited += 1
            self._counts.queue_time_s += loop.time() - began
        if isinstance(answer, TooManyRequests):
            raise answer
        return answer is None

    def _forget(self, rid: str, ticket: _Ticket) -> None:
        tickets = self._tickets[rid]
        tickets.discard(ticket)
        if not tickets:
            del self._tickets[rid]

    def _retry_after_s(self) -> float | None:
        """How long it may take to admit everyone waiting now, plus one more."""
        if self._took_s is None:
            return None
        return self._took_s * (len(self._queue) + 1) / max(self.places, 1)

    def _refuse(self, party: Party, ticket: _Ticket, reason: str) -> None:
        self._queue.discard(party, ticket)
        if not ticket.done():
            self._counts.refused += 1
            words = f"The router is full: {reason}. Try again later."
            ticket.set_result(TooManyRequests(words, retry_after_s=self._retry_after_s()))


def _abort(ticket: _Ticket) -> None:
    if not ticket.done():
        ticket.set_result(False)


def aborted(call: GenerateCall) -> GenerateChunk:
    """The only chunk of a generation aborted while it waited: no prompt was made for it."""
    prompt_tokens = 0 if call.input_ids is None else len(call.input_ids)
    finish = Finish("abort", message=IN_QUEUE)
    return GenerateChunk(output_ids=[], finish=finish, prompt_tokens=prompt_tokens)


def party_of(call: GenerateCall) -> Party:
    """The party whose turn a generation uses: its owner's session, or else its request alone."""
    return Party(owner_of(call.scope), call.session_id or call.request_id or call.rid)
