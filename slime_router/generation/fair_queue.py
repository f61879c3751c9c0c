"""A queue in which parties take turns, however much each has waiting.

    len(queue) <= max_len
    pop: the oldest item of the party whose last turn is longest ago

A party that floods the queue delays only itself. When the queue is full, an item of a party with
less in it replaces the newest item of the party with the most. Every operation takes constant time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class FairQueue(Generic[T]):
    """Items by party; an item waits at most once. A party is known only while it has items."""

    def __init__(self, max_len: int) -> None:
        self._max_len = max_len
        self._len = 0
        self._parties: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()  # the next one first
        self._by_len: dict[int, OrderedDict[str, None]] = {}  # parties by number of items
        self._longest = 0

    def __repr__(self) -> str:
        return f"<FairQueue {self._len}/{self._max_len} of {len(self._parties)} parties>"

    def __len__(self) -> int:
        return self._len

    def push(self, party: str, item: T) -> T | None:
        """Adds `item` after the others of its party; a new party has its turn after all others.

        Returns:
            None, or if the queue is full the item that lost its place: the newest of the party with
            the most, if that has at least two more than this party; else `item` itself.
        """
        out: T | None = None
        if self._len >= self._max_len:
            if not self._max_len or self._longest <= self._count(party) + 1:
                return item
            longest = next(iter(self._by_len[self._longest]))
            out = next(reversed(self._parties[longest]))
            self.discard(longest, out)
        self._parties.setdefault(party, OrderedDict())[item] = None
        self._recount(party, +1)
        return out

    def pop(self) -> T:
        """Removes the item whose turn it is; its party's next turn comes after all others.

        Raises:
            KeyError: nothing waits.
        """
        party = next(iter(self._parties), None)
        if party is None:
            raise KeyError("nothing waits")
        item = next(iter(self._parties[party]))
        self._parties.move_to_end(party)
        self.discard(party, item)
        return item

    def discard(self, party: str, item: T) -> None:
        """Removes `item` if present."""
        items = self._parties.get(party)
        if items is None or item not in items:
            return
        del items[item]
        self._recount(party, -1)
        if not items:
            del self._parties[party]

    def _count(self, party: str) -> int:
        return len(self._parties.get(party, ()))

    def _recount(self, party: str, change: int) -> None:
        """`party` gained or lost one item, so the longest length changes by at most one."""
        count = self._count(party)
        self._len += change
        if before := self._by_len.get(count - change):
            del before[party]
            if not before:
                del self._by_len[count - change]
        if count:
            self._by_len.setdefault(count, OrderedDict())[party] = None
        self._longest = max(self._longest, count)
        if self._longest not in self._by_len:
            self._longest -= 1
