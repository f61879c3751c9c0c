"""One registered worker, as the router knows it. State only: nothing here decides or talks."""

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
    """What a request wants of a worker. Only `ids` and `scope` say what a KV cache may hold of it.

    `key` is whose request it is (`X-SMG-Routing-Key`, or the session): equal keys like the same
    worker. `target` names one worker, by URL, id or place in the list: nobody else may take it.
    """

    ids: TokenIds = field(default_factory=lambda: NO_TOKENS)
    scope: str = ""
    key: str | None = None
    target: str | None = None


@dataclass(slots=True, eq=False)
class Worker:
    """A worker and its state. `url` has no slash at its end.

    Attributes:
        kind: what it does of a generation; prefill and decode workers serve in pairs.
        bootstrap_port: where a decode worker fetches what this prefill worker computed.
        api_key: sent to it as a bearer; a client's own key never is.
        in_flight: requests that it has now.
        pending_tokens: prompt tokens that it has yet to compute: of requests without a first token.
        last_lease: number of the lease that it got last; greater is later.
        queued: requests that wait in its own queue, as it said last; other routers' too.
        kv_tokens: tokens that its KV cache holds, where it said so.
        context_len: tokens, where it said so.
        is_token_exact: None until its tokenizer was compared with ours.
        weight_version: what its replies say and control calls bring; None where that is unknown.
        updates: how many weight updates it got through the router.
        is_up: False from its failure until a probe succeeds.
        is_paused: generation was paused through the router, and not continued.
        is_asleep: its memory was released through the router, and not resumed.
        is_draining: it gets nothing new, and leaves when it has nothing in flight.
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
