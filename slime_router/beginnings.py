"""Long sequences that begin alike: the earlier one that a new one most likely goes on from.

Agents send what they sent before, and more. Looking up all of it would cost as much as reading it:
so a sequence is known by short windows of bytes, each of which ends four times as far in. One that
goes on from it has all of them, and one that leaves it has those before that place. Windows are a
hint, not a proof: whoever finds a sequence compares it with the new one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeAlias, TypeVar

from numpy.typing import NDArray

WINDOW_LEN = 64  # bytes
ENDS = tuple(512 * 4**number for number in range(20))  # of windows; shorter sequences have none

T = TypeVar("T")
_Key: TypeAlias = tuple[Hashable, int, bytes]


class _Entry(Generic[T]):
    __slots__ = ("keys", "size", "uses", "value")

    def __init__(self, keys: list[_Key], value: T, size: int) -> None:
        self.keys = keys
        self.value = value
        self.size = size
        self.uses = len(keys)  # of its keys, those that no later sequence has taken


class Beginnings(Generic[T]):
    """Values of sequences, `max_size` in all, whatever that is counted in; the least used go first.

    A sequence goes, too, once later ones have all of its windows.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._size = 0
        self._by_key: dict[_Key, _Entry[T]] = {}
        self._entries: OrderedDict[_Entry[T], None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Beginnings of {len(self._entries)} sequences, {self._size} of {self._max_size}>"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Of all values together."""
        return self._size

    def likely(self, group: Hashable, data: memoryview) -> T | None:
        """The value of the sequence in `group` that shares a window with `data` farthest in."""
        for end in reversed(_ends(data)):
            entry = self._by_key.get(_key(group, data, end))
            if entry is not None:
                self._entries.move_to_end(entry)
                return entry.value
        return None

    def keep(self, group: Hashable, data: memoryview, value: T, size: int) -> None:
        """Have `value` found by sequences like `data`, and no longer those that it had to yield."""
        keys = [_key(group, data, end) for end in _ends(data)]
        if not keys:
            return
        entry = _Entry(keys, value, size)
        for key in keys:
            earlier = self._by_key.get(key)
            self._by_key[key] = entry
            if earlier is not None:
                earlier.uses -= 1
                if not earlier.uses:
                    self._drop(earlier)
        self._entries[entry] = None
        self._size += size
        while self._size > self._max_size:
            self._drop(next(iter(self._entries)))

    def _drop(self, entry: _Entry[T]) -> None:
        del self._entries[entry]
        self._size -= entry.size
        for key in entry.keys:
            if self._by_key.get(key) is entry:  # a later one may have had it, and be gone
                del self._by_key[key]

    def check_integrity(self) -> None:
        """Recount. Raises AssertionError with what is broken."""
        assert self._size == sum(entry.size for entry in self._entries) <= self._max_size
        uses = [
            entry for entry in self._entries for key in entry.keys if self._by_key.get(key) is entry
        ]
        assert len(uses) == len(self._by_key), "a key leads to what is gone"
        for entry in self._entries:
            assert entry.uses == uses.count(entry) > 0, "an entry that nobody can find"


def _ends(data: memoryview) -> tuple[int, ...]:
    """Where the windows of the sequence end, the nearest first."""
    return ENDS[: bisect_right(ENDS, len(data))]


def _key(group: Hashable, data: memoryview, end: int) -> _Key:
    return group, end, bytes(data[end - WINDOW_LEN : end])


def common_prefix_len(left: NDArray[Any], right: NDArray[Any]) -> int:
    """How many entries two arrays have in common from their beginning."""
    count = min(len(left), len(right))
    differs = left[:count] != right[:count]
    first = int(differs.argmax()) if count else 0
    return first if count and bool(differs[first]) else count
