"""What goes from the store, in which order, and what no pressure and no time can drop."""

from __future__ import annotations

import pytest

from slime_router.auth.caller import owned
from slime_router.errors import NotFound, StorageFull, TooManyRequests
from slime_router.trajectory import store as module
from slime_router.trajectory.eviction import EvictionQueue
from slime_router.trajectory.session import Session, SessionSpec
from slime_router.trajectory.store import TrajectoryStore
from tests.turns import bare_turn as turn
from tests.unit.test_session_table import scored


def held(store: TrajectoryStore, names: str) -> str:
    """Those of the turns that are still there."""
    return "".join(name for name in names if name in store)


def closed(store: TrajectoryStore, name: str, *turns: str) -> Session:
    """A session with these turns that a trainer opened and closed."""
    session = store.open_session(SessionSpec(id=name))
    for each in turns:
        store.add(turn(each, session_id=name))
    store.freeze(session)
    return session


def test_a_turn_waits_with_the_age_of_its_last_use_in_the_queue_where_it_belongs():
    queue = EvictionQueue()
    for name, age, is_exported in (("a", 1, True), ("b", 1, False), ("c", 2, True)):
        queue.put(name, age, is_exported=is_exported)
    assert [queue.age(name) for name in "abc"] == [1, 1, 2]
    assert (queue.idle, queue.next_to_go()) == (["b"], "a"), "the last idle one stays"
    assert (queue.older_than(1), queue.older_than(2), queue.older_than(3)) == (
        [],
        ["b", "a"],
        ["b", "a", "c"],
    )
    queue.touch("a", 3)
    assert queue.next_to_go() == "c"
    assert [queue.take(name) for name in "abca"] == [3, 1, 2, 0]
    assert queue.next_to_go() is None
    assert "a" not in queue


def test_what_nothing_can_drop_fills_the_store_with_its_last_token():
    store = TrajectoryStore(4)
    store.open_session(SessionSpec(id="s"))
    store.add(turn("a", [1, 2], [3], session_id="s"))
    store.open_session(SessionSpec(id="t"))
    store.add(turn("b", [], [3], session_id="t"))
    with pytest.raises(StorageFull, match="hold 4 tokens"):
        store.open_session(SessionSpec(id="u"))
    assert store.sessions.find("u") is None


def test_each_owner_has_its_share_of_a_store_s_sessions():
    store = TrajectoryStore(100, max_sessions=4, owners=["ann", "bob"])
    for number in range(3):
        store.open_session(SessionSpec(id=owned("ann", str(number))))
    with pytest.raises(TooManyRequests):
        store.open_session(SessionSpec(id=owned("ann", "3")))
    store.open_session(SessionSpec(id=owned("bob", "0")))


def test_a_session_that_was_exported_goes_after_everything_else():
    store = TrajectoryStore(8)
    closed(store, "s", "x", "y")
    assert store.pinned_tokens == 4
    store.mark_exported("nobody's")
    store.mark_exported("s")
    assert store.pinned_tokens == 0
    for name in "abc":
        store.add(turn(name))
    assert held(store, "xyabc") == "xybc"
    store.add(turn("long", [1] * 5, [2]))
    assert held(store, "xyabc") == "y"
    store.mark_exported("s")
    assert store.pinned_tokens == 0, "it was counted once"
    store.check_integrity()


def test_whoever_exports_a_session_has_used_it():
    store = TrajectoryStore(100)
    session = closed(store, "s", "x")
    list(store.sweep(1))
    store.mark_exported("s")
    assert [sum(store.sweep(1)) for _ in range(2)] == [0, 1]
    assert not store.sessions.is_current(session)
    store.check_integrity()


def test_a_session_that_is_only_a_name_is_forgotten_when_its_last_call_ends():
    store = TrajectoryStore(100)
    session = store.sessions.name("s")
    session.entered()
    store.leave_session(session)
    assert store.sessions.is_current(session), "another call runs in it"
    store.leave_session(session, has_turn=True)
    assert store.sessions.find("s") is None
    assert store.sessions.name("s") is not session, "nobody deleted it"


@pytest.mark.parametrize("has_turn", [True, False])
def test_the_turns_of_a_name_stay_while_a_call_runs_in_it_and_some_time_longer(has_turn):
    store = TrajectoryStore(100)
    list(store.sweep(1))
    store.add(turn("a", session_id="s"))
    session = store.sessions.get("s")
    session.entered()
    for _ in range(3):
        assert sum(store.sweep(1)) == 0
    if has_turn:
        store.leave_session(session, has_turn=True)
    else:
        session.left(0)
        store.leave_session(session)
    assert sum(store.sweep(1)) == 0
    assert sum(store.sweep(1)) == 1
    assert (store.dropped_turns, store.expired_turns) == (1, 1)
    assert store.sessions.find("s") is None


def test_a_turn_goes_with_the_time_though_its_session_is_only_a_name():
    store = TrajectoryStore(100)
    list(store.sweep(1))
    store.add(turn("a", session_id="s"))
    assert [sum(store.sweep(1)) for _ in range(2)] == [0, 1]


def test_sessions_that_expire_are_counted_with_all_their_turns():
    store = TrajectoryStore(100)
    store.add(turn("old"))
    list(store.sweep(1))
    closed(store, "s", "a", "b")
    closed(store, "t", "c")
    store.mark_exported("t")
    store.open_session(SessionSpec(id="open"))
    store.add(turn("kept", session_id="open"))
    assert [sum(store.sweep(1)) for _ in range(3)] == [1, 3, 0]
    assert (store.dropped_turns, store.expired_turns) == (4, 4)
    assert len(store) == 1
    with pytest.raises(NotFound, match="was deleted"):
        store.sessions.name("s")
    store.check_integrity()


def test_others_get_to_run_while_a_sweep_looks_at_very_many_sessions(monkeypatch):
    monkeypatch.setattr(module, "SLICE_SESSIONS", 2)
    store = TrajectoryStore(100)
    for number in range(5):
        store.open_session(SessionSpec(id=str(number)))
    assert list(store.sweep(1)) == [0, 0]


def test_only_turns_of_older_weights_that_no_session_keeps_are_dropped():
    store = TrajectoryStore(100)
    store.open_session(SessionSpec(id="s"))
    for name, epoch, session_id in (("a", 0, None), ("b", 1, None), ("c", 2, None), ("d", 0, "s")):
        store.add(turn(name, epoch=epoch, session_id=session_id))
    closed(store, "t", "e")
    store.mark_exported("t")
    assert sum(store.drop_older(1)) == 1
    assert held(store, "abcde") == "bcde"
    assert (store.dropped_turns, store.expired_turns) == (1, 0)


def test_whether_a_turn_was_delivered_is_not_said_of_another_that_has_its_id():
    store = TrajectoryStore(100)
    store.add(turn("a", epoch=0))
    store.mark_undelivered("a")
    list(store.drop_older(1))
    store.add(turn("a", epoch=1))
    assert store.is_delivered("a")
    store.check_integrity()


def test_a_session_is_opened_at_an_age_and_a_time():
    store = TrajectoryStore(100)
    list(store.sweep(1))
    session = store.open_session(SessionSpec(id="s"), at=12.5)
    assert (session.age, session.started, session.last_active) == (1, 12.5, 12.5)
    assert (session.opener, store.open_session(SessionSpec(id="t")).started) == ("", None)


def test_what_teachers_think_of_a_turn_counts_for_its_session():
    store = TrajectoryStore(100)
    store.add(turn("a", session_id="s"))
    before = store.sessions._bytes.total
    store.mark("a", scores={"big": scored("v1", 10)})
    assert store.sessions._bytes.total == before + 40


def test_an_id_of_a_tool_call_leads_to_the_newest_turn_until_that_goes():
    store = TrajectoryStore(100)
    for epoch, name in enumerate("abc"):
        store.add(turn(name, epoch=epoch, handles=("call", "call", f"call_{name}")))
    for epoch, found in ((1, "c"), (3, None)):
        list(store.drop_older(epoch))
        newest = store.of_handle("call", None)
        assert (newest and newest.id) == found
        store.check_integrity()
