"""The sessions by name: which there are, and which were deleted."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice

from slime_router.auth.caller import name_of_root, owner_of, shown
from slime_router.auth.shares import Shares
from slime_router.errors import Conflict, NotFound, StorageFull, TooManyRequests
from slime_router.json_text import size_of
from slime_router.trajectory.measures.scores import nbytes
from slime_router.trajectory.session import Reward, Session, SessionSpec
from slime_router.trajectory.turn import Turn

MAX_BYTES = 2**29  # of metadata, defaults and rewards, as JSON
MAX_TOMBSTONES = 100_000  # deleted ids that are remembered, so that late calls get a 404


class SessionTable:
    """The sessions by id.

    At most `max_sessions` are kept until they are deleted, however they began: one that is closed
    without having been opened counts too. `owners` can have their shares of these.
    """

    def __init__(self, max_sessions: int, owners: Collection[str] = ()) -> None:
        # With the name of a session, or of a conversation without one, once no more comes of it.
        self.on_end: Callable[[str], None] = lambda _: None
        self._sessions: dict[str, Session] = {}
        self._by_rollout: dict[tuple[str, str], dict[str, None]] = {}  # of an owner
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._rewarded: dict[tuple[str, str], dict[str, None]] = {}  # those of `_by_rollout`
        self._opened = Shares(max_sessions, owners)  # of sessions that `was_opened`
        self._bytes = Shares(MAX_BYTES, owners)
        self._sizes: dict[str, int] = {}  # in bytes, of each session that has any
        self._begun: Counter[str] = Counter()  # sessions so far, by owner

    def __repr__(self) -> str:
        return f"<SessionTable {len(self._sessions)} sessions, {self.opened} opened>"

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    def share_among(self, owners: Collection[str]) -> None:
        """These owners have shares from now on."""
        self._opened.share_among(owners)
        self._bytes.share_among(owners)

    @property
    def opened(self) -> int:
        """How many were opened, or closed, and not deleted since."""
        return self._opened.total

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
        among: Iterable[Session] | None = None,
    ) -> list[Session]:
        """The sessions of a group, of a rollout, in a state; oldest first.

        `among`: all that there are, where that is more than those in memory.
        """
        return [
            session
            for session in (self._sessions.values() if among is None else among)
            if group_id in (None, session.group_id)
            and rollout_id in (None, session.rollout_id)
            and state in (None, session.state)
        ]

    def open(
        self, spec: SessionSpec, *, age: int = 0, at: float | None = None, opener: str = ""
    ) -> Session:
        """A new session, opened at that Unix time.

        `opener` tells who opened it, where several routers can.

        Raises:
            Conflict: there is one with this id.
            TooManyRequests: there are as many as there may be.
            StorageFull: metadata and rewards take as many bytes as they may.
        """
        if spec.id in self._sessions:
            raise Conflict(
                f"There is a session '{shown(spec.id)}' already.",
                param="session_id",
                code="session_exists",
            )
        self._check_room(owner_of(spec.id))
        size = _size(spec)
        self.check_bytes(owner_of(spec.id), size)
        numbers = self._numbers(spec)
        session = Session(spec, is_opened=True, age=age, numbers=numbers, opener=opener)
        self._deleted.pop(spec.id, None)
        self._opened.take(session.owner)
        self._resize(session, size)
        self._add(session)
        if at is not None:
            session.was_active(at)
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
            spec = SessionSpec(id=session_id)
            session = Session(spec, is_opened=False, numbers=self._numbers(spec))
            self._add(session)
        return session

    def _numbers(self, spec: SessionSpec) -> tuple[int, int]:
        """The next ones: no owner can count another's sessions by its own."""
        owner = owner_of(spec.id)
        self._begun[owner] += 1
        return self._begun.total(), self._begun[owner]

    def _add(self, session: Session) -> None:
        self._sessions[session.id] = session
        self._by_rollout.setdefault(_rollout(session), {})[session.id] = None

    def _leave_rollout(self, session: Session) -> None:
        rollout = _rollout(session)
        for sessions in (self._by_rollout, self._rewarded):
            siblings = sessions.get(rollout, {})
            if session.id in siblings:
                del siblings[session.id]
                if not siblings:
                    del sessions[rollout]

    def opened_elsewhere(self, session: Session, spec: SessionSpec, opener: str) -> None:
        """Another router opened what was a mere name here; there were places enough for it."""
        self._leave_rollout(session)
        session.opened_elsewhere(spec, opener)
        self._opened.take(session.owner)
        self._resize(session, _size(spec))
        self._add(session)
        if session.reward is not None:
            self._rewarded.setdefault(_rollout(session), {})[session.id] = None

    def rewarded_elsewhere(self, session: Session, reward: Reward) -> None:
        """Another router gave it this reward."""
        self._reward(session, reward)

    def is_current(self, session: Session) -> bool:
        """Whether it is still the one under its id: neither deleted nor replaced."""
        return self._sessions.get(session.id) is session

    def check_closing(self, session: Session) -> None:
        """Whether it may be closed: if nobody opened it, that takes a place as opening does.

        Raises:
            TooManyRequests: its owner has as many as it may have.
        """
        if not session.was_opened:
            self._check_room(session.owner)

    def _check_room(self, owner: str) -> None:
        if not self._opened.has_room(owner):
            raise TooManyRequests(
                f"{self._opened.taken(owner)} of your sessions, and {self.opened} in all, are open"
                " or closed and not deleted; delete some.",
                code="too_many_sessions",
            )

    def check_bytes(self, owner: str, more: int) -> None:
        """Whether so many bytes more may be kept.

        Raises:
            StorageFull: metadata, rewards and scores take as many as they may.
        """
        if not self._bytes.has_room(owner, more):
            raise StorageFull(
                f"Metadata, rewards and scores of your sessions take {self._bytes.taken(owner)}"
                f" bytes, and {self._bytes.total} in all; delete some sessions."
            )

    def _resize(self, session: Session, more: int) -> None:
        if not more:
            return
        self._sizes[session.id] = self._sizes.get(session.id, 0) + more
        self._bytes.take(session.owner, more)

    def mark_closed(self, session: Session, age: int) -> None:
        """Freeze it.

        Raises:
            Conflict: it is closed already.
            TooManyRequests: nobody opened it, and its owner has as many as it may have.
        """
        self.check_closing(session)
        if session.freeze(age):
            self._opened.take(session.owner)
        self.on_end(session.id)

    def forget(self, session: Session, *, is_deleted: bool) -> None:
        """Remove it; the id of a deleted one is remembered for a while."""
        if not self.is_current(session):
            return
        if session.state != "closed" and session.recorded_turns:
            self.on_end(session.id)
        del self._sessions[session.id]
        self._leave_rollout(session)
        if session.was_opened:
            self._opened.give_back(session.owner)
        self._bytes.give_back(session.owner, self._sizes.pop(session.id, 0))
        if is_deleted:
            self._deleted[session.id] = None
            if len(self._deleted) > MAX_TOMBSTONES:
                self._deleted.popitem(last=False)

    def check_turns(self, turns: Mapping[str, Turn], *, pinned_tokens: int) -> None:
        """Recount what each session says of its turns.

        Raises:
            AssertionError: what is broken.
        """
        for session in self:
            own = [turns[turn_id] for turn_id in session.turns]
            assert [t.seq for t in own] == sorted(t.seq for t in own), "turns are out of order"
            assert session.held_tokens == sum(t.own_len for t in own), "a session is miscounted"
        pinned = sum(session.held_tokens for session in self if session.is_pinned)
        assert pinned_tokens == pinned, "pinned tokens miscounted"

    def gain(self, session: Session, turn: Turn, age: int) -> None:
        """A turn of it was recorded, or came back."""
        session.gain(turn, age)
        self._resize(session, nbytes(turn.scores))

    def lose(self, session: Session | None, turn: Turn) -> None:
        """A turn was dropped, of it where it has one; else perhaps the first of a conversation."""
        if session is None:
            if turn.conversation == name_of_root(turn.id):
                self.on_end(name_of_root(turn.id))
            return
        session.lose(turn)
        self._resize(session, -nbytes(turn.scores))

    def remarked(self, session: Session | None, before: Turn, turn: Turn) -> None:
        """A turn, of it where it has one, has other marks."""
        if session is not None:
            self._resize(session, nbytes(turn.scores) - nbytes(before.scores))

    def set_reward(self, session_id: str, reward: Reward) -> Session:
        """Reward a session; all sessions of one rollout have one reward.

        Raises:
            NotFound: there is no such session.
            Conflict: another session of its rollout has another reward.
            StorageFull: metadata and rewards take as many bytes as they may.
        """
        session = self.get(session_id)
        rewarded = self._rewarded.get(_rollout(session), {})
        for other in map(self._sessions.__getitem__, islice(rewarded, 2)):  # all have the same one
            if other is not session and other.reward != reward:
                raise Conflict(
                    f"The rollout '{session.rollout_id}' has another reward in session"
                    f" '{other.name}'.",
                    param="reward",
                    code="reward_conflict",
                )
        more = size_of(reward) - (0 if session.reward is None else size_of(session.reward))
        if more > 0:
            self.check_bytes(session.owner, more)
        self._reward(session, reward)
        return session

    def _reward(self, session: Session, reward: Reward) -> None:
        before = 0 if session.reward is None else size_of(session.reward)
        self._resize(session, size_of(reward) - before)
        session.rewarded(reward)
        self._rewarded.setdefault(_rollout(session), {})[session.id] = None


def _rollout(session: Session) -> tuple[str, str]:
    """Rollouts of two owners can have one name."""
    return session.owner, session.rollout_id


def _size(spec: SessionSpec) -> int:
    """The bytes of what a session brings along."""
    said = [dict(spec.metadata), asdict(spec.sampling)]
    if spec.sampling_pins.names:
        said.append(asdict(spec.sampling_pins))
    return size_of(said)
