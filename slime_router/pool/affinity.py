"""Which worker took a key's last request: equal keys go to one worker, while it keeps up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import exp2

from slime_router.pool.worker import Worker

MAX_KEYS = 100_000
HALF_LIFE = 512  # requests
SPILL_RATIO = 1.25  # a worker that keeps up has at most so many times the mean of the fleet,
SPILL_SLACK = 8  # and so many requests more: a fleet with little to do need not be even


class Affinity:
    """The last worker of each key. The keys that were used longest ago go first.

    A key outlives what its worker's cache held: a flushed fleet stays spread as it was.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._workers: OrderedDict[str, Worker] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Affinity {len(self._workers)} of {self._max_keys} keys>"

    def last(self, key: str | None) -> Worker | None:
        """The worker that took the key's last request; it may be down or gone by now."""
        return None if key is None else self._workers.get(key)

    def keep(self, key: str | None, worker: Worker) -> None:
        """The key's last request went to `worker`."""
        if key is None:
            return
        self._workers[key] = worker
        self._workers.move_to_end(key)
        if len(self._workers) > self._max_keys:
            self._workers.popitem(last=False)


class Recent:
    """The prompt tokens that each worker was given to compute of late.

    Tokens, not requests: they keep a worker busy and fill its cache. They count less and less: half
    after every `half_life` requests to the fleet.
    """

    def __init__(self, half_life: int = HALF_LIFE) -> None:
        self._half_life = half_life
        self._requests = 0  # so far
        self._given: dict[Worker, tuple[float, int]] = {}  # tokens, as of so many requests

    def tokens(self, worker: Worker) -> float:
        """Those of `worker`, as they count now."""
        tokens, requests = self._given.get(worker, (0.0, 0))
        return tokens * exp2((requests - self._requests) / self._half_life)

    def add(self, worker: Worker, tokens: int) -> None:
        """A request went to `worker`, which is likely to compute so many tokens for it."""
        self._requests += 1
        self._given[worker] = (self.tokens(worker) + tokens, self._requests)

    def forget(self, worker: Worker) -> None:
        """`worker` was given nothing."""
        self._given.pop(worker, None)


def load(worker: Worker) -> int:
    """Requests that `worker` has; those that wait in its own queue weigh twice."""
    return worker.in_flight + worker.queued


def most(workers: Sequence[Worker]) -> float:
    """The greatest load at which one of `workers` keeps up with the others."""
    return SPILL_RATIO * sum(map(load, workers)) / len(workers) + SPILL_SLACK
