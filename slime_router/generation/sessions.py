"""The session middleware: who may begin a turn in a session, and the end of what is under way.

It stands between the plug-ins and the recording. A call that names no session passes by at no cost.
Closing and deleting a session end its flights: the generations that run in it. One that waits for
its worker is woken by a cancellation, which becomes the error that the client is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace

from slime_router.auth.owners import shown
from slime_router.errors import Conflict, NotFound, RouterError
from slime_router.generation.middleware import CallNext
from slime_router.trajectory.session import Session
from slime_router.trajectory.store import TrajectoryStore
from slime_router.types import GenerateCall, GenerateChunk, Sampling

logger = logging.getLogger(__name__)

LANDING_TIMEOUT_S = 10.0  # for a flight that was told to end; it closes what it holds and no more


class _Flight:
    """One generation in a session, and the error that it is to end with."""

    __slots__ = ("error", "is_waiting", "landed", "request_id", "task", "was_cancelled")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.error: RouterError | None = None
        self.task: asyncio.Task[object] | None = None
        self.is_waiting = False  # for a worker, inside our own code
        self.was_cancelled = False
        self.landed = asyncio.Event()

    def end(self, error: RouterError) -> None:
        """Let it fail with `error`, at once where it waits, else at its next step."""
        if self.error is not None:
            return
        self.error = error
        if self.is_waiting and self.task is not None:
            self.was_cancelled = True
            self.task.cancel()

    def reason(self) -> RouterError | None:
        """What the client is told of a cancellation that was ours, and nobody else's."""
        if not self.was_cancelled or self.task is None or self.task.uncancel():
            return None
        return self.error


class SessionMiddleware:
    """Admits calls to their sessions; closes and deletes sessions."""

    def __init__(self, store: TrajectoryStore) -> None:
        self._store = store
        self._flights: dict[str, set[_Flight]] = {}

    def __call__(
        self, call: GenerateCall, call_next: CallNext
    ) -> AsyncGenerator[GenerateChunk, None]:
        """Middleware: see `generation/middleware.py`."""
        if call.session_id is None:
            return call_next(call)
        return self._fly(call, call.session_id, call_next)

    async def _fly(
        self, call: GenerateCall, session_id: str, call_next: CallNext
    ) -> AsyncGenerator[GenerateChunk, None]:
        session, flight = self._take_off(call, session_id)
        hides_experts = session.return_routed_experts and not _asks_for_experts(call)
        try:
            flight.task = asyncio.current_task()
            flight.is_waiting = True
            async for chunk in call_next(_prepared(call, session)):
                flight.is_waiting = False
                if flight.error is not None:
                    raise flight.error
                if chunk.routed_experts is not None and hides_experts:
                    _hide_experts(chunk)
                yield chunk
                if flight.error is not None:
                    raise flight.error
                flight.task = asyncio.current_task()
                flight.is_waiting = True
        except asyncio.CancelledError:
            if (error := flight.reason()) is None:
                raise
            raise error from None
        finally:
            self._land(session, flight)

    @asynccontextmanager
    async def flight(self, session_id: str | None) -> AsyncIterator[None]:
        """The stay of a request that a worker answers by itself: admitted and ended like a turn.

        Raises:
            RouterError: the session does not let it in, or ended it.
        """
        if session_id is None:
            yield
            return
        call = GenerateCall(rid="", turn_id="", session_id=session_id)
        session, flight = self._take_off(call, session_id)
        flight.task = asyncio.current_task()
        flight.is_waiting = True
        try:
            yield
        except asyncio.CancelledError:
            if (error := flight.reason()) is None:
                raise
            raise error from None
        finally:
            self._land(session, flight)

    def _take_off(self, call: GenerateCall, session_id: str) -> tuple[Session, _Flight]:
        session = self._store.sessions.name(session_id)
        flights = self._flights.get(session_id, set())
        others = sum(not f.request_id or f.request_id != call.request_id for f in flights)
        try:
            session.check_room(others, call.samples - self._count_recorded(session, call))
            if session.is_pinned:
                self._store.check_room()
        except RouterError:
            self._store.leave_session(session)
            raise
        flight = _Flight(call.request_id)
        self._flights.setdefault(session_id, set()).add(flight)
        session.running += 1
        return session, flight

    def _count_recorded(self, session: Session, call: GenerateCall) -> int:
        """How many samples of the same request are recorded: the request was let in as a whole."""
        if call.samples == 1 or not call.request_id:
            return 0
        turns = (self._store.get(turn_id) for turn_id in session.turns)
        return sum(turn is not None and turn.request_id == call.request_id for turn in turns)

    def _land(self, session: Session, flight: _Flight) -> None:
        flight.is_waiting = False
        flight.landed.set()
        flights = self._flights[session.id]
        flights.discard(flight)
        if not flights:
            del self._flights[session.id]
        session.running -= 1
        self._store.leave_session(session)

    async def close(self, session_id: str, *, cancel: bool, timeout_s: float) -> Session:
        """Freeze a session: no new turns, and those under way are waited for, or cancelled.

        What still runs after `timeout_s` is cancelled too. Cut short, it has no effect.

        Raises:
            NotFound: there is no such session, or it was deleted meanwhile.
        """
        session = self._store.sessions.get(session_id)
        if session.state == "closed":
            return session
        before, session.state = session.state, "closing"
        try:
            if not cancel:
                await self._landed(session_id, timeout_s)
            closed = f"The session '{session.name}' was closed."
            self._end_all(session_id, Conflict(closed, code="session_closed"))
            await self._landed(session_id, LANDING_TIMEOUT_S)
        except BaseException:  # cut short: it had no effect
            session.state = before
            raise
        if not self._store.sessions.is_current(session):
            raise _deleted(session_id)
        self._store.freeze(session)
        return session

    async def delete(self, session_id: str) -> None:
        """Forget a session with its turns; what runs in it ends with a 404.

        Raises:
            NotFound: there is no such session.
        """
        self._store.delete_session(session_id)
        self._end_all(session_id, _deleted(session_id))

    def _end_all(self, session_id: str, error: RouterError) -> None:
        for flight in tuple(self._flights.get(session_id, ())):
            flight.end(error)

    async def _landed(self, session_id: str, timeout_s: float) -> None:
        """Waits until nothing runs in the session, or for `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while flights := self._flights.get(session_id):
                    await next(iter(flights)).landed.wait()
        except TimeoutError:
            logger.info("session %r: generations still run after %.1f s", session_id, timeout_s)


def _deleted(session_id: str) -> NotFound:
    return NotFound(f"The session '{shown(session_id)}' was deleted.", code="session_not_found")


def _prepared(call: GenerateCall, session: Session) -> GenerateCall:
    """The call with what its session adds to it."""
    return replace(
        call,
        session=session,
        sampling=merged(call.sampling, session.sampling) if call.native is None else call.sampling,
        defaults=session.sampling,
        token_limit=session.tokens_left,
        wants_routed_experts=session.return_routed_experts,
    )


def _asks_for_experts(call: GenerateCall) -> bool:
    fields = call.worker_fields if call.native is None else call.native
    return bool(fields.get("return_routed_experts"))


def _hide_experts(chunk: GenerateChunk) -> None:
    """The trainer asked for them, not this client; they are recorded by now."""
    chunk.routed_experts = None
    meta = chunk.item.get("meta_info") if chunk.item is not None else None
    if chunk.item is not None and isinstance(meta, dict):
        shown = {name: value for name, value in meta.items() if name != "routed_experts"}
        chunk.item = {**chunk.item, "meta_info": shown}


def merged(asked: Sampling, defaults: Sampling) -> Sampling:
    """What a client asked for, and the defaults where it did not say."""
    empty = Sampling()
    unsaid = {
        f.name: getattr(defaults, f.name)
        for f in fields(Sampling)
        if getattr(asked, f.name) == getattr(empty, f.name)
        and getattr(defaults, f.name) != getattr(empty, f.name)
    }
    return replace(asked, **unsaid) if unsaid else asked
