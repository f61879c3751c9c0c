"""Long work that only a few may be at: the others wait before they have begun.

Each step of such work makes something long for the next one. Where many begin at once, all of that
is there at once, and waits for the slowest step. Owners take turns: one
who sends hundreds of long prompts delays only their own.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from itertools import chain
from math import inf
from operator import methodcaller
from types import TracebackType
from typing import Any, TypeAlias

from slime_router.json_text import sizes
from slime_router.waiting.fair_queue import FairQueue, Party

LONG_LEN = 2**16  # bytes of what a prompt is made of
MOST_LONG = 4  # such prompts that are made at a time: one is encoded, while others are rendered
LONG_TALK = 64  # messages: from here on a step may take a millisecond
_CHARACTER_LEN = 4  # bytes at most
_MESSAGE_LEN = 128  # bytes, for the names of its fields
_TEXT = frozenset((str,))
_CONTENT = methodcaller("get", "content")

_Ticket: TypeAlias = "asyncio.Future[None]"


class Turnstile:
    """Admits so many pieces of long work at a time, each owner in turn; short work just passes.

    `long_len`: bytes of JSON from which on work is long.
    """

    def __init__(self, places: int = MOST_LONG, long_len: int = LONG_LEN) -> None:
        self._free = places
        self._waiting: FairQueue[_Ticket] = FairQueue(sys.maxsize)  # as many as are admitted
        self._long_len = long_len
        self._passage = nullcontext()

    def __repr__(self) -> str:
        return f"<Turnstile {self._free} free, {len(self._waiting)} waiting>"

    def passing(self, values: Iterable[Any], party: Party) -> AbstractAsyncContextManager[object]:
        """For the block, what is made of these values is worked at, for this party."""
        values = tuple(values)
        if len(values) >= LONG_TALK and _least_len(values) >= self._long_len:
            return _Place(self, party)
        if _most_len(values) < self._long_len:
            return self._passage
        left = self._long_len
        for size in chain.from_iterable(map(sizes, values)):
            left -= size
            if left <= 0:
                return _Place(self, party)
        return self._passage

    async def enter(self, party: Party) -> None:
        """Wait until it is the party's turn; each has to `leave`."""
        if self._free:
            self._free -= 1
            return
        ticket: _Ticket = asyncio.get_running_loop().create_future()
        self._waiting.push(party, ticket)
        try:
            await ticket
        except asyncio.CancelledError:
            self._waiting.discard(party, ticket)
            if not ticket.cancelled():  # it was given a place that it no longer needs
                self.leave()
            raise

    def leave(self) -> None:
        """Give the place to whoever has the next turn."""
        while self._waiting:
            ticket = self._waiting.pop()
            if not ticket.done():
                ticket.set_result(None)
                return
        self._free += 1


class _Place(AbstractAsyncContextManager[None]):
    """A place, for as long as the block lasts."""

    def __init__(self, turnstile: Turnstile, party: Party) -> None:
        self._turnstile = turnstile
        self._party = party

    async def __aenter__(self) -> None:
        await self._turnstile.enter(self._party)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._turnstile.leave()


async def others_run() -> None:
    """Between two steps that take milliseconds each for a long conversation, see `LONG_TALK`."""
    await asyncio.sleep(0)


def _least_len(messages: Sequence[Any]) -> int:
    """At least so many bytes are in these messages, without a step for each; 0 if others are there.

    A content in parts counts one for each of them.
    """
    try:
        return sum(map(len, filter(None, map(_CONTENT, messages))))
    except (AttributeError, TypeError):
        return 0


def _most_len(values: Sequence[Any]) -> float:
    """At most so many bytes are in these texts and messages; infinity if some are not just text."""
    total = 0
    for each in values:
        texts = (each,) if type(each) is str else each.values() if type(each) is dict else (None,)
        if not _TEXT.issuperset(map(type, texts)):
            return inf
        total += _MESSAGE_LEN + _CHARACTER_LEN * sum(map(len, texts))
    return total
