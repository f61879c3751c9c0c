"""The trajectory store: every recorded turn, exact, and found again by what was said.

A turn holds only what is new: the prompt tokens after those of its base, and its output.

    held(turn) == concat(held(base)[:base_len], turn.prompt_ids, turn.output_ids)

Where `base_len == len(held(base))` the turn extends its base; else it branches off inside it. Order
is by number, not by clock.

What is over the budget is dropped, a part with each new turn: the least recently used turns first,
never one that another builds on, and never one of a session that a trainer opened and has not
exported since closing it; those of exported sessions go last. Each drop is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Sequence
from typing import Unpack

from slime_router.errors import StorageFull
from slime_router.trajectory.conversations import Conversations, Handles
from slime_router.trajectory.eviction import EvictionQueue, check_tree
from slime_router.trajectory.held import HeldTokens
from slime_router.trajectory.ledger import Ledger
from slime_router.trajectory.prefixes import PrefixIndex
from slime_router.trajectory.session import Session, SessionSpec
from slime_router.trajectory.session_table import SessionTable
from slime_router.trajectory.turn import Marks, Trace, Turn
from slime_router.types import TokenIds
from slime_router.values import replace

MAX_SESSIONS = 100_000
SLICE_TURNS = 64  # dropped before others get to run: one to two milliseconds
SLICE_SESSIONS = 4096  # looked at before others get to run


class TrajectoryStore:
    """Turns by id and by conversation, and the sessions that they belong to."""

    def __init__(
        self, budget_tokens: int, *, max_sessions: int = MAX_SESSIONS, owners: Collection[str] = ()
    ) -> None:
        self.sessions = SessionTable(max_sessions, owners)
        self._budget_tokens = budget_tokens
        self._turns: dict[str, Turn] = {}
        self._children: dict[str, dict[str, None]] = {}
        self._waiting = EvictionQueue()
        self._conversations = Conversations()
        self._held = HeldTokens(self._turns)
        self._prefixes = PrefixIndex(self._held.ids)
        self._handles = Handles()
        self.ledger = Ledger(self._turns)
        self._indexes = (self._conversations, self._handles, self.ledger)
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
        """Whether the client read the reply to its end, as far as that can be known."""
        return turn_id in self._turns and turn_id not in self._undelivered

    def mark_undelivered(self, turn_id: str) -> None:
        """The client left before it had the whole reply."""
        if turn_id in self._turns:
            self._undelivered.add(turn_id)

    def mark(self, turn_id: str, **marks: Unpack[Marks]) -> Turn:
        """Give a turn other marks. Raises KeyError where there is no such turn."""
        before = self._turns[turn_id]
        turn = self._turns[turn_id] = replace(before, **marks)
        self.sessions.remarked(self._session_of(turn), before, turn)
        return turn

    # Recording

    def add(self, turn: Turn) -> Turn:
        """Record a turn whole; returns it with its sequence number.

        Raises:
            KeyError: its base is not in the store.
            ValueError: its arrays do not belong together, or its id is taken.
            NotFound: its session was deleted.
            Conflict: its session is closed.
        """
        if turn.id in self._turns:
            raise ValueError(f"turn {turn.id} is recorded already")
        turn.check(None if turn.base is None else self._turns[turn.base])
        session = None if turn.session_id is None else self.sessions.name(turn.session_id)
        if session is not None:
            self._check_open(session)
        self._seq = seq = self.next_seq
        if turn.seq != seq:
            turn = replace(turn, seq=seq)
        self._file(turn, session)
        self._enforce_budget()
        return turn

    @property
    def next_seq(self) -> int:
        """The sequence number of the turn that comes next: one made with it is not copied."""
        return self._seq + 1

    def _check_open(self, session: Session) -> None:
        session.check_not_closed()

    def _file(self, turn: Turn, session: Session | None) -> None:
        """Make a turn with its number known."""
        self._turns[turn.id] = turn
        if session is not None:
            self.sessions.gain(session, turn, self._age)
            self._pinned_tokens += turn.own_len * session.is_pinned
        self._tokens += turn.own_len
        self._release(turn)
        if turn.base is not None:
            self._children.setdefault(turn.base, {})[turn.id] = None
            self._waiting.take(turn.base)
        self._prefixes.add(turn, None if turn.base is None else self._turns[turn.base])
        for index in self._indexes:
            index.file(turn)

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
        return self._used(self._conversations.find(key, session_id, taken, spelling))

    def of_handle(self, handle: str, session_id: str | None, scope: str = "") -> Turn | None:
        """The turn of this scope and session that alone has this id of a call, or this own id."""
        return self._used(self.ids_of_handles((handle,), session_id, scope)[0])

    def ids_of_handles(
        self, handles: Sequence[str], session_id: str | None, scope: str = ""
    ) -> list[str | None]:
        """The id of each turn that `of_handle` finds, in order; none of them counts as used."""
        return self._handles.ids(handles, self._turns, session_id, scope)

    def count_alike(self, key: bytes, session_id: str | None) -> int:
        """How many turns `find` could choose from."""
        return self._conversations.count(key, session_id)

    def deepest_prefix(self, ids: TokenIds, session_id: str, scope: str = "") -> Turn | None:
        """The turn of this session and scope with the most held tokens that all begin `ids`."""
        return self._used(self._prefixes.deepest(ids, session_id, scope))

    def _used(self, turn_id: str | None) -> Turn | None:
        if turn_id is None:
            return None
        self._waiting.touch(turn_id, self._age)
        return self._turns[turn_id]

    def held_ids(self, turn_id: str, length: int | None = None) -> TokenIds:
        """The first `length` held tokens of a turn (all by default); read-only.

        Raises:
            KeyError: no such turn.
        """
        return self._held.ids(turn_id, length)

    def trace(self, turn_id: str, length: int | None = None) -> Trace:
        """`held_ids` with loss mask, logprobs and weight versions; raises what that raises."""
        return self._held.trace(turn_id, length)

    # Sessions

    def open_session(self, spec: SessionSpec, *, at: float | None = None) -> Session:
        """A new session whose turns are kept until it is closed and exported; `at` is Unix time.

        Raises:
            Conflict: there is one with this id.
            TooManyRequests: there are as many as there may be.
            StorageFull: what nothing can drop fills the store.
        """
        self.check_room()
        return self.sessions.open(spec, age=self._age, at=at)

    def freeze(self, session: Session) -> None:
        """Close a session: it takes no more turns.

        Raises:
            TooManyRequests: nobody opened it, and its owner has as many as it may have.
        """
        if session.state == "closed":
            return
        was_pinned = session.is_pinned
        self.sessions.mark_closed(session, self._age)
        if not was_pinned:  # nobody opened it, but now somebody cares about it
            self._pinned_tokens += session.held_tokens
            for turn_id in session.turns:
                self._waiting.take(turn_id)

    def mark_exported(self, session_id: str) -> None:
        """Somebody has all of it; if it is closed, it may be dropped after everything else."""
        session = self.sessions.find(session_id)
        if session is None:
            return
        session.used(self._age)
        if not session.exported():
            return
        self._pinned_tokens -= session.held_tokens
        for turn_id in session.turns:
            self._release(self._turns[turn_id])
        self._enforce_budget()

    def delete_session(self, session_id: str) -> None:
        """Forget a session and its turns; turns that others build on stay, without a session.

        Raises:
            NotFound: there is none, or it was deleted before.
        """
        session = self.sessions.get(session_id)
        if session.is_pinned:
            self._pinned_tokens -= session.held_tokens
        self.sessions.forget(session, is_deleted=True)
        for turn_id in reversed(tuple(session.turns)):
            turn = self._turns[turn_id]
            self._conversations.leave_session(turn)
            self._prefixes.remove(turn)
            self._turns[turn_id] = turn = replace(turn, session_id=None)
            if turn_id not in self._children:
                self._remove(turn)

    def leave_session(self, session: Session, *, has_turn: bool = False) -> None:
        """A call of the session ended; a session that is only a name is forgotten.

        `has_turn`: it had been let in.
        """
        if has_turn:
            session.left(self._age)
        else:
            session.used(self._age)
        if not session.is_used:
            self.sessions.forget(session, is_deleted=False)

    def sweep(self, max_age: int) -> Iterator[int]:
        """One more age has passed: drop what was not used for `max_age` of them, but open sessions.

        Yields how many turns each step has dropped; others may use the store in between.
        """
        self._age += 1
        oldest = self._age - max_age

        def may_go(turn: Turn) -> bool:
            session = self._session_of(turn)
            is_unused = session is None or (session.age < oldest and not session.running)
            return is_unused and self._waiting.age(turn.id) < oldest

        for dropped in self._drop_in_steps(self._waiting.older_than(oldest), may_go):
            self.expired_turns += dropped
            yield dropped
        for number, session in enumerate(self.sessions):
            is_here = self.sessions.is_current(session)
            if is_here and session.state == "closed" and session.age < oldest:
                self.dropped_turns += (dropped := len(session.turns))
                self.expired_turns += dropped
                self.delete_session(session.id)
                yield dropped
            elif number % SLICE_SESSIONS == SLICE_SESSIONS - 1:
                yield 0
        while self._enforce_budget():
            yield 0

    def drop_older(self, epoch: int) -> Iterator[int]:
        """Drop, as `sweep` does, turns of weight epochs before `epoch` that no session keeps."""
        return self._drop_in_steps(
            self._waiting.idle,
            lambda turn: turn.epoch < epoch and self._waiting.is_idle(turn.id),
        )

    # Dropping

    def _session_of(self, turn: Turn) -> Session | None:
        return None if turn.session_id is None else self.sessions.find(turn.session_id)

    def _release(self, turn: Turn, *, last_used: int | None = None) -> None:
        """Queue a turn that nothing builds on for eviction, unless an open session keeps it.

        What built on it until now was used at `last_used`: it is older than that.
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

    def _enforce_budget(self) -> bool:
        """Drop what is over the budget, or a part of it; returns whether there may be more."""
        for _ in range(SLICE_TURNS):
            turn_id = self._waiting.next_to_go()
            if self._tokens <= self._budget_tokens or turn_id is None:
                return False
            self._drop(self._turns[turn_id])
        return True

    def _drop_in_steps(self, turn_ids: list[str], may_go: Callable[[Turn], bool]) -> Iterator[int]:
        """Drop those of the waiting turns that may go, and then those that they were based on."""
        turn_ids.reverse()  # the oldest first
        while turn_ids:
            dropped = 0
            for _ in range(min(SLICE_TURNS, len(turn_ids))):
                turn = self._turns.get(turn_ids.pop())
                if turn is None or turn.id not in self._waiting or not may_go(turn):
                    continue
                self._drop(turn)
                dropped += 1
                if turn.base is not None:
                    turn_ids.append(turn.base)
            yield dropped

    def _drop(self, turn: Turn) -> None:
        self.dropped_turns += 1
        session = self._session_of(turn)
        self._remove(turn)
        self.sessions.lose(session, turn)
        if session is not None and not session.is_used:
            self.sessions.forget(session, is_deleted=False)

    def _remove(self, turn: Turn) -> None:
        last_used = self._waiting.take(turn.id)
        del self._turns[turn.id]
        self._undelivered.discard(turn.id)
        self._tokens -= turn.own_len
        for index in self._indexes:
            index.unfile(turn)
        self._prefixes.remove(turn)
        self._held.forget(turn.id)
        if turn.base is None:
            return
        del (siblings := self._children[turn.base])[turn.id]
        if not siblings:
            del self._children[turn.base]
            self._release(self._turns[turn.base], last_used=last_used)

    def check_integrity(self) -> None:
        """Recount everything. Raises AssertionError with what is broken."""
        self._check_waiting(*check_tree(self._turns, self._children, self._session_of))
        assert self._tokens == sum(t.own_len for t in self._turns.values()), "tokens miscounted"
        for index in (*self._indexes, self._prefixes):
            index.check_integrity(self._turns)
        self._held.check_integrity()
        assert self._undelivered <= self._turns.keys()
        self.sessions.check_turns(self._turns, pinned_tokens=self._pinned_tokens)

    def _check_waiting(self, idle: set[str], exported: set[str]) -> None:
        self._waiting.check_integrity(idle=idle, exported=exported)
