"""Where a turn lives in an archive, and the names by which it is found there. Pure."""

from __future__ import annotations

from collections.abc import Callable

from slime_router.trajectory.turn import Turn

_SESSION, _TREE = "s", "t"


def home_of_session(session_id: str) -> str:
    """The home of the turns of a session."""
    return _SESSION + session_id


def session_of(home: str) -> str | None:
    """The session whose home it is; None for a tree of turns without one."""
    return home[1:] if home.startswith(_SESSION) else None


def home_of(turn: Turn, home_of_base: Callable[[str], str]) -> str:
    """The home of a turn: its session's, or its base's, or one of its own."""
    if turn.session_id is not None:
        return home_of_session(turn.session_id)
    return _TREE + turn.id if turn.base is None else home_of_base(turn.base)


def in_words(home: str) -> str:
    """How log lines call the turns of a home."""
    name = session_of(home)
    return "turns without a session" if name is None else f"session {name}"


def name_of_key(key: bytes) -> bytes:
    """The name of the turns of a conversation."""
    return b"k" + key


def name_of_handle(scope: str, handle: str) -> bytes:
    """The name of the turn with this id of a tool call."""
    return b"h" + _bytes(scope) + b"\0" + _bytes(handle)


def name_of_id(turn_id: str) -> bytes:
    """The name of a turn by its id, or by one that its request had."""
    return b"t" + _bytes(turn_id)


def names_of(turn: Turn) -> tuple[bytes, ...]:
    """All names of a turn."""
    ids = [turn.id, turn.request_id]
    if turn.account is not None:
        ids += [turn.account.request_id, turn.account.rid]
    return (
        *map(name_of_id, dict.fromkeys(filter(None, ids))),
        *(name_of_handle(turn.scope, handle) for handle in turn.handles),
        *map(name_of_key, turn.keys),
    )


def _bytes(text: str) -> bytes:
    """Texts may hold halves of surrogate pairs."""
    return text.encode("utf-8", "surrogatepass")
