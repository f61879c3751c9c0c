"""The revision of a session: a word that is another one once its rows may be others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any
from zlib import crc32

from slime_router.rows.forest import TurnSource
from slime_router.trajectory.session import Session
from slime_router.trajectory.turn import Turn


def revision_of(turns: TurnSource, session: Session) -> str:
    """16 hexadecimal digits: of which turns it has, and what is said of them and of it.

    Not of its tokens: a turn never changes but in its marks. The same after a restart, and at each
    router that shares its turns.
    """
    found = blake2b(digest_size=8)
    for turn_id in session.turns:
        turn = turns.get(turn_id)
        if turn is not None:
            said = [turn.id, turn.reward, turn.tags, turns.is_delivered(turn.id)]
            found.update(_packed([*said, _scored(turn)]))
    spec = [session.group_id, session.rollout_id, dict(session.metadata)]
    found.update(_packed([session.reward, spec]))
    return found.hexdigest()


def _scored(turn: Turn) -> dict[str, Any]:
    return {
        group: [score.version, crc32(score.logprobs.tobytes()), score.top_ids.shape[1]]
        for group, score in turn.scores.items()
    }


def _packed(value: list[Any] | Mapping[str, Any]) -> bytes:
    """Texts may hold halves of surrogate pairs, which JSON escapes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
