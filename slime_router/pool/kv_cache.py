"""What the workers' KV caches hold, as far as the router can infer it from its traffic.

Tokens count in whole blocks, and a worker's blocks are limited to what its cache can hold: the
least recently used ones are dropped first, as in the real cache. If a prefix is held, so are all
shorter ones. This is a guess; where it is wrong, a prompt takes longer, and nothing else happens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from slime_router.pool.worker import Worker
from slime_router.types import TokenIds

BLOCK_LEN = 64  # tokens: what we count as held is off by at most one block
MAX_BLOCKS = 2**14  # a million tokens; later ones do not count
DEFAULT_KV_TOKENS = 2**19  # of a worker that has not reported its size

Prefixes: TypeAlias = list[int]  # hashes of a prompt's first block, its first two, ...
_Words: TypeAlias = NDArray[np.uint64]


class KVCacheModel:
    """The blocks that each worker holds, newest last.

    About 200 bytes a block: 1.6 MB for a worker with a cache of half a million tokens.

    Args:
        seed: of the hash function; any two KVCacheModel with the same seed behave alike.
    """

    def __init__(self, seed: int | None = None) -> None:
        random = np.random.default_rng(seed)
        self._token_factors = _odd(random.integers(0, 2**64, BLOCK_LEN, np.uint64))
        self._block_factors = _odd(random.integers(0, 2**64, MAX_BLOCKS, np.uint64))
        self._held: dict[Worker, OrderedDict[int, None]] = {}

    def __repr__(self) -> str:
        blocks = sum(map(len, self._held.values()))
        return f"<KVCacheModel {blocks} blocks on {len(self._held)} workers>"

    def prefixes(self, scope: str, ids: TokenIds) -> Prefixes:
        """One hash for each whole block of `ids`, over all tokens up to its end, within `scope`.

        The hash is a sum of the tokens, each multiplied by two random factors: one for its place in
        the block, one for the block's place. Without knowing them, nobody can make two prompts
        collide.
        """
        count = min(len(ids) // BLOCK_LEN, MAX_BLOCKS)
        if not count:
            return []
        blocks = ids[: count * BLOCK_LEN].reshape(count, BLOCK_LEN).astype(np.uint64)
        blocks += np.uint64(1)  # so that a token 0 counts too
        sums = np.cumsum((blocks @ self._token_factors) * self._block_factors[:count])
        if scope:
            sums += np.uint64(hash(scope) % 2**64)
        prefixes: Prefixes = sums.tolist()
        return prefixes

    def held_lens(self, workers: Sequence[Worker], prefixes: Prefixes) -> list[int]:
        """Tokens of the longest prefix that each of `workers` holds. A read: no block gets newer.

        Each worker costs two look-ups, and log2(len(prefixes)) more if it holds any prefix.
        """
        if not prefixes:
            return [0] * len(workers)
        first = prefixes[0]
        nothing: OrderedDict[int, None] = OrderedDict()
        helds = [self._held.get(worker, nothing) for worker in workers]
        return [BLOCK_LEN * _count(held, prefixes) if first in held else 0 for held in helds]

    def knows(self, worker: Worker) -> bool:
        """Whether anything was added for `worker` since it was last forgotten."""
        return worker in self._held

    def add(self, worker: Worker, prefixes: Prefixes) -> None:
        """`worker` now holds all of `prefixes`, or as many of the shorter ones as fit."""
        held = self._held.setdefault(worker, OrderedDict())
        capacity = (worker.kv_tokens or DEFAULT_KV_TOKENS) // BLOCK_LEN
        # The longest first: a prefix is then always newer than its extensions, and outlives them.
        for prefix in reversed(prefixes[:capacity]):
            held[prefix] = None
            held.move_to_end(prefix)
        for _ in range(len(held) - capacity):
            held.popitem(last=False)

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


def _odd(words: _Words) -> _Words:
    return words | np.uint64(1)  # odd: multiplying by it loses no information
