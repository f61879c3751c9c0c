"""The fair queue against a slow one that says in plain words what must hold."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slime_router.generation.fair_queue import FairQueue

PARTIES = st.sampled_from("abcde")
MAX_LEN = 6


class Model:
    """A list of (party, item) by age, and a list of the parties by turn."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, int]] = []
        self.turns: list[str] = []

    def items(self, party: str) -> list[int]:
        return [item for owner, item in self.waiting if owner == party]

    def add(self, party: str, item: int) -> None:
        self.waiting.append((party, item))
        if party not in self.turns:
            self.turns.append(party)

    def remove(self, item: int) -> None:
        self.waiting = [entry for entry in self.waiting if entry[1] != item]
        self.turns = [party for party in self.turns if self.items(party)]

    def pop(self) -> int:
        party = self.turns.pop(0)
        self.turns.append(party)
        item = self.items(party)[0]
        self.remove(item)
        return item


class Queues(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue(MAX_LEN)
        self.model = Model()
        self.next_item = 0

    @rule(party=PARTIES)
    def push(self, party: str) -> None:
        self.next_item += 1
        item = self.next_item
        out = self.queue.push(party, item)
        counts = {name: len(self.model.items(name)) for name in "abcde"}
        if len(self.model.waiting) < MAX_LEN:
            assert out is None
        elif max(counts.values()) <= counts[party] + 1:
            assert out == item
        else:
            newest_of_longest = {
                self.model.items(name)[-1]
                for name, count in counts.items()
                if count == max(counts.values())
            }
            assert out in newest_of_longest
            self.model.remove(out)
        if out != item:
            self.model.add(party, item)

    @precondition(lambda self: self.model.waiting)
    @rule()
    def pop(self) -> None:
        assert self.queue.pop() == self.model.pop()

    @rule(party=PARTIES, data=st.data())
    def discard(self, party: str, data: st.DataObject) -> None:
        """What is there, what was there, and what never was; under its own party only."""
        item = data.draw(st.integers(0, self.next_item))
        self.queue.discard(party, item)
        if item in self.model.items(party):
            self.model.remove(item)

    @invariant()
    def nothing_else_is_kept(self) -> None:
        assert len(self.queue) == len(self.model.waiting) <= MAX_LEN
        assert {party: list(items) for party, items in self.queue._parties.items()} == {
            party: self.model.items(party) for party in self.model.turns
        }
        assert list(self.queue._parties) == self.model.turns
        lengths = {party: len(items) for party, items in self.queue._parties.items()}
        by_len = {party: n for n, names in self.queue._by_len.items() for party in names}
        assert by_len == lengths
        assert all(self.queue._by_len.values())
        assert self.queue._longest == max(lengths.values(), default=0)


TestQueues = Queues.TestCase
TestQueues.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
