"""What must be in memory before a request looks for it, where not all is."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeAlias

from slime_router.trajectory.session import Session
from slime_router.types import GenerateCall

Fetched: TypeAlias = AbstractContextManager[str | None]  # gives why not all may be here


class Fetch(Protocol):
    """Fetches; what came stays in memory until the block is left. `slime_router.archive` does."""

    def of_session(self, session_id: str) -> Awaitable[Fetched]:
        """A session, with its turns."""

    def of_rollout(self, session_id: str) -> Awaitable[Fetched]:
        """A session, with those of its rollout that have a reward."""

    def of_call(self, call: GenerateCall) -> Awaitable[Fetched]:
        """What a call may continue."""

    def of_turn(self, name: str) -> Awaitable[Fetched]:
        """The turns that are known by this id: their own, or one of their request's."""

    def of_sessions(self) -> Awaitable[Sequence[Session] | None]:
        """All sessions as they are now; None where the store has them all."""

    def know_sessions(self) -> Awaitable[None]:
        """All sessions count from then on, in memory or not: for what they have in common."""

    def confirm_opened(self, session: Session) -> Awaitable[None]:
        """Raises Conflict where another router opened it first."""


class AllIsHere:
    """For a store that has everything in memory."""

    async def of_session(self, _: object) -> Fetched:
        """Fetch nothing: all turns are in memory."""
        return nullcontext()

    of_rollout = of_call = of_turn = of_session

    async def of_sessions(self) -> None:
        """The store has them all."""

    async def know_sessions(self) -> None:
        """Do nothing: all sessions count already."""

    async def confirm_opened(self, _: Session) -> None:
        """Nobody else can open any."""
