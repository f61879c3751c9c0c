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

from slime_router.pool.worker import Worker
from slime_router.types import TokenIds

# Where the blocks of a prompt end: what counts as held is off by at most one. Later tokens do not
# count.
ENDS = (*range(64, 2**13 + 1, 64), *range(2**13 + 1024, 2**20 + 1, 1024))
DEFAULT_KV_TOKENS = 2**19  # of a worker that has not reported its size

Prefixes: TypeAlias = list[int]  # hashes of a prompt's first block, its first two, ...


@dataclass(slots=True)
class _Held:
    """The blocks of one worker, by the prefix that each ends, newest last; and their tokens."""

    blocks: OrderedDict[int, int] = field(default_factory=OrderedDict)
    tokens: int = 0

    def put(self, prefix: int, length: int) -> None:
        if prefix not in self.blocks:
            self.blocks[prefix] = length
            self.tokens += length
        self.blocks.move_to_end(prefix)

    def shrink(self, capacity: int) -> None:
        while self.tokens > capacity:
            self.tokens -= self.blocks.popitem(last=False)[1]


class KVCacheModel:
    """The blocks that each worker holds, newest last: about 200 bytes a block.

    `ends`: where blocks end, counted in tokens.
    """

    def __init__(self, ends: Sequence[int] = ENDS) -> None:
        self._ends = ends
        self._lens = [end - start for start, end in zip((0, *ends), ends, strict=False)]
        self._held: dict[Worker, _Held] = {}

    def __repr__(self) -> str:
        blocks = sum(len(held.blocks) for held in self._held.values())
        return f"<KVCacheModel {blocks} blocks on {len(self._held)} workers>"

    def prefixes(self, scope: str, ids: TokenIds) -> Prefixes:
        """One hash for each whole block of `ids`, over all tokens up to its end, within `scope`.

        Each goes on from the one before. Python's hashes of bytes have a secret of the process:
        nobody can make two prompts collide on purpose.
        """
        count = bisect_right(self._ends, len(ids))
        data = ids[: self._ends[count - 1] if count else 0].tobytes()
        prefixes: Prefixes = []
        prefix, start = hash(scope), 0
        for end in self._ends[:count]:
            end *= ids.itemsize
            prefix = hash((prefix, data[start:end]))
            prefixes.append(prefix)
            start = end
        return prefixes

    def held_lens(self, workers: Sequence[Worker], prefixes: Prefixes) -> list[int]:
        """Tokens of the longest prefix that each of `workers` holds. A read: no block gets newer.

        Each worker costs two look-ups, and log2(len(prefixes)) more if it holds any prefix.
        """
        if not prefixes:
            return [0] * len(workers)
        first = prefixes[0]
        nothing = _Held()
        helds = [self._held.get(worker, nothing).blocks for worker in workers]
        return [
            self._ends[_count(blocks, prefixes) - 1] if first in blocks else 0 for blocks in helds
        ]

    def knows(self, worker: Worker) -> bool:
        """Whether anything was added for `worker` since it was last forgotten."""
        return worker in self._held

    def add(self, worker: Worker, prefixes: Prefixes) -> None:
        """`worker` now holds all of `prefixes`, or as many of the shorter ones as fit."""
        held = self._held.setdefault(worker, _Held())
        capacity = worker.kv_tokens or DEFAULT_KV_TOKENS
        count = min(len(prefixes), bisect_right(self._ends, capacity))
        # The longest first: a prefix is then always newer than its extensions, and outlives them.
        for index in range(count - 1, -1, -1):
            held.put(prefixes[index], self._lens[index])
        held.shrink(capacity)

    def forget(self, worker: Worker) -> None:
        """`worker` holds nothing."""
        self._held.pop(worker, None)


def _count(held: Container[int], prefixes: Prefixes) -> int:
    """How many of `prefixes` are held: the first one is, and held ones precede all others."""
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
