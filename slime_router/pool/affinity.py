"""Which worker took a key's last request: equal keys go to the same worker while it keeps up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import exp2

from slime_router.pool.worker import Worker

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
        self._workers: OrderedDict[str, Worker] = OrderedDict()
        self._moved: dict[str, Worker] = {}  # since they were taken

    def __repr__(self) -> str:
        return f"<Affinity {len(self._workers)} of {self._max_keys} keys>"

    def last(self, key: str | None) -> Worker | None:
        """The worker that took the key's last request; it may be down or removed by now."""
        return None if key is None else self._workers.get(key)

    def keep(self, key: str | None, worker: Worker) -> None:
        """The key's last request went to `worker`."""
        if key is None:
            return
        if self._workers.get(key) is not worker and len(self._moved) < MAX_MOVED:
            self._moved[key] = worker
        self.learn(key, worker)

    def take_moved(self) -> dict[str, Worker]:
        """The keys that have another worker than when this was last called, up to `MAX_MOVED`."""
        moved, self._moved = self._moved, {}
        return moved

    def learn(self, key: str, worker: Worker) -> None:
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
        self._given: dict[Worker, tuple[float, int]] = {}  # tokens, and the request count then

    def tokens(self, worker: Worker) -> float:
        """The tokens of `worker`, at their current weight."""
        tokens, requests = self._given.get(worker, (0.0, 0))
        return tokens * exp2((requests - self._requests) / self._half_life)

    def add(self, worker: Worker, tokens: int) -> None:
        """A request went to `worker`, which is likely to compute `tokens` tokens for it."""
        self._requests += 1
        self._given[worker] = (self.tokens(worker) + tokens, self._requests)

    def forget(self, worker: Worker) -> None:
        """Nothing given to `worker` counts any more."""
        self._given.pop(worker, None)


def queue_load(worker: Worker) -> int:
    """Requests that `worker` has; those waiting in its own queue count twice."""
    return worker.busy_with + worker.queued


def load_limit(workers: Sequence[Worker]) -> float:
    """The highest load at which one of `workers` still keeps up with the others."""
    return SPILL_RATIO * sum(map(queue_load, workers)) / len(workers) + SPILL_SLACK
