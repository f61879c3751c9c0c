"""The table of sessions: which there are, what they may take, and what a reward costs to give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slime_router.auth.caller import name_of_root, owned
from slime_router.engine.rules import SamplingRules
from slime_router.errors import Conflict, NotFound, StorageFull, TooManyRequests
from slime_router.generation.sessions import SessionFlight, Sessions
from slime_router.json_text import size_of
from slime_router.trajectory import session_table
from slime_router.trajectory.measures.scores import TeacherScore
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.session_table import SessionTable
from slime_router.trajectory.store import TrajectoryStore
from slime_router.types import GenerateCall, Pins, Sampling
from tests.effort import opcodes
from tests.turns import bare_turn
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


def test_those_of_a_group_of_a_rollout_and_in_a_state_are_listed_oldest_first():
    table = SessionTable(100)
    for name, group, rollout in (("a", "g", "r"), ("b", "g", None), ("c", None, "r")):
        table.open(SessionSpec(id=name, group_id=group, rollout_id=rollout))
    table.name("d")
    table.mark_closed(table.get("a"), 1)
    asked: list[tuple[dict[str, Any], str]] = [
        ({}, "abcd"),
        ({"group_id": "g"}, "ab"),
        ({"rollout_id": "r"}, "ac"),
        ({"rollout_id": "b"}, "b"),
        ({"group_id": "g", "rollout_id": "r"}, "a"),
        ({"state": "open"}, "bc"),
        ({"state": "implicit"}, "d"),
        ({"group_id": "g", "state": "closed"}, "a"),
        ({"group_id": "g", "among": [table.get("b"), table.get("c")]}, "b"),
    ]
    for which, names in asked:
        assert "".join(each.id for each in table.list(**which)) == names, which


def test_each_owner_has_its_share_of_the_places_however_a_session_takes_one():
    table = SessionTable(4, ["ann", "bob"])
    first = table.open(SessionSpec(id=owned("ann", "0")))
    named = table.name(owned("ann", "1"))
    table.mark_closed(named, 1)
    table.opened_elsewhere(table.name(owned("ann", "2")), SessionSpec(id=owned("ann", "2")), "them")
    with pytest.raises(TooManyRequests, match="3 of your sessions, and 3 in all"):
        table.open(SessionSpec(id=owned("ann", "3")))
    with pytest.raises(TooManyRequests):
        table.check_closing(table.name(owned("ann", "3")))
    table.check_closing(first)
    table.check_closing(table.name(owned("bob", "1")))
    bobs = table.open(SessionSpec(id=owned("bob", "0")))
    assert table.opened == 4
    assert [(each.number, each.own_number) for each in (first, named, bobs)] == [
        (1, 1),
        (2, 2),
        (6, 2),
    ]
    table.share_among(["ann"])
    table.forget(bobs, is_deleted=True)
    table.open(SessionSpec(id=owned("ann", "4")))


def test_the_names_of_the_last_deleted_sessions_are_remembered(monkeypatch):
    monkeypatch.setattr(session_table, "MAX_TOMBSTONES", 2)
    table = SessionTable(100)
    for name in "abc":
        table.forget(table.open(SessionSpec(id=name)), is_deleted=True)
    table.forget(table.name("d"), is_deleted=False)
    for name in "bc":
        with pytest.raises(NotFound, match="was deleted"):
            table.name(name)
    table.name("a")
    table.name("d")
    reopened = table.open(SessionSpec(id="b"))
    table.forget(reopened, is_deleted=False)
    table.name("b")


def test_whoever_waits_for_the_end_of_a_session_or_a_conversation_hears_of_it_once():
    ended: list[str] = []
    table = SessionTable(100)
    table.on_end = ended.append
    closed, used, unused = (table.open(SessionSpec(id=name)) for name in ("closed", "used", "new"))
    for session in (closed, used):
        table.gain(session, bare_turn("t"), 1)
    table.mark_closed(closed, 1)
    assert ended == ["closed"]
    for session in (closed, used, unused):
        table.forget(session, is_deleted=True)
    assert ended == ["closed", "used"]
    table.lose(None, bare_turn("first", conversation=name_of_root("first")))
    table.lose(None, bare_turn("second", conversation=name_of_root("first")))
    assert ended == ["closed", "used", name_of_root("first")]


def scored(name: str, tokens: int) -> TeacherScore:
    """What a teacher thinks of so many tokens: 4 bytes each."""
    return TeacherScore(
        np.zeros(tokens, np.float32), np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32), name
    )


def test_the_scores_of_turns_count_as_they_change():
    table = SessionTable(100, ["ann"])
    session = table.name(owned("ann", "s"))
    before = bare_turn("t", scores={"big": scored("v1", 100), "small": scored("v1", 10)})
    after = bare_turn("t", scores={"big": scored("v2", 30)})
    table.gain(session, before, 7)
    assert (session.age, table._bytes.taken("ann")) == (7, 440)
    table.remarked(session, before, after)
    table.remarked(None, before, after)
    assert table._bytes.taken("ann") == 120
    table.lose(session, after)
    assert table._bytes.taken("ann") == 0


def test_a_name_that_another_router_opened_keeps_its_reward():
    """And it goes to the rollout of which it is now."""
    table = SessionTable(100)
    mine = table.name("s")
    table.set_reward("s", 1.0)
    table.opened_elsewhere(mine, SessionSpec(id="s", rollout_id="r", group_id="g"), "them")
    assert (list(table._by_rollout), list(table._rewarded)) == ([("", "r")], [("", "r")])
    assert mine.opener == "them"
    table.open(SessionSpec(id="other", rollout_id="r"))
    with pytest.raises(Conflict, match="another reward in session 's'"):
        table.set_reward("other", 2.0)
    own = table.open(SessionSpec(id="own", rollout_id="s"))
    table.rewarded_elsewhere(own, 3.0)
    assert own.reward == 3.0
    assert [each.id for each in table.list(rollout_id="r")] == ["s", "other"]
    for session in table:
        table.forget(session, is_deleted=True)
    assert (len(table), table.opened, table._bytes.total) == (0, 0, 0)
    assert (table._by_rollout, table._rewarded) == ({}, {})


@pytest.mark.parametrize("is_here", [True, False], ids=["here", "elsewhere"])
def test_pins_count_among_what_a_session_brings_along(is_here):
    table = SessionTable(100)
    sizes = []
    pins = Pins(names=("stop",), sampling=Sampling(stop=("x" * 500,)))
    for name, given in (("a", Pins()), ("b", pins)):
        before = table._bytes.total
        spec = SessionSpec(id=name, sampling_pins=given)
        if is_here:
            table.open(spec)
        else:
            table.opened_elsewhere(table.name(name), spec, "them")
        sizes.append(table._bytes.total - before)
    assert sizes[1] > sizes[0] + 500


def test_a_call_that_cannot_be_made_ready_leaves_no_session():
    class Rules(SamplingRules):
        def applied(self, call: GenerateCall, pins: Pins | None = None) -> GenerateCall:
            raise TypeError("not JSON")

    store = TrajectoryStore(100)
    with pytest.raises(TypeError):
        Sessions(store, rules=Rules()).admit(GenerateCall(rid="r", turn_id="t", session_id="new"))
    assert store.sessions.find("new") is None


async def test_the_log_names_a_session_as_its_owner_does(caplog):
    caplog.set_level("INFO")
    store = TrajectoryStore(100)
    sessions, name = Sessions(store), owned("team", "run")
    call = GenerateCall(rid="r", turn_id="t", session_id=name)
    with pytest.raises(Conflict), sessions.admit(call):
        await sessions.land(name, cancel=False, timeout_s=0.0)
    assert "session 'run': generations still run after 0.0 s" in caplog.messages
