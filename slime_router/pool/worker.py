"""One registered worker, as the router knows it. State only: no decisions, no requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from uuid import uuid4

from slime_router.types import NO_TOKENS, TokenIds, WeightVersion

Kind: TypeAlias = Literal["regular", "prefill", "decode"]
KINDS: tuple[Kind, ...] = ("regular", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class Need:
    """What a request needs of a worker. Only `ids` and `scope` tell what a KV cache may hold.

    `key` tells whose request it is (`X-SMG-Routing-Key`, or the session): equal keys prefer the
    same worker. `target` names one worker, by URL, id or index in the list: only it may take it.
    """

    ids: TokenIds = field(default_factory=lambda: NO_TOKENS)
    scope: str = ""
    key: str | None = None
    target: str | None = None


@dataclass(slots=True, eq=False)
class Worker:
    """A worker and its state. `url` has no trailing slash.

    Attributes:
        kind: which part of a generation it does; prefill and decode workers serve in pairs.
        bootstrap_port: where a decode worker fetches what this prefill worker computed.
        api_key: sent to it as a bearer token; a client's own key never is.
        in_flight: requests that it has at the moment.
        pending_tokens: prompt tokens yet to be computed: of requests without a first token.
        last_lease: number of its latest lease; greater is later.
        queued: requests waiting in its own queue, including other routers', by its last report.
        kv_tokens: tokens that its KV cache can hold, if reported.
        context_len: in tokens, if reported.
        is_token_exact: whether its tokenizer equals ours; None until they were compared.
        weight_version: by its replies and by control calls; None if unknown.
        updates: how many weight updates it got through the router.
        is_up: False from its failure until a probe succeeds.
        is_paused: generation was paused through the router, and not yet resumed.
        is_asleep: its memory was released through the router, and not yet restored.
        is_draining: it gets nothing new, and is removed once it has nothing in flight.
    """

    url: str
    id: str = field(default_factory=lambda: str(uuid4()))
    kind: Kind = "regular"
    bootstrap_port: int | None = None
    api_key: str | None = field(default=None, repr=False)
    priority: int = 50
    cost: float = 1.0
    labels: Mapping[str, str] = field(default_factory=dict)
    in_flight: int = 0
    pending_tokens: int = 0
    last_lease: int = 0
    queued: int = 0
    kv_tokens: int | None = None
    context_len: int | None = None
    is_token_exact: bool | None = None
    weight_version: WeightVersion | None = None
    updates: int = 0
    is_up: bool = True
    is_paused: bool = False
    is_asleep: bool = False
    is_draining: bool = False
