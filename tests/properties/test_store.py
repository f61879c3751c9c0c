"""The trajectory store against a model that keeps every turn's tokens whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Account, Trace, Turn, logprob_array
from slime_router.types import Finish, VersionSpan, token_ids
from tests.examples import examples

SESSIONS = (None, "s", "t")
KEYS = (b"k", b"l", b"m")

# A token as training sees it: id, loss mask, logprob (None where there is none), weight version.
Token = tuple[int, int, float | None, Any]

numbers = st.integers(0, 1000)
sessions = st.sampled_from(SESSIONS)
prompts = st.lists(st.integers(0, 9), max_size=4)
logprobs = st.one_of(st.none(), st.floats(-9, 0), st.floats(-9, 0, width=32))
outputs = st.lists(st.tuples(st.integers(0, 9), logprobs), max_size=4)
versions = st.sampled_from(["default", "v2", 3])


@dataclass(eq=False)
class Known:
    """What the model knows of a turn."""

    turn: Turn
    base: Known | None
    held: list[Token]
    own_len: int
    stamp: float
    seq: int
    is_delivered: bool = True


class StoreMachine(RuleBasedStateMachine):
    @initialize(budget=st.integers(0, 40), kept=st.sampled_from((0, 12, 10**9)))
    def open(self, budget: int, kept: int) -> None:
        self.budget = budget
        self.store = TrajectoryStore(budget)
        self.store._held._kept_tokens = kept
        self.known: list[Known] = []
        self.gone: list[str] = []
        self.clock = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def leaves(self) -> list[Known]:
        bases = {id(known.base) for known in self.known}
        return [known for known in self.known if id(known) not in bases]

    def tokens(self) -> int:
        return sum(known.own_len for known in self.known)

    def some(self, number: int) -> Known | None:
        return self.known[number % len(self.known)] if self.known else None

    @rule(
        base=st.one_of(st.none(), numbers),
        cut=st.one_of(st.none(), numbers),
        prompt=prompts,
        output=outputs,
        has_logprobs=st.booleans(),
        split=st.integers(0, 4),
        named=st.tuples(versions, versions),
        keys=st.lists(st.sampled_from(KEYS), max_size=2, unique=True),
        session=sessions,
    )
    def add(self, base, cut, prompt, output, has_logprobs, split, named, keys, session) -> None:
        """A turn extends its base (`cut` None) or branches off inside it; old leaves give way."""
        under = None if base is None else self.some(base)
        held = under.held if under else []
        base_len = len(held) if cut is None else cut % (len(held) + 1)
        bounds = sorted({0, min(split, len(output)), len(output)})
        spans = tuple(
            VersionSpan(version, start, end)
            for version, start, end in zip(named, bounds, bounds[1:], strict=False)
        )
        turn = Turn(
            id=f"turn{self.tick()}",
            base=under.turn.id if under else None,
            base_len=base_len,
            prompt_ids=token_ids(prompt),
            output_ids=token_ids([token for token, _ in output]),
            logprobs=logprob_array([value for _, value in output]) if has_logprobs else None,
            weight_versions=spans,
            finish=Finish("length"),
            keys=tuple(keys),
            session_id=session,
            account=Account(started=0.0, duration_s=0.0, rid=f"r{split}", words=bytes(split)),
        )
        recorded = self.store.add(turn)
        assert recorded.seq > max((known.seq for known in self.known), default=0)
        tail: list[Token] = [(token, 0, None, None) for token in prompt]
        for index, (token, value) in enumerate(output):
            version = next(span.version for span in spans if span.start <= index < span.end)
            tail.append((token, 1, value if has_logprobs else None, version))
        held = held[:base_len] + tail
        self.known.append(Known(recorded, under, held, len(tail), self.tick(), recorded.seq))
        self.drop_to_budget()

    def drop_to_budget(self) -> None:
        """The least recently used turn that nobody stands on; then the one that it stood on."""
        while self.tokens() > self.budget and len(self.leaves()) > 1:
            oldest = min(self.leaves(), key=lambda known: known.stamp)
            self.known.remove(oldest)
            self.gone.append(oldest.turn.id)
            if oldest.base in self.leaves():
                assert oldest.base is not None
                oldest.base.stamp = -self.tick()

    @rule(key=st.sampled_from(KEYS), session=sessions)
    def find(self, key: bytes, session: str | None) -> None:
        """The newest turn of a conversation; a named session finds its own only."""
        found = self.store.find(key, session)
        wanted = max(
            (
                known
                for known in self.known
                if key in known.turn.keys and session in (None, known.turn.session_id)
            ),
            key=lambda known: known.seq,
            default=None,
        )
        assert found == (wanted.turn if wanted else None)
        if wanted in self.leaves():
            assert wanted is not None
            wanted.stamp = self.tick()

    @rule(number=numbers, cut=numbers)
    def read_a_part(self, number: int, cut: int) -> None:
        known = self.some(number)
        if known is not None:
            length = cut % (len(known.held) + 1)
            self.compare(self.store.trace(known.turn.id, length), known.held[:length])
            ids = self.store.held_ids(known.turn.id, length)
            assert ids.tolist() == [token for token, *_ in known.held[:length]]

    @rule(number=numbers)
    def leave(self, number: int) -> None:
        known = self.some(number)
        if known is not None:
            self.store.mark_undelivered(known.turn.id)
            known.is_delivered = False

    @rule(number=numbers)
    def leave_what_is_gone(self, number: int) -> None:
        if self.gone:
            self.store.mark_undelivered(self.gone[number % len(self.gone)])

    @rule(number=numbers, fault=st.sampled_from(["base", "length", "id", "logprobs"]))
    def refuse(self, number: int, fault: str) -> None:
        """A turn that does not fit raises and changes nothing."""
        known = self.some(number)
        if known is None:
            return
        good: dict[str, Any] = {
            "id": "new",
            "base": known.turn.id,
            "base_len": len(known.held),
            "prompt_ids": token_ids([1]),
            "output_ids": token_ids([2]),
            "logprobs": None,
            "weight_versions": (),
            "finish": Finish("length"),
        }
        faults: dict[str, dict[str, Any]] = {
            "base": {"base": "never recorded"},
            "length": {"base_len": len(known.held) + 1},
            "id": {"id": known.turn.id},
            "logprobs": {"logprobs": logprob_array([-1.0, -2.0])},
        }
        with pytest.raises(KeyError if fault == "base" else ValueError):
            self.store.add(Turn(**{**good, **faults[fault]}))
        assert "new" not in self.store

    @staticmethod
    def compare(trace: Trace, held: list[Token]) -> None:
        assert not trace.ids.flags.writeable
        assert trace.ids.dtype == np.int32
        read = zip(
            trace.ids.tolist(),
            trace.loss_mask.tolist(),
            [None if math.isnan(value) else value for value in trace.logprobs.tolist()],
            trace.weight_versions,
            strict=True,
        )
        assert list(read) == held

    @invariant()
    def the_store_is_whole(self) -> None:
        self.store.check_integrity()

    @invariant()
    def the_model_agrees(self) -> None:
        assert len(self.store) == len(self.known)
        assert self.store.tokens == self.tokens()
        assert self.store.dropped_turns == len(self.gone)
        for known in self.known:
            assert self.store.get(known.turn.id) == known.turn
            assert known.turn.held_len == len(known.held)
            assert self.store.is_delivered(known.turn.id) is known.is_delivered
            self.compare(self.store.trace(known.turn.id), known.held)
        for turn_id in self.gone:
            assert turn_id not in self.store
            assert not self.store.is_delivered(turn_id)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=examples(60),
    stateful_step_count=30,
)
