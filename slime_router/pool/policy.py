"""Which worker takes the next request. No policy talks, waits or reads a clock.

Every policy prefers to send equal keys to one worker, and leaves it when it does not keep up.
Which worker took a key's last request is its `Affinity`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import exp2
from random import Random
from typing import TypeAlias, assert_never

from slime_router.choices import PolicyName
from slime_router.pool.kv_cache import KVCacheModel, Prefixes
from slime_router.pool.rank import Place
from slime_router.pool.worker import Need
from slime_router.types import TokenIds

MAX_KEYS = 100_000
MAX_MOVED = 10_000  # that are kept to be handed on
HALF_LIFE = 512  # requests
SPILL_RATIO = 1.25  # a worker keeps up if its load is at most this x the mean of the fleet,
SPILL_SLACK = 8  # plus this many requests: a fleet with little to do need not be balanced


class Affinity:
    """The last worker of each key. The least recently used keys are dropped first.

    A key outlives its worker's cache: after a flush, keys stay spread over the fleet as before.
    What has changed can be handed to other processes of the router, which `learn` it.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._workers: OrderedDict[str, Place] = OrderedDict()
        self._moved: dict[str, Place] = {}  # since they were taken

    def __repr__(self) -> str:
        return f"<Affinity {len(self._workers)} of {self._max_keys} keys>"

    def last(self, key: str | None) -> Place | None:
        """The worker that took the key's last request; it may be down or removed by now."""
        return None if key is None else self._workers.get(key)

    def keep(self, key: str | None, worker: Place) -> None:
        """The key's last request went to `worker`."""
        if key is None:
            return
        if self._workers.get(key) is not worker and len(self._moved) < MAX_MOVED:
            self._moved[key] = worker
        self.learn(key, worker)

    def take_moved(self) -> dict[str, Place]:
        """The keys that have another worker than when this was last called, up to `MAX_MOVED`."""
        moved, self._moved = self._moved, {}
        return moved

    def learn(self, key: str, worker: Place) -> None:
        """The key's last request went to `worker`, in whichever process."""
        self._workers[key] = worker
        self._workers.move_to_end(key)
        if len(self._workers) > self._max_keys:
            self._workers.popitem(last=False)


class Recent:
    """The prompt tokens that each worker was recently given to compute.

    Tokens, not requests: tokens keep a worker busy and fill its cache. Their weight halves with
    every `half_life` requests to the fleet.
    """

    def __init__(self, half_life: int = HALF_LIFE) -> None:
        self._half_life = half_life
        self._requests = 0  # so far
        self._given: dict[Place, tuple[float, int]] = {}  # tokens, and the request count then

    def tokens(self, worker: Place) -> float:
        """The tokens of `worker`, at their current weight."""
        tokens, requests = self._given.get(worker, (0.0, 0))
        return tokens * exp2((requests - self._requests) / self._half_life)

    def add(self, worker: Place, tokens: int) -> None:
        """A request went to `worker`, which is likely to compute `tokens` tokens for it."""
        self._requests += 1
        self._given[worker] = (self.tokens(worker) + tokens, self._requests)

    def forget(self, worker: Place) -> None:
        """Nothing given to `worker` counts any more."""
        self._given.pop(worker, None)


def queue_load(worker: Place) -> int:
    """Requests that `worker` has; those waiting in its own queue count twice."""
    return worker.busy_with + worker.queued


def load_limit(workers: Sequence[Place]) -> float:
    """The highest load at which one of `workers` still keeps up with the others."""
    return SPILL_RATIO * sum(map(queue_load, workers)) / len(workers) + SPILL_SLACK


# The prices of `CacheAware`, in waiting prompt tokens. `benchmarks.routing` shows what they gain.
TOKEN_PRICE = 3  # a token to compute delays this request and those after it, and takes memory
SHARED_PRICE = 0.1  # and it delays each request in flight there: they all stall meanwhile
REQUEST_PRICE = 192  # a request in flight slows the others
RECENT_PRICE = 0.05  # a recently given token: its chat will come back, and needs memory
QUEUED_PRICE = 1024  # for each request in a worker's own queue: a worker that queues has no room
KEY_WORTH = 1024  # how much more the key's last worker may cost


class Policy:
    """Chooses workers, and may learn from the outcome.

    `affinity`: which worker took a key's last request; None where that follows from the key.
    """

    affinity: Affinity | None = None

    def choose(self, workers: Sequence[Place], need: Need) -> Place:
        """One of `workers`; there is at least one."""
        raise NotImplementedError

    def sent(self, worker: Place, need: Need) -> int:
        """The request went to `worker`. Returns how many prompt tokens it is likely to compute."""
        if self.affinity is not None:
            self.affinity.keep(need.key, worker)
        return len(need.ids)

    def held(self, worker: Place, scope: str, prompt: TokenIds, output: Sequence[int] = ()) -> None:
        """`worker` has computed both: of a generation that ended.

        Ignored if nothing was sent to `worker` since it was forgotten: what it computed before
        that is gone.
        """

    def forget(self, worker: Place) -> None:
        """`worker` no longer holds anything: it was flushed, restarted or removed."""


Pick: TypeAlias = Callable[[Sequence[Place]], Place]  # by load alone


def make_policy(name: PolicyName, *, seed: int | None = None) -> Policy:
    """A new policy that knows nothing yet; with a seed, its choices are reproducible."""
    random = Random(seed)
    match name:
        case "cache_aware":
            return CacheAware()
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


def least_in_flight(workers: Sequence[Place]) -> Place:
    """The worker with the least in flight; of several, the one least recently leased.

    Raises:
        ValueError: `workers` is empty.
    """
    return min(workers, key=lambda worker: (worker.busy_with, worker.last_lease))


class Sticky(Policy):
    """The key's last worker while it keeps up; else the one that `pick` chooses."""

    def __init__(self, pick: Pick) -> None:
        self._pick = pick
        self.affinity = self._affinity = Affinity()

    def choose(self, workers: Sequence[Place], need: Need) -> Place:
        """See `Policy`."""
        last = self._affinity.last(need.key)
        if last is not None and last in workers and queue_load(last) <= load_limit(workers):
            return last
        return self._pick(workers)


class ConsistentHashing(Policy):
    """The worker whose URL ranks highest for the key: all routers agree without communicating.

    A worker that joins or leaves moves no keys but its own. One that does not keep up is passed
    over. A request without a key goes to the worker with the least in flight.
    """

    def choose(self, workers: Sequence[Place], need: Need) -> Place:
        """See `Policy`."""
        if need.key is None:
            return least_in_flight(workers)
        key = need.key.encode(errors="surrogatepass")
        limit = load_limit(workers)
        able = [worker for worker in workers if queue_load(worker) <= limit]
        return max(able, key=lambda worker: _rank(key, worker.url))


class CacheAware(Policy):
    """The worker that is likely to cost the fleet the least, counted in prompt tokens.

    The cost is what it has yet to compute of earlier prompts, what computing the rest of this one
    costs it and everything it has in flight, and what it was given recently, as those chats come
    back. A worker that holds the beginning of the prompt loses it when it costs more than computing
    that elsewhere: sooner to an idle worker, where that delays nobody, than to a busy one.
    """

    def __init__(self) -> None:
        self._kv_model = KVCacheModel()
        self.affinity = self._affinity = Affinity()
        self._recent = Recent()
        self._last: tuple[Need, Prefixes] | None = None

    def __repr__(self) -> str:
        return f"<CacheAware {self._kv_model!r} {self._affinity!r}>"

    def choose(self, workers: Sequence[Place], need: Need) -> Place:
        """See `Policy`. At equal cost, the least recently leased worker."""
        held_lens = self._kv_model.held_lens(workers, self._prefixes(need))
        last, recent = self._affinity.last(need.key), self._recent.tokens
        prompt_len = len(need.ids)
        costs = [
            (
                worker.pending_tokens
                + (TOKEN_PRICE + SHARED_PRICE * worker.busy_with) * (prompt_len - held_len)
                + REQUEST_PRICE * worker.busy_with
                + RECENT_PRICE * recent(worker)
                + QUEUED_PRICE * worker.queued
                - KEY_WORTH * (worker is last),
                worker.last_lease,
                index,
            )
            for index, (worker, held_len) in enumerate(zip(workers, held_lens, strict=True))
        ]
        return workers[min(costs)[2]]

    def sent(self, worker: Place, need: Need) -> int:
        """See `Policy`. The prompt counts as held at once: it will be when an equal one starts."""
        held_len = self._kv_model.add(worker, self._prefixes(need))
        self._affinity.keep(need.key, worker)
        computed = len(need.ids) - held_len
        self._recent.add(worker, computed)
        return computed

    def held(self, worker: Place, scope: str, prompt: TokenIds, output: Sequence[int] = ()) -> None:
        """See `Policy`."""
        model, last = self._kv_model, self._last
        if output and not model.is_filled(len(prompt), len(output)):
            return  # its blocks were added when it was sent
        if model.knows(worker):
            is_last = last is not None and last[0].ids is prompt and last[0].scope == scope
            prefixes = last[1] if last and is_last else model.prefixes(scope, prompt)
            model.add(worker, model.with_output(prefixes, scope, prompt, output))

    def forget(self, worker: Place) -> None:
        """See `Policy`."""
        self._kv_model.forget(worker)
        self._recent.forget(worker)

    def _prefixes(self, need: Need) -> Prefixes:
        """Hashed once, for `choose` and for `sent` after it."""
        if self._last is None or self._last[0] is not need:
            self._last = (need, self._kv_model.prefixes(need.scope, need.ids))
        return self._last[1]


def _some(workers: Sequence[Place], count: int, random: Random) -> Sequence[Place]:
    return random.sample(workers, min(count, len(workers)))


def _rank(key: bytes, url: str) -> bytes:
    return blake2b(key + b"\n" + url.encode(), digest_size=8).digest()
