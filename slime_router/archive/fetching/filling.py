"""What a request will look for is fetched from the archive before it looks.

So all that looks into the store stays synchronous. What was fetched stays in memory until the
request lets it go. Where the archive does not answer, the request goes on
with what is here, or fails where it must not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

from slime_router.archive.fetching.absence import Absence
from slime_router.archive.homes import home_of_session, name_of_handle, name_of_id, name_of_key
from slime_router.archive.port import (
    NOTHING_SEEN,
    Archive,
    ArchiveBroken,
    ArchiveDown,
    ArchiveOdd,
    Cursor,
    News,
)
from slime_router.archive.store import ArchivedStore
from slime_router.auth.caller import shown
from slime_router.errors import BadRequest, Conflict, NotDurable, NotFound
from slime_router.journal.fetching import Fetched
from slime_router.template.chat_template import ChatTemplate
from slime_router.template.stand_ins import is_reply
from slime_router.trajectory.recognition import Recogniser
from slime_router.trajectory.session import Session
from slime_router.trajectory.turn import Turn
from slime_router.types import GenerateCall, VersionSpan, WeightVersion

logger = logging.getLogger(__name__)

NO_ANSWER = "degraded: the store did not answer"
MAX_ROUNDS = 8  # of looking, and finding that others did the same
MAX_LEADS = 32  # replies, changed by the agent, whose turns lead to the next one's
MAX_AT_REST = 50_000  # sessions whose list is remembered; some 50 MB
PART_TURNS = 24  # absorbed before others get to run: three milliseconds
AT_ONCE = 100  # homes that are fetched at once


@dataclass(slots=True)
class FillingCounts:
    """What was asked of the archive since the start."""

    lookups: int = 0
    failures: int = 0  # the archive did not answer
    unasked: int = 0  # nor was it asked, as it had not answered before


class Filler:
    """Fetches what is in the archive and not, or not as it is now, in the store."""

    def __init__(
        self,
        archive: Archive,
        store: ArchivedStore,
        template: ChatTemplate,
        written: Callable[[], Awaitable[object]],
        *,
        must_answer: bool = False,
        on_broken: Callable[[ArchiveBroken], None] = lambda _: None,
    ) -> None:
        self._on_broken = on_broken
        self._archive = archive
        self._store = store
        self._probe = _Probe(store)
        self._recogniser = Recogniser(template, self._probe)
        self._written = written
        self.note: Callable[[WeightVersion], int] = lambda _: 0  # the epoch of a version
        self._must_answer = must_answer
        self.absence = Absence(lambda: archive.find([name_of_id("")]))
        self._sessions: dict[str, None] = {}  # names, as far as they were listed
        self._listed = NOTHING_SEEN
        self._unknown: dict[str, None] = {}  # those not counted at all yet
        # What was listed of those that are not in memory, and how much had happened to them.
        self._at_rest: dict[str, tuple[Cursor, Session]] = {}
        self.counts = FillingCounts()

    def __repr__(self) -> str:
        return f"<Filler of {self._store!r}>"

    async def of_session(self, session_id: str) -> Fetched:
        """Fetches a session; it stays in memory until the block is left."""
        return await self._held(lambda held: self._sync(held, home_of_session(session_id)))

    async def of_rollout(self, session_id: str) -> Fetched:
        """Fetches a session, and those of its rollout that say which reward it has."""
        return await self._held(lambda held: self._rollout(held, session_id))

    async def know_sessions(self) -> None:
        """All sessions count from then on, also those that are not in memory."""
        (await self._held(lambda _: self._know_all())).__exit__(None, None, None)

    async def of_call(self, call: GenerateCall) -> Fetched:
        """Fetches what a call may continue; it stays in memory until the block is left."""
        if call.session_id is not None:
            return await self.of_session(call.session_id)
        if call.messages is None or call.input_ids is not None:
            return nullcontext()  # found by text, in the tree
        if not any(map(is_reply, call.messages)):
            return nullcontext()  # nothing was said that it could continue
        return await self._held(lambda held: self._conversation(held, call))

    async def of_turn(self, name: str) -> Fetched:
        """Fetches the turns that are known by this id; they stay until the block is left."""
        return await self._held(lambda held: self._named(held, {name_of_id(name)}))

    async def of_sessions(self) -> Sequence[Session]:
        """All sessions as they are now; they need not stay in memory."""
        found: dict[str, Session] = {}
        held = await self._held(lambda _: self._all_sessions(found))
        with held:  # nothing
            found |= {each.id: each for each in self._store.sessions}
        return sorted(found.values(), key=lambda session: session.number)

    async def confirm_opened(self, session: Session) -> None:
        """Raises Conflict where another router had opened the session before."""
        opener = session.opener
        await self._written()
        (await self.of_session(session.id)).__exit__(None, None, None)
        now = self._store.sessions.find(session.id)
        if now is None or now.opener != opener:
            raise Conflict(
                f"There is a session '{session.name}' already.",
                param="session_id",
                code="session_exists",
            )

    async def _held(self, fetch: Callable[[_Held], Awaitable[None]]) -> Fetched:
        held = _Held(self._store)
        if self.absence.reason is not None:
            self.counts.unasked += 1
            return self._without(held)
        try:
            await fetch(held)
        except ArchiveDown as exc:
            if not self.counts.failures:  # warn once; /metrics keeps counting
                logger.warning("the archive does not answer: %s", exc)
            self.counts.failures += 1
            if isinstance(exc, ArchiveBroken):
                self._on_broken(exc)
            if not isinstance(exc, ArchiveOdd):  # others need not be refused for that
                self.absence.begin(str(exc))
            return self._without(held)
        except BaseException:  # or cancelled: nothing stays held
            held.let_go()
            raise
        return held

    def _without(self, held: _Held) -> Fetched:
        if self._must_answer:
            held.let_go()
            raise NotDurable("The store does not answer at present.")
        held.trouble = NO_ANSWER
        return held

    async def _sync(self, held: _Held, home: str) -> None:
        held.take(home)
        for _ in range(MAX_ROUNDS):  # once, unless another request does the same
            since = self._store.cursor(home)
            if not self._archive.has_news(since):
                return
            self.counts.lookups += 1
            news = await self._archive.news(home, since, self._store.__contains__)
            if await self._absorbed(news, since):
                return

    async def _absorbed(self, news: News, since: Cursor) -> bool:
        """Takes news over in pieces; see `ArchivedStore.absorb`. Others may do the same in between.

        Until the last piece the home has the cursor that it had: nobody takes a part for all.
        """
        for part in news.in_parts(since, PART_TURNS):
            if not self._store.absorb(part, since, self._epoch_of):
                return False
            if part.turns and part.cursor == since:
                await asyncio.sleep(0)
        return True

    async def _conversation(self, held: _Held, call: GenerateCall) -> None:
        asked: set[bytes] = set()
        for _ in range(MAX_LEADS):
            self._probe.names = set()
            try:
                self._recogniser.recognise(call)
            except BadRequest:  # it will be raised again where it is answered
                return
            names = self._probe.names - asked
            if not names:
                return
            asked |= names
            await self._named(held, names)

    async def _named(self, held: _Held, names: set[bytes]) -> None:
        self.counts.lookups += 1
        homes = set(await self._archive.find(sorted(names)))
        for name in names:  # what is here may have been deleted
            homes |= self._store.homes_named(name)
        await _to_their_end(self._sync(held, home) for home in homes)

    async def list_sessions(self) -> None:
        """Learns which sessions there are, in the order of their beginnings. Raises ArchiveDown."""
        news, self._listed = await self._archive.sessions(self._listed)
        self._sessions.update(dict.fromkeys(news))
        self._unknown.update(dict.fromkeys(news))
        self._store.sessions.number_in_order(news)

    async def _know_all(self) -> None:
        await self.list_sessions()
        while self._unknown:
            some = list(islice(self._unknown, AT_ONCE))
            states = await self._archive.states(some)
            for name in some:
                self._unknown.pop(name, None)
                self._store.sessions.note_away(name, states.get(name))
            await asyncio.sleep(0)

    async def _rollout(self, held: _Held, session_id: str) -> None:
        await self._know_all()
        await self._sync(held, home_of_session(session_id))
        session = self._store.sessions.find(session_id)
        if session is not None:
            for name in self._store.sessions.rewarded_away(session):
                await self._sync(held, home_of_session(name))

    async def _list(self, held: _Held, name: str, found: dict[str, Session]) -> None:
        home, was_here = home_of_session(name), self._store.sessions.find(name) is not None
        is_odd = False
        try:
            if not was_here and (resting := await self._resting(name, home)) is not None:
                found[name] = resting
                return
            await self._sync(held, home)
        except ArchiveOdd as exc:  # the others can still be listed
            is_odd = True
            self.counts.failures += 1
            logger.error("session %r of the store cannot be read: %s", shown(name), exc)
        session = self._store.sessions.find(name)
        if session is None:
            if not is_odd:  # it was deleted
                self._sessions.pop(name, None)
            return
        found[name] = session
        if not was_here:
            self._at_rest[name] = self._store.cursor(home), session.resting()
            if len(self._at_rest) > MAX_AT_REST:
                del self._at_rest[next(iter(self._at_rest))]

    async def _resting(self, name: str, home: str) -> Session | None:
        """What was listed of it before, where nothing has happened to it since."""
        since, session = self._at_rest.pop(name, (NOTHING_SEEN, None))
        if session is None:
            return None
        if self._archive.has_news(since):
            news = await self._archive.news(home, since, lambda _: True)
            if news.turns or news.state is not None or news.is_deleted or news.is_gone:
                return None
            since = news.cursor
        self._at_rest[name] = since, session
        return session

    async def _all_sessions(self, found: dict[str, Session]) -> None:
        """Some at a time: all of them need not find room in memory."""
        await self.list_sessions()
        self._sessions.update((each.id, None) for each in self._store.sessions)  # or deleted since
        names = list(self._sessions)
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            held = _Held(self._store)
            with held:
                await _to_their_end(self._list(held, name, found) for name in some)

    def _epoch_of(self, spans: Iterable[VersionSpan]) -> int:
        return max((self.note(span.version) for span in spans), default=0)


async def _to_their_end(looks: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of these, to the end of each: one left behind would read a home that nobody holds.

    Raises what the first of them raised.
    """
    for failure in await asyncio.gather(*looks, return_exceptions=True):
        if failure is not None:
            raise failure


class _Held(AbstractContextManager["str | None"]):
    """Homes that must not leave the memory."""

    def __init__(self, store: ArchivedStore) -> None:
        self._store = store
        self._homes: set[str] = set()
        self.trouble: str | None = None  # why not all may be here

    def __enter__(self) -> str | None:
        return self.trouble

    def take(self, home: str) -> None:
        if home not in self._homes:
            self._homes.add(home)
            self._store.hold(home)

    def let_go(self) -> None:
        while self._homes:
            self._store.let_go(self._homes.pop())

    def __exit__(self, _: object, raised: BaseException | None, __: object) -> None:
        self.let_go()
        if self.trouble is not None and isinstance(raised, NotFound):  # it may be in the archive
            raise NotDurable("It is not in memory, and the store does not answer.") from raised


class _Probe:
    """Notes which names are looked for, while it finds what is here."""

    def __init__(self, store: ArchivedStore) -> None:
        self._store = store
        self.names: set[bytes] = set()

    def find(
        self,
        key: bytes,
        session_id: str | None,
        *,
        taken: Container[str] = (),
        spelling: bytes = b"",
    ) -> Turn | None:
        self.names.add(name_of_key(key))
        return self._store.find(key, session_id, taken=taken, spelling=spelling)

    def of_handle(self, handle: str, session_id: str | None, scope: str = "") -> Turn | None:
        self.names |= {name_of_handle(scope, handle), name_of_id(handle)}
        return self._store.of_handle(handle, session_id, scope)

    def ids_of_handles(
        self, handles: Sequence[str], session_id: str | None, scope: str = ""
    ) -> list[str | None]:
        for handle in handles:
            self.names |= {name_of_handle(scope, handle), name_of_id(handle)}
        return self._store.ids_of_handles(handles, session_id, scope)
