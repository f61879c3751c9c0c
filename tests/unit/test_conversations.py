"""Turns by what was said, and by how it was spelled."""

from __future__ import annotations

from slime_router.trajectory.conversations import Conversations
from slime_router.trajectory.turn import Turn
from tests.turns import bare_turn

KEY = b"key"


def turn(name: str, spelling: bytes = b"", session_id: str | None = None) -> Turn:
    return bare_turn(name, keys=(KEY,), spelling=spelling, session_id=session_id)


def filed(*turns: Turn) -> Conversations:
    conversations = Conversations()
    for each in turns:
        conversations.file(each)
    conversations.check_integrity({each.id: each for each in turns})
    return conversations


def found(conversations: Conversations, spelling: bytes, *taken: str) -> str | None:
    return conversations.find(KEY, None, set(taken), spelling)


def test_the_turn_that_is_spelled_so_is_found_first():
    conversations = filed(turn("plain"), turn("spaced", b"s"), turn("other", b"o"))
    assert found(conversations, b"") == "plain"
    assert found(conversations, b"s") == "spaced"
    assert found(conversations, b"o") == "other"
    assert found(conversations, b"unknown") == "plain"
    assert conversations.count(KEY, None) == 3
    assert conversations.turns(KEY) == ["plain", "spaced", "other"]
    assert conversations.turns(b"another") == []


def test_any_spelling_will_do_where_there_is_no_other():
    conversations = filed(turn("spaced", b"s"), turn("other", b"o"))
    assert found(conversations, b"") == "other"
    assert found(conversations, b"unknown") == "other"


def test_the_newest_that_is_not_taken():
    conversations = filed(turn("a"), turn("b"))
    assert found(conversations, b"") == "b"
    assert found(conversations, b"", "b") == "a"
    assert found(conversations, b"", "a", "b") == "b"


def test_what_is_unfiled_is_not_found():
    one, other = turn("a", b"s", "session"), turn("b", b"s")
    conversations = filed(one, other)
    assert conversations.find(KEY, "session", (), b"s") == "a"
    conversations.leave_session(one)
    assert conversations.find(KEY, "session", (), b"s") is None
    assert found(conversations, b"s") == "b"
    conversations.unfile(other)
    conversations.unfile(one)
    assert found(conversations, b"s") is None
    conversations.check_integrity({})
