"""Sessions: turns that share a name, what they may use, and how they were rewarded.

    implicit   a header, a body or a path named it; nobody opened it
    open       opened by a trainer: its turns are kept until it is closed
    closing    takes no new turns and waits for those in progress
    closed     frozen: it can be exported, rewarded and deleted; kept until it was exported

Pure: no clock. `age` counts the sweeps of the store.
"""

from __future__ import annotations

from collections.abc import Iterator, KeysView, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from slime_router.auth.caller import owner_of, shown
from slime_router.errors import SESSION_CLOSED, Conflict, SessionLimit
from slime_router.trajectory.turn import ByNumber, Turn, put_by_number
from slime_router.types import Pins, Sampling

SessionState: TypeAlias = Literal["implicit", "open", "closing", "closed"]
Reward: TypeAlias = float | dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """What a trainer gives when it opens a session. None: no limit, no name.

    `id` is the session's name inside the router; see `slime_router.auth.caller`.
    """

    id: str
    group_id: str | None = None
    rollout_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    sampling_pins: Pins = field(default_factory=Pins)
    lora_path: str | None = None
    extra_key: str | None = None
    priority: int | None = None
    return_routed_experts: bool = False
    return_indexer_topk: bool = False
    top_logprobs: int | None = None  # kept for each token; None: as for all sessions
    max_turns: int | None = None
    max_tokens: int | None = None  # sampled, in all


class Session:
    """One session as it is now.

    What was said when it was opened never changes. What changes is a method that names what
    happened; the state follows from what happened, so no other sequence of states is possible.
    """

    __slots__ = (
        "_age", "_closers", "_dropped_tokens", "_dropped_turns", "_held_tokens", "_is_closed",
        "_last_active", "_recorded_turns", "_resting_turns", "_reward", "_running",
        "_sampled_tokens", "_samples",
        "_started", "_truncated_turns", "_turns", "_was_exported", "_was_opened",
        "extra_key", "group_id", "id", "lora_path", "max_tokens", "max_turns", "metadata", "number",
        "opener", "own_number", "priority", "return_indexer_topk", "return_routed_experts",
        "rollout_id", "sampling", "sampling_pins", "top_logprobs",
    )  # fmt: skip

    def __init__(
        self,
        spec: SessionSpec,
        *,
        is_opened: bool,
        age: int = 0,
        numbers: tuple[int, int] = (0, 0),
        opener: str = "",
    ) -> None:
        self.id: Final = spec.id  # its name inside the router; the others are as the owner has them
        self._say(spec, opener)
        self._was_opened = is_opened
        self._closers = 0  # requests that are closing it
        self._is_closed = False
        self._was_exported = False
        self._reward: Reward | None = None
        self._turns: ByNumber = {}
        self._samples: dict[str, int] = {}  # held turns of each request
        self._resting_turns = 0  # without their names
        self._held_tokens = 0
        self._recorded_turns = self._sampled_tokens = 0
        self._dropped_turns = self._dropped_tokens = 0
        self._running = self._truncated_turns = 0
        self._age = age
        # In the order of their beginnings, among all those of its table and among its owner's.
        self.number, self.own_number = numbers
        self._started: float | None = None
        self._last_active: float | None = None

    def _say(self, spec: SessionSpec, opener: str) -> None:
        self.rollout_id = spec.rollout_id or shown(spec.id)
        self.group_id = spec.group_id
        self.metadata = spec.metadata
        self.sampling = spec.sampling
        self.sampling_pins = spec.sampling_pins
        self.lora_path = spec.lora_path
        self.extra_key = spec.extra_key
        self.priority = spec.priority
        self.return_routed_experts = spec.return_routed_experts
        self.return_indexer_topk = spec.return_indexer_topk
        self.top_logprobs = spec.top_logprobs
        self.max_turns = spec.max_turns
        self.max_tokens = spec.max_tokens
        self.opener = opener  # a word that tells who opened it, where several routers can

    def __repr__(self) -> str:
        return f"<Session {self.name!r} {self.state}, {len(self._turns)} turns>"

    # What it is

    @property
    def name(self) -> str:
        """What its owner calls it."""
        return shown(self.id)

    @property
    def owner(self) -> str:
        """The name of the key whose session it is; "" for nobody's."""
        return owner_of(self.id)

    @property
    def worker_fields(self) -> dict[str, Any]:
        """What workers are sent with each turn, whatever the agent says."""
        named = {
            "lora_path": self.lora_path,
            "extra_key": self.extra_key,
            "priority": self.priority,
        }
        return {name: value for name, value in named.items() if value is not None}

    @property
    def wanted(self) -> frozenset[str]:
        """What workers are asked for beside tokens: `routed_experts`, `indexer_topk`."""
        asked = {
            "routed_experts": self.return_routed_experts,
            "indexer_topk": self.return_indexer_topk,
        }
        return frozenset(name for name, is_asked in asked.items() if is_asked)

    @property
    def state(self) -> SessionState:
        """The state of the session."""
        if self._is_closed:
            return "closed"
        if self._closers:
            return "closing"
        return "open" if self._was_opened else "implicit"

    @property
    def was_opened(self) -> bool:
        """Whether it was opened, or closed: it is kept until it is deleted."""
        return self._was_opened

    @property
    def was_exported(self) -> bool:
        """Whether somebody has fetched all of it since it was closed."""
        return self._was_exported

    @property
    def is_pinned(self) -> bool:
        """Whether its turns are kept whatever the pressure: nobody has exported the end of it."""
        return self._was_opened and not self._was_exported

    @property
    def is_used(self) -> bool:
        """Whether it is more than a name."""
        return self.state != "implicit" or bool(self._turns) or self._running > 0

    @property
    def turns(self) -> KeysView[str]:
        """The ids of the turns that are still held, oldest first."""
        return self._turns.keys()

    def samples_of(self, request_id: str) -> int:
        """How many of its held turns one request asked for."""
        return self._samples.get(request_id, 0)

    @property
    def held_tokens(self) -> int:
        """Tokens of the deltas of the held turns."""
        return self._held_tokens

    @property
    def recorded_turns(self) -> int:
        """Turns that it has had."""
        return self._recorded_turns

    @property
    def sampled_tokens(self) -> int:
        """Tokens that were sampled in it."""
        return self._sampled_tokens

    @property
    def dropped_turns(self) -> int:
        """Turns that are no longer held."""
        return self._dropped_turns

    @property
    def dropped_tokens(self) -> int:
        """Sampled tokens of the dropped turns."""
        return self._dropped_tokens

    @property
    def turn_count(self) -> int:
        """How many turns are held."""
        return len(self._turns) + self._resting_turns

    @property
    def truncated_turns(self) -> int:
        """Turns sampled from a part of the vocabulary that nobody knows."""
        return self._truncated_turns

    @property
    def running(self) -> int:
        """Turns in progress."""
        return self._running

    @property
    def reward(self) -> Reward | None:
        """The reward as the trainer gave it."""
        return self._reward

    @property
    def started(self) -> float | None:
        """When it was opened, or its first turn began, in Unix time; None where nobody knows."""
        return self._started

    @property
    def last_active(self) -> float | None:
        """When its last turn had ended, or it was opened; likewise."""
        return self._last_active

    @property
    def age(self) -> int:
        """The store's age when it was last used."""
        return self._age

    # What happens to it

    def opened_elsewhere(self, spec: SessionSpec, opener: str) -> None:
        """Another router opened it, while here it was a name that calls had used."""
        self._say(spec, opener)
        self._was_opened = True

    def resting(self) -> Session:
        """A copy without the names of its turns: what a list says of it, and nothing else."""
        found = copy(self)
        found._resting_turns = self.turn_count
        found._turns, found._samples = {}, {}
        return found

    def entered(self) -> None:
        """A turn starts in it.

        Raises:
            Conflict: it is closed or closing.
        """
        self.check_not_closed(or_closing=True)
        self._running += 1

    def left(self, age: int) -> None:
        """A turn has ended, one way or another.

        Raises:
            ValueError: none is in progress.
        """
        if not self._running:
            raise ValueError(f"no turn runs in {self!r}")
        self._running -= 1
        self._age = age

    def used(self, age: int) -> None:
        """Somebody asked for it when the store had that age."""
        self._age = age

    def gain(self, turn: Turn, age: int) -> None:
        """A turn was recorded."""
        put_by_number(self._turns, turn.id, turn.seq)
        self._samples[turn.request_id] = self.samples_of(turn.request_id) + 1
        self._held_tokens += turn.own_len
        self._recorded_turns += 1
        self._sampled_tokens += len(turn.output_ids)
        self._truncated_turns += bool(turn.uncaptured)
        self._age = age
        if turn.account is not None:
            self.was_active(turn.account.started, turn.account.duration_s)

    def was_active(self, since: float, duration_s: float = 0.0) -> None:
        """Something happened in it at that time."""
        end = since + duration_s
        self._started = since if self._started is None else min(self._started, since)
        self._last_active = end if self._last_active is None else max(self._last_active, end)

    def lose(self, turn: Turn) -> None:
        """A turn was dropped."""
        del self._turns[turn.id]
        self._samples[turn.request_id] -= 1
        if not self._samples[turn.request_id]:
            del self._samples[turn.request_id]
        self._held_tokens -= turn.own_len
        self._dropped_turns += 1
        self._dropped_tokens += len(turn.output_ids)

    def had_lost(self, turns: int, tokens: int) -> None:
        """Before the restart that it survived, so many of its turns were dropped already."""
        self._recorded_turns += turns
        self._dropped_turns += turns
        self._sampled_tokens += tokens
        self._dropped_tokens += tokens

    @contextmanager
    def closing(self) -> Iterator[None]:
        """For the block it takes no new turns; without a `freeze` it is then as it was before.

        Several requests may close it at once.
        """
        self._closers += 1
        try:
            yield
        finally:
            self._closers -= 1

    def freeze(self, age: int) -> bool:
        """Close it for good. Returns whether no trainer had opened it before.

        Raises:
            Conflict: it is closed already.
        """
        self.check_not_closed()
        is_first = not self._was_opened
        self._is_closed = self._was_opened = True
        self._age = age
        return is_first

    def exported(self) -> bool:
        """Somebody has fetched all of it. Returns whether that ends its keeping."""
        ends = self._is_closed and not self._was_exported
        self._was_exported = self._was_exported or ends
        return ends

    def rewarded(self, reward: Reward) -> None:
        """A trainer rewards it, perhaps once more."""
        self._reward = reward

    def check_not_closed(self, *, or_closing: bool = False) -> None:
        """Raises Conflict where it is closed; with `or_closing` also while that begins."""
        if self._is_closed or (or_closing and self._closers):
            raise Conflict(f"The session '{self.name}' is closed.", code=SESSION_CLOSED)

    def check_room(self, running: int, wanted: int) -> None:
        """Whether `wanted` more turns may begin while `running` others are in progress.

        Raises:
            Conflict: it is closed or closing.
            SessionLimit: it has all the turns or tokens that it may have.
        """
        self.check_not_closed(or_closing=True)
        turns = self.recorded_turns + running
        if self.max_turns is not None and turns + wanted > self.max_turns:
            raise SessionLimit(
                f"The session '{self.name}' may have {self.max_turns} turns; it has {turns}, and"
                f" {wanted} more are asked for."
            )
        if self.max_tokens is not None and self.sampled_tokens >= self.max_tokens:
            raise SessionLimit(
                f"The session '{self.name}' may sample {self.max_tokens} tokens; it has sampled"
                f" {self.sampled_tokens}."
            )

    @property
    def tokens_left(self) -> int | None:
        """How many tokens may still be sampled; None without a limit."""
        return None if self.max_tokens is None else max(self.max_tokens - self.sampled_tokens, 0)
