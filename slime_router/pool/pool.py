"""The registered workers, and which of them takes the next request.

State and decisions only: everything is synchronous, and nothing here talks to a worker or waits.
`total_in_flight` is the number of open leases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Unpack

from slime_router.errors import BadRequest, NotFound, NoWorker, RouterError
from slime_router.pool.adapters import Adapters
from slime_router.pool.address import worker_url
from slime_router.pool.backoff import Backoff
from slime_router.pool.failures import Breaker, BreakerSettings, Cooldown
from slime_router.pool.lease import Lease, Room
from slime_router.pool.obstacles import Obstacle, no_worker, stops
from slime_router.pool.policy import Policy, make_policy
from slime_router.pool.rank import Place, Rank, Ranks
from slime_router.pool.sharing import Sharing
from slime_router.pool.worker import Kind, Need, RegistrationFields, Worker
from slime_router.types import TokenIds

ANY_NEED = Need()
NO_COOLDOWN = Backoff(initial_s=0.0)


class WorkerPool:
    """The fleet, keyed by URL.

    `may_serve` decides by weight version which of the available workers may have requests.
    `api_key` is sent to workers that are added without one. A worker that is down is probed every
    `probe_s`, if that is known. `cooldown` gives the delays for workers that fail in a row.
    No worker has more than `max_in_flight` requests; light ones do not count for that.
    """

    def __init__(
        self,
        urls: Iterable[str] = (),
        *,
        policy: Policy | None = None,
        breaker: BreakerSettings | None = None,
        cooldown: Backoff = NO_COOLDOWN,
        may_serve: Callable[[Worker], bool] = lambda _: True,
        api_key: str | None = None,
        probe_s: float | None = None,
        max_in_flight: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy or make_policy("least_inflight")
        self._breaker_settings = breaker or BreakerSettings()
        self._backoff = cooldown
        self._may_serve = may_serve
        self._api_key = api_key
        self.probe_s = probe_s
        self.adapters = Adapters()
        self.ranks = Ranks()
        self._room = Room(max_in_flight)
        self._clock = clock
        self._workers: dict[str, Worker] = {}
        self._breakers: dict[Worker, Breaker] = {}
        self._cooldowns: dict[Worker, Cooldown] = {}
        self._leases = 0  # granted so far
        self._listeners: list[Callable[[], None]] = []
        self.sharing = Sharing(self._workers, self.ranks, self._policy.affinity)
        self.on_room: Callable[[Worker], None] = lambda _: None
        for url in urls:
            self.add(url)

    def __repr__(self) -> str:
        return f"<WorkerPool {len(self._workers)} workers, {self.total_in_flight} in flight>"

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, worker: Worker) -> bool:
        return self._workers.get(worker.url) is worker

    # Membership

    def add(self, url: str, **fields: Unpack[RegistrationFields]) -> Worker:
        """Registers the worker at `url`; for one already registered, only sets the `fields`.

        One that was draining stays. Fields are those of `Registration`.

        Raises:
            BadRequest: no worker could be reached at `url`.
        """
        url = worker_url(url)
        worker = self._workers.get(url)
        if worker is None:
            worker = self._workers[url] = Worker(url, api_key=self._api_key)
            self._breakers[worker] = Breaker(self._breaker_settings)
            self._cooldowns[worker] = Cooldown(self._backoff)
        worker.register(**fields)
        self._changed()
        return worker

    def remove(self, url_or_id: str) -> Worker:
        """Takes a worker out of the fleet. Its open leases continue and are returned as usual.

        Raises:
            NotFound: no such worker.
        """
        worker = self._workers.pop(self.get(url_or_id).url)
        del self._breakers[worker], self._cooldowns[worker]
        self._forget(worker)
        self.ranks.forget(worker)
        self._changed()
        return worker

    def drain(self, url_or_id: str) -> Worker:
        """The worker gets nothing new, and is removed when its last lease is returned.

        Raises:
            NotFound: no such worker.
        """
        worker = self.get(url_or_id)
        worker.asked_to_leave()
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
            return self._workers[worker_url(url_or_id)]
        except (BadRequest, KeyError):
            raise NotFound(f"No such worker: {url_or_id}", param="url") from None

    def list(self) -> tuple[Worker, ...]:
        """All workers, in order of registration."""
        return tuple(self._workers.values())

    def context_lens(self) -> Sequence[int | None]:
        """The contexts of the workers, in tokens; None for each that is up and has not said."""
        workers = self._workers.values()
        return [each.context_len for each in workers if each.is_up or each.context_len]

    # State

    def mark_down(self, worker: Worker, reason: str = "", *, was_stopped: bool = False) -> None:
        """The worker cannot be reached: nothing is sent to it, and its caches count as lost.

        If it `was_stopped`, its pause ended with it.
        """
        if worker.went_down(reason, was_stopped=was_stopped):
            self._forget(worker)
        self._changed()

    def mark_up(self, worker: Worker) -> None:
        """The worker answers, for the first time or again."""
        if worker.came_up():
            if worker in self._breakers:
                self._breakers[worker].close()
                self._cooldowns[worker].succeeded()
            self._changed()

    @property
    def interruptions(self) -> int:
        """How often a trainer paused workers, or gave them new weights, through the router."""
        return sum(worker.pauses + worker.updates for worker in self.list())

    def rest(self, worker: Worker, *, is_paused: bool, is_asleep: bool) -> None:
        """Generation on the worker was paused or resumed, or its memory released or restored."""
        worker.rested(is_paused=is_paused, is_asleep=is_asleep)
        self._changed()

    def refuses(self, worker: Worker, is_refusing: bool) -> bool:
        """The worker says whether it takes new requests. Returns whether that is news."""
        is_news = worker.refuses(is_refusing)
        if is_news:
            self._changed()
        return is_news

    def judge(self, worker: Worker, misfit: str | None) -> bool:
        """Why the worker cannot serve the model, if it cannot. Returns whether that is news."""
        is_news = worker.judged(misfit)
        if is_news:
            self._changed()
        return is_news

    def flushed(self, worker: Worker) -> None:
        """The worker's caches are now empty."""
        self._forget(worker)

    def succeeded(self, worker: Worker) -> None:
        """The worker answered, if only with a refusal."""
        if worker in self._breakers:
            self._breakers[worker].succeeded(self._clock())
            self._cooldowns[worker].succeeded()

    def busy(self, worker: Worker) -> None:
        """The worker is fine, but takes no request now: for a while, others are asked first."""
        if worker in self._breakers:
            self._breakers[worker].succeeded(self._clock())
            self._cooldowns[worker].busy(self._clock())

    def failed(self, worker: Worker) -> None:
        """The worker failed a request that it had taken."""
        if worker in self._breakers:
            self._breakers[worker].failed(self._clock())
            self._cooldowns[worker].failed(self._clock())

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
        now = self._clock()
        candidates = self._candidates(need, exclude, kind, now)
        if len(candidates) > 1:
            candidates = [w for w in candidates if w.was_greeted] or candidates
            candidates = [w for w in candidates if not self._cooldowns[w].spares(now)] or candidates
        places = self.ranks.places(candidates, need.rank)
        place = places[0] if len(places) == 1 else self._policy.choose(places, need)
        pending = self._policy.sent(place, need)
        worker, rank = (place.worker, place) if isinstance(place, Rank) else (place, None)
        self._leases += 1
        worker.leased(self._leases, pending)
        if rank is not None:
            rank.leased(self._leases, pending)
        self._room.took(worker, +1)
        is_trial = self._breakers[worker].begin(now)
        return Lease(self, worker, pending, rank=rank, is_trial=is_trial)

    def has_candidates(self, need: Need, exclude: Collection[str] = ()) -> bool:
        """Whether `lease` would find a worker, now or once one has room."""
        try:
            return bool(self._candidates(need, exclude, None, self._clock()))
        except RouterError as exc:
            return isinstance(exc, NoWorker) and exc.is_full

    def can_take(
        self, worker: Worker, need: Need, exclude: Collection[str], kind: Kind | None
    ) -> bool:
        """Whether `lease` could choose this worker."""
        try:
            return worker in self._candidates(need, exclude, kind, self._clock())
        except RouterError:
            return False

    def places(self) -> int:
        """How many requests the workers have room for, those under way included."""
        now = self._clock()
        obstacles = {worker: self._obstacle(worker, (), None, now) for worker in self.list()}
        return self._room.places(obstacles)

    @property
    def full(self) -> int:
        """Workers that have as many requests as they may."""
        return sum(map(self._room.is_full, self.list()))

    def note_pinned(self, change: int) -> None:
        """So many more requests wait for room at a worker of their own choice; or fewer."""
        if change:
            self._room.pinned += change
            self._changed()

    def cooldown_s(self, need: Need) -> float:
        """How long a request that failed on its last worker must wait, given who may take it."""
        now = self._clock()
        try:
            candidates = self._candidates(need, (), None, now)
        except RouterError:
            return 0.0
        return min(self._cooldowns[worker].left_s(now) for worker in candidates)

    def held(self, place: Place, scope: str, prompt: TokenIds, output: Sequence[int] = ()) -> None:
        """The KV cache there now holds these tokens, one after the other."""
        worker = place.worker if isinstance(place, Rank) else place
        if worker in self and worker.is_up:
            self._policy.held(place, scope, prompt, output)

    def can_serve(self) -> bool:
        """Whether a request would find a worker that is known to fit now, even a paused one."""
        return any(map(self.is_healthy, self._workers.values()))

    def is_healthy(self, worker: Worker) -> bool:
        """Whether the worker fits and serves, or will once generation is resumed."""
        is_known = worker.is_there and worker.was_greeted
        return is_known and self.breaker_state(worker) != "open"

    @property
    def loads(self) -> dict[str, int]:
        """Requests in flight by worker URL."""
        return {worker.url: worker.in_flight for worker in self._workers.values()}

    @property
    def total_in_flight(self) -> int:
        """Open leases, including those of removed workers."""
        return self._room.taken

    def _candidates(
        self, need: Need, exclude: Collection[str], kind: Kind | None, now: float
    ) -> Sequence[Worker]:
        there = self.list() if need.target is None else (self._target(need.target),)
        obstacles = {}
        candidates = []
        for worker in there:
            obstacle = self._obstacle(worker, exclude, kind, now)
            if obstacle is None or not stops(obstacle, need):
                candidates.append(worker)
            else:
                obstacles[worker] = obstacle
        if not candidates:
            raise no_worker(
                obstacles,
                kind,
                probe_s=self.probe_s,
                tries_in_s=lambda worker: self._breakers[worker].tries_in_s(now),
            )
        return candidates

    def _obstacle(
        self, worker: Worker, exclude: Collection[str], kind: Kind | None, now: float
    ) -> Obstacle | None:
        """What stops the worker first; None if it can take a request."""
        if worker.kind == "prefill" if kind is None else worker.kind != kind:
            return Obstacle.KIND
        if worker.url in exclude:
            return Obstacle.EXCLUDED
        if not worker.is_there:
            return Obstacle.AWAY
        if worker.is_resting:
            return Obstacle.RESTS
        if not self._may_serve(worker):
            return Obstacle.OLD
        if not self._breakers[worker].allows(now):
            return Obstacle.FAILED
        return Obstacle.FULL if self._room.is_full(worker) else None

    def _forget(self, worker: Worker) -> None:
        self._policy.forget(worker)
        for rank in self.ranks.of(worker):
            self._policy.forget(rank)

    def _target(self, name: str) -> Worker:
        """By index in the list, as in sglang-router; or by URL or id."""
        if name.isdecimal() and len(name) < 10 and int(name) < len(self._workers):
            return self.list()[int(name)]
        return self.get(name)

    def tried(self, worker: Worker) -> None:
        """The request that a breaker let through as a trial has ended, one way or another."""
        if worker in self._breakers:
            self._breakers[worker].end_trial()
            self._changed()

    def returned(self, worker: Worker) -> None:
        """A request has ended."""
        worker.returned()
        self._room.took(worker, -1)
        if not worker.in_flight and worker not in self:
            self._changed()  # it need not be watched any longer
        self._leave(worker)
        if self._room.most is not None and worker.url in self._workers:
            self.on_room(self._workers[worker.url])  # it may have left and come back

    def _leave(self, worker: Worker) -> None:
        if worker.is_draining and not worker.in_flight and worker in self:
            self.remove(worker.url)

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()
