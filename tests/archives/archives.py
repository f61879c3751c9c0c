"""The archives, each made for a test, and writers that write at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import TypeAlias

import pytest

from slime_router.archive.memory import MemoryArchive
from slime_router.archive.port import Archive
from slime_router.archive.redis import RedisArchive
from slime_router.archive.redis_client import RedisClients
from slime_router.archive.sqlite import SqliteArchive
from slime_router.journal.database import Made
from slime_router.journal.writer import Target

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
