"""The archives, each made for a test, and writers that write at once."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import TypeAlias

import pytest

from slime_router.archive.homes import home_of_session
from slime_router.archive.port import NOTHING_SEEN, Archive
from slime_router.archive.redis import RedisArchive
from slime_router.archive.redis_client import RedisClients
from slime_router.archive.sqlite import SqliteArchive
from slime_router.archive.store import ArchivedStore
from slime_router.journal.database import Made
from slime_router.journal.progress import Progress
from slime_router.journal.writer import Target
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.turn import Turn
from slime_router.types import Finish, VersionSpan, token_ids
from tests.archives.memory import MemoryArchive

Opened: TypeAlias = Callable[[], Archive]  # one more router's view of the same archive

KINDS = (
    "memory",
    "sqlite",
    pytest.param("redis", marks=pytest.mark.redis),
    pytest.param("redis_cluster", marks=[pytest.mark.redis, pytest.mark.slow]),
    pytest.param("redis_sentinel", marks=[pytest.mark.redis, pytest.mark.slow]),
)


class Straight:
    """Writes each change at once, where the router's writer gathers them."""

    def __init__(self, archive: Target) -> None:
        self._archive = archive
        self.position = 0

    def put(self, made: Made) -> None:
        self.position += 1
        self._archive.apply([made()])

    def has_written(self, position: int) -> bool:
        return position <= self.position


class Shelf:
    """A directory with a journal that one router has to itself, closed and opened again."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or Path(tempfile.mkdtemp(prefix="journal-"))
        self.archive: SqliteArchive | None = None

    def opened(self) -> ArchivedStore:
        """A store that has all sessions of the journal in memory."""
        self.close()
        self.archive = SqliteArchive(self.directory, is_shared=False)
        return asyncio.run(self._read(self.archive))

    @staticmethod
    async def _read(archive: SqliteArchive) -> ArchivedStore:
        await archive.prepare(Progress(0, 0))
        store = ArchivedStore(Straight(archive), 2**62)
        store.number_after(await archive.last_seq())
        names, _ = await archive.sessions(NOTHING_SEEN)
        for home in map(home_of_session, names):
            news = await archive.news(home, NOTHING_SEEN, store.__contains__)
            store.absorb(news, NOTHING_SEEN, lambda _: 0)
        return store

    def close(self) -> None:
        if self.archive is not None:
            self.archive.let_go()
            self.archive = None

    def clear(self) -> None:
        self.close()
        shutil.rmtree(self.directory)


def recorded(shelf: Shelf, count: int) -> list[Turn]:
    """Turns in a session, each after the one before it; the file stays open, so its WAL is long."""
    store = shelf.opened()
    store.open_session(SessionSpec(id="s"))
    turns: list[Turn] = []
    for number in range(count):
        base = turns[-1] if turns else None
        turns.append(
            store.add(
                Turn(
                    id=f"t{number}",
                    base=None if base is None else base.id,
                    base_len=0 if base is None else base.held_len,
                    prompt_ids=token_ids(range(number % 7 + 1)),
                    output_ids=token_ids(range(40)),
                    logprobs=None,
                    weight_versions=(VersionSpan("v", 0, 40),),
                    finish=Finish("stop"),
                    session_id="s",
                )
            )
        )
    return turns


def opener(kind: str, request: pytest.FixtureRequest, directory: Path) -> Opened:
    """What opens the archive of this kind; each call is one more router."""
    if kind == "memory":
        archive = MemoryArchive()
        return lambda: archive
    if kind == "sqlite":
        return lambda: SqliteArchive(directory)
    url, prefix = request.getfixturevalue(f"{kind}_url"), token_hex(6)

    def opened() -> Archive:
        clients = RedisClients(url, timeout_s=60.0, write_timeout_s=60.0)
        return RedisArchive(clients, prefix=prefix, ttl_s=1000)

    return opened
