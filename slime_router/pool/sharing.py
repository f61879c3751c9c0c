"""What the processes of one router tell each other of its workers: loads and keys."""

from __future__ import annotations

from collections.abc import Mapping

from slime_router.pool.policy import Affinity
from slime_router.pool.rank import Ranks
from slime_router.pool.worker import Worker


class Sharing:
    """One process's part; `workers` are by URL, `affinity` is the policy's, if it keeps one."""

    def __init__(
        self, workers: Mapping[str, Worker], ranks: Ranks, affinity: Affinity | None
    ) -> None:
        self._workers = workers
        self._ranks = ranks
        self._affinity = affinity

    def __repr__(self) -> str:
        return f"<Sharing of {len(self._workers)} workers>"

    def note_elsewhere(self, process: int, loads: Mapping[str, int]) -> None:
        """What another process of the router has in flight, by worker URL; 0 where it has none."""
        for worker in self._workers.values():
            worker.has_elsewhere(process, loads.get(worker.url, 0))

    def take_moved_keys(self) -> dict[str, str]:
        """The keys whose last request went elsewhere than the one before, and the places' URLs."""
        moved = {} if self._affinity is None else self._affinity.take_moved()
        return {key: place.url for key, place in moved.items()}

    def learn_keys(self, urls: Mapping[str, str]) -> None:
        """Where the last requests of these keys went, in another process of the router."""
        for key, url in urls.items():
            place = self._ranks.named(url, self._workers)
            if self._affinity is not None and place is not None:
                self._affinity.learn(key, place)
