"""The table of sessions: how many bytes they may take, and what a reward costs to give."""

from __future__ import annotations

import pytest

from slime_router.auth.owners import owned
from slime_router.errors import Conflict, StorageFull
from slime_router.generation.sessions import SessionFlight, Sessions
from slime_router.json_text import size_of
from slime_router.trajectory import session_table
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.session_table import SessionTable
from slime_router.trajectory.store import TrajectoryStore
from slime_router.types import GenerateCall, Sampling
from tests.effort import opcodes
from tests.unit.test_prefixes import turn


@pytest.mark.parametrize(
    "spec",
    [{"metadata": {"note": "x" * 3_000}}, {"sampling": Sampling(stop=("x" * 3_000,))}],
    ids=["metadata", "sampling"],
)
def test_what_sessions_bring_along_has_a_budget_of_which_each_owner_has_a_share(spec, monkeypatch):
    monkeypatch.setattr(session_table, "MAX_BYTES", 20_000)
    table = SessionTable(100, ["ann", "bob"])
    opened = [table.open(SessionSpec(id=owned("ann", str(number)), **spec)) for number in range(4)]
    with pytest.raises(StorageFull, match="in all"):  # a quarter of it is due to bob
        table.open(SessionSpec(id=owned("ann", "4"), **spec))
    assert table.find(owned("ann", "4")) is None
    table.open(SessionSpec(id=owned("bob", "0"), **spec))
    table.forget(opened[0], is_deleted=True)
    table.open(SessionSpec(id=owned("ann", "9"), **spec))


def test_rewards_count_as_they_change(monkeypatch):
    monkeypatch.setattr(session_table, "MAX_BYTES", 5_000)
    table = SessionTable(100)
    session = table.open(SessionSpec(id="s"))
    itself = table._bytes.total
    for _ in range(9):
        table.set_reward("s", {"why": "x" * 3_000})
        assert table._bytes.total - itself == size_of({"why": "x" * 3_000})
        table.set_reward("s", 1.0)
        assert table._bytes.total - itself == size_of(1.0)
    with pytest.raises(StorageFull):
        table.set_reward("s", {"why": "x" * 9_000})
    assert session.reward == 1.0
    table.forget(session, is_deleted=True)
    assert table._bytes.total == 0


def test_a_reward_takes_what_is_left_of_its_owner_s_bytes_and_not_one_more(monkeypatch):
    monkeypatch.setattr(session_table, "MAX_BYTES", 5_000)
    table = SessionTable(100, ["ann", "bob"])
    name = owned("ann", "s")
    session = table.open(SessionSpec(id=name))
    left = next(n for n in range(5_000, 0, -1) if table._bytes.has_room("ann", n))
    most = {"why": "x" * (left - size_of({"why": ""}))}
    more = {"why": most["why"] + "x"}
    with pytest.raises(StorageFull):
        table.set_reward(name, more)
    assert session.reward is None
    table.set_reward(name, most)
    with pytest.raises(StorageFull):
        table.set_reward(name, more)
    table.set_reward(name, {"why": most["why"][1:]})  # nothing has room now, and it needs none
    table.set_reward(name, most)
    assert session.reward == most


def test_a_reward_costs_the_same_however_many_sessions_a_rollout_has():
    table = SessionTable(100_000)

    def reward(numbers: range) -> None:
        for number in numbers:
            table.open(SessionSpec(id=f"s{number}", rollout_id="r"))
            table.set_reward(f"s{number}", 1.0)

    early = opcodes(lambda: reward(range(10)))
    reward(range(10, 2_000))
    late = opcodes(lambda: reward(range(2_000, 2_010)))
    assert late <= 1.1 * early
    with pytest.raises(Conflict):
        table.set_reward("s5", 2.0)
    for session in table:
        if session.id != "s5":
            table.forget(session, is_deleted=True)
    assert table.set_reward("s5", 2.0).reward == 2.0


async def test_a_sample_is_admitted_at_the_same_cost_however_many_run_or_were_recorded():
    store = TrajectoryStore(10**9)
    sessions = Sessions(store)

    def admitted(number: int) -> SessionFlight:
        call = GenerateCall(
            rid="r", turn_id=f"t{number}", session_id="s", request_id="one", samples=10**6
        )
        flight = sessions.admit(call)
        assert isinstance(flight, SessionFlight)
        return flight

    flights = [admitted(number) for number in range(100)]
    early = opcodes(lambda: flights.append(admitted(100)))
    for number in range(101, 3_000):
        flights.append(admitted(number))
        store.add(turn(f"t{number}", [1], [2], request_id="one"))
    assert opcodes(lambda: flights.append(admitted(3_000))) <= 1.1 * early
    for flight in flights:
        sessions.release(flight)
    assert not sessions._of_request
