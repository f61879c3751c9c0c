"""What the workers' KV caches hold, as far as the router can infer it from its traffic.

Tokens count in whole blocks, short ones at first and long ones far into a prompt, so that a long
conversation costs little. A worker's blocks are limited to what its cache can hold: the least
recently used ones are dropped first, as in the real cache. If a prefix is held, so are all shorter
ones. This is a guess; where it is wrong, a prompt takes longer, and nothing else happens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from weakref import ref

import numpy as np

from slime_router.beginnings import Beginnings, common_prefix_len
from slime_router.pool.rank import Place
from slime_router.types import TokenIds

# Where the blocks of a prompt end: what counts as held is off by at most one. Later tokens do not
# count.
ENDS = (*range(64, 2**13 + 1, 64), *range(2**13 + 1024, 2**20 + 1, 1024))
DEFAULT_KV_TOKENS = 2**19  # of a worker that has not reported its size
LONG_LEN = 4096  # tokens of a prompt whose beginning costs more to hash than to compare
MAX_HASHED = 2**16  # blocks whose hashes are remembered

Prefixes: TypeAlias = list[int]  # hashes of a prompt's first block, its first two, ...


@dataclass(slots=True)
class _Block:
    """A block by what precedes it: the prefix before it, and how many blocks go on from it."""

    before: int | None
    length: int  # tokens
    followers: int = 0


@dataclass(slots=True)
class _Held:
    """The blocks of one worker, by the prefix that each ends; and their tokens.

    `ends` are the prefixes that were put last, newest last: all that comes before an end is as new,
    and goes after it. Every block that nothing goes on from is one of them.
    """

    blocks: dict[int, _Block] = field(default_factory=dict)
    ends: OrderedDict[int, None] = field(default_factory=OrderedDict)
    tokens: int = 0

    def put(self, prefixes: Prefixes, lens: Sequence[int]) -> int:
        """All of `prefixes` are the newest now; `lens` are the blocks' own.

        Returns how many of them were there.
        """
        if not prefixes:
            return 0
        blocks, known = self.blocks, _count(self.blocks, prefixes)
        before = prefixes[known - 1] if known else None
        for prefix, length in zip(prefixes[known:], lens[known : len(prefixes)], strict=True):
            if before is not None:
                blocks[before].followers += 1
            blocks[prefix] = _Block(before, length)
            self.tokens += length
            before = prefix
        self.ends[prefixes[-1]] = None
        self.ends.move_to_end(prefixes[-1])
        return known

    def shrink(self, capacity: int) -> None:
        """The oldest blocks go first, each before those that precede it."""
        while self.tokens > capacity:
            end, _ = self.ends.popitem(last=False)
            if self.blocks[end].followers:
                continue  # they are newer
            block = self.blocks.pop(end)
            self.tokens -= block.length
            if block.before is not None:
                self.blocks[block.before].followers -= 1
                if block.before not in self.ends:
                    self.ends[block.before] = None
                    self.ends.move_to_end(block.before, last=False)


class KVCacheModel:
    """The blocks that each worker holds: about 150 bytes a block.

    `ends`: where blocks end, counted in tokens.
    """

    def __init__(self, ends: Sequence[int] = ENDS) -> None:
        self._ends = ends
        self._lens = [end - start for start, end in zip((0, *ends), ends, strict=False)]
        self._held: dict[Place, _Held] = {}
        self._hashed: Beginnings[tuple[ref[TokenIds], Prefixes]] = Beginnings(MAX_HASHED)

    def __repr__(self) -> str:
        blocks = sum(len(held.blocks) for held in self._held.values())
        return f"<KVCacheModel {blocks} blocks on {len(self._held)} workers>"

    def prefixes(self, scope: str, ids: TokenIds) -> Prefixes:
        """One hash for each whole block of `ids`, over all tokens up to its end, within `scope`.

        Each goes on from the one before; what a long prompt shares with an earlier one is not
        hashed again. Python's hashes of bytes have a secret of the process: nobody can make two
        prompts collide on purpose.
        """
        if len(ids) < LONG_LEN or not ids.flags.c_contiguous:
            return self._continued([], scope, ids)
        data = ids.data.cast("B")
        known = self._known(scope, ids, data)
        prefixes = self._continued(known, scope, ids[self._end(len(known)) :])
        self._hashed.keep(scope, data, (ref(ids), prefixes), len(prefixes))
        return prefixes

    def with_output(
        self, prefixes: Prefixes, scope: str, prompt: TokenIds, output: Sequence[int]
    ) -> Prefixes:
        """The prefixes of a prompt and what was sampled after it; `prefixes` are the prompt's."""
        if not self.is_filled(len(prompt), len(output)):
            return prefixes
        rest = np.concatenate((prompt[self._end(len(prefixes)) :], np.array(output, np.int32)))
        return self._continued(prefixes, scope, rest)

    def is_filled(self, prompt_len: int, output_len: int) -> bool:
        """Whether any block ends in an output after such a prompt."""
        ends = self._ends
        return bisect_right(ends, prompt_len + output_len) > bisect_right(ends, prompt_len)

    def _end(self, blocks: int) -> int:
        """Where that many blocks end, counted in tokens."""
        return self._ends[blocks - 1] if blocks else 0

    def _continued(self, known: Prefixes, scope: str, rest: TokenIds) -> Prefixes:
        """`known`, and those of the blocks that `rest` fills after them."""
        first = self._end(len(known))
        count = bisect_right(self._ends, first + len(rest))
        prefixes, prefix = known[:], known[-1] if known else hash(scope)
        data, start = rest.tobytes(), 0
        for end in self._ends[len(known) : count]:
            stop = (end - first) * rest.itemsize
            prefix = hash((prefix, data[start:stop]))
            prefixes.append(prefix)
            start = stop
        return prefixes

    def _known(self, scope: str, ids: TokenIds, data: memoryview) -> Prefixes:
        """The prefixes that are known of what `ids` begin with; `data` are their bytes.

        No ids are kept for that: they are compared as long as somebody else keeps them.
        """
        found = self._hashed.likely(scope, data)
        earlier = None if found is None else found[0]()
        if found is None or earlier is None:
            return []
        if earlier is ids:
            return found[1]
        return found[1][: bisect_right(self._ends, common_prefix_len(earlier, ids))]

    def held_lens(self, workers: Sequence[Place], prefixes: Prefixes) -> list[int]:
        """Tokens of the longest prefix that each of `workers` holds. A read: no block gets newer.

        Each worker costs two look-ups, and log2(len(prefixes)) more if it holds any prefix.
        """
        helds = map(self._held.get, workers)
        return [0 if held is None else self._end(_count(held.blocks, prefixes)) for held in helds]

    def knows(self, worker: Place) -> bool:
        """Whether anything was added for `worker` since it was last forgotten."""
        return worker in self._held

    def add(self, worker: Place, prefixes: Prefixes) -> int:
        """`worker` now holds all of `prefixes`, or as many of the shorter ones as fit.

        Returns the tokens of the longest one that it has held before.
        """
        held = self._held.get(worker)
        if held is None:
            held = self._held[worker] = _Held()
        capacity = worker.kv_tokens or DEFAULT_KV_TOKENS
        known = held.put(prefixes[: bisect_right(self._ends, capacity)], self._lens)
        held.shrink(capacity)
        return self._end(known)

    def forget(self, worker: Place) -> None:
        """`worker` holds nothing."""
        self._held.pop(worker, None)


def _count(held: Container[int], prefixes: Prefixes) -> int:
    """How many of `prefixes` are held: held ones precede all others."""
    if not prefixes or prefixes[0] not in held:
        return 0
    if prefixes[-1] in held:
        return len(prefixes)
    low, high = 1, len(prefixes) - 1
    while low < high:  # the first `low` are held, those from `high` on are not
        middle = (low + high) // 2
        if prefixes[middle] in held:
            low = middle + 1
        else:
            high = middle
    return low
