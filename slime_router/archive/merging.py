"""One state of a session from two: what several routers say of it, in the order of the archive."""

from __future__ import annotations

from slime_router.journal.codec import SessionState
from slime_router.values import replace


def merged(old: SessionState | None, new: SessionState) -> SessionState:
    """What is known once `new` came after `old`.

    The first that opened a session has opened it. What has happened stays so, though somebody does
    not know it yet. The last reward counts.
    """
    if old is None:
        return new
    said = old if old.was_opened else new
    return replace(
        said,
        was_opened=old.was_opened or new.was_opened,
        is_closed=old.is_closed or new.is_closed,
        was_exported=old.was_exported or new.was_exported,
        reward=old.reward if new.reward is None else new.reward,
        dropped_turns=max(old.dropped_turns, new.dropped_turns),
        dropped_tokens=max(old.dropped_tokens, new.dropped_tokens),
    )
