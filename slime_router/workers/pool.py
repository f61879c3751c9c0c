"""The workers that are registered, and which of them takes the next request.

State and decisions only: everything is synchronous, nothing here talks to a worker.
`total_in_flight` is the number of open leases.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from uuid import uuid4

from slime_router.errors import BadRequest, NotFound, NoWorker
from slime_router.types import WeightVersion
from slime_router.workers.policy import least_in_flight


@dataclass(slots=True, eq=False)
class Worker:
    """One registered worker. `url` has no slash at its end.

    `is_token_exact` is None until its tokenizer was compared with ours. `weight_version` is what
    it is known to run: what its replies say and control calls bring.
    """

    url: str
    id: str = field(default_factory=lambda: str(uuid4()))
    in_flight: int = 0
    last_lease: int = 0
    context_len: int | None = None  # tokens
    is_token_exact: bool | None = None
    weight_version: WeightVersion | None = None


class WorkerPool:
    """The fleet, keyed by URL."""

    def __init__(self, urls: Iterable[str] = ()) -> None:
        self._workers: dict[str, Worker] = {}
        self._leases = 0  # given so far: an order that no clock can turn back
        self._total_in_flight = 0
        for url in urls:
            self.add(url)

    def __repr__(self) -> str:
        return f"<WorkerPool {len(self._workers)} workers, {self._total_in_flight} in flight>"

    def __len__(self) -> int:
        return len(self._workers)

    def add(self, url: str) -> Worker:
        """Registers the worker at `url`; one that is registered already is left as it is.

        Raises:
            BadRequest: `url` is no http(s) URL.
        """
        url = _normalised(url)
        return self._workers.setdefault(url, Worker(url))

    def remove(self, url_or_id: str) -> Worker:
        """Takes a worker out of the fleet. Its open leases go on and are given back as ever.

        Raises:
            NotFound: no such worker.
        """
        return self._workers.pop(self.get(url_or_id).url)

    def get(self, url_or_id: str) -> Worker:
        """The worker with this URL (in any spelling that `add` takes) or id.

        Raises:
            NotFound: no such worker.
        """
        wanted = url_or_id.strip().rstrip("/")
        for worker in self._workers.values():
            if wanted in (worker.url, worker.id):
                return worker
        try:
            return self._workers[_normalised(url_or_id)]
        except (BadRequest, KeyError):
            raise NotFound(f"No such worker: {url_or_id}", param="url") from None

    def list(self) -> tuple[Worker, ...]:
        """All workers, in the order of their registration."""
        return tuple(self._workers.values())

    def context_len(self) -> int | None:
        """The shortest context of the workers that have said theirs, in tokens."""
        known = (worker.context_len for worker in self._workers.values())
        return min((length for length in known if length is not None), default=None)

    @contextmanager
    def lease(self, exclude: Collection[str] = ()) -> Iterator[Worker]:
        """Counts one request to the least loaded worker whose URL is not in `exclude`.

        Raises:
            NoWorker: there is none.
        """
        candidates = [w for w in self._workers.values() if w.url not in exclude]
        if not candidates:
            raise NoWorker("No worker is registered." if not self._workers else "No worker left.")
        worker = least_in_flight(candidates)
        self._leases += 1
        worker.last_lease = self._leases
        worker.in_flight += 1
        self._total_in_flight += 1
        try:
            yield worker
        finally:
            worker.in_flight -= 1
            self._total_in_flight -= 1

    @property
    def loads(self) -> dict[str, int]:
        """Requests in flight by worker URL."""
        return {worker.url: worker.in_flight for worker in self._workers.values()}

    @property
    def total_in_flight(self) -> int:
        """Open leases, those of removed workers too."""
        return self._total_in_flight


def _normalised(url: str) -> str:
    try:
        parts = urlsplit(url.strip())
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest("A worker's URL looks like http://host:port", param="url")
    if parts.query or parts.fragment or parts.username or any(c.isspace() for c in url.strip()):
        raise BadRequest("A worker's URL has no query, fragment, user or space", param="url")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"
