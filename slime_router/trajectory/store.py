"""The trajectory store: every recorded turn, exact, and found again by what was said.

A turn holds only what is new: the prompt tokens after those of its base, and its output.

    held(turn) == concat(held(base)[:base_len], turn.prompt_ids, turn.output_ids)

Where `base_len == len(held(base))` the turn extends its base; else it branches off inside it. Order
is a sequence number, never the clock.

What is over the budget goes: turns least recently used first, never one that another stands on, and
never one of a session that a trainer opened and did not export since it closed it; those of
exported sessions go last. Each drop is counted.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from slime_router.errors import Conflict, StorageFull
from slime_router.trajectory import held
from slime_router.trajectory.conversations import Conversations
from slime_router.trajectory.prefixes import deepest_prefix
from slime_router.trajectory.session import Session, SessionSpec, SessionTable
from slime_router.trajectory.turn import Trace, Turn
from slime_router.trajectory.waiting import WaitingTurns
from slime_router.types import TokenIds

MAX_SESSIONS = 100_000


class TrajectoryStore:
    """Turns by id and by conversation, and the sessions that they belong to."""

    def __init__(self, budget_tokens: int, *, max_sessions: int = MAX_SESSIONS) -> None:
        self.sessions = SessionTable(max_sessions)
        self._budget_tokens = budget_tokens
        self._turns: dict[str, Turn] = {}
        self._children: dict[str, dict[str, None]] = {}
        self._waiting = WaitingTurns()
        self._conversations = Conversations()
        self._by_handle: dict[tuple[str, str], str] = {}  # scope and id of a tool call: the turn
        self._undelivered: set[str] = set()
        self._seq = 0
        self._age = 0
        self._tokens = 0
        self._pinned_tokens = 0
        self.dropped_turns = 0
        self.expired_turns = 0

    def __repr__(self) -> str:
        return f"<TrajectoryStore {len(self._turns)} turns, {self._tokens} tokens>"

    def __len__(self) -> int:
        return len(self._turns)

    def __contains__(self, turn_id: str) -> bool:
        return turn_id in self._turns

    @property
    def tokens(self) -> int:
        """Tokens held, each delta counted once."""
        return self._tokens

    @property
    def budget_tokens(self) -> int:
        """How many tokens may be held."""
        return self._budget_tokens

    @property
    def pinned_tokens(self) -> int:
        """Tokens of sessions that are open or not exported, which nothing can drop."""
        return self._pinned_tokens

    def check_room(self) -> None:
        """Raises StorageFull where what nothing can drop fills the store."""
        if self._pinned_tokens >= self._budget_tokens:
            raise StorageFull(
                f"Sessions that were not exported hold {self._pinned_tokens} tokens, and the store"
                f" is made for {self._budget_tokens}: close, export and delete some."
            )

    def get(self, turn_id: str) -> Turn | None:
        """The turn, or None where it was never recorded or was dropped."""
        return self._turns.get(turn_id)

    def is_delivered(self, turn_id: str) -> bool:
        """Whether the client read the reply to its end, as far as the router can know."""
        return turn_id in self._turns and turn_id not in self._undelivered

    def mark_undelivered(self, turn_id: str) -> None:
        """The client left before it had the whole reply."""
        if turn_id in self._turns:
            self._undelivered.add(turn_id)

    # Recording

    def add(self, turn: Turn) -> Turn:
        """Record a turn whole; returns it with its sequence number.

        Raises:
            KeyError: its base is not in the store.
            ValueError: its arrays do not belong together, or its id is taken.
            NotFound: its session was deleted.
            Conflict: its session is closed.
        """
        self._check(turn)
        session = None if turn.session_id is None else self.sessions.name(turn.session_id)
        if session is not None and session.state == "closed":
            raise Conflict(f"The session '{session.name}' is closed.", code="session_closed")
        self._seq += 1
        turn = replace(turn, seq=self._seq)
        self._turns[turn.id] = turn
        if session is not None:
            session.gain(turn)
            session.age = self._age
            self._pinned_tokens += turn.own_len * session.is_pinned
        self._tokens += turn.own_len
        self._release(turn)
        if turn.base is not None:
            self._children.setdefault(turn.base, {})[turn.id] = None
            self._waiting.take(turn.base)
        self._conversations.file(turn)
        for handle in turn.handles:
            self._by_handle[turn.scope, handle] = turn.id
        self._enforce_budget()
        return turn

    def _check(self, turn: Turn) -> None:
        if turn.id in self._turns:
            raise ValueError(f"turn {turn.id} is recorded already")
        if turn.logprobs is not None and len(turn.logprobs) != len(turn.output_ids):
            raise ValueError(f"{len(turn.logprobs)} logprobs for {len(turn.output_ids)} tokens")
        base_room = 0 if turn.base is None else self._turns[turn.base].held_len
        if not 0 <= turn.base_len <= base_room:
            raise ValueError(f"turn {turn.id} reuses more than its base holds")

    # Finding

    def find(
        self,
        key: bytes,
        session_id: str | None,
        *,
        taken: Container[str] = (),
        spelling: bytes = b"",
    ) -> Turn | None:
        """The newest turn of this conversation; a named session finds its own turns only.

        Turns that are spelled otherwise, or are `taken`, are passed over where there is another.
        """
        turn_id = self._conversations.find(key, session_id, taken, spelling)
        if turn_id is None:
            return None
        self._touch(turn_id)
        return self._turns[turn_id]

    def of_handle(self, handle: str, session_id: str | None, scope: str = "") -> Turn | None:
        """The turn whose reply alone has this id of a tool call, or that has this id itself.

        It is one of this scope, and of this session where one is named.
        """
        turn = self._turns.get(self._by_handle.get((scope, handle), handle))
        if turn is None or turn.scope != scope or session_id not in (None, turn.session_id):
            return None
        self._touch(turn.id)
        return turn

    def count_alike(self, key: bytes, session_id: str | None) -> int:
        """How many turns `find` could choose from."""
        return self._conversations.count(key, session_id)

    def deepest_prefix(self, ids: TokenIds, session_id: str, scope: str = "") -> Turn | None:
        """The turn of this session and scope with the most held tokens that all begin `ids`."""
        session = self.sessions.find(session_id)
        if session is None:
            return None
        found = deepest_prefix(ids, session.roots, self._turns, self._children, scope)
        if found is not None:
            self._touch(found.id)
        return found

    def _touch(self, turn_id: str) -> None:
        self._waiting.touch(turn_id, self._age)

    def held_ids(self, turn_id: str, length: int | None = None) -> TokenIds:
        """The first `length` held tokens of a turn (all by default); read-only.

        Raises:
            KeyError: no such turn.
        """
        return held.held_ids(self._turns, turn_id, length)

    def trace(self, turn_id: str, length: int | None = None) -> Trace:
        """The held tokens with loss mask, logprobs and weight versions.

        Raises:
            KeyError: no such turn.
        """
        return held.trace(self._turns, turn_id, length)

    # Sessions

    def open_session(self, spec: SessionSpec) -> Session:
        """A new session whose turns are kept until it is closed and exported.

        Raises:
            Conflict: there is one with this id.
            TooManyRequests: there are as many as there may be.
            StorageFull: what nothing can drop fills the store.
        """
        self.check_room()
        return self.sessions.open(spec, age=self._age)

    def freeze(self, session: Session) -> None:
        """Close a session: it takes no more turns."""
        if session.state == "closed":
            return
        if not session.is_pinned:  # nobody opened it, but somebody cares for it now
            self._pinned_tokens += session.held_tokens
            for turn_id in session.turns:
                self._waiting.take(turn_id)
        self.sessions.mark_closed(session)
        session.age = self._age

    def mark_exported(self, session_id: str) -> None:
        """Somebody has all of it; where it is closed, it can be dropped when all else is."""
        session = self.sessions.find(session_id)
        if session is None:
            return
        session.age = self._age
        if session.state != "closed" or session.was_exported:
            return
        self._pinned_tokens -= session.held_tokens
        session.was_exported = True
        for turn_id in session.turns:
            self._release(self._turns[turn_id])
        self._enforce_budget()

    def delete_session(self, session_id: str) -> None:
        """Forget a session and its turns; what others stand on stays without a session.

        Raises:
            NotFound: there is none, or it was deleted before.
        """
        session = self.sessions.get(session_id)
        if session.is_pinned:
            self._pinned_tokens -= session.held_tokens
        self.sessions.forget(session, is_deleted=True)
        for turn_id in reversed(session.turns):
            turn = self._turns[turn_id]
            self._conversations.leave_session(turn)
            self._turns[turn_id] = turn = replace(turn, session_id=None)
            if turn_id not in self._children:
                self._remove(turn)

    def leave_session(self, session: Session) -> None:
        """A call of the session ended: what is but a name is forgotten."""
        session.age = self._age
        if not session.is_used:
            self.sessions.forget(session, is_deleted=False)

    def sweep(self, max_age: int) -> int:
        """One more age has passed: drop what was not used for `max_age` of them.

        Open sessions never go, closed ones go as a whole, exported or not. Returns how many turns
        went.
        """
        self._age += 1
        oldest, before = self._age - max_age, len(self._turns)

        def may_go(turn_id: str) -> bool:
            session = self._session_of(self._turns[turn_id])
            return session is None or (session.age < oldest and not session.running)

        while waiting := self._waiting.older_than(oldest, may_go):
            for turn_id in waiting:
                self._drop(self._turns[turn_id])
        for session in self.sessions:
            if session.state == "closed" and session.age < oldest:
                self.dropped_turns += len(session.turns)
                self.delete_session(session.id)
        gone = before - len(self._turns)
        self.expired_turns += gone
        return gone

    def drop_older(self, epoch: int) -> int:
        """Drop the turns of weight epochs before `epoch` that no opened session has.

        Returns how many went.
        """
        before = len(self._turns)
        while stale := [t for t in self._waiting.idle if self._turns[t].epoch < epoch]:
            for turn_id in stale:
                self._drop(self._turns[turn_id])
        return before - len(self._turns)

    # Dropping

    def _session_of(self, turn: Turn) -> Session | None:
        return None if turn.session_id is None else self.sessions.find(turn.session_id)

    def _release(self, turn: Turn, *, last_used: int | None = None) -> None:
        """Put a turn that nobody stands on up for dropping, unless an open session keeps it.

        What stood on it until now was used at `last_used`: it is older than that.
        """
        session = self._session_of(turn)
        if turn.id in self._children or (session is not None and session.is_pinned):
            return
        self._waiting.put(
            turn.id,
            self._age if last_used is None else last_used,
            is_exported=session is not None and session.was_exported,
            is_oldest=last_used is not None,
        )

    def _enforce_budget(self) -> None:
        while self._tokens > self._budget_tokens:
            turn_id = self._waiting.next_to_go()
            if turn_id is None:
                return
            self._drop(self._turns[turn_id])

    def _drop(self, turn: Turn) -> None:
        self.dropped_turns += 1
        session = self._session_of(turn)
        self._remove(turn)
        if session is not None:
            session.lose(turn)
            if not session.is_used:
                self.sessions.forget(session, is_deleted=False)

    def _remove(self, turn: Turn) -> None:
        last_used = self._waiting.take(turn.id)
        del self._turns[turn.id]
        self._undelivered.discard(turn.id)
        self._tokens -= turn.own_len
        self._conversations.unfile(turn)
        for handle in turn.handles:
            if self._by_handle.get((turn.scope, handle)) == turn.id:
                del self._by_handle[turn.scope, handle]
        if turn.base is None:
            return
        siblings = self._children[turn.base]
        del siblings[turn.id]
        if not siblings:
            del self._children[turn.base]
            self._release(self._turns[turn.base], last_used=last_used)

    def check_integrity(self) -> None:
        """Recount everything.

        Raises:
            AssertionError: what is broken.
        """
        children: dict[str, dict[str, None]] = {}
        waiting: dict[bool, set[str]] = {False: set(), True: set()}
        for turn in self._turns.values():
            if turn.base is not None:
                assert turn.base in self._turns, "a base was dropped under its turn"
                children.setdefault(turn.base, {})[turn.id] = None
        for turn in self._turns.values():
            session = self._session_of(turn)
            assert turn.session_id is None or (session and turn.id in session.turns)
            if turn.id not in children and not (session and session.is_pinned):
                waiting[session is not None and session.was_exported].add(turn.id)
        assert children == self._children, "the turns that stand on others are wrong"
        assert set(self._waiting.idle) == waiting[False], "idle turns are wrong"
        assert set(self._waiting.exported) == waiting[True], "turns of exported sessions are wrong"
        assert self._tokens == sum(t.own_len for t in self._turns.values()), "tokens miscounted"
        self._conversations.check_integrity(self._turns)
        assert self._undelivered <= self._turns.keys()
        for (scope, handle), turn_id in self._by_handle.items():
            turn = self._turns[turn_id]
            assert turn.scope == scope, "a handle leads out of its scope"
            assert handle in turn.handles, "a handle leads nowhere"
        pinned = sum(s.held_tokens for s in self.sessions if s.is_pinned)
        assert self._pinned_tokens == pinned, "pinned tokens miscounted"
        for session in self.sessions:
            own = [self._turns[turn_id] for turn_id in session.turns]
            assert [t.seq for t in own] == sorted(t.seq for t in own), "turns are out of order"
            assert session.held_tokens == sum(t.own_len for t in own), "a session is miscounted"
            assert list(session.roots) == [t.id for t in own if t.base is None]
