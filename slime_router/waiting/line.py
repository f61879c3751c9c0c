"""A line of those that wait for one of several things, each of which only some can use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Line(Generic[T]):
    """When a thing is free, whoever came first among those that can use it is woken to look.

    Nothing is handed out: whoever looks may find it gone, and keeps its place.
    """

    def __init__(self) -> None:
        self._places: dict[Place[T], None] = {}  # in order of arrival

    def __repr__(self) -> str:
        return f"<Line of {len(self._places)}>"

    @contextmanager
    def place(self, can_use: Callable[[T], bool]) -> Iterator[Place[T]]:
        """For the block, a place at the end of the line."""
        self._places[place := Place(can_use)] = None
        try:
            yield place
        finally:
            del self._places[place]
            if place.offered is not None and place.offered is not place.taken:
                self.offer(place.offered)  # it is there for the next one

    def offer(self, thing: T) -> None:
        """`thing` is free: one of those that can use it looks."""
        for place in self._places:
            if place.offered is None and place.can_use(thing):
                place.offered = thing
                place.bell.set()
                return

    def wake(self) -> None:
        """Anything may have changed: all look."""
        for place in self._places:
            place.bell.set()


class Place(Generic[T]):
    """A place in a line.

    Attributes:
        offered: what whoever waits was woken for, until it waits again.
        taken: what it leaves the line with.
    """

    __slots__ = ("bell", "can_use", "offered", "taken")

    def __init__(self, can_use: Callable[[T], bool]) -> None:
        self.can_use = can_use
        self.offered: T | None = None
        self.taken: T | None = None
        self.bell = asyncio.Event()

    async def wait(self, until: float) -> None:
        """Returns when there may be something, or at `until`, by the loop's clock."""
        self.offered = None
        try:
            async with asyncio.timeout_at(until):
                await self.bell.wait()
        except TimeoutError:
            pass
        self.bell.clear()
