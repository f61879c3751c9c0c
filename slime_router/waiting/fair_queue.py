"""A queue in which owners take turns, and within each owner its parties, however much they have.

    len(queue) <= max_len
    pop: of the owner whose last turn is longest ago, of its party whose last turn is longest ago,
         the oldest item

Who floods the queue delays only itself: an owner no other owner, whatever it calls its sessions,
and a session no other session. When the queue is full, an item of an owner with less in it replaces
one of the owner with the most; among the items of one owner, the same holds of its parties. What is
replaced is the newest item. Every operation takes constant time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T", bound=Hashable)


class Party(NamedTuple):
    """A name that waits, as its owner chose it."""

    owner: str  # "" for nobody's
    name: str


class FairQueue(Generic[T]):
    """Items by party; an item waits at most once. A party is known only while it has items."""

    def __init__(self, max_len: int) -> None:
        self._max_len = max_len
        self._owners: OrderedDict[str, _Rota[T]] = OrderedDict()  # the next one first
        self._lengths = _Lengths()  # of the owners

    def __repr__(self) -> str:
        return f"<FairQueue {len(self)}/{self._max_len} of {len(self._owners)} owners>"

    def __len__(self) -> int:
        return self._lengths.total

    def push(self, party: Party, item: T) -> T | None:
        """Adds `item` after the others of its party; a new party has its turn after all others.

        Returns:
            None, or if the queue is full the item that lost its place: one of the owner with the
            most, if that has at least two more than this owner; else one of this owner's party with
            the most, if that has at least two more than this party; else `item` itself.
        """
        out: T | None = None
        if len(self) >= self._max_len:
            out = self._make_room(party)
            if out is None:
                return item
        self._owners.setdefault(party.owner, _Rota()).add(party.name, item)
        self._lengths.change(party.owner, +1)
        return out

    def _make_room(self, party: Party) -> T | None:
        """Removes and returns the item that gives way to one of `party`; None if none does."""
        owner, lengths = party.owner, self._lengths
        if lengths.longest > lengths.of(owner) + 1:
            owner = lengths.name_of_longest()
        elif owner not in self._owners or not self._owners[owner].has_longer(party.name):
            return None
        name, out = self._owners[owner].last_of_longest()
        self.discard(Party(owner, name), out)
        return out

    def pop(self) -> T:
        """Removes the item whose turn it is; its owner's next turn comes after all others.

        Raises:
            KeyError: nothing waits.
        """
        owner = next(iter(self._owners), None)
        if owner is None:
            raise KeyError("nothing waits")
        item = self._owners[owner].pop()
        self._owners.move_to_end(owner)
        self._lost(owner)
        return item

    def discard(self, party: Party, item: T) -> None:
        """Removes `item` if present."""
        rota = self._owners.get(party.owner)
        if rota is not None and rota.discard(party.name, item):
            self._lost(party.owner)

    def _lost(self, owner: str) -> None:
        self._lengths.change(owner, -1)
        if not self._lengths.of(owner):
            del self._owners[owner]


class _Rota(Generic[T]):
    """The parties of one owner, which take turns."""

    __slots__ = ("lengths", "parties")

    def __init__(self) -> None:
        self.parties: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()  # the next one first
        self.lengths = _Lengths()

    def add(self, party: str, item: T) -> None:
        self.parties.setdefault(party, OrderedDict())[item] = None
        self.lengths.change(party, +1)

    def pop(self) -> T:
        party = next(iter(self.parties))
        item = next(iter(self.parties[party]))
        self.parties.move_to_end(party)
        self.discard(party, item)
        return item

    def discard(self, party: str, item: T) -> bool:
        """Removes `item`; returns whether it was there."""
        items = self.parties.get(party)
        if items is None or item not in items:
            return False
        del items[item]
        self.lengths.change(party, -1)
        if not items:
            del self.parties[party]
        return True

    def has_longer(self, party: str) -> bool:
        """Whether some party has at least two items more than this one."""
        return self.lengths.longest > self.lengths.of(party) + 1

    def last_of_longest(self) -> tuple[str, T]:
        """The newest item of a party with the most."""
        party = self.lengths.name_of_longest()
        return party, next(reversed(self.parties[party]))


class _Lengths:
    """How many items each name has, and which has the most."""

    __slots__ = ("_by_len", "_lens", "longest", "total")

    def __init__(self) -> None:
        self._lens: dict[str, int] = {}
        self._by_len: dict[int, OrderedDict[str, None]] = {}
        self.longest = 0
        self.total = 0

    def of(self, name: str) -> int:
        return self._lens.get(name, 0)

    def name_of_longest(self) -> str:
        """Of equal ones the one that came to have as many last: the others have waited longer."""
        return next(reversed(self._by_len[self.longest]))

    def change(self, name: str, by: int) -> None:
        """`name` gained or lost one item, so the longest length changes by at most one."""
        before = self.of(name)
        count = before + by
        self.total += by
        if before:
            names = self._by_len[before]
            del names[name]
            if not names:
                del self._by_len[before]
        if count:
            self._lens[name] = count
            self._by_len.setdefault(count, OrderedDict())[name] = None
        else:
            del self._lens[name]
        self.longest = max(self.longest, count)
        if self.longest not in self._by_len:
            self.longest -= 1
