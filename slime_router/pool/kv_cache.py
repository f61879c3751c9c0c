"""What the workers' KV caches hold, as far as the router can tell from what it sent and got back.

Tokens count in whole blocks, and each worker holds no more of them than its cache does: the blocks
used longest ago go first, as they go there. A held prefix means that all shorter ones are held.
This is a guess; where it is wrong, a prompt takes longer, and nothing else happens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from slime_router.pool.worker import Worker
from slime_router.types import TokenIds

BLOCK_LEN = 64  # tokens: a worker saves at most one block less than we know of
MAX_BLOCKS = 2**14  # a million tokens; what follows them does not count
DEFAULT_KV_TOKENS = 2**19  # of a worker that did not say

Prefixes: TypeAlias = list[int]  # a prompt's hashes: of its first block, of its first two, ...
_Words: TypeAlias = NDArray[np.uint64]


class Holdings:
    """The blocks that each worker holds, newest last.

    About 200 bytes a block: 1.6 MB for a worker with a cache of half a million tokens.

    Args:
        seed: of the hash function; any two Holdings with one seed behave alike.
    """

    def __init__(self, seed: int | None = None) -> None:
        random = np.random.default_rng(seed)
        self._token_factors = _odd(random.integers(0, 2**64, BLOCK_LEN, np.uint64))
        self._block_factors = _odd(random.integers(0, 2**64, MAX_BLOCKS, np.uint64))
        self._held: dict[Worker, OrderedDict[int, None]] = {}

    def __repr__(self) -> str:
        blocks = sum(map(len, self._held.values()))
        return f"<Holdings {blocks} blocks on {len(self._held)} workers>"

    def prefixes(self, scope: str, ids: TokenIds) -> Prefixes:
        """One hash for each whole block of `ids`: of all tokens to the block's end, in `scope`.

        The hash is a sum of the tokens, each times two random factors: one for its place in its
        block, one for the block's. Nobody who does not know them makes two prompts collide.
        """
        count = min(len(ids) // BLOCK_LEN, MAX_BLOCKS)
        if not count:
            return []
        blocks = ids[: count * BLOCK_LEN].reshape(count, BLOCK_LEN).astype(np.uint64)
        blocks += np.uint64(1)  # a token 0 counts too
        sums = np.cumsum((blocks @ self._token_factors) * self._block_factors[:count])
        if scope:
            sums += np.uint64(hash(scope) % 2**64)
        prefixes: Prefixes = sums.tolist()
        return prefixes

    def held_lens(self, workers: Sequence[Worker], prefixes: Prefixes) -> list[int]:
        """Tokens of the longest prefix that each of `workers` holds. A read: nothing gets newer.

        A worker costs two look-ups; one that holds any of `prefixes`, log2(len(prefixes)) more.
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
        """`worker` holds all of `prefixes` now, or as many of the shorter ones as it can."""
        held = self._held.setdefault(worker, OrderedDict())
        capacity = (worker.kv_tokens or DEFAULT_KV_TOKENS) // BLOCK_LEN
        # The longest first: a prefix is always newer than those that begin with it, so it outlives
        # them.
        for prefix in reversed(prefixes[:capacity]):
            held[prefix] = None
            held.move_to_end(prefix)
        for _ in range(len(held) - capacity):
            held.popitem(last=False)

    def forget(self, worker: Worker) -> None:
        """`worker` holds nothing."""
        self._held.pop(worker, None)


def _count(held: Container[int], prefixes: Prefixes) -> int:
    """How many of `prefixes` are held: the first is, and all that are come first."""
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
    return words | np.uint64(1)  # to multiply by it loses nothing
