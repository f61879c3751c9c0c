"""Places that owners share: none of them can take what another one is due. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection


class Shares:
    """At most `limit` places; each of `owners` can always have its share.

    One half of the places is divided among the owners, at least one place to each if there are so
    many; an owner that needs less leaves the rest of its share free. The other half goes to
    whoever comes first. Nobody loses a place that it has. With a single owner, all is its own.
    """

    def __init__(self, limit: int, owners: Collection[str] = ()) -> None:
        self._limit = limit
        self._taken: defaultdict[str, int] = defaultdict(int)
        self._total = 0
        self.share_among(owners)

    def __repr__(self) -> str:
        return f"<Shares {self._total}/{self._limit} of {len(self._owners)} owners>"

    def share_among(self, owners: Collection[str]) -> None:
        """These are the owners from now on; places that are taken stay so."""
        names = self._owners = set(owners)
        self._share = (
            max(self._limit // (2 * len(names)), 1) if 1 < len(names) <= self._limit else 0
        )
        self._owed = sum(map(self._owed_to, names))  # of all shares, what their owners may take

    @property
    def total(self) -> int:
        """How many places are taken."""
        return self._total

    def taken(self, owner: str) -> int:
        """How many places the owner has."""
        return self._taken.get(owner, 0)

    def has_room(self, owner: str, count: int = 1) -> bool:
        """Whether the owner may have so many more."""
        owed_to_others = self._owed - self._owed_to(owner) if self._share else 0
        return self._total + owed_to_others + count <= self._limit

    def take(self, owner: str, count: int = 1) -> None:
        """The owner has so many more, whether or not it may."""
        self._change(owner, count)

    def give_back(self, owner: str, count: int = 1) -> None:
        """The owner has so many less.

        Raises:
            ValueError: it has not as many.
        """
        if self.taken(owner) < count:
            raise ValueError(f"{owner!r} has not {count} places to give back")
        self._change(owner, -count)

    def _change(self, owner: str, by: int) -> None:
        if self._share:
            self._owed -= self._owed_to(owner)
        self._total += by
        self._taken[owner] += by
        if self._share:
            self._owed += self._owed_to(owner)

    def _owed_to(self, owner: str) -> int:
        return max(self._share - self.taken(owner), 0) if owner in self._owners else 0
