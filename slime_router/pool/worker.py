"""One registered worker, as the router knows it. State only: no decisions, no requests.

    down <--went_down / came_up--> up
    up, but sent nothing: it is paused or asleep (`rested`), it leaves (`asked_to_leave`), it
    refuses new requests itself (`refuses`), or it does not fit (`judged`)

Every field is read-only from outside: what changes it is a method that names what happened.
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
    """A worker and its state. `url` has no trailing slash."""

    __slots__ = (
        "_adapters", "_context_len", "_down_because", "_elsewhere", "_in_flight", "_is_asleep",
        "_is_draining", "_is_paused",
        "_is_refusing", "_is_token_exact", "_is_up", "_kv_tokens", "_last_lease", "_misfit",
        "_pauses", "_pending_tokens", "_preferred_sampling", "_queued", "_updates", "_was_greeted",
        "_weight_version", "id", "registration", "url",
    )  # fmt: skip

    def __init__(self, url: str, **registration: Unpack[RegistrationFields]) -> None:
        self.url = url
        self.id = str(uuid5(NAMESPACE_URL, url))  # the same in every process of a router
        self.registration = Registration(**registration)
        self._in_flight = self._pending_tokens = self._last_lease = 0
        self._elsewhere: dict[int, int] = {}  # in flight from other processes of the router
        self._queued = 0
        self._kv_tokens: int | None = None
        self._adapters: Set[str] = frozenset()
        self._preferred_sampling: Mapping[str, Any] = {}
        self._context_len: int | None = None
        self._is_token_exact: bool | None = None
        self._misfit: str | None = None
        self._was_greeted = False
        self._weight_version: WeightVersion | None = None
        self._updates = self._pauses = 0
        self._is_up = True
        self._down_because = ""
        self._is_paused = self._is_asleep = False
        self._is_draining = self._is_refusing = False

    def __repr__(self) -> str:
        return f"<Worker {self.url} {self.state}, {self._in_flight} in flight>"

    # What is registered

    def register(self, **fields: Unpack[RegistrationFields]) -> None:
        """Register it (again): these fields of its `Registration` change, all else stays."""
        self.registration = replace(self.registration, **fields)
        self._is_draining = False

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
    def in_flight(self) -> int:
        """Requests that it has at the moment."""
        return self._in_flight

    @property
    def busy_with(self) -> int:
        """Requests that it has from all processes of the router, as far as this one knows."""
        return self._in_flight + sum(self._elsewhere.values())

    def has_elsewhere(self, process: int, count: int) -> None:
        """Record how many requests another process has at this worker."""
        if count:
            self._elsewhere[process] = count
        else:
            self._elsewhere.pop(process, None)

    @property
    def pending_tokens(self) -> int:
        """Prompt tokens yet to be computed: of requests without a first token."""
        return self._pending_tokens

    @property
    def last_lease(self) -> int:
        """Number of its latest lease; greater is later."""
        return self._last_lease

    def leased(self, number: int, pending: int) -> None:
        """Lease `number` is its latest; `pending` prompt tokens are to be computed for it."""
        self._in_flight += 1
        self._pending_tokens += pending
        self._last_lease = number

    def computed(self, pending: int) -> None:
        """Count `pending` prompt tokens as computed, or given up."""
        self._pending_tokens -= pending

    def returned(self) -> None:
        """A request has ended.

        Raises:
            ValueError: it has none.
        """
        if not self._in_flight:
            raise ValueError(f"{self.url} has nothing in flight")
        self._in_flight -= 1

    # What it reports

    @property
    def queued(self) -> int:
        """Requests waiting in its own queue, including other routers', by its last report."""
        return self._queued

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that its KV cache can hold, if reported."""
        return self._kv_tokens

    @property
    def context_len(self) -> int | None:
        """The length of its context in tokens, if reported."""
        return self._context_len

    @property
    def is_token_exact(self) -> bool | None:
        """Whether its tokenizer equals ours; None until they were compared."""
        return self._is_token_exact

    @property
    def preferred_sampling(self) -> Mapping[str, Any]:
        """The worker's own sampling parameters, for requests that do not give them."""
        return self._preferred_sampling

    @property
    def adapters(self) -> Set[str]:
        """The names of the adapters that it has loaded, as far as is known."""
        return self._adapters

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
        self._adapters = self._adapters if adapters is None else adapters
        self._queued = self._queued if queued is None else queued
        self._kv_tokens = kv_tokens or self._kv_tokens
        self._context_len = context_len or self._context_len
        if preferred_sampling is not None:
            self._preferred_sampling = preferred_sampling

    def compared(self, *, is_exact: bool) -> None:
        """Record whether its tokens are the same as ours."""
        self._is_token_exact = is_exact

    # Whether it fits

    @property
    def was_greeted(self) -> bool:
        """Whether it was looked at since it came up; until then, others are asked first."""
        return self._was_greeted

    def greeted(self) -> None:
        """Record that it has answered a first probe."""
        self._was_greeted = True

    @property
    def misfit(self) -> str | None:
        """Why it cannot serve this model; None if nothing speaks against it."""
        return self._misfit

    def judged(self, misfit: str | None) -> bool:
        """Record a verdict (`misfit` says why it may not serve). Returns whether it has changed."""
        is_news, self._misfit = misfit != self._misfit, misfit
        return is_news

    # Its weights

    @property
    def weight_version(self) -> WeightVersion | None:
        """By its replies and by control calls; None if unknown."""
        return self._weight_version

    @property
    def updates(self) -> int:
        """How many weight updates it got through the router."""
        return self._updates

    @property
    def pauses(self) -> int:
        """How often it was paused or put to sleep through the router."""
        return self._pauses

    def observed(self, version: WeightVersion, *, known: WeightVersion | None) -> bool:
        """Take in that it runs `version`; `known` was its version when it was asked.

        Believed unless something else changed it meanwhile, which is newer. Returns whether that
        is news.
        """
        if self._weight_version != known or version == known:
            return False
        self._weight_version = version
        return True

    def update_started(self) -> WeightVersion | None:
        """An update begins: the version is unknown until it reports one. Returns the old."""
        before, self._weight_version = self._weight_version, None
        self._updates += 1
        return before

    def update_taken(self, version: WeightVersion | None, *, before: WeightVersion | None) -> None:
        """The update was taken. Without a name the old version stays, unless one was reported."""
        if version is not None:
            self._weight_version = version
        elif self._weight_version is None:
            self._weight_version = before

    # Whether it serves

    @property
    def is_up(self) -> bool:
        """False from its failure until a probe succeeds."""
        return self._is_up

    @property
    def is_paused(self) -> bool:
        """Generation was paused through the router, and not yet resumed."""
        return self._is_paused

    @property
    def is_asleep(self) -> bool:
        """Whether its memory was released through the router and not yet restored."""
        return self._is_asleep

    @property
    def is_resting(self) -> bool:
        """Whether it generates nothing until a trainer says so."""
        return self._is_paused or self._is_asleep

    @property
    def is_draining(self) -> bool:
        """Whether it was asked to leave: it gets nothing new, and goes after its last request."""
        return self._is_draining

    @property
    def is_refusing(self) -> bool:
        """Whether it answers but takes nothing new, as it is starting or shutting down."""
        return self._is_refusing

    @property
    def is_there(self) -> bool:
        """Whether it can take requests, now or when it no longer rests."""
        return self._is_up and not (self._is_draining or self._is_refusing or self._misfit)

    @property
    def state(self) -> State:
        """The state in one word."""
        if self._is_draining:
            return "draining"
        if not (self.is_there and self._was_greeted):
            return "not_ready"
        return "paused" if self.is_resting else "ready"

    @property
    def reason(self) -> str | None:
        """Why it is not ready; None if it is."""
        if not self._is_up:
            return self._down_because or "it cannot be reached"
        if self._misfit is not None:
            return self._misfit
        if self._is_refusing:
            return "it takes no new requests: its /health answers 503"
        return None if self._was_greeted else "it was not looked at yet"

    def came_up(self) -> bool:
        """Record that it answers. Returns whether it was down."""
        was_down, self._is_up = not self._is_up, True
        return was_down

    def went_down(self, reason: str = "", *, was_stopped: bool = False) -> bool:
        """Record that it cannot be reached, so its weights are unknown. Returns whether it was up.

        If it `was_stopped`, its pause ended with it, and what comes up may be something else.
        """
        was_up, self._is_up = self._is_up, False
        self._down_because = reason
        self._weight_version = None
        self._is_refusing = False
        if was_stopped:
            self._is_paused = self._is_asleep = self._was_greeted = False
        return was_up

    def rested(self, *, is_paused: bool, is_asleep: bool) -> None:
        """Generation was paused or resumed, or its memory released or restored."""
        was_resting = self.is_resting
        self._is_paused, self._is_asleep = is_paused, is_asleep
        self._pauses += self.is_resting and not was_resting

    def asked_to_leave(self) -> None:
        """Give it nothing new from now on."""
        self._is_draining = True

    def refuses(self, is_refusing: bool) -> bool:
        """Record whether it refuses new requests. Returns whether that has changed."""
        is_news, self._is_refusing = is_refusing != self._is_refusing, is_refusing
        return is_news
