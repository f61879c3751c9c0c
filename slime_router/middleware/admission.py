"""The admission middleware: how many generations run at once, and who waits for how long.

It stands inside the plug-ins and outside all else that is built in. What must hold: never more
than `max_running` are inside; while one waits, that many are. A slot that is given back is handed
to the next in the same step, so none is ever free while somebody waits, and none is lost with a
waiter that left. A generation gives its slot back with its last chunk, not with its end: a sample
that has finished is kept open until the others of its request have, and they may wait for a slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TypeAlias

from slime_router.errors import TooManyRequests
from slime_router.middleware.base import CallNext
from slime_router.types import GenerateCall, GenerateChunk
from slime_router.workers.fair_queue import FairQueue

_Ticket: TypeAlias = "asyncio.Future[TooManyRequests | None]"  # None: the slot is the waiter's


@dataclass(slots=True)
class AdmissionFigures:
    """Of generations. `refused`: there was no room to wait, or the wait took too long."""

    running: int = 0
    waiting: int = 0
    waited: int = 0  # those that have waited, also those that left or were refused
    refused: int = 0
    queue_time_s: float = 0.0  # of all of them together


class AdmissionMiddleware:
    """Lets at most `max_running` generations in; at most `max_waiting` wait, `timeout_s` each."""

    def __init__(self, *, max_running: int, max_waiting: int, timeout_s: float) -> None:
        self._max_running = max_running
        self._timeout_s = timeout_s
        self._queue: FairQueue[_Ticket] = FairQueue(max_waiting)
        self._counts = AdmissionFigures()

    def __repr__(self) -> str:
        return f"<AdmissionMiddleware {self._counts.running}/{self._max_running} {self._queue!r}>"

    @property
    def figures(self) -> AdmissionFigures:
        """As they are now."""
        self._counts.waiting = len(self._queue)
        return self._counts

    async def __call__(
        self, call: GenerateCall, call_next: CallNext
    ) -> AsyncGenerator[GenerateChunk, None]:
        """Middleware: see `middleware/base.py`.

        Raises:
            TooManyRequests: no slot came free in time, or there was no room to wait for one.
        """
        await self._enter(party_of(call))
        is_inside = True
        try:
            async for chunk in call_next(call):
                if chunk.finish is not None and is_inside:
                    is_inside = False
                    self._leave()
                yield chunk
        finally:
            if is_inside:
                self._leave()

    async def _enter(self, party: str) -> None:
        if self._counts.running < self._max_running:
            self._counts.running += 1
            return
        loop = asyncio.get_running_loop()
        ticket: _Ticket = loop.create_future()
        if (out := self._queue.push(party, ticket)) is not None:
            self._refuse(party, out, f"{len(self._queue)} generations wait already")
        began = loop.time()
        late = f"no other generation ended within {self._timeout_s:g} s"
        timer = loop.call_later(self._timeout_s, self._refuse, party, ticket, late)
        try:
            refusal = await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled() and ticket.result() is None:
                self._leave()  # it was handed a slot that it has no use for any more
            raise
        finally:
            timer.cancel()
            self._queue.discard(party, ticket)
            self._counts.waited += 1
            self._counts.queue_time_s += loop.time() - began
        if refusal is not None:
            raise refusal

    def _leave(self) -> None:
        """Hands the slot to the next; one who left, and was not seen off yet, is passed over."""
        while self._queue:
            ticket = self._queue.pop()
            if not ticket.done():
                ticket.set_result(None)
                return
        self._counts.running -= 1

    def _refuse(self, party: str, ticket: _Ticket, reason: str) -> None:
        self._queue.discard(party, ticket)
        if not ticket.done():
            self._counts.refused += 1
            ticket.set_result(TooManyRequests(f"The router is full: {reason}. Try again later."))


def party_of(call: GenerateCall) -> str:
    """Whose turn a generation takes: its session's, or that of its request alone."""
    return call.session_id or call.request_id or call.rid
