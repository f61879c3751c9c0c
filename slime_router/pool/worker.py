"""One registered worker, as the router knows it. State only: no decisions, no requests.

    down <--went_down / came_up--> up
    up, but sent nothing: it is paused or asleep (`rested`), it leaves (`asked_to_leave`), it
    refuses new requests itself (`refuses`), or it does not fit (`judged`)

What changes a field is a method that names what happened; from outside, fields are only read.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import field
from typing import Any, Literal, TypeAlias, TypedDict, Unpack
from uuid import NAMESPACE_URL, uuid5

from slime_router.types import NO_TOKENS, TokenIds, WeightVersion
from slime_router.values import replace, value

Kind: TypeAlias = Literal["regular", "prefill", "decode"]
KINDS: tuple[Kind, ...] = ("regular", "prefill", "decode")
State: TypeAlias = Literal["ready", "paused", "draining", "not_ready"]


@value(frozen=True, slots=True)
class Need:
    """What a request needs of a worker. Only `ids` and `scope` tell what a KV cache may hold.

    `key` tells whose request it is (`X-SMG-Routing-Key`, or the session): equal keys prefer the
    same worker. `target` names one worker, by URL, id or index in the list: only it may take it.
    `rank` is the number of the data-parallel rank that it asks for.
    One that `is_light` takes no room at a worker: it does not generate. One that `only_asks` is
    answered while generation is paused, too.
    """

    ids: TokenIds = field(default_factory=lambda: NO_TOKENS)
    scope: str = ""
    key: str | None = None
    target: str | None = None
    rank: int | None = None
    is_light: bool = False
    only_asks: bool = False


@value(frozen=True, slots=True, kw_only=True)
class Registration:
    """What whoever registers a worker says about it.

    Attributes:
        kind: which part of a generation it does; prefill and decode workers serve in pairs.
        bootstrap_port: where a decode worker fetches what this prefill worker computed.
        api_key: sent to it as a bearer token; a client's own key never is.
    """

    kind: Kind = "regular"
    bootstrap_port: int | None = None
    api_key: str | None = field(default=None, repr=False)
    priority: int = 50
    cost: float = 1.0
    labels: Mapping[str, str] = field(default_factory=dict)


class RegistrationFields(TypedDict, total=False):
    """The fields of a `Registration` that a caller may name."""

    kind: Kind
    bootstrap_port: int | None
    api_key: str | None
    priority: int
    cost: float
    labels: Mapping[str, str]


class Worker:
    """A worker and its state.

    Attributes:
        url: without a trailing slash.
        id: the same in every process of a router.
        in_flight: requests that it has at the moment.
        pending_tokens: prompt tokens yet to be computed, of requests without a first token.
        last_lease: the number of its latest lease; greater is later.
        queued: requests waiting in its own queue, also other routers', by its last report.
        kv_tokens: tokens that its KV cache can hold, if reported.
        context_len: the length of its context in tokens, if reported.
        adapters: the names of those that it has loaded, as far as is known.
        preferred_sampling: its own sampling parameters, for requests that do not give them.
        is_token_exact: whether its tokenizer equals ours; None until they were compared.
        misfit: why it cannot serve this model; None if nothing speaks against it.
        was_greeted: whether it was looked at since it came up; until then, others go first.
        weight_version: by its replies and by control calls; None if unknown.
        updates: how many weight updates it got through the router.
        pauses: how often it was paused or put to sleep through the router.
        is_up: false from its failure until a probe succeeds.
        is_paused: generation was paused through the router, and not yet resumed.
        is_asleep: its memory was released through the router, and not yet restored.
        is_draining: it was asked to leave: it gets nothing new, and goes after its last request.
        is_refusing: it answers but takes nothing new, as it is starting or shutting down.
    """

    __slots__ = (
        "_down_because", "_elsewhere", "adapters", "context_len", "id", "in_flight", "is_asleep",
        "is_draining", "is_paused", "is_refusing", "is_token_exact", "is_up", "kv_tokens",
        "last_lease", "misfit", "pauses", "pending_tokens", "preferred_sampling", "queued",
        "registration", "updates", "url", "was_greeted", "weight_version",
    )  # fmt: skip

    def __init__(self, url: str, **registration: Unpack[RegistrationFields]) -> None:
        self.url = url
        self.id = str(uuid5(NAMESPACE_URL, url))
        self.registration = Registration(**registration)
        self.in_flight = self.pending_tokens = self.last_lease = 0
        self._elsewhere: dict[int, int] = {}  # in flight from other processes of the router
        self.queued = 0
        self.kv_tokens: int | None = None
        self.adapters: Set[str] = frozenset()
        self.preferred_sampling: Mapping[str, Any] = {}
        self.context_len: int | None = None
        self.is_token_exact: bool | None = None
        self.misfit: str | None = None
        self.was_greeted = False
        self.weight_version: WeightVersion | None = None
        self.updates = self.pauses = 0
        self.is_up = True
        self._down_because = ""
        self.is_paused = self.is_asleep = False
        self.is_draining = self.is_refusing = False

    def __repr__(self) -> str:
        return f"<Worker {self.url} {self.state}, {self.in_flight} in flight>"

    # What is registered

    def register(self, **fields: Unpack[RegistrationFields]) -> None:
        """Register it (again): these fields of its `Registration` change, all else stays."""
        self.registration = replace(self.registration, **fields)
        self.is_draining = False

    @property
    def kind(self) -> Kind:
        """Which part of a generation it does."""
        return self.registration.kind

    @property
    def bootstrap_port(self) -> int | None:
        """Where a decode worker fetches what this prefill worker computed."""
        return self.registration.bootstrap_port

    @property
    def api_key(self) -> str | None:
        """The key that it asks for."""
        return self.registration.api_key

    # Its load

    @property
    def busy_with(self) -> int:
        """Requests that it has from all processes of the router, as far as this one knows."""
        return self.in_flight + sum(self._elsewhere.values())

    def has_elsewhere(self, process: int, count: int) -> None:
        """Record how many requests another process has at this worker."""
        if count:
            self._elsewhere[process] = count
        else:
            self._elsewhere.pop(process, None)

    def leased(self, number: int, pending: int) -> None:
        """Lease `number` is its latest; `pending` prompt tokens are to be computed for it."""
        self.in_flight += 1
        self.pending_tokens += pending
        self.last_lease = number

    def computed(self, pending: int) -> None:
        """Count `pending` prompt tokens as computed, or given up."""
        self.pending_tokens -= pending

    def returned(self) -> None:
        """A request has ended.

        Raises:
            ValueError: it has none.
        """
        if not self.in_flight:
            raise ValueError(f"{self.url} has nothing in flight")
        self.in_flight -= 1

    # What it reports

    def reported(
        self,
        *,
        adapters: Set[str] | None = None,
        preferred_sampling: Mapping[str, Any] | None = None,
        queued: int | None = None,
        kv_tokens: int | None = None,
        context_len: int | None = None,
    ) -> None:
        """Take in its load, its size, what it has and how it samples; None is what it left out."""
        if adapters is not None:
            self.adapters = adapters
        if preferred_sampling is not None:
            self.preferred_sampling = preferred_sampling
        if queued is not None:
            self.queued = queued
        self.kv_tokens = kv_tokens or self.kv_tokens
        self.context_len = context_len or self.context_len

    def compared(self, *, is_exact: bool) -> None:
        """Record whether its tokens are the same as ours."""
        self.is_token_exact = is_exact

    # Whether it fits

    def greeted(self) -> None:
        """Record that it has answered a first probe."""
        self.was_greeted = True

    def judged(self, misfit: str | None) -> bool:
        """Record a verdict (`misfit` says why it may not serve). Returns whether it has changed."""
        is_news, self.misfit = misfit != self.misfit, misfit
        return is_news

    # Its weights

    def observed(self, version: WeightVersion, *, known: WeightVersion | None) -> bool:
        """Take in that it runs `version`; `known` was its version when it was asked.

        Believed unless something else changed it meanwhile, which is newer. Returns whether that
        is news.
        """
        if self.weight_version != known or version == known:
            return False
        self.weight_version = version
        return True

    def update_started(self) -> WeightVersion | None:
        """An update begins: the version is unknown until it reports one. Returns the old."""
        before, self.weight_version = self.weight_version, None
        self.updates += 1
        return before

    def update_taken(self, version: WeightVersion | None, *, before: WeightVersion | None) -> None:
        """The update was taken. Without a name the old version stays, unless one was reported."""
        if version is not None:
            self.weight_version = version
        elif self.weight_version is None:
            self.weight_version = before

    # Whether it serves

    @property
    def is_resting(self) -> bool:
        """Whether it generates nothing until a trainer says so."""
        return self.is_paused or self.is_asleep

    @property
    def is_there(self) -> bool:
        """Whether it can take requests, now or when it no longer rests."""
        return self.is_up and not (self.is_draining or self.is_refusing or self.misfit)

    @property
    def state(self) -> State:
        """The state in one word."""
        if self.is_draining:
            return "draining"
        if not (self.is_there and self.was_greeted):
            return "not_ready"
        return "paused" if self.is_resting else "ready"

    @property
    def reason(self) -> str | None:
        """Why it is not ready; None if it is."""
        if not self.is_up:
            return self._down_because or "it cannot be reached"
        if self.misfit is not None:
            return self.misfit
        if self.is_refusing:
            return "it takes no new requests: its /health answers 503"
        return None if self.was_greeted else "it was not looked at yet"

    def came_up(self) -> bool:
        """Record that it answers. Returns whether it was down."""
        was_down, self.is_up = not self.is_up, True
        return was_down

    def went_down(self, reason: str = "", *, was_stopped: bool = False) -> bool:
        """Record that it cannot be reached, so its weights are unknown. Returns whether it was up.

        If it `was_stopped`, its pause ended with it, and what comes up may be something else.
        """
        was_up, self.is_up = self.is_up, False
        self._down_because = reason
        self.weight_version = None
        self.is_refusing = False
        if was_stopped:
            self.is_paused = self.is_asleep = self.was_greeted = False
        return was_up

    def rested(self, *, is_paused: bool, is_asleep: bool) -> None:
        """Generation was paused or resumed, or its memory released or restored."""
        was_resting = self.is_resting
        self.is_paused, self.is_asleep = is_paused, is_asleep
        self.pauses += self.is_resting and not was_resting

    def asked_to_leave(self) -> None:
        """Give it nothing new from now on."""
        self.is_draining = True

    def refuses(self, is_refusing: bool) -> bool:
        """Record whether it refuses new requests. Returns whether that has changed."""
        is_news, self.is_refusing = is_refusing != self.is_refusing, is_refusing
        return is_news
