"""Sessions: turns that share a name, what they may use, and how they were rewarded.

    implicit   a header, a body or a path named it; nobody opened it
    open       opened by a trainer: its turns are kept until it is closed
    closing    takes no new turns and waits for those in progress
    closed     frozen: it can be exported, rewarded and deleted; kept until it was exported

Pure: no clock. `age` counts the sweeps of the store.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from slime_router.auth.owners import owner_of, shown
from slime_router.errors import Conflict, NotFound, SessionLimit, TooManyRequests
from slime_router.trajectory.turn import Turn
from slime_router.types import Sampling

SessionState: TypeAlias = Literal["implicit", "open", "closing", "closed"]
Reward: TypeAlias = float | dict[str, Any]

MAX_TOMBSTONES = 100_000  # deleted ids that are remembered, so that late calls get a 404


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """What a trainer gives when it opens a session. None: no limit, no name.

    `id` is the session's name inside the router; see `slime_router.auth.owners`.
    """

    id: str
    group_id: str | None = None
    rollout_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    return_routed_experts: bool = False
    max_turns: int | None = None
    max_tokens: int | None = None  # sampled, in all


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """One session as it is now. `turns` are those still held, oldest first; `roots` have no base.

    `id` is its name inside the router. The other names are as their owner writes them.
    """

    id: str
    rollout_id: str
    state: SessionState = "implicit"
    was_opened: bool = False  # or closed: it is kept until it is deleted
    was_exported: bool = False  # since it was closed
    group_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    return_routed_experts: bool = False
    max_turns: int | None = None
    max_tokens: int | None = None
    reward: Reward | None = None
    turns: dict[str, None] = field(default_factory=dict)
    roots: dict[str, None] = field(default_factory=dict)
    held_tokens: int = 0  # of the deltas
    recorded_turns: int = 0
    sampled_tokens: int = 0
    dropped_turns: int = 0
    dropped_tokens: int = 0  # sampled ones
    running: int = 0
    age: int = 0

    @property
    def name(self) -> str:
        """What its owner calls it."""
        return shown(self.id)

    @property
    def owner(self) -> str:
        """The name of the key whose session it is; "" for nobody's."""
        return owner_of(self.id)

    @property
    def is_pinned(self) -> bool:
        """Whether its turns are kept whatever the pressure: nobody has exported the end of it."""
        return self.was_opened and not self.was_exported

    @property
    def is_used(self) -> bool:
        """Whether it is more than a name."""
        return self.state != "implicit" or bool(self.turns) or self.running > 0

    def gain(self, turn: Turn) -> None:
        """A turn was recorded."""
        self.turns[turn.id] = None
        if turn.base is None:
            self.roots[turn.id] = None
        self.held_tokens += turn.own_len
        self.recorded_turns += 1
        self.sampled_tokens += len(turn.output_ids)

    def lose(self, turn: Turn) -> None:
        """A turn was dropped."""
        del self.turns[turn.id]
        self.roots.pop(turn.id, None)
        self.held_tokens -= turn.own_len
        self.dropped_turns += 1
        self.dropped_tokens += len(turn.output_ids)

    def check_room(self, running: int, wanted: int) -> None:
        """Whether `wanted` more turns may begin while `running` others are in progress.

        Raises:
            Conflict: it is closed or closing.
            SessionLimit: it has all the turns or tokens that it may have.
        """
        if self.state in ("closing", "closed"):
            raise Conflict(f"The session '{self.name}' is closed.", code="session_closed")
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


class SessionTable:
    """The sessions by id."""

    def __init__(self, max_sessions: int) -> None:
        self._max_sessions = max_sessions
        self._sessions: dict[str, Session] = {}
        self._by_rollout: dict[tuple[str, str], dict[str, None]] = {}  # of an owner
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._opened = 0  # sessions that `was_opened`

    def __repr__(self) -> str:
        return f"<SessionTable {len(self._sessions)} sessions, {self._opened} opened>"

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    @property
    def opened(self) -> int:
        """How many were opened, or closed, and not deleted since."""
        return self._opened

    def find(self, session_id: str) -> Session | None:
        """The session, or None where nobody named it yet."""
        return self._sessions.get(session_id)

    def get(self, session_id: str) -> Session:
        """The session.

        Raises:
            NotFound: there is none, or it was deleted.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise NotFound(f"There is no session '{shown(session_id)}'.", code="session_not_found")
        return session

    def list(
        self,
        *,
        group_id: str | None = None,
        rollout_id: str | None = None,
        state: str | None = None,
    ) -> list[Session]:
        """The sessions of a group, of a rollout, in a state; oldest first."""
        return [
            session
            for session in self._sessions.values()
            if group_id in (None, session.group_id)
            and rollout_id in (None, session.rollout_id)
            and state in (None, session.state)
        ]

    def open(self, spec: SessionSpec, *, age: int = 0) -> Session:
        """A new session.

        Raises:
            Conflict: there is one with this id.
            TooManyRequests: there are as many as there may be.
        """
        if spec.id in self._sessions:
            raise Conflict(
                f"There is a session '{shown(spec.id)}' already.",
                param="session_id",
                code="session_exists",
            )
        if self._opened >= self._max_sessions:
            raise TooManyRequests(
                f"{self._opened} sessions are open or wait for their export; delete some.",
                code="too_many_sessions",
            )
        session = Session(
            id=spec.id,
            rollout_id=spec.rollout_id or shown(spec.id),
            state="open",
            was_opened=True,
            group_id=spec.group_id,
            metadata=spec.metadata,
            sampling=spec.sampling,
            return_routed_experts=spec.return_routed_experts,
            max_turns=spec.max_turns,
            max_tokens=spec.max_tokens,
            age=age,
        )
        self._deleted.pop(spec.id, None)
        self._opened += 1
        self._add(session)
        return session

    def name(self, session_id: str) -> Session:
        """The session of a call that names it, made where there is none.

        Raises:
            NotFound: it was deleted.
        """
        session = self._sessions.get(session_id)
        if session is None:
            if session_id in self._deleted:
                raise NotFound(
                    f"The session '{shown(session_id)}' was deleted.", code="session_not_found"
                )
            session = Session(id=session_id, rollout_id=shown(session_id))
            self._add(session)
        return session

    def _add(self, session: Session) -> None:
        self._sessions[session.id] = session
        self._by_rollout.setdefault(_rollout(session), {})[session.id] = None

    def is_current(self, session: Session) -> bool:
        """Whether it is still the one under its id: neither deleted nor replaced."""
        return self._sessions.get(session.id) is session

    def mark_closed(self, session: Session) -> None:
        """Freeze it."""
        self._opened += not session.was_opened
        session.was_opened, session.state = True, "closed"

    def forget(self, session: Session, *, is_deleted: bool) -> None:
        """Remove it; the id of a deleted one is remembered for a while."""
        if not self.is_current(session):
            return
        del self._sessions[session.id]
        siblings = self._by_rollout[_rollout(session)]
        del siblings[session.id]
        if not siblings:
            del self._by_rollout[_rollout(session)]
        self._opened -= session.was_opened
        if is_deleted:
            self._deleted[session.id] = None
            if len(self._deleted) > MAX_TOMBSTONES:
                self._deleted.popitem(last=False)

    def set_reward(self, session_id: str, reward: Reward) -> Session:
        """Reward a session; all sessions of one rollout have one reward.

        Raises:
            NotFound: there is no such session.
            Conflict: another session of its rollout has another reward.
        """
        session = self.get(session_id)
        for other in map(self._sessions.__getitem__, self._by_rollout[_rollout(session)]):
            if other is not session and other.reward not in (None, reward):
                raise Conflict(
                    f"The rollout '{session.rollout_id}' has another reward in session"
                    f" '{other.name}'.",
                    param="reward",
                    code="reward_conflict",
                )
        session.reward = reward
        return session


def _rollout(session: Session) -> tuple[str, str]:
    """Rollouts of two owners can have one name."""
    return session.owner, session.rollout_id
