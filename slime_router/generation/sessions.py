"""Sessions: which calls may start a turn in one, and how running ones are ended.

Closing or deleting a session ends its flights, the generations running in it. One that is waiting
for its worker is woken by a cancellation, which becomes the error that the client gets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Protocol

from slime_router.auth.caller import shown
from slime_router.engine.rules import SamplingRules, with_fields
from slime_router.errors import SESSION_CLOSED, Conflict, NotFound, RouterError
from slime_router.journal.fetching import AllIsHere, Fetch
from slime_router.trajectory.session import Session
from slime_router.trajectory.store import TrajectoryStore
from slime_router.types import GenerateCall, GenerateChunk
from slime_router.values import replace

logger = logging.getLogger(__name__)

_TOPS = "top_logprobs"
LANDING_TIMEOUT_S = 10.0  # for a flight that must end, its last words included
_LAST_WORDS_S = 5.0  # in which a worker says what it has sampled of a reply that is not streamed


class Flight:
    """One generation for the block: here, one without a session, which nobody ends but itself."""

    __slots__ = ("call", "session")
    can_end = False  # before its reply does

    def __init__(self, call: GenerateCall, session: Session | None = None) -> None:
        self.call = call  # including what its session adds to it
        self.session = session

    def __enter__(self) -> Flight:
        return self

    def shown(self, chunk: GenerateChunk) -> GenerateChunk:
        """The chunk, recorded by now, as its client sees it."""
        return chunk

    def resume(self) -> None:
        """The client asks for more, perhaps from another task."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """The generation has ended, one way or another."""


class SessionFlight(Flight):
    """One generation in a session, and the error that it must end with, if any."""

    __slots__ = (
        "_is_waiting",
        "_sessions",
        "_task",
        "_was_cancelled",
        "error",
        "hidden",
        "key",
        "landed",
    )
    can_end = True  # if the session is ended

    session: Session

    def __init__(self, sessions: Sessions, call: GenerateCall, session: Session) -> None:
        super().__init__(call, session)
        self.key = (session.id, call.request_id)
        self.hidden: tuple[str, ...] = ()  # what the trainer asked for, not this client
        self.error: RouterError | None = None
        self.landed = asyncio.Event()
        self._sessions = sessions
        self._task: asyncio.Task[object] | None = None
        self._is_waiting = False  # for a worker, within our own code
        self._was_cancelled = False

    def __enter__(self) -> SessionFlight:
        self.resume()
        return self

    def shown(self, chunk: GenerateChunk) -> GenerateChunk:
        """The chunk, recorded by now, without what the client did not ask for.

        Raises:
            RouterError: the session has ended the generation meanwhile.
        """
        self._is_waiting = False
        if self.error is not None:
            raise self.error
        if self.hidden and (chunk.routed_experts or chunk.indexer_topk or chunk.top_logprobs):
            return _without(chunk, self.hidden, self.call.top_logprobs)
        return chunk

    def resume(self) -> None:
        """The client asks for more, perhaps from another task.

        Raises:
            RouterError: the session has ended the generation meanwhile.
        """
        if self.error is not None:
            raise self.error
        self._task = asyncio.current_task()
        self._is_waiting = True

    def end(self, error: RouterError, *, at_once: bool = True) -> None:
        """Make it fail with `error`: `at_once` if it is waiting, else at its next step."""
        self.error = self.error or error
        if at_once and self._is_waiting and self._task is not None and not self._was_cancelled:
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


class Elsewhere(Protocol):
    """The other processes of a router: a session may have flights there as well."""

    async def land(self, session_id: str, *, cancel: bool, timeout_s: float) -> None:
        """Keep new calls out of it there; returns once nothing runs in it, or as `close` says."""

    async def settle(self, session_id: str) -> None:
        """The session was closed here, or it stays open after all."""

    async def end(self, session_id: str) -> None:
        """The session was deleted here."""


class Nowhere:
    """There are no other processes."""

    async def land(self, session_id: str, *, cancel: bool, timeout_s: float) -> None:
        """Nothing runs."""

    async def settle(self, session_id: str) -> None:
        """Nobody waits for that."""

    async def end(self, session_id: str) -> None:
        """Nothing runs."""


class Sessions:
    """Admits calls to their sessions; closes and deletes sessions."""

    def __init__(
        self,
        store: TrajectoryStore,
        fetch: Fetch | None = None,
        rules: SamplingRules | None = None,
    ) -> None:
        self.elsewhere: Elsewhere = Nowhere()
        self._store = store
        self._fetch = AllIsHere() if fetch is None else fetch
        self.kv_name: Callable[[str], str] = lambda _: ""  # what workers call a session
        self.abort: Callable[[GenerateCall], bool] = lambda _: False  # whether a worker has it
        self._rules = rules or SamplingRules()
        self._flights: dict[str, set[SessionFlight]] = {}
        self._of_request: dict[tuple[str, str], int] = {}  # flights of a session and a request

    def admit(self, call: GenerateCall) -> Flight:
        """For the block, the stay of a generation in the session that it names.

        Raises:
            RouterError: the session does not let it in.
        """
        if call.session_id is None:
            return Flight(self._rules.applied(call))
        session = self._store.sessions.name(call.session_id)
        try:
            self._check_room(session, call)
            flight = SessionFlight(self, self._prepared(call, session), session)
        except Exception:  # whatever keeps it out: the name alone keeps no session
            self._store.leave_session(session)
            raise
        flight.hidden = tuple(
            name for name in session.wanted if not call.asked.get(f"return_{name}")
        )
        if flight.call.kept_tops:
            flight.hidden += (_TOPS,)
        self._flights.setdefault(session.id, set()).add(flight)
        self._of_request[flight.key] = self._of_request.get(flight.key, 0) + 1
        session.entered()
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
        with (
            await self._fetch.of_session(session_id),
            self.admit(GenerateCall(rid="", turn_id="", session_id=session_id)),
        ):
            yield

    def _prepared(self, call: GenerateCall, session: Session) -> GenerateCall:
        """The call with what its session adds to it."""
        call = with_fields(call.under(session.sampling), session.worker_fields)
        kept = session.top_logprobs
        return replace(
            self._rules.applied(call, session.sampling_pins),
            token_limit=session.tokens_left,
            kv_session=self.kv_name(session.id),
            wants_routed_experts=session.return_routed_experts,
            wants_indexer_topk=session.return_indexer_topk,
            kept_tops=self._rules.top_logprobs if kept is None else kept,
        )

    def _check_room(self, session: Session, call: GenerateCall) -> None:
        """Raises RouterError where the session is full; requests are admitted as a whole."""
        running, recorded = 0, 0  # of the samples of this request
        if call.request_id:
            running = self._of_request.get((session.id, call.request_id), 0)
            recorded = session.samples_of(call.request_id) if call.samples > 1 else 0
        session.check_room(max(session.running - running, 0), call.samples - recorded)
        if session.is_pinned:
            self._store.check_room()

    def release(self, flight: SessionFlight) -> None:
        """A generation has left its session."""
        session = flight.session
        flights = self._flights[session.id]
        flights.discard(flight)
        if not flights:
            del self._flights[session.id]
        self._of_request[flight.key] -= 1
        if not self._of_request[flight.key]:
            del self._of_request[flight.key]
        self._store.leave_session(session, has_turn=True)

    async def close(self, session_id: str, *, cancel: bool, timeout_s: float) -> Session:
        """Freeze a session: no new turns; those in progress are awaited, or cancelled.

        What still runs after `timeout_s` is cancelled too. If interrupted, this has no effect.

        Raises:
            NotFound: there is no such session, or it was deleted meanwhile.
            TooManyRequests: nobody opened it, and its owner has as many as it may have.
        """
        session = self._store.sessions.get(session_id)
        if session.state == "closed":
            return session
        self._store.sessions.check_closing(session)  # before anything is ended
        here, there = self.land, self.elsewhere.land
        try:
            with session.closing():
                async with asyncio.TaskGroup() as group:
                    group.create_task(there(session_id, cancel=cancel, timeout_s=timeout_s))
                    group.create_task(here(session_id, cancel=cancel, timeout_s=timeout_s))
                with await self._fetch.of_session(session_id):  # what has landed elsewhere
                    if not self._store.sessions.is_current(session):
                        raise _deleted(session_id)
                    self._store.freeze(session)
        finally:
            await self.elsewhere.settle(session_id)
        return session

    async def land(self, session_id: str, *, cancel: bool, timeout_s: float) -> None:
        """What runs in a session that takes no new turns is awaited, or ends with a conflict."""
        if not cancel:
            await self._landed(session_id, timeout_s)
        error = Conflict(f"The session '{shown(session_id)}' was closed.", code=SESSION_CLOSED)
        aborted = self._aborted(session_id, error)
        self.end(session_id, error, but=aborted)
        left_s = LANDING_TIMEOUT_S
        if aborted:
            await self._landed(session_id, _LAST_WORDS_S)
            self.end(session_id, error)
            left_s -= _LAST_WORDS_S
        await self._landed(session_id, left_s)

    def _aborted(self, session_id: str, error: RouterError) -> Collection[SessionFlight]:
        """What ends with `error` once its worker has said, for the turn, what it has sampled."""
        whole = [each for each in self._flights.get(session_id, ()) if not each.call.stream]
        aborted = {each for each in whole if self.abort(each.call)}
        for flight in aborted:
            flight.end(error, at_once=False)
        return aborted

    async def delete(self, session_id: str) -> None:
        """Forget a session and its turns; what runs in it ends with a 404.

        Raises:
            NotFound: there is no such session.
        """
        self._store.delete_session(session_id)
        self.end(session_id)
        await self.elsewhere.end(session_id)

    def end(
        self,
        session_id: str,
        error: RouterError | None = None,
        *,
        but: Collection[SessionFlight] = (),
    ) -> None:
        """What runs in a session ends with `error`; None: the session was deleted."""
        error = error or _deleted(session_id)
        for flight in tuple(self._flights.get(session_id, ())):
            if flight not in but:
                flight.end(error)

    async def _landed(self, session_id: str, timeout_s: float) -> None:
        """Waits until nothing runs in the session, for up to `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while flights := self._flights.get(session_id):
                    await next(iter(flights)).landed.wait()
        except TimeoutError:
            name = shown(session_id)
            logger.info("session %r: generations still run after %.1f s", name, timeout_s)


def _deleted(session_id: str) -> NotFound:
    return NotFound(f"The session '{shown(session_id)}' was deleted.", code="session_not_found")


def _without(chunk: GenerateChunk, names: Collection[str], top: int) -> GenerateChunk:
    """The chunk without routed experts or the like, which are already recorded.

    Of the likeliest tokens at each one, the client gets the `top` that it has asked for.
    """
    item, tops = chunk.item, chunk.top_logprobs
    meta = item.get("meta_info") if item is not None else None
    if item is not None and isinstance(meta, dict):
        shown = {name: value for name, value in meta.items() if name not in names}
        item = {**item, "meta_info": shown}
    fewer = tops and [each[:top] for each in tops] if top else None
    return chunk._replace(top_logprobs=fewer, item=item).changed(
        **{name: None for name in names if name != _TOPS}
    )


def in_session(call: GenerateCall, store: TrajectoryStore) -> GenerateCall:
    """The call as its session's turns were made, for those who only read: scope and fields."""
    session = None if call.session_id is None else store.sessions.find(call.session_id)
    return call if session is None else with_fields(call, session.worker_fields)
