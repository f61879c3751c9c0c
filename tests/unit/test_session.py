"""What a session is, and how many turns and tokens it may have."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import pytest

from slime_router.errors import Conflict, SessionLimit
from slime_router.trajectory.session import Session, SessionSpec
from tests.turns import bare_turn as turn


def session(**limits: int) -> Session:
    return Session(SessionSpec(id="s", **limits), is_opened=True)  # type: ignore[arg-type]  # limits


def test_a_session_is_what_was_said_when_it_was_opened():
    """Also where another router was quicker: it is what that one said."""
    said = {field.name: f"the {field.name}" for field in fields(SessionSpec)}
    spec = SessionSpec(**said)  # type: ignore[arg-type]  # a test's
    made = Session(spec, is_opened=False, age=7, numbers=(5, 3), opener="me")
    assert {name: getattr(made, name) for name in said} == said
    assert (made.opener, made.number, made.own_number, made.age) == ("me", 5, 3, 7)
    others = {**said, **{name: f"another {name}" for name in said if name != "id"}}
    made.opened_elsewhere(SessionSpec(**others), "them")  # type: ignore[arg-type]  # a test's
    assert {name: getattr(made, name) for name in said} == others
    assert (made.opener, made.was_opened) == ("them", True)


def test_a_new_session_has_had_nothing():
    made = Session(SessionSpec(id="s"), is_opened=False)
    assert (made.rollout_id, made.opener, made.number, made.own_number) == ("s", "", 0, 0)
    assert (made.state, made.reward, made.started, made.last_active) == ("implicit", *[None] * 3)
    assert (made.age, made.running, made.turn_count, made.truncated_turns) == (0, 0, 0, 0)
    assert (made.held_tokens, made.recorded_turns, made.sampled_tokens) == (0, 0, 0)
    assert (made.dropped_turns, made.dropped_tokens, list(made.turns)) == (0, 0, [])
    assert (made.was_opened, made.was_exported, made.is_pinned, made.is_used) == (False,) * 4
    assert made.samples_of("r") == 0


def test_the_turns_of_one_request_are_counted_while_they_are_held():
    made = session()
    turns = [turn(name, request_id=name[0]) for name in ("a1", "a2", "b1")]
    for each in turns:
        made.gain(each, age=1)
    assert [made.samples_of(name) for name in "abc"] == [2, 1, 0]
    for each in turns:
        made.lose(each)
    assert [made.samples_of(name) for name in "abc"] == [0, 0, 0]


def test_figures_are_those_of_all_that_happened():
    """An hour counts from the first beginning to the last end, in whatever order turns came."""
    made = session()
    turns = [
        turn("a", [1], [2, 2], account=SimpleNamespace(started=20.0, duration_s=5.0)),
        turn("b", [1, 1], [2], uncaptured="refused", seq=2),
        turn("c", [1], [2] * 3, account=SimpleNamespace(started=10.0, duration_s=1.0), seq=1),
        turn("d", [1], [2], account=SimpleNamespace(started=30.0, duration_s=1.0), seq=3),
    ]
    seen = []
    for age, each in enumerate(turns, 5):
        made.gain(each, age)
        seen.append((made.age, made.started, made.last_active, made.truncated_turns))
    assert seen == [
        (5, 20.0, 25.0, 0),
        (6, 20.0, 25.0, 1),
        (7, 10.0, 25.0, 1),
        (8, 10.0, 31.0, 1),
    ]
    assert list(made.turns) == ["a", "c", "b", "d"], "by their numbers"
    assert (made.recorded_turns, made.sampled_tokens) == (4, 7)
    assert made.held_tokens == sum(each.own_len for each in turns)
    made.lose(turns[0])
    made.lose(turns[2])
    assert (made.recorded_turns, made.dropped_turns, made.dropped_tokens) == (4, 2, 5)
    assert made.held_tokens == turns[1].own_len + turns[3].own_len
    made.had_lost(3, 40)
    assert (made.recorded_turns, made.sampled_tokens) == (7, 47)
    assert (made.dropped_turns, made.dropped_tokens) == (5, 45)
    rest = made.resting()
    assert (rest.turn_count, made.turn_count, list(rest.turns)) == (2, 2, [])


def test_a_session_is_as_old_as_its_last_use():
    made = session()
    made.entered()
    made.entered()
    made.used(3)
    assert (made.age, made.running) == (3, 2)
    made.left(4)
    assert (made.age, made.running) == (4, 1)
    made.left(5)
    with pytest.raises(ValueError, match="no turn runs"):
        made.left(6)
    assert (made.age, made.running) == (5, 0)
    assert not made.freeze(7)
    assert made.age == 7


@pytest.mark.parametrize("is_opened", [False, True])
def test_what_is_closed_is_exported_once(is_opened):
    made = Session(SessionSpec(id="s"), is_opened=is_opened)
    assert not made.exported(), "there may be more"
    assert made.freeze(age=1) is not is_opened
    assert made.was_opened
    assert [made.exported(), made.exported()] == [True, False]
    assert (made.was_exported, made.is_pinned) == (True, False)
    with pytest.raises(Conflict):
        made.freeze(age=2)
    with pytest.raises(Conflict):
        made.entered()
    assert made.running == 0


@pytest.mark.parametrize(
    ("recorded", "running", "wanted", "has_room"),
    [(0, 0, 3, True), (0, 0, 4, False), (1, 1, 1, True), (1, 1, 2, False), (2, 1, 1, False)],
)
def test_turns_that_are_recorded_running_and_wanted_count(recorded, running, wanted, has_room):
    made = session(max_turns=3)
    for number in range(recorded):
        made.gain(turn(f"t{number}", [1], [2]), age=1)
    if has_room:
        made.check_room(running, wanted)
        return
    with pytest.raises(SessionLimit, match=f"it has {recorded + running}, and {wanted} more"):
        made.check_room(running, wanted)


def test_a_session_that_has_sampled_all_its_tokens_has_no_room():
    made = session(max_tokens=3)
    made.gain(turn("a", [1], [2, 2]), age=1)
    made.check_room(0, 1)
    assert made.tokens_left == 1
    made.gain(turn("b", [1], [2]), age=1)
    assert made.tokens_left == 0
    with pytest.raises(SessionLimit, match="3 tokens"):
        made.check_room(0, 1)


def test_a_session_without_limits_has_room():
    made = session()
    made.gain(turn("a", [1], [2] * 99), age=1)
    made.check_room(99, 99)
    assert made.tokens_left is None


def test_one_that_closes_or_is_closed_has_none():
    made = session()
    with made.closing(), pytest.raises(Conflict):
        made.check_room(0, 1)
    made.check_room(0, 1)
    made.freeze(age=1)
    with pytest.raises(Conflict) as refused:
        made.check_room(0, 1)
    assert refused.value.code == "session_closed"
