"""Workers and sessions against slow models: what happened, in full, says what the state is."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slime_router.errors import Conflict
from slime_router.pool.worker import Worker
from slime_router.trajectory.session import Session, SessionSpec

versions = st.sampled_from(["v1", "v2", 3])
maybe_versions = st.one_of(st.none(), versions)


class WorkerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.worker = Worker("http://a")
        self.leases: list[int] = []  # prompt tokens of each open one
        self.latest = 0
        self.is_up = True
        self.rests: set[str] = set()
        self.leaves = False
        self.refuses = False
        self.misfit: str | None = None
        self.was_greeted = False
        self.version: str | int | None = None
        self.updates: list[str | int | None] = []  # the versions before those under way
        self.asked: list[str | int | None] = []  # known when each answer under way was asked for

    @rule(pending=st.integers(0, 9))
    def lease(self, pending):
        self.latest += 1
        self.worker.leased(self.latest, pending)
        self.leases.append(pending)

    @precondition(lambda self: self.leases)
    @rule()
    def end(self):
        self.worker.computed(self.leases.pop())
        self.worker.returned()

    @precondition(lambda self: not self.leases)
    @rule()
    def end_of_nothing(self):
        with pytest.raises(ValueError, match="nothing in flight"):
            self.worker.returned()

    @rule(was_stopped=st.booleans())
    def fall(self, was_stopped):
        assert self.worker.went_down("it hangs", was_stopped=was_stopped) is self.is_up
        self.is_up, self.version, self.refuses = False, None, False
        if was_stopped:
            self.rests.clear()
            self.was_greeted = False

    @rule()
    def greet(self):
        self.worker.greeted()
        self.was_greeted = True

    @rule()
    def rise(self):
        assert self.worker.came_up() is not self.is_up
        self.is_up = True

    @rule(rests=st.sets(st.sampled_from(["paused", "asleep"])))
    def rest(self, rests):
        self.worker.rested(is_paused="paused" in rests, is_asleep="asleep" in rests)
        self.rests = set(rests)

    @rule()
    def leave(self):
        self.worker.asked_to_leave()
        self.leaves = True

    @rule(priority=st.integers(0, 3))
    def register(self, priority):
        self.worker.register(priority=priority)
        self.leaves = False
        assert self.worker.registration.priority == priority

    @rule(refuses=st.booleans())
    def refuse(self, refuses):
        assert self.worker.refuses(refuses) is (refuses != self.refuses)
        self.refuses = refuses

    @rule(misfit=st.sampled_from([None, "a stranger", "other tokens"]))
    def judge(self, misfit):
        assert self.worker.judged(misfit) is (misfit != self.misfit)
        self.misfit = misfit

    @rule()
    def ask(self):
        self.asked.append(self.version)

    @precondition(lambda self: self.asked)
    @rule(version=versions)
    def answer(self, version):
        known = self.asked.pop(0)
        is_news = self.version == known != version
        assert self.worker.observed(version, known=known) is is_news
        if self.version == known:
            self.version = version

    @rule()
    def start_update(self):
        before = self.worker.update_started()
        assert before == self.version
        self.updates.append(before)
        self.version = None

    @precondition(lambda self: self.updates)
    @rule(version=maybe_versions)
    def take_update(self, version):
        before = self.updates.pop()
        self.worker.update_taken(version, before=before)
        if version is not None:
            self.version = version
        elif self.version is None:
            self.version = before

    @invariant()
    def agrees(self):
        worker = self.worker
        assert worker.in_flight == len(self.leases)
        assert worker.pending_tokens == sum(self.leases)
        assert worker.last_lease == self.latest
        assert worker.weight_version == self.version
        assert worker.is_resting is bool(self.rests)
        takes = self.is_up and not self.leaves and not self.refuses and self.misfit is None
        assert worker.is_there is takes
        if self.leaves:
            assert worker.state == "draining"
        elif not takes or not self.was_greeted:
            assert worker.state == "not_ready"
            assert worker.reason
        else:
            assert worker.state == ("paused" if self.rests else "ready")
            assert worker.reason is None


class SessionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.session = Session(SessionSpec(id="s"), is_opened=False)
        self.history: list[str] = []
        self.closers: list[object] = []
        self.running = 0

    @property
    def is_closed(self) -> bool:
        return "frozen" in self.history

    @rule()
    def enter(self):
        if self.is_closed or self.closers:
            with pytest.raises(Conflict):
                self.session.entered()
        else:
            self.session.entered()
            self.running += 1

    @rule()
    def leave(self):
        if self.running:
            self.session.left(1)
            self.running -= 1
        else:
            with pytest.raises(ValueError, match="no turn runs"):
                self.session.left(1)

    @rule()
    def start_closing(self):
        closing = self.session.closing()
        closing.__enter__()
        self.closers.append(closing)

    @precondition(lambda self: self.closers)
    @rule(is_interrupted=st.booleans())
    def stop_closing(self, is_interrupted):
        """In any order: two requests may close it, and either may be interrupted."""
        closing = self.closers.pop(0)
        error = KeyboardInterrupt() if is_interrupted else None
        with suppress(KeyboardInterrupt):
            closing.__exit__(type(error) if error else None, error, None)  # type: ignore[attr-defined]

    @rule()
    def freeze(self):
        if self.is_closed:
            with pytest.raises(Conflict):
                self.session.freeze(2)
        else:
            assert self.session.freeze(2), "nobody opened it"
            self.history.append("frozen")

    @rule()
    def export(self):
        ends = self.is_closed and "exported" not in self.history
        assert self.session.exported() is ends
        if ends:
            self.history.append("exported")

    @invariant()
    def agrees(self):
        session = self.session
        state = "closed" if self.is_closed else "closing" if self.closers else "implicit"
        assert session.state == state
        assert session.running == self.running
        assert session.was_opened is self.is_closed
        assert session.is_pinned is (self.is_closed and "exported" not in self.history)
        assert session.is_used is bool(state != "implicit" or self.running)


TestWorker = WorkerMachine.TestCase
TestSession = SessionMachine.TestCase


def test_nothing_is_set_from_outside():
    """That nothing writes a worker's fields is for `test_architecture` to say."""
    session = Session(SessionSpec(id="s"), is_opened=True)
    for name in ("state", "running", "turns", "age", "reward", "was_exported", "held_tokens"):
        with pytest.raises(AttributeError):
            setattr(session, name, 1)
