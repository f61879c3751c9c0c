"""Which worker takes the next request. No policy talks, waits or reads a clock.

Every policy likes to send equal keys to one worker, and leaves it when it does not keep up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from random import Random
from typing import Protocol, TypeAlias, assert_never

from slime_router.pool.affinity import Affinity, Recent, load, most
from slime_router.pool.kv_cache import Holdings, Prefixes
from slime_router.pool.worker import Need, Worker
from slime_router.types import PolicyName, TokenIds

# The prices of `CacheAware`, in prompt tokens that wait. `benchmarks.routing` shows what they are
# worth.
TOKEN_PRICE = 3  # a token to compute delays this request and those behind it, and takes memory
SHARED_PRICE = 0.1  # and it delays each request in flight there: all of them stand still meanwhile
REQUEST_PRICE = 192  # a request in flight slows the others
RECENT_PRICE = 0.05  # a token that it was given of late: its chats come back, and need its memory
QUEUED_PRICE = 1024  # a worker whose own queue stands has no room
KEY_WORTH = 1024  # what the key's last worker may cost more


class Policy(Protocol):
    """Chooses, and learns from what became of its choices."""

    def choose(self, workers: Sequence[Worker], need: Need) -> Worker:
        """One of `workers`, of which there is at least one."""
        ...

    def sent(self, worker: Worker, need: Need) -> int:
        """The request went to `worker`. Returns the prompt tokens that it is likely to compute."""
        ...

    def held(self, worker: Worker, scope: str, ids: TokenIds) -> None:
        """`worker` has computed `ids`: the prompt and the output of a generation that ended.

        Ignored where nothing was sent to `worker` since it was forgotten: what it has computed
        before that is gone.
        """
        ...

    def forget(self, worker: Worker) -> None:
        """`worker` holds nothing any more: it was flushed or restarted, or it is gone."""
        ...


Pick: TypeAlias = Callable[[Sequence[Worker]], Worker]  # by load alone


def make_policy(name: PolicyName, *, seed: int | None = None) -> Policy:
    """A new policy that knows nothing yet; with a seed it does the same each time."""
    random = Random(seed)
    match name:
        case "cache_aware":
            return CacheAware(seed)
        case "least_inflight":
            return Sticky(least_in_flight)
        case "consistent_hashing":
            return ConsistentHashing()
        case "power_of_two":
            return Sticky(lambda workers: least_in_flight(_some(workers, 2, random)))
        case "round_robin":
            return Sticky(lambda workers: min(workers, key=lambda worker: worker.last_lease))
        case "random":
            return Sticky(lambda workers: random.choice(workers))
    assert_never(name)


def least_in_flight(workers: Sequence[Worker]) -> Worker:
    """The worker with the least in flight; of several, the one that waited longest for a lease.

    Raises:
        ValueError: `workers` is empty.
    """
    return min(workers, key=lambda worker: (worker.in_flight, worker.last_lease))


class Sticky:
    """The key's last worker while that keeps up; else one that `pick` finds."""

    def __init__(self, pick: Pick) -> None:
        self._pick = pick
        self._affinity = Affinity()

    def choose(self, workers: Sequence[Worker], need: Need) -> Worker:
        """See `Policy`."""
        last = self._affinity.last(need.key)
        if last is not None and last in workers and load(last) <= most(workers):
            return last
        return self._pick(workers)

    def sent(self, worker: Worker, need: Need) -> int:
        """See `Policy`."""
        self._affinity.keep(need.key, worker)
        return len(need.ids)

    def held(self, worker: Worker, scope: str, ids: TokenIds) -> None:
        """Of no interest."""

    def forget(self, worker: Worker) -> None:
        """Of no interest."""


class ConsistentHashing:
    """The worker whose URL goes best with the key: any router finds the same, without a word.

    A worker that joins or leaves moves no keys but its own. One that does not keep up is passed
    over. A request without a key goes where the least is in flight.
    """

    def choose(self, workers: Sequence[Worker], need: Need) -> Worker:
        """See `Policy`."""
        if need.key is None:
            return least_in_flight(workers)
        key = need.key.encode(errors="surrogatepass")
        limit = most(workers)
        able = [worker for worker in workers if load(worker) <= limit]
        return max(able, key=lambda worker: _rank(key, worker.url))

    def sent(self, worker: Worker, need: Need) -> int:  # noqa: ARG002 - of no interest
        """See `Policy`."""
        return len(need.ids)

    def held(self, worker: Worker, scope: str, ids: TokenIds) -> None:
        """Of no interest."""

    def forget(self, worker: Worker) -> None:
        """Of no interest."""


class CacheAware:
    """The worker that is likely to cost the fleet the least, counted in prompt tokens.

    What it has yet to compute of those before this prompt, what to compute the rest of this one
    costs it and all that it has in flight, and what it was given of late: that comes back. A worker
    that holds the prompt's beginning is left when it costs more than to compute it elsewhere:
    sooner for an idle worker, where that delays nobody, than for a busy one.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._holdings = Holdings(seed)
        self._affinity = Affinity()
        self._recent = Recent()
        self._last: tuple[Need, Prefixes] | None = None

    def __repr__(self) -> str:
        return f"<CacheAware {self._holdings!r} {self._affinity!r}>"

    def choose(self, workers: Sequence[Worker], need: Need) -> Worker:
        """See `Policy`. The longest idle of those that cost the same."""
        held_lens = self._holdings.held_lens(workers, self._prefixes(need))
        last, recent = self._affinity.last(need.key), self._recent.tokens
        prompt_len = len(need.ids)
        costs = [
            (
                worker.pending_tokens
                + (TOKEN_PRICE + SHARED_PRICE * worker.in_flight) * (prompt_len - held_len)
                + REQUEST_PRICE * worker.in_flight
                + RECENT_PRICE * recent(worker)
                + QUEUED_PRICE * worker.queued
                - KEY_WORTH * (worker is last),
                worker.last_lease,
                index,
            )
            for index, (worker, held_len) in enumerate(zip(workers, held_lens, strict=True))
        ]
        return workers[min(costs)[2]]

    def sent(self, worker: Worker, need: Need) -> int:
        """See `Policy`. The next equal prompt finds this one held: it is there when it starts."""
        prefixes = self._prefixes(need)
        [held_len] = self._holdings.held_lens([worker], prefixes)
        self._holdings.add(worker, prefixes)
        self._affinity.keep(need.key, worker)
        computed = len(need.ids) - held_len
        self._recent.add(worker, computed)
        return computed

    def held(self, worker: Worker, scope: str, ids: TokenIds) -> None:
        """See `Policy`."""
        if self._holdings.knows(worker):
            self._holdings.add(worker, self._holdings.prefixes(scope, ids))

    def forget(self, worker: Worker) -> None:
        """See `Policy`."""
        self._holdings.forget(worker)
        self._recent.forget(worker)

    def _prefixes(self, need: Need) -> Prefixes:
        """Hashed once for the choice and what follows it."""
        if self._last is None or self._last[0] is not need:
            self._last = (need, self._holdings.prefixes(need.scope, need.ids))
        return self._last[1]


def _some(workers: Sequence[Worker], count: int, random: Random) -> Sequence[Worker]:
    return random.sample(workers, min(count, len(workers)))


def _rank(key: bytes, url: str) -> bytes:
    return blake2b(key + b"\n" + url.encode(), digest_size=8).digest()
