"""The fair queue against a slow one that says in plain words what must hold."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slime_router.waiting.fair_queue import FairQueue, Party, _Lengths
from tests.examples import examples

PARTIES = st.builds(Party, st.sampled_from(["", "ann", "bob"]), st.sampled_from("abc"))
MAX_LEN = 6


class Model:
    """A list of (party, item) by age, and lists by turn: of owners, and of each owner's parties."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Party, int]] = []
        self.owners: list[str] = []
        self.parties: list[Party] = []

    def items(self, party: Party) -> list[int]:
        return [item for other, item in self.waiting if other == party]

    def count(self, owner: str) -> int:
        return sum(party.owner == owner for party, _ in self.waiting)

    def add(self, party: Party, item: int) -> None:
        self.waiting.append((party, item))
        if party.owner not in self.owners:
            self.owners.append(party.owner)
        if party not in self.parties:
            self.parties.append(party)

    def remove(self, item: int) -> None:
        self.waiting = [entry for entry in self.waiting if entry[1] != item]
        self.owners = [owner for owner in self.owners if self.count(owner)]
        self.parties = [party for party in self.parties if self.items(party)]

    def pop(self) -> int:
        owner = self.owners.pop(0)
        self.owners.append(owner)
        party = next(each for each in self.parties if each.owner == owner)
        self.parties.remove(party)
        self.parties.append(party)
        item = self.items(party)[0]
        self.remove(item)
        return item

    def may_give_way_to(self, party: Party) -> set[int]:
        """The newest items of the parties that have the most, of the owners that have the most."""
        most = max(map(self.count, self.owners))
        owners = [owner for owner in self.owners if self.count(owner) == most]
        if most <= self.count(party.owner) + 1:
            owners = [party.owner]
        givers: set[int] = set()
        for owner in owners:
            own = [each for each in self.parties if each.owner == owner]
            longest = max((len(self.items(each)) for each in own), default=0)
            if owner == party.owner and longest <= len(self.items(party)) + 1:
                continue
            givers |= {self.items(each)[-1] for each in own if len(self.items(each)) == longest}
        return givers


class Queues(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue(MAX_LEN)
        self.model = Model()
        self.next_item = 0

    @rule(party=PARTIES)
    def push(self, party: Party) -> None:
        self.next_item += 1
        item = self.next_item
        is_full = len(self.model.waiting) == MAX_LEN
        givers = self.model.may_give_way_to(party) if is_full else set()
        out = self.queue.push(party, item)
        if not is_full:
            assert out is None
        elif out != item:
            assert out in givers
            self.model.remove(out)
        else:
            assert not givers
        if out != item:
            self.model.add(party, item)

    @precondition(lambda self: self.model.waiting)
    @rule()
    def pop(self) -> None:
        assert self.queue.pop() == self.model.pop()

    @rule(party=PARTIES, data=st.data())
    def discard(self, party: Party, data: st.DataObject) -> None:
        """What is there, what was there, and what never was; under its own party only."""
        item = data.draw(st.integers(0, self.next_item))
        self.queue.discard(party, item)
        if item in self.model.items(party):
            self.model.remove(item)

    @invariant()
    def nothing_else_is_kept(self) -> None:
        assert len(self.queue) == len(self.model.waiting) <= MAX_LEN
        assert list(self.queue._owners) == self.model.owners
        for owner, rota in self.queue._owners.items():
            own = [party for party in self.model.parties if party.owner == owner]
            assert {name: list(items) for name, items in rota.parties.items()} == {
                party.name: self.model.items(party) for party in own
            }
            assert list(rota.parties) == [party.name for party in own]
            self.compare(rota.lengths, {p.name: len(self.model.items(p)) for p in own})
        self.compare(self.queue._lengths, {o: self.model.count(o) for o in self.model.owners})

    @staticmethod
    def compare(known: _Lengths, lengths: dict[str, int]) -> None:
        assert known._lens == lengths
        by_len = {name: n for n, names in known._by_len.items() for name in names}
        assert by_len == lengths
        assert all(known._by_len.values())
        assert known.longest == max(lengths.values(), default=0)
        assert known.total == sum(lengths.values())


TestQueues = Queues.TestCase
TestQueues.settings = settings(max_examples=examples(60), stateful_step_count=40)
