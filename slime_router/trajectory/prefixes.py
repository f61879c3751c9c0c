"""Which recorded turns begin a sequence of tokens: a walk down the tree of a session's turns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from slime_router.trajectory.turn import Turn
from slime_router.types import TokenIds


def deepest_prefix(
    ids: TokenIds,
    roots: Iterable[str],
    turns: Mapping[str, Turn],
    children: Mapping[str, Iterable[str]],
    scope: str,
) -> Turn | None:
    """The turn with the most held tokens, all of which begin `ids`; of equal ones the newest.

    Turns of another `scope` do not count, whatever their tokens.

    Each turn is compared by what it adds to its base, and only where its base agrees so far.
    """
    found: Turn | None = None
    frontier = [(turns[root], 0) for root in roots]
    while frontier:
        turn, agreed = frontier.pop()  # `agreed`: how many tokens of its base begin `ids`
        if turn.base_len > agreed:
            continue
        common = _common_len(turn, ids)
        is_deeper = found is None or (found.held_len, found.seq) < (common, turn.seq)
        if common == turn.held_len and turn.scope == scope and is_deeper:
            found = turn
        frontier += [(turns[child], common) for child in children.get(turn.id, ())]
    return found


def _common_len(turn: Turn, ids: TokenIds) -> int:
    """How many held tokens of `turn` begin `ids`, where those of its base do."""
    position = turn.base_len
    for run in (turn.prompt_ids, turn.output_ids):
        count = common_prefix_len(run, ids[position:])
        position += count
        if count < len(run):
            break
    return position


def common_prefix_len(left: TokenIds, right: TokenIds) -> int:
    """How many tokens two runs have in common from their beginning."""
    count = min(len(left), len(right))
    differs = left[:count] != right[:count]
    first = int(differs.argmax()) if count else 0
    return first if count and bool(differs[first]) else count
