"""The registered workers, and which of them takes the next request.

State and decisions only: everything is synchronous, and nothing here talks to a worker or waits.
`total_in_flight` is the number of open leases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from slime_router.errors import BadRequest, NotFound, NoWorker, RouterError
from slime_router.pool.breaker import Breaker, BreakerSettings
from slime_router.pool.policy import Policy, make_policy
from slime_router.pool.worker import Kind, Need, Worker
from slime_router.types import TokenIds

ANY_NEED = Need()


class Lease:
    """A worker's promise to take one request; `close` returns it, and may be called repeatedly."""

    __slots__ = ("_is_open", "_is_trial", "_pending", "_pool", "worker")

    def __init__(self, pool: WorkerPool, worker: Worker, pending: int, *, is_trial: bool) -> None:
        self.worker = worker
        self._pool = pool
        self._pending = pending
        self._is_trial = is_trial
        self._is_open = True

    def answered(self) -> None:
        """The first token arrived, or something else showed that the worker does its job."""
        self.worker.pending_tokens -= self._pending
        self._pending = 0
        self._end_trial()

    def close(self) -> None:
        """The worker no longer has the request."""
        if self._is_open:
            self._is_open = False
            self.worker.pending_tokens -= self._pending
            self._end_trial()
            self._pool._returned(self.worker)

    def _end_trial(self) -> None:
        is_trial, self._is_trial = self._is_trial, False
        self._pool._tried(self.worker, is_trial=is_trial)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WorkerPool:
    """The fleet, keyed by URL.

    `may_serve` decides by weight version which of the available workers may have requests.
    `api_key` is sent to workers that are added without one. A worker that is down is probed every
    `probe_s`, if that is known.
    """

    def __init__(
        self,
        urls: Iterable[str] = (),
        *,
        policy: Policy | None = None,
        breaker: BreakerSettings | None = None,
        may_serve: Callable[[Worker], bool] = lambda _: True,
        api_key: str | None = None,
        probe_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy or make_policy("least_inflight")
        self._breaker_settings = breaker or BreakerSettings()
        self._may_serve = may_serve
        self._api_key = api_key
        self.probe_s = probe_s
        self._clock = clock
        self._workers: dict[str, Worker] = {}
        self._breakers: dict[Worker, Breaker] = {}
        self._leases = 0  # granted so far: an order that no clock can turn back
        self._total_in_flight = 0
        self._listeners: list[Callable[[], None]] = []
        for url in urls:
            self.add(url)

    def __repr__(self) -> str:
        return f"<WorkerPool {len(self._workers)} workers, {self._total_in_flight} in flight>"

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, worker: Worker) -> bool:
        return self._workers.get(worker.url) is worker

    # Membership

    def add(self, url: str, **fields: Any) -> Worker:
        """Registers the worker at `url`; for one already registered, only sets the `fields`.

        One that was draining stays. Fields are those of `Worker`.

        Raises:
            BadRequest: `url` is not an http(s) URL.
        """
        url = _normalised(url)
        worker = self._workers.get(url)
        if worker is None:
            worker = self._workers[url] = Worker(url, api_key=self._api_key)
            self._breakers[worker] = Breaker(self._breaker_settings)
        worker.is_draining = False
        for name, value in fields.items():
            setattr(worker, name, value)
        self._changed()
        return worker

    def remove(self, url_or_id: str) -> Worker:
        """Takes a worker out of the fleet. Its open leases continue and are returned as usual.

        Raises:
            NotFound: no such worker.
        """
        worker = self._workers.pop(self.get(url_or_id).url)
        del self._breakers[worker]
        self._policy.forget(worker)
        self._changed()
        return worker

    def drain(self, url_or_id: str) -> Worker:
        """The worker gets nothing new, and is removed when its last lease is returned.

        Raises:
            NotFound: no such worker.
        """
        worker = self.get(url_or_id)
        worker.is_draining = True
        self._leave(worker)
        return worker

    def get(self, url_or_id: str) -> Worker:
        """The worker with this id or this URL, in any spelling that `add` takes.

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
        """All workers, in order of registration."""
        return tuple(self._workers.values())

    def context_len(self) -> int | None:
        """The shortest context of the workers that have reported theirs, in tokens."""
        known = (worker.context_len for worker in self._workers.values())
        return min((length for length in known if length is not None), default=None)

    # State

    def mark_down(self, worker: Worker) -> None:
        """The worker cannot be reached: nothing is sent to it, and its caches count as lost."""
        if worker.is_up:
            worker.is_up = False
            self._policy.forget(worker)
            self._changed()

    def mark_up(self, worker: Worker) -> None:
        """The worker answers, for the first time or again."""
        if not worker.is_up:
            worker.is_up = True
            if worker in self._breakers:
                self._breakers[worker].close()
            self._changed()

    def rest(self, worker: Worker, *, is_paused: bool, is_asleep: bool) -> None:
        """Generation on the worker was paused or resumed, or its memory released or restored."""
        worker.is_paused, worker.is_asleep = is_paused, is_asleep
        self._changed()

    def flushed(self, worker: Worker) -> None:
        """The worker's caches are now empty."""
        self._policy.forget(worker)

    def succeeded(self, worker: Worker) -> None:
        """The worker answered, if only with a refusal."""
        if worker in self._breakers:
            self._breakers[worker].succeeded(self._clock())

    def failed(self, worker: Worker) -> None:
        """The worker failed a request that it had taken."""
        if worker in self._breakers:
            self._breakers[worker].failed(self._clock())

    def breaker_state(self, worker: Worker) -> str:
        """`closed`, `open` or `half_open`."""
        return self._breakers[worker].state(self._clock()) if worker in self else "closed"

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Calls `listener` whenever a worker may have come, gone or changed its state."""
        self._listeners.append(listener)

    def note_versions(self) -> None:
        """Weight versions changed: other workers may serve now."""
        self._changed()

    # Leases

    def lease(
        self, need: Need = ANY_NEED, exclude: Collection[str] = (), *, kind: Kind | None = None
    ) -> Lease:
        """Leases the worker that the policy chooses among those that can take the request.

        Workers whose URL is in `exclude` are left out. With `kind` None, any worker but a prefill
        worker will do.

        Raises:
            NotFound: `need.target` names no worker.
            NoWorker: no worker can take it now; `is_temporary` if that may change by itself.
        """
        candidates = self._candidates(need, exclude, kind)
        now = self._clock()
        worker = self._policy.choose(candidates, need)
        pending = self._policy.sent(worker, need)
        worker.pending_tokens += pending
        worker.in_flight += 1
        self._leases += 1
        worker.last_lease = self._leases
        self._total_in_flight += 1
        return Lease(self, worker, pending, is_trial=self._breakers[worker].begin(now))

    def has_candidates(self, need: Need, exclude: Collection[str] = ()) -> bool:
        """Whether `lease` would find a worker."""
        try:
            return bool(self._candidates(need, exclude, None))
        except RouterError:
            return False

    def held(self, worker: Worker, scope: str, ids: TokenIds) -> None:
        """The worker's KV cache now holds these tokens."""
        if worker in self and worker.is_up:
            self._policy.held(worker, scope, ids)

    def can_serve(self) -> bool:
        """Whether a request would find a worker now, even a paused one."""
        return any(map(self.is_healthy, self._workers.values()))

    def is_healthy(self, worker: Worker) -> bool:
        """Whether the worker serves, or will once generation is resumed."""
        is_there = worker.is_up and not worker.is_draining
        return is_there and self.breaker_state(worker) != "open"

    @property
    def loads(self) -> dict[str, int]:
        """Requests in flight by worker URL."""
        return {worker.url: worker.in_flight for worker in self._workers.values()}

    @property
    def total_in_flight(self) -> int:
        """Open leases, including those of removed workers."""
        return self._total_in_flight

    def _candidates(
        self, need: Need, exclude: Collection[str], kind: Kind | None
    ) -> Sequence[Worker]:
        now = self._clock()
        there: Sequence[Worker] = self.list()
        if need.target is not None:
            there = (self._target(need.target),)
        if not there:
            raise NoWorker("No worker is registered.")
        there = [w for w in there if (w.kind == kind if kind else w.kind != "prefill")]
        if not there:
            raise NoWorker(f"No {kind or 'decode or regular'} worker is registered.")
        there = [w for w in there if w.url not in exclude]
        if not there:
            raise NoWorker("No worker left.")
        up = [w for w in there if w.is_up and not w.is_draining]
        if not up:
            raise NoWorker(
                "No worker can be reached.", is_temporary=True, retry_after_s=self.probe_s
            )
        running = [w for w in up if not (w.is_paused or w.is_asleep)]
        if not running:
            raise NoWorker("Generation is paused.", is_temporary=True, is_paused=True)
        current = [w for w in running if self._may_serve(w)]
        if not current:
            raise NoWorker("No worker runs weights that are new enough.", is_temporary=True)
        allowed = [w for w in current if self._breakers[w].allows(now)]
        if not allowed:
            waits_s = [self._breakers[worker].tries_in_s(now) for worker in current]
            retry_after_s = min((wait_s for wait_s in waits_s if wait_s > 0), default=None)
            raise NoWorker(
                "All workers failed too often.", is_temporary=True, retry_after_s=retry_after_s
            )
        return allowed

    def _target(self, name: str) -> Worker:
        """By index in the list, as in sglang-router; or by URL or id."""
        if name.isdecimal() and int(name) < len(self._workers):
            return self.list()[int(name)]
        return self.get(name)

    def _tried(self, worker: Worker, *, is_trial: bool) -> None:
        if worker in self._breakers:
            self._breakers[worker].end(is_trial=is_trial)
            if is_trial:
                self._changed()

    def _returned(self, worker: Worker) -> None:
        worker.in_flight -= 1
        self._total_in_flight -= 1
        if worker not in self and not worker.in_flight:
            self._changed()  # it need not be watched any longer
        self._leave(worker)

    def _leave(self, worker: Worker) -> None:
        if worker.is_draining and not worker.in_flight and worker in self:
            self.remove(worker.url)

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()


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
