"""Sessions: which calls may start a turn in one, and how running ones are ended.

Closing or deleting a session ends its flights, the generations running in it. One that is waiting
for its worker is woken by a cancellation, which becomes the error that the client gets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from types import TracebackType

from slime_router.auth.owners import shown
from slime_router.errors import Conflict, NotFound, RouterError
from slime_router.trajectory.session import Session
from slime_router.trajectory.store import TrajectoryStore
from slime_router.types import GenerateCall, GenerateChunk, Sampling

logger = logging.getLogger(__name__)

LANDING_TIMEOUT_S = 10.0  # for a flight that must end; all it still does is close what it holds


class Flight:
    """One generation, in a session or without one, and the error that it must end with, if any."""

    __slots__ = (
        "_is_waiting",
        "_sessions",
        "_task",
        "_was_cancelled",
        "call",
        "error",
        "hides_experts",
        "landed",
        "request_id",
        "session",
    )

    def __init__(self, sessions: Sessions, call: GenerateCall, session: Session | None) -> None:
        self.call = call  # including what its session adds to it
        self.session = session
        self.request_id = call.request_id
        self.hides_experts = False  # the trainer asked for them, not this client
        self.error: RouterError | None = None
        self.landed = asyncio.Event()
        self._sessions = sessions
        self._task: asyncio.Task[object] | None = None
        self._is_waiting = False  # for a worker, within our own code
        self._was_cancelled = False

    def __enter__(self) -> Flight:
        self.resume()
        return self

    def show(self, chunk: GenerateChunk) -> None:
        """The chunk, recorded by now, goes to the client without what the client did not request.

        Raises:
            RouterError: the session has ended the generation meanwhile.
        """
        self._is_waiting = False
        if self.error is not None:
            raise self.error
        if self.hides_experts and chunk.routed_experts is not None:
            _hide_experts(chunk)

    def resume(self) -> None:
        """The client asks for more, perhaps from another task.

        Raises:
            RouterError: the session has ended the generation meanwhile.
        """
        if self.error is not None:
            raise self.error
        self._task = asyncio.current_task()
        self._is_waiting = True

    def end(self, error: RouterError) -> None:
        """Make it fail with `error`: at once if it is waiting, else at its next step."""
        if self.error is not None:
            return
        self.error = error
        if self._is_waiting and self._task is not None:
            self._was_cancelled = True
            self._task.cancel()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if isinstance(exc, asyncio.CancelledError) and (error := self._reason()) is not None:
                raise error from None
        finally:
            self._is_waiting = False
            self.landed.set()
            self._sessions.release(self)

    def _reason(self) -> RouterError | None:
        """The error to raise in place of a cancellation that was ours alone."""
        if not self._was_cancelled or self._task is None or self._task.uncancel():
            return None
        return self.error


class Sessions:
    """Admits calls to their sessions; closes and deletes sessions."""

    def __init__(self, store: TrajectoryStore) -> None:
        self._store = store
        self._flights: dict[str, set[Flight]] = {}

    def admit(self, call: GenerateCall) -> Flight:
        """For the block, the stay of a generation in the session that it names.

        Raises:
            RouterError: the session does not let it in.
        """
        if call.session_id is None:
            return Flight(self, call, None)
        session = self._enter(call, call.session_id)
        flight = Flight(self, _prepared(call, session), session)
        flight.hides_experts = session.return_routed_experts and not _asks_for_experts(call)
        self._flights.setdefault(session.id, set()).add(flight)
        session.running += 1
        return flight

    @asynccontextmanager
    async def flight(self, session_id: str | None) -> AsyncIterator[None]:
        """The stay of a request that a worker answers directly: admitted and ended like a turn.

        Raises:
            RouterError: the session does not let it in, or ended it.
        """
        if session_id is None:
            yield
            return
        with self.admit(GenerateCall(rid="", turn_id="", session_id=session_id)):
            yield

    def _enter(self, call: GenerateCall, session_id: str) -> Session:
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
        return session

    def _count_recorded(self, session: Session, call: GenerateCall) -> int:
        """How many samples of this request are recorded: requests are admitted as a whole."""
        if call.samples == 1 or not call.request_id:
            return 0
        turns = (self._store.get(turn_id) for turn_id in session.turns)
        return sum(turn is not None and turn.request_id == call.request_id for turn in turns)

    def release(self, flight: Flight) -> None:
        """A generation has left its session."""
        session = flight.session
        if session is None:
            return
        flights = self._flights[session.id]
        flights.discard(flight)
        if not flights:
            del self._flights[session.id]
        session.running -= 1
        self._store.leave_session(session)

    async def close(self, session_id: str, *, cancel: bool, timeout_s: float) -> Session:
        """Freeze a session: no new turns; those in progress are awaited, or cancelled.

        What still runs after `timeout_s` is cancelled too. If interrupted, this has no effect.

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
        except BaseException:  # interrupted: undo
            session.state = before
            raise
        if not self._store.sessions.is_current(session):
            raise _deleted(session_id)
        self._store.freeze(session)
        return session

    async def delete(self, session_id: str) -> None:
        """Forget a session and its turns; what runs in it ends with a 404.

        Raises:
            NotFound: there is no such session.
        """
        self._store.delete_session(session_id)
        self._end_all(session_id, _deleted(session_id))

    def _end_all(self, session_id: str, error: RouterError) -> None:
        for flight in tuple(self._flights.get(session_id, ())):
            flight.end(error)

    async def _landed(self, session_id: str, timeout_s: float) -> None:
        """Waits until nothing runs in the session, for up to `timeout_s`."""
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
        sampling=merged(call.sampling, session.sampling) if call.native is None else call.sampling,
        defaults=session.sampling,
        token_limit=session.tokens_left,
        wants_routed_experts=session.return_routed_experts,
    )


def _asks_for_experts(call: GenerateCall) -> bool:
    fields = call.worker_fields if call.native is None else call.native
    return bool(fields.get("return_routed_experts"))


def _hide_experts(chunk: GenerateChunk) -> None:
    """Removes the routed experts from a chunk; they are already recorded."""
    chunk.routed_experts = None
    meta = chunk.item.get("meta_info") if chunk.item is not None else None
    if chunk.item is not None and isinstance(meta, dict):
        shown = {name: value for name, value in meta.items() if name != "routed_experts"}
        chunk.item = {**chunk.item, "meta_info": shown}


def merged(asked: Sampling, defaults: Sampling) -> Sampling:
    """What a client asked for, with defaults for everything else."""
    empty = Sampling()
    unsaid = {
        f.name: getattr(defaults, f.name)
        for f in fields(Sampling)
        if getattr(asked, f.name) == getattr(empty, f.name)
        and getattr(defaults, f.name) != getattr(empty, f.name)
    }
    return replace(asked, **unsaid) if unsaid else asked
