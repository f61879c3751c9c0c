"""Sessions in the trajectory store: what is kept, what goes, what is found, against plain lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from slime_router.errors import Conflict, NotFound
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn
from slime_router.types import Finish, token_ids
from tests.examples import examples

NAMES = ("s", "t", "u")
PINNED = ("open", "closed")

numbers = st.integers(0, 1000)
names = st.sampled_from(NAMES)
tokens = st.lists(st.integers(0, 2), max_size=3)


@dataclass(eq=False)
class Known:
    """A turn as it was given to the store."""

    id: str
    session: str | None
    held: list[int]
    epoch: int
    base: str | None


class SessionMachine(RuleBasedStateMachine):
    @initialize(budget=st.integers(5, 60))
    def begin(self, budget: int) -> None:
        self.budget = budget
        self.store = TrajectoryStore(budget, max_sessions=len(NAMES))
        self.known: dict[str, Known] = {}
        self.states: dict[str, str] = {}  # of sessions that were opened or closed
        self.deleted: set[str] = set()
        self.closed_late: set[str] = set()  # what nobody opened may have lost turns before
        self.count = 0

    def held(self) -> list[Known]:
        """What the store should know: all that was given and that it still has."""
        return [known for known in self.known.values() if known.id in self.store]

    @rule(name=names)
    def open(self, name: str) -> None:
        if self.store.pinned_tokens >= self.budget:
            return
        if self.store.sessions.find(name) is not None:
            with pytest.raises(Conflict):
                self.store.open_session(SessionSpec(id=name))
            return
        self.store.open_session(SessionSpec(id=name))
        self.states[name] = "open"
        self.closed_late.discard(name)
        self.deleted.discard(name)

    @rule(
        name=st.one_of(st.none(), names),
        number=numbers,
        is_root=st.booleans(),
        cut=numbers,
        prompt=tokens,
        output=tokens,
        epoch=st.integers(0, 3),
    )
    def add(self, name, number, is_root, cut, prompt, output, epoch) -> None:
        """A turn extends one of its own session, branches off inside it, or begins again."""
        own = [known for known in self.held() if known.session == name]
        base = None if is_root or not own else own[number % len(own)]
        base_len = cut % (len(base.held) + 1) if base else 0
        self.count += 1
        turn = Turn(
            id=f"turn{self.count}",
            base=base.id if base else None,
            base_len=base_len,
            prompt_ids=token_ids(prompt),
            output_ids=token_ids(output),
            logprobs=None,
            weight_versions=(),
            finish=Finish("length"),
            keys=(b"key",),
            session_id=name,
            epoch=epoch,
        )
        if name in self.deleted:
            with pytest.raises(NotFound):
                self.store.add(turn)
        elif name is not None and self.states.get(name) in ("closed", "exported"):
            with pytest.raises(Conflict):
                self.store.add(turn)
        else:
            self.store.add(turn)
            held = (base.held[:base_len] if base else []) + prompt + output
            self.known[turn.id] = Known(turn.id, name, held, epoch, turn.base)

    @rule(name=names)
    def close(self, name: str) -> None:
        session = self.store.sessions.find(name)
        if session is not None:
            self.store.freeze(session)
            if name not in self.states:
                self.closed_late.add(name)
            self.states.setdefault(name, "closed")
            if self.states[name] == "open":
                self.states[name] = "closed"

    @rule(name=names)
    def export(self, name: str) -> None:
        """What is closed and exported may be dropped from now on."""
        self.store.mark_exported(name)
        if self.states.get(name) == "closed":
            self.states[name] = "exported"

    @rule(name=names)
    def delete(self, name: str) -> None:
        """Its turns go, but for those that turns of others stand on: there are none here."""
        if self.store.sessions.find(name) is None:
            with pytest.raises(NotFound):
                self.store.delete_session(name)
            return
        self.store.delete_session(name)
        self.states.pop(name, None)
        self.deleted.add(name)
        assert not [known for known in self.held() if known.session == name]

    @rule(name=names, ids=st.lists(st.integers(0, 2), max_size=12))
    def find_a_prefix(self, name: str, ids: list[int]) -> None:
        self.compare_prefix(name, ids)

    @rule(name=names, number=numbers, more=tokens)
    def find_a_turn_again(self, name: str, number: int, more: list[int]) -> None:
        own = [known for known in self.held() if known.session == name]
        if own:
            self.compare_prefix(name, own[number % len(own)].held + more)

    def compare_prefix(self, name: str, ids: list[int]) -> None:
        """The longest of the session's turns that begins the ids, of equal ones the newest."""
        fitting = [
            known
            for known in self.held()
            if known.session == name and ids[: len(known.held)] == known.held
        ]
        order = list(self.known)
        wanted = max(fitting, key=lambda k: (len(k.held), order.index(k.id)), default=None)
        found = self.store.deepest_prefix(token_ids(ids), name)
        assert (found.id if found else None) == (wanted.id if wanted else None)

    @rule(max_age=st.integers(1, 3))
    def sweep(self, max_age: int) -> None:
        """What goes belonged to no open session; a closed one that lost all is gone."""
        before = {known.id for known in self.held()}
        gone = sum(self.store.sweep(max_age))
        after = {known.id for known in self.held()}
        assert gone == len(before - after)
        self.forget_closed()

    @rule(epoch=st.integers(0, 3))
    def drop_older(self, epoch: int) -> None:
        """Old turns that nothing newer stands on go, where nobody opened or closed a session."""
        bases = {known.base for known in self.held() if known.epoch >= epoch}
        kept = {known.id for known in self.held() if known.session in self.states}
        list(self.store.drop_older(epoch))
        after = {known.id for known in self.held()}
        assert kept <= after
        for known in self.held():
            stands_under = any(other.base == known.id for other in self.held())
            assert known.epoch >= epoch or known.id in bases | kept or stands_under

    def forget_closed(self) -> None:
        for name, state in list(self.states.items()):
            if state in ("closed", "exported") and self.store.sessions.find(name) is None:
                del self.states[name]
                self.deleted.add(name)

    @invariant()
    def sessions_lose_nothing_before_they_are_exported(self) -> None:
        for known in self.known.values():
            if self.states.get(known.session or "") in PINNED and known.session not in self.deleted:
                session = self.store.sessions.get(str(known.session))
                assert known.id in self.store or known.id not in session.turns

    @invariant()
    def sessions_say_what_they_hold_and_lost(self) -> None:
        for session in self.store.sessions:
            assert session.recorded_turns == len(session.turns) + session.dropped_turns
            if self.states.get(session.id) in PINNED and session.id not in self.closed_late:
                assert session.dropped_turns == 0
            for turn_id in session.turns:
                assert np.array_equal(self.store.held_ids(turn_id), self.known[turn_id].held)

    @invariant()
    def the_budget_holds_as_far_as_it_can(self) -> None:
        if self.store.tokens <= self.budget:
            return
        pinned = {k.id for k in self.held() if self.states.get(k.session or "") in PINNED}
        bases = {known.base for known in self.held()}
        free = [k for k in self.held() if k.id not in pinned and k.id not in bases]
        assert len(free) <= 1, "something could have gone"

    @invariant()
    def all_is_whole(self) -> None:
        self.store.check_integrity()


SessionMachine.TestCase.settings = settings(
    max_examples=examples(60),
    stateful_step_count=40,
)
TestSessions = SessionMachine.TestCase
