"""Memory under a load that is several times `--max-memory`: what leaves it is in the journal."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import tracemalloc
from contextlib import closing
from pathlib import Path

from benchmarks.memory import Size, new_turn
from benchmarks.report import Measurement
from slime_router.archive.home import size_of
from slime_router.archive.homes import home_of_session
from slime_router.archive.port import NOTHING_SEEN
from slime_router.archive.sqlite import SqliteArchive
from slime_router.archive.store import ArchivedStore
from slime_router.journal.database import Made
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.turn import Turn

TIMES = 5  # the limit
BUDGET_TOKENS = 10**9
MIB = 2**20


class _Straight:
    """Writes each change at once."""

    def __init__(self, archive: SqliteArchive) -> None:
        self._archive = archive
        self.position = 0

    def put(self, made: Made) -> None:
        self.position += 1
        self._archive.apply([made()])

    def has_written(self, position: int) -> bool:
        return position <= self.position


def run(*, limit: int = 16 * MIB) -> list[Measurement]:
    """The most that is in use while opened sessions are recorded, and then read again."""
    size = Size()
    turns = TIMES * limit // _bytes_of_a_turn(size)
    bounded, kept = _peak_bytes(turns, limit, size), _peak_bytes(turns, None, size)
    what = f"{turns:,} turns of opened sessions, {turns * size.new_tokens:,} tokens"
    return [
        Measurement(
            f"memory under {TIMES} times what may be held: the most in use, over the limit",
            bounded / limit,
            "x",
            1.0,
            f"{bounded / MIB:.1f} MiB of {limit / MIB:g}; {what}; recorded, then read again",
        ),
        Measurement(
            "the same without a limit", kept / limit, "x", None, f"{kept / MIB:.1f} MiB; {what}"
        ),
    ]


def _bytes_of_a_turn(size: Size) -> int:
    """As the store counts them."""
    return size_of(new_turn("s", 0, None, size))


def _peak_bytes(turns: int, limit: int | None, size: Size) -> int:
    with tempfile.TemporaryDirectory() as folder:
        archive = SqliteArchive(Path(folder), is_shared=False)
        with closing(archive.database):
            gc.collect()
            tracemalloc.start()
            try:
                asyncio.run(_loaded(archive, turns, limit, size))
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    return peak


async def _loaded(archive: SqliteArchive, turns: int, limit: int | None, size: Size) -> None:
    store = ArchivedStore(_Straight(archive), BUDGET_TOKENS, max_bytes=limit)
    names = [f"s{number}" for number in range(turns // size.turns)]
    for number, name in enumerate(names):
        session = store.open_session(SessionSpec(id=name))
        last: Turn | None = None
        for index in range(size.turns):
            turn = new_turn(session.id, number * size.turns + index, last, size)
            last = store.add(turn)
    for name in names:
        home = home_of_session(name)
        store.hold(home)
        since = store.cursor(home)
        news = await archive.news(home, since, store.__contains__)
        assert store.absorb(news, since, lambda _: 0)
        held = store.sessions.get(name)
        assert len(held.turns) == size.turns
        store.let_go(home)
    assert since == NOTHING_SEEN
