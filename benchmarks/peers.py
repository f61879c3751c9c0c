"""How other routers choose, in our own terms, with their default settings.

Both know at once what they have sent, and what they tell of requests is exact: better than life.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from hashlib import blake2b

from benchmarks.fleet import Ask, BlockCache
from slime_router.pool.policy import Policy, least_in_flight
from slime_router.pool.rank import Place
from slime_router.pool.worker import Need

BALANCE_ABS = 64
BALANCE_REL = 1.5
CACHE_THRESHOLD = 0.3
MAX_TREE_TOKENS = 67_108_864 // 4  # it counts characters
VIRTUAL_NODES = 160


class SglangCacheAware(Policy):
    """The worker with the longest beginning of the prompt, if that is long; else the least loaded.

    Unless loads differ much: then the least loaded. Its tree has a tenant for each worker and
    learns from prompts alone; it does not know what workers evict. (It keeps characters of text;
    here it keeps tokens, which is to its good. It evicts each minute what is over its limit, and
    none of our traces get there; here it does so at once.)
    """

    def __init__(self) -> None:
        self._tenants: dict[Place, BlockCache] = {}

    def choose(self, workers: Sequence[Place], need: Need) -> Place:
        loads = [worker.in_flight for worker in workers]
        most, least = max(loads), min(loads)
        if most - least > BALANCE_ABS and most > BALANCE_REL * least:
            return least_in_flight(workers)
        held = [self._tenant(worker).held_len(_blocks(need)) for worker in workers]
        if max(held) > CACHE_THRESHOLD * len(need.ids):
            return workers[held.index(max(held))]
        return least_in_flight(workers)

    def sent(self, worker: Place, need: Need) -> int:
        self._tenant(worker).add(_blocks(need))
        return 0

    def forget(self, worker: Place) -> None:
        self._tenants.pop(worker, None)

    def _tenant(self, worker: Place) -> BlockCache:
        return self._tenants.setdefault(worker, BlockCache(MAX_TREE_TOKENS))


class SglangConsistentHashing(Policy):
    """The next worker on a ring from the key's place on it. It looks at no load."""

    def __init__(self) -> None:
        self._ring: list[tuple[int, int]] = []

    def choose(self, workers: Sequence[Place], need: Need) -> Place:
        assert need.key is not None, "it is measured with keys only"
        if not self._ring:
            nodes = [(i, n) for i in range(len(workers)) for n in range(VIRTUAL_NODES)]
            self._ring = sorted((_place(f"{workers[i].url}#{n}"), i) for i, n in nodes)
        at = bisect_left(self._ring, (_place(need.key), 0)) % len(self._ring)
        return workers[self._ring[at][1]]

    def sent(self, worker: Place, need: Need) -> int:  # noqa: ARG002 - of no interest
        return 0


def _blocks(need: Need) -> Sequence[int]:
    assert isinstance(need, Ask), "it is simulated"
    return need.blocks


def _place(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
