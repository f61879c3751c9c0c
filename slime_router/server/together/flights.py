"""The end of a session, in whichever processes it has generations."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from slime_router.archive.shared import SharedArchive
from slime_router.generation.sessions import LANDING_TIMEOUT_S, Sessions
from slime_router.journal.fetching import Fetch
from slime_router.siblings.siblings import Siblings
from slime_router.trajectory.session_table import SessionTable

LAND, SETTLE, END = "land", "settle", "end"
MARGIN_S = 5.0  # for the messages themselves


class Hold(ExitStack):
    """A session that is closed in another process takes no new turns here meanwhile."""

    timer: asyncio.TimerHandle | None = None


class Flights:
    """Waits, before a session is closed, for what runs in it in other processes.

    `slime_router.generation.sessions` has the rules. The archive carries what has become of the
    session; here the others learn that it is time to look.
    """

    def __init__(
        self,
        sessions: Sessions,
        table: SessionTable,
        fetch: Fetch,
        journal: SharedArchive | None,
        siblings: Siblings,
    ) -> None:
        self._sessions = sessions
        self._table = table
        self._fetch = fetch
        self._journal = journal
        self._siblings = siblings
        self._holds: dict[str, Hold] = {}
        siblings.answer(LAND, self._land)
        siblings.answer(SETTLE, self._settle)
        siblings.answer(END, self._end)

    async def land(self, session_id: str, *, cancel: bool, timeout_s: float) -> None:
        """See `Elsewhere`. A process that does not answer in time is left to itself."""
        message = {"session_id": session_id, "cancel": cancel, "timeout_s": timeout_s}
        limit_s = timeout_s + LANDING_TIMEOUT_S + MARGIN_S
        await self._siblings.ask(LAND, message, timeout_s=limit_s)

    async def settle(self, session_id: str) -> None:
        """See `Elsewhere`."""
        if self._siblings.others:
            await self._written()
            await self._siblings.ask(SETTLE, {"session_id": session_id})

    async def end(self, session_id: str) -> None:
        """See `Elsewhere`."""
        if self._siblings.others:
            await self._written()
            await self._siblings.ask(END, {"session_id": session_id})

    async def _land(self, message: Mapping[str, Any]) -> None:
        session_id, timeout_s = message["session_id"], message["timeout_s"]
        if await self._hold(session_id, timeout_s + LANDING_TIMEOUT_S + 2 * MARGIN_S):
            await self._sessions.land(session_id, cancel=message["cancel"], timeout_s=timeout_s)
            await self._written()

    async def _hold(self, session_id: str, limit_s: float) -> bool:
        """Whether the session is known here; from now on it takes nothing new."""
        hold = Hold()
        hold.enter_context(await self._fetch.of_session(session_id))
        session = self._table.find(session_id)
        if session is None:
            hold.close()
            return False
        hold.enter_context(session.closing())
        loop = asyncio.get_running_loop()
        hold.timer = loop.call_later(limit_s, self._let_go, session_id)  # should the other one die
        self._let_go(session_id)
        self._holds[session_id] = hold
        return True

    async def _settle(self, message: Mapping[str, Any]) -> None:
        session_id = message["session_id"]
        with await self._fetch.of_session(session_id):  # it is closed there, and so it is here
            self._let_go(session_id)

    async def _end(self, message: Mapping[str, Any]) -> None:
        session_id = message["session_id"]
        self._sessions.end(session_id)
        await self._settle(message)

    def _let_go(self, session_id: str) -> None:
        hold = self._holds.pop(session_id, None)
        if hold is not None:
            if hold.timer is not None:
                hold.timer.cancel()
            hold.close()

    async def _written(self) -> None:
        if self._journal is not None:
            await self._journal.written()
