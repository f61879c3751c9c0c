"""What a router has in memory of a home, and its turns as they are written."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from slime_router.archive.homes import names_of
from slime_router.archive.port import NOTHING_SEEN, Cursor
from slime_router.journal.codec import SessionState, packed_session, packed_turn
from slime_router.journal.database import Change, MarkUndelivered, Put, PutTurn
from slime_router.trajectory.measures.scores import nbytes
from slime_router.trajectory.session import Session
from slime_router.trajectory.turn import Turn

OVERHEAD = (
    5_000  # bytes of a turn beside its arrays, about: measured by `benchmarks.bounded_memory`
)


@dataclass(slots=True)
class Home:
    """What is in memory of a home."""

    cursor: Cursor = NOTHING_SEEN
    turns: dict[str, None] = field(default_factory=dict)
    bytes: int = 0
    users: int = 0  # requests that need it
    changed: int = 0  # the position of its last change in the sink
    age: int = 0
    knows_opener: bool = False  # from the archive: a session that was opened stays so


def size_of(turn: Turn) -> int:
    """The bytes that a turn takes, about."""
    size = OVERHEAD + turn.prompt_ids.nbytes + turn.output_ids.nbytes
    if turn.logprobs is not None:
        size += turn.logprobs.nbytes
    for experts in (turn.routed_experts, turn.indexer_topk):
        if experts is not None:
            size += experts.ids.nbytes
    for likely in (turn.top_logprobs, turn.distribution):
        if likely is not None:
            size += likely.offsets.nbytes + likely.ids.nbytes + likely.logprobs.nbytes
    return size + nbytes(turn.scores) if turn.scores else size


def put_of(
    turn: Turn,
    home: str,
    *,
    is_change: bool = False,
    needed: Callable[[], Iterable[Change]] = tuple,
) -> PutTurn:
    """A turn, as it is written."""
    return PutTurn(
        turn.seq,
        turn.id,
        turn.session_id,
        packed_turn(turn),
        home,
        names_of(turn),
        is_change,
        turn.base,
        needed,
    )


def before(
    turn: Turn,
    home: str,
    session: Session | None,
    turns: Mapping[str, Turn],
    undelivered: Container[str],
) -> Iterator[Change]:
    """The session of a turn, and the turns that it continues, the oldest first.

    The writer's thread asks for it. All of it is in memory then: a home with changes that are not
    written does not leave it.
    """
    if session is not None:
        yield Put("sessions", session.id, packed_session(SessionState.of(session)))
    line: list[Turn] = []
    base = turn.base
    while base is not None and (held := turns.get(base)) is not None:
        line.append(held)
        base = held.base
    for held in reversed(line):
        yield put_of(held, home)
        if held.id in undelivered:
            yield MarkUndelivered(held.seq, held.id, home)
