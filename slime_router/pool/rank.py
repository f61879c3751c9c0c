"""The data-parallel ranks of a worker, each with a queue and a KV cache of its own.

SGLang with `--dp-size N` takes requests for all of its ranks at one address and deals them out in
turns, so a conversation meets its cached tokens at every N-th turn only. The router therefore
chooses among ranks as it does among workers, and names the rank in `routed_dp_rank`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from slime_router.pool.worker import Worker

RANK_FIELD = "routed_dp_rank"

RankReport: TypeAlias = tuple[int, int]
"""What a rank says of itself: requests in its queue, and tokens that its KV cache can hold."""


class Rank:
    """One of `count` ranks of a worker, by what this router sent there and what it reports."""

    __slots__ = (
        "count", "in_flight", "kv_tokens", "last_lease", "number", "pending_tokens", "queued",
        "worker",
    )  # fmt: skip

    def __init__(self, worker: Worker, number: int, count: int) -> None:
        self.worker = worker
        self.number = number
        self.count = count
        self.in_flight = self.pending_tokens = self.last_lease = self.queued = 0
        self.kv_tokens: int | None = None

    def __repr__(self) -> str:
        return f"<Rank {self.url}, {self.in_flight} in flight>"

    @property
    def url(self) -> str:
        """The name by which other processes know the rank, too."""
        return f"{self.worker.url}@{self.number}"

    @property
    def busy_with(self) -> int:
        """As of a worker. What other processes sent there counts as dealt out evenly."""
        return self.in_flight + (self.worker.busy_with - self.worker.in_flight) // self.count

    def leased(self, number: int, pending: int) -> None:
        """As of its worker: lease `number`, with `pending` prompt tokens to compute."""
        self.in_flight += 1
        self.pending_tokens += pending
        self.last_lease = number


Place: TypeAlias = Worker | Rank
"""Where prompts are computed: a worker, or one of its ranks if it has several."""


class Ranks:
    """The ranks of those workers that have several."""

    def __init__(self) -> None:
        self._ranks: dict[Worker, tuple[Rank, ...]] = {}

    def __repr__(self) -> str:
        return f"<Ranks of {len(self._ranks)} workers>"

    def reported(self, worker: Worker, reports: Sequence[RankReport]) -> None:
        """What a worker says of its ranks; one that has a single rank is that rank itself.

        Where prefill and decode are apart, SGLang matches the ranks of both sides itself.
        """
        count = len(reports)
        if count < 2 or worker.kind != "regular":
            self._ranks.pop(worker, None)
            return
        ranks = self.of(worker)
        if len(ranks) != count:  # new, or started again
            ranks = self._ranks[worker] = tuple(Rank(worker, k, count) for k in range(count))
        for rank, (queued, kv_tokens) in zip(ranks, reports, strict=True):
            rank.queued = queued
            rank.kv_tokens = kv_tokens or rank.kv_tokens

    def of(self, worker: Worker) -> tuple[Rank, ...]:
        """The worker's ranks, in their order; none if it has but one."""
        return self._ranks.get(worker, ())

    def places(self, workers: Sequence[Worker], asked: int | None) -> Sequence[Place]:
        """Where a request can go that any of `workers` may have; `asked` is the rank it names.

        A worker that has no such rank is given the request as it is, and refuses it.
        """
        if not self._ranks:  # as mostly
            return workers
        if asked is None:
            return [place for worker in workers for place in self.of(worker) or (worker,)]
        ranks = map(self.of, workers)
        pairs = zip(workers, ranks, strict=True)
        return [ranks[asked] if asked < len(ranks) else worker for worker, ranks in pairs]

    def named(self, url: str, workers: Mapping[str, Worker]) -> Place | None:
        """The place with this URL; None where it is unknown. `workers` are by URL."""
        worker = workers.get(url)
        if worker is not None:
            return worker
        url, _, number = url.rpartition("@")
        ranks = self.of(workers[url]) if url in workers else ()
        return next((rank for rank in ranks if str(rank.number) == number), None)

    def forget(self, worker: Worker) -> None:
        """The worker has left."""
        self._ranks.pop(worker, None)
