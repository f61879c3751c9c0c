"""An outline of a session: which turn follows which and why it departs, and what becomes of it.

The same forest and selection as those of the rows, without their arrays: what a person looks at.

    start      its prompt begins with no other turn of the session
    branch     shares the first tokens of an older prompt, and departs inside it
    extension  begins with all of its parent
    fork       the same, but the parent was continued before
    drift      departs inside the answer of an older turn
    realigned  the same, shortly before the end of the answer: it continues it anyway
    sample     answers the prompt of an older turn, as another sample of the same request
    retry      answers the prompt of an older turn, which was sent again
    empty      has no output
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from slime_router.rows.forest import TurnNode, TurnSource
from slime_router.rows.rows import RowOptions, RowStats, Span, plan
from slime_router.rows.selection import origins_of
from slime_router.trajectory.turn import Turn

Cause: TypeAlias = Literal[
    "start", "branch", "extension", "fork", "drift", "realigned", "sample", "retry", "empty"
]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one turn stands.

    Attributes:
        parent: the turn that it continues.
        cause: see above.
        of: the turn from which it departs or that it repeats, if there is one.
        departs_at: how many tokens it has in common with that.
        left_out: why it is not trained, or None.
    """

    turn: Turn
    parent: str | None
    cause: Cause
    of: str | None
    departs_at: int
    left_out: str | None


@dataclass(frozen=True, slots=True)
class RowOutline:
    """One row: its sampled spans in order, and how many of its tokens are trained."""

    row_id: str
    tokens: int
    trained: int
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """All turns, oldest first, all rows, and the statistics of the rows."""

    places: tuple[Place, ...]
    rows: tuple[RowOutline, ...]
    stats: RowStats


def outline(
    source: TurnSource, turn_ids: Sequence[str], options: RowOptions | None = None
) -> Outline:
    """The outline of these turns; ids that the source does not hold are skipped."""
    nodes, selection, builder = plan(source, turn_ids, options or RowOptions())
    reasons = {node.turn.id: reason for reason, left in selection.left_out.items() for node in left}
    rows = []
    for leaf in selection.leaves:
        spans = builder.spans(leaf.path())
        if trained := builder.count_trained(spans):
            rows.append(RowOutline(leaf.turn.id, leaf.turn.held_len, trained, tuple(spans)))
    stats = builder.stats(len(rows), sum(row.trained for row in rows))
    places = _places(nodes, reasons)
    known = {place.turn.id for place in places}
    for turn_id in dict.fromkeys(turn_ids):
        turn = source.get(turn_id)
        if turn is not None and turn_id not in known:
            places.append(Place(turn, turn.base, "empty", turn.base, turn.base_len, "empty"))
    return Outline(tuple(sorted(places, key=lambda place: place.turn.seq)), tuple(rows), stats)


def _places(nodes: Sequence[TurnNode], reasons: dict[str, str]) -> list[Place]:
    origins = origins_of(nodes)
    first: dict[tuple[bytes, str], TurnNode] = {}
    continued: set[str] = set()
    places = []
    for node in nodes:
        repeated = _repeated(node, *origins[node.turn.id], first)
        cause, of, departs_at = repeated or _cause(node, continued)
        parent = None if node.parent is None else node.parent.turn.id
        if parent is not None:
            continued.add(parent)
        places.append(Place(node.turn, parent, cause, of, departs_at, reasons.get(node.turn.id)))
    return places


def _repeated(
    node: TurnNode, request: str, sample: str, first: dict[tuple[bytes, str], TurnNode]
) -> tuple[Cause, str, int] | None:
    """The older turn with the same prompt: of the same sample, else request, else any.

    `first` has the oldest turns by prompt and by each of those names; this one is added.
    """
    names: tuple[tuple[Cause, str], ...] = (("retry", sample), ("sample", request), ("retry", ""))
    twins = [(cause, first.setdefault((node.prompt_key, name), node)) for cause, name in names]
    return next(((c, twin.turn.id, node.prompt_len) for c, twin in twins if twin is not node), None)


def _cause(node: TurnNode, continued: set[str]) -> tuple[Cause, str | None, int]:
    turn, parent = node.turn, node.parent
    if parent is not None and node.shared_len < parent.turn.held_len:
        return "realigned", parent.turn.id, node.shared_len
    if node.base is not None and node.base_len < node.base.held_len:
        return "drift", node.base.id, node.base_len
    if parent is not None:
        is_fork = parent.turn.id in continued
        return "fork" if is_fork else "extension", parent.turn.id, node.shared_len
    if turn.base is not None and turn.base_len:
        return "branch", turn.base, turn.base_len
    return "start", None, 0
