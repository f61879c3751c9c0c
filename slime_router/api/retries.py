"""Joins a request that an SDK retries to the generation still running for it.

SDKs send a request again after a timeout or a broken connection, and number their tries in a
header. A request with that number is a *run*: it outlives the client that left by a grace period
in which the next try may arrive. The invariant: one run is one sample. So an equal body is never
enough (agents ask for several samples of one prompt), and if it is unclear whose next try this is,
a new run is started. SDKs try again until they have a status line, so once one is out, a run ends
with its clients. A request without the header runs in its own handler and ends with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from hashlib import sha256
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from aiohttp import web

from slime_router.api.fanout import Copies, generations
from slime_router.api.request import A
from slime_router.auth.caller import caller
from slime_router.auth.keys import KEY_HEADERS
from slime_router.edge.bodies import LONG_LEN, forget_body, read_body
from slime_router.errors import RouterError, WorkerFailed
from slime_router.generation.middleware import Chunks
from slime_router.generation.router import Router
from slime_router.telemetry.request_record import current_request

RETRY_COUNT = "x-stainless-retry-count"
JOINED = "x-slime-joined"
CLOSING_TIMEOUT_S = 10.0  # for handlers that the server has already asked to stop

logger = logging.getLogger(__name__)

T = TypeVar("T")
Opening: TypeAlias = Callable[[Chunks], Awaitable[T]]


class Visit(Generic[A, T]):
    """A generation as one client's reply sees it: here, one that is open for the block alone."""

    _chunks: Chunks

    def __init__(self, asked: A, router: Router, opening: Opening[T]) -> None:
        self.asked = asked  # for a run, by the first try
        self.shortcut = asked.calls[0].shortcut  # for the rest, where a single client reads it
        self._stream = generations(router, asked.calls)
        self._opening = opening

    async def __aenter__(self) -> Visit[A, T]:
        self._chunks = await self._stream.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stream.__aexit__(exc_type, exc, traceback)

    def opened(self) -> Awaitable[T]:
        """What was read before the reply begins. Raises RouterError if the generation failed."""
        return self._opening(self._chunks)

    def note_sign(self) -> None:
        """The client has a status line before there is a reply: if it leaves, it will not retry."""

    def rest(self) -> Chunks:
        """What comes after. From this call on, the generation ends when its clients leave."""
        return self._chunks


class _Ask(NamedTuple):
    """What two tries of one request have in common."""

    path: str
    session_id: str | None
    owner: str
    api_keys: bytes  # a digest: nothing that may be printed contains a key
    body: bytes  # a digest: it would be kept, and hashed, as a whole


class Joiner:
    """Owns the runs: those with clients, and those waiting for a client that left to try again.

    With a grace period of 0 s, nothing outlives its client and nothing is joined.
    """

    def __init__(self, router: Router, *, retry_grace_s: float) -> None:
        self.joined = 0  # requests
        self.abandoned = 0  # runs for which no next try came
        self._router = router
        self._grace_s = retry_grace_s
        self._runs: dict[_Ask, list[_Run[Any, Any]]] = {}
        self._refusals = 0

    @classmethod
    def off(cls, router: Router) -> Joiner:
        """A joiner that keeps and joins nothing."""
        return cls(router, retry_grace_s=0)

    def __repr__(self) -> str:
        return f"<Joiner {self.running} running, {self.joined} joined, {self.abandoned} abandoned>"

    @property
    def running(self) -> int:
        """How many runs are open."""
        return sum(map(len, self._runs.values()))

    def note_refusal(self) -> None:
        """A request was turned away unread: its next try belongs to no run, even an equal one."""
        self._refusals += 1

    def attend(
        self,
        request: web.Request,
        asked: A,
        opening: Opening[T],
        headers: dict[str, str],
    ) -> AbstractAsyncContextManager[Visit[A, T]]:
        """The generation that answers `request`: its own, or the one that an earlier try began.

        `opening` reads what must be there before a reply begins. A request that joins uses neither
        its own `opening` nor its own `asked`, but those of the first try. `headers` go on every
        reply to the request; a request that joins takes over the first try's. Leaving the block
        closes the generation if nobody else needs it and no next try can come.
        """
        tries = _tries(request.headers)
        if tries is None or not self._grace_s:
            forget_body(request)
            return Visit(asked, self._router, opening)
        return self._attend_run(request, asked, opening, headers, tries)

    @asynccontextmanager
    async def _attend_run(
        self,
        request: web.Request,
        asked: A,
        opening: Opening[T],
        headers: dict[str, str],
        tries: int,
    ) -> AsyncIterator[Visit[A, T]]:
        ask = await _ask(request, await read_body(request), asked.calls[0].session_id)
        forget_body(request)
        run = self._joinable(ask) if tries else None
        if run is None:
            run = self._begin(ask, asked, opening, headers)
        else:
            self.joined += 1
            headers.update(run.headers, **{JOINED: "true"})
            run.share_record()
        run.enter()
        try:
            yield run
        finally:
            await self._leave(run)

    async def close(self) -> None:
        """Closes every run. The server has stopped: only clients that are leaving are left."""
        runs = [run for runs in self._runs.values() for run in runs]
        for run in runs:
            if not run.has_begun:
                run.end()
        if runs:
            await asyncio.wait([run.task for run in runs], timeout=CLOSING_TIMEOUT_S)
        for run in runs:
            run.end()
        await asyncio.gather(*(run.task for run in runs), return_exceptions=True)

    def _joinable(self, ask: _Ask) -> _Run[Any, Any] | None:
        """The run that this is a next try of: one whose client left, or the only possible one."""
        runs = self._runs.get(ask, [])
        left = [run for run in runs if run.can_be_joined and not run.readers]
        if left:
            return left[0]
        sure = [run for run in runs if run.can_be_joined and not run.has_twin]
        return sure[0] if sure and sure[0].refusals == self._refusals else None

    def _begin(
        self,
        ask: _Ask,
        asked: A,
        opening: Opening[T],
        headers: Mapping[str, str],
    ) -> _Run[A, T]:
        run = _Run(asked, self._router, opening, dict(headers), self._refusals)
        runs = self._runs.setdefault(ask, [])
        runs.append(run)
        if len(runs) > 1:
            for twin in runs[-2:]:  # those before have met one already
                twin.has_twin = True
        run.task.add_done_callback(lambda _: self._forget(ask, run))
        return run

    def _forget(self, ask: _Ask, run: _Run[Any, Any]) -> None:
        runs = self._runs[ask]
        runs.remove(run)
        if not runs:
            del self._runs[ask]

    async def _leave(self, run: _Run[Any, Any]) -> None:
        run.readers -= 1
        if run.readers:
            return
        if run.can_be_joined:
            loop = asyncio.get_running_loop()
            run.timer = loop.call_later(self._grace_s, self._abandon, run)
            return
        run.end()
        await asyncio.wait([run.task])

    def _abandon(self, run: _Run[Any, Any]) -> None:
        if run.can_be_joined:
            self.abandoned += 1
            run.end()


class _Run(Visit[A, T]):
    """A generation that requests can share. Its task reads the opening and closes everything.

    A single reader reads the rest straight from the generation, in its own task.
    """

    def __init__(
        self,
        asked: A,
        router: Router,
        opening: Opening[T],
        headers: Mapping[str, str],
        refusals: int,
    ) -> None:
        super().__init__(asked, router, opening)
        self.headers = headers  # of the first try's reply
        self.refusals = refusals  # the router's count, when the run began
        self.readers = 0
        self.has_begun = False  # the rest is being read
        self.has_status = False  # a client knows that it is answered, and tries no more
        self.has_twin = False  # another run was started by an identical request
        self.timer: asyncio.TimerHandle | None = None
        self._is_ending = False
        self._is_open = asyncio.Event()
        self._is_shared = asyncio.Event()
        self._opened: T | None = None
        self._failure: Exception | None = None
        self._copies: Copies | None = None
        self._record = current_request()
        self._failure_of = router.failure
        self.task = asyncio.create_task(self._live(), name="run")
        self.task.add_done_callback(lambda _: self._is_open.set())

    @property
    def can_be_joined(self) -> bool:
        """Whether another client can still get all of the reply."""
        is_settled = self.has_begun or self.has_status
        return not (is_settled or self._is_ending or self.task.done())

    def share_record(self) -> None:
        """The request of this task is another try of the one that began it."""
        record = current_request()
        if record is not None and self._record is not None:
            record.join(self._record)

    def enter(self) -> None:
        """Adds a reader."""
        self.readers += 1
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def end(self) -> None:
        """Lets the task close what it holds; while it waits, only a cancellation reaches it."""
        if not self._is_ending:
            self._is_ending = True
            self.task.cancel()

    async def opened(self) -> T:
        await self._is_open.wait()
        if self._failure is not None:
            raise self._failure
        if self._opened is None:
            raise WorkerFailed("The router gave the generation up.")
        return self._opened

    def note_sign(self) -> None:
        self.has_status = True

    def rest(self) -> Chunks:
        if not self.has_begun:
            self.has_begun = True
            if self.readers > 1:
                self._copies, self.shortcut = Copies(), None
                self._is_shared.set()
        return self._copies.reader() if self._copies is not None else self._chunks

    async def _live(self) -> None:
        try:
            async with self._stream as chunks:
                self._chunks = chunks
                self._opened = await self._opening(chunks)
                self._is_open.set()
                await self._is_shared.wait()
                assert self._copies is not None
                await self._copies.fill(chunks)
                await asyncio.Event().wait()  # its readers end it when they are done
        except asyncio.CancelledError as exc:
            if not self._is_ending:
                self._failure = self._failure_of(exc)
            raise
        except Exception as exc:  # it is raised again for each reader
            self._failure = exc
            if self._is_open.is_set() or not self.readers:
                is_ours = not isinstance(exc, RouterError)
                logger.warning("run.failed_unseen error=%r", exc, exc_info=is_ours)


def _tries(headers: Mapping[str, str]) -> int | None:
    """How often the SDK has asked before; None if it does not say."""
    given = headers.get(RETRY_COUNT)
    return int(given) if given is not None and given.isdecimal() and len(given) < 10 else None


async def _ask(request: web.Request, body: bytes, session_id: str | None) -> _Ask:
    keys = repr([request.headers.get(name) for name in KEY_HEADERS]).encode()
    digest = sha256(keys).digest()
    said = await asyncio.to_thread(sha256, body) if len(body) > LONG_LEN else sha256(body)
    return _Ask(request.path_qs, session_id, caller(request).owner, digest, said.digest())
