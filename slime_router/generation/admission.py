"""The admission middleware: how many generations run at once, and who waits for how long.

It stands inside the plug-ins and outside all else that is built in. What must hold: never more
than `max_running` are inside; while one waits, that many are. A slot that is given back is handed
to the next in the same step, so none is ever free while somebody waits, and none is lost with a
waiter that left or was aborted. A generation gives its slot back with its last chunk, not with its
end: a sample that has finished is kept open until the others of its request have, and they may
wait for a slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

from slime_router.errors import TooManyRequests
from slime_router.failover.stitch import IN_QUEUE
from slime_router.generation.fair_queue import FairQueue
from slime_router.generation.middleware import CallNext
from slime_router.types import Finish, GenerateCall, GenerateChunk

RECENT = 0.1  # what the last generation counts beside all before it

# None: the slot is the waiter's; False: its abort was asked for.
_Ticket: TypeAlias = "asyncio.Future[TooManyRequests | Literal[False] | None]"


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
        self._took_s: float | None = None  # by one that has finished, of late
        self._tickets: dict[str, set[_Ticket]] = {}  # of those that wait, by rid

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
        """Middleware: see `generation/middleware.py`.

        Raises:
            TooManyRequests: no slot came free in time, or there was no room to wait for one.
        """
        if not await self._enter(call):
            yield _aborted(call)
            return
        is_inside = True
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async for chunk in call_next(call):
                if chunk.finish is not None and is_inside:
                    is_inside = False
                    self._note_time(clock() - began)
                    self._leave()
                yield chunk
        finally:
            if is_inside:
                self._leave()

    def cancel(self, rid: str) -> None:
        """What waits under this rid does not get in: it ends as aborted."""
        for ticket in self._tickets.get(rid, ()):
            _abort(ticket)

    def cancel_all(self) -> None:
        """Nothing that waits now gets in."""
        for ticket in chain.from_iterable(self._tickets.values()):
            _abort(ticket)

    async def _enter(self, call: GenerateCall) -> bool:
        """Waits for a slot; False where the abort of the call was asked for meanwhile."""
        if self._counts.running < self._max_running:
            self._counts.running += 1
            return True
        party = party_of(call)
        loop = asyncio.get_running_loop()
        ticket: _Ticket = loop.create_future()
        if (out := self._queue.push(party, ticket)) is not None:
            self._refuse(party, out, f"{len(self._queue)} generations wait already")
        self._tickets.setdefault(call.rid, set()).add(ticket)
        began = loop.time()
        late = f"no other generation ended within {self._timeout_s:g} s"
        timer = loop.call_later(self._timeout_s, self._refuse, party, ticket, late)
        try:
            answer = await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled() and ticket.result() is None:
                self._leave()  # it was handed a slot that it has no use for any more
            raise
        finally:
            timer.cancel()
            self._queue.discard(party, ticket)
            self._forget(call.rid, ticket)
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

    def _note_time(self, took_s: float) -> None:
        before_s = took_s if self._took_s is None else self._took_s
        self._took_s = before_s + RECENT * (took_s - before_s)

    def _retry_after_s(self) -> float | None:
        """How long all those that wait now, and one more, may take to get in."""
        if self._took_s is None:
            return None
        return self._took_s * (len(self._queue) + 1) / max(self._max_running, 1)

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
            words = f"The router is full: {reason}. Try again later."
            ticket.set_result(TooManyRequests(words, retry_after_s=self._retry_after_s()))


def _abort(ticket: _Ticket) -> None:
    if not ticket.done():
        ticket.set_result(False)


def _aborted(call: GenerateCall) -> GenerateChunk:
    """The only chunk of one that waited: no prompt was made for it."""
    prompt_tokens = 0 if call.input_ids is None else len(call.input_ids)
    finish = Finish("abort", message=IN_QUEUE)
    return GenerateChunk(output_ids=[], finish=finish, prompt_tokens=prompt_tokens)


def party_of(call: GenerateCall) -> str:
    """Whose turn a generation takes: its session's, or that of its request alone."""
    return call.session_id or call.request_id or call.rid
