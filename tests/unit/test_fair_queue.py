"""Parties that wait: whose turn it is, and who has no room."""

from __future__ import annotations

import pytest

from slime_router.waiting.fair_queue import FairQueue, Party


def party(name: str) -> Party:
    """Upper case belongs to one owner, lower case to nobody."""
    return Party("ann" if name.isupper() else "", name)


def filled(max_len: int, *items: str) -> FairQueue[str]:
    """A queue of items like `a1`, the party first."""
    queue: FairQueue[str] = FairQueue(max_len)
    for item in items:
        assert queue.push(party(item[0]), item) is None
    return queue


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def test_parties_take_turns_and_each_goes_by_age():
    queue = filled(9, "a1", "a2", "a3", "b1", "c1", "b2")
    assert drained(queue) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_burst_waits_behind_itself_alone():
    burst = [f"a{number}" for number in range(10_000)]
    queue = filled(20_000, *burst, "b1")
    assert [queue.pop() for _ in range(3)] == ["a0", "b1", "a1"]


def test_a_party_that_comes_again_has_its_turn_after_those_that_wait():
    queue = filled(9, "a1", "b1", "b2")
    assert queue.pop() == "a1"
    queue.push(party("a"), "a2")
    assert drained(queue) == ["b1", "a2", "b2"]


def test_what_left_is_not_in_the_way():
    queue = filled(9, "a1", "b1", "b2")
    queue.discard(party("a"), "a1")
    queue.discard(party("b"), "b1")
    queue.discard(party("b"), "b1")
    queue.discard(party("x"), "x1")
    assert drained(queue) == ["b2"]


def test_a_full_queue_has_no_room_for_one_more_of_the_same():
    queue = filled(2, "a1", "a2")
    assert queue.push(party("a"), "a3") == "a3"
    assert drained(queue) == ["a1", "a2"]


def test_a_full_queue_has_room_for_those_who_have_less_in_it():
    """The newest of whoever has the most makes room, until all have the same or one more."""
    queue = filled(4, "a1", "a2", "a3", "a4")
    assert queue.push(party("b"), "b1") == "a4"
    assert queue.push(party("c"), "c1") == "a3"
    assert queue.push(party("b"), "b2") == "b2", "it would only change places"
    assert queue.push(party("d"), "d1") == "a2"
    assert queue.push(party("e"), "e1") == "e1", "all have one"
    assert drained(queue) == ["a1", "b1", "c1", "d1"]


def test_where_nobody_may_wait_nobody_does():
    assert FairQueue[str](0).push(party("a"), "a1") == "a1"


def test_nothing_waits():
    with pytest.raises(KeyError):
        FairQueue[str](3).pop()


def test_owners_take_turns_first_and_then_their_parties():
    queue = filled(9, "a1", "a2", "b1", "c1", "X1", "X2", "Y1")
    assert drained(queue) == ["a1", "X1", "b1", "Y1", "c1", "X2", "a2"]


def test_an_owner_with_many_sessions_takes_no_place_of_one_with_few():
    queue = filled(4, "a1", "b1", "c1", "d1")
    assert queue.push(party("X"), "X1") == "d1", "who has waited least gives way"
    assert queue.push(party("e"), "e1") == "e1", "an owner's parties have one item each"
    assert queue.push(party("Y"), "Y1") == "c1"
    assert queue.push(party("Z"), "Z1") == "Z1", "both have half of it"
    assert drained(queue) == ["a1", "X1", "b1", "Y1"]


def test_within_an_owner_the_party_with_the_most_gives_way():
    queue = filled(4, "X1", "X2", "X3", "a1")
    assert queue.push(party("Y"), "Y1") == "X3"
