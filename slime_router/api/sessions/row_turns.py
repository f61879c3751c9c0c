"""What is written of a turn beside its tokens."""

from __future__ import annotations

from typing import Any

from slime_router.rows.rows import RowTurn
from slime_router.trajectory.turn import Turn


def marks_of(turn: Turn) -> dict[str, Any]:
    """What was said of a turn, and what its worker said of drafts."""
    drafts = turn.speculation
    return {
        "reward": turn.reward,
        "tags": turn.tags,
        "speculation": None if drafts is None else drafts._asdict(),
    }


def row_turn(each: RowTurn) -> dict[str, Any]:
    """A turn as it stands in a row."""
    account = each.turn.account
    return {
        "turn_id": each.turn.id,
        "start": each.start,
        "end": each.end,
        "kind": each.lineage.kind,
        "parent_turn": each.lineage.parent_turn,
        **marks_of(each.turn),
        "started": None if account is None else account.started,
        "duration_s": None if account is None else account.duration_s,
        "first_token_s": None if account is None else account.first_token_s,
        "adapter": None if account is None else account.adapter or None,
        **({"pictures": each.pictures} if each.pictures else {}),
    }
