"""Which worker took a key's last request: equal keys go to one worker, while it keeps up."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence

from slime_router.workers.worker import Worker

MAX_KEYS = 100_000
WINDOW = 256  # requests
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
    """How many of the last requests went to each worker."""

    def __init__(self, window: int = WINDOW) -> None:
        self._workers: deque[Worker] = deque(maxlen=window)
        self._counts: Counter[Worker] = Counter()

    def count(self, worker: Worker) -> int:
        """Of the last requests, those that went to `worker`."""
        return self._counts.get(worker, 0)

    def add(self, worker: Worker) -> None:
        """A request went to `worker`."""
        if len(self._workers) == self._workers.maxlen:
            oldest = self._workers[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._workers.append(worker)
        self._counts[worker] += 1


def load(worker: Worker) -> int:
    """Requests that `worker` has; those that wait in its own queue weigh twice."""
    return worker.in_flight + worker.queued


def most(workers: Sequence[Worker]) -> float:
    """The greatest load at which one of `workers` keeps up with the others."""
    return SPILL_RATIO * sum(map(load, workers)) / len(workers) + SPILL_SLACK
