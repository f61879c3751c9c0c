"""What a prefix of a store holds, for who looks from outside. Blocking."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from slime_router.archive.redis import SCHEMA
from slime_router.archive.redis_client import FAILURES, client_of
from slime_router.archive.redis_log import fold

TIMEOUT_S = 10.0
_SIGNS = re.compile(rb"[*?\[\]\\]")  # that mean something in a pattern of keys


@dataclass(frozen=True, slots=True)
class StoreStats:
    """How many there are of each; `bytes` is what the server says that their keys take."""

    homes: int
    turns: int
    sessions: int
    names: int
    responses: int
    workers: int
    bytes: int


def stats_of(url: str, prefix: str) -> StoreStats:
    """Counts by looking at every key.

    Raises:
        SetupError: the URL is not one of a store.
        OSError: it does not answer.
    """
    counts: Counter[str] = Counter()
    with _asked(url) as client:
        for key, name in _keys(client, prefix, b"*"):
            counts["bytes"] += int(client.memory_usage(key) or 0)
            if name.endswith(b":turns"):
                counts["turns"] += int(client.hlen(key))
            elif name.endswith(b":log"):
                counts["homes"] += 1
                counts["sessions"] += _session_of(client, key) is not None
            elif name.startswith(b"name:"):
                counts["names"] += 1
            elif name.startswith(b"response:"):
                counts["responses"] += 1
            elif name == b"workers":
                counts["workers"] += sum(map(_is_registered, client.hgetall(key).items()))
    return StoreStats(**{name: counts[name] for name in StoreStats.__dataclass_fields__})


def sessions_in(url: str, prefix: str) -> Iterator[str]:
    """The names of the sessions that are not deleted; raises as `stats_of`."""
    with _asked(url) as client:
        for key, _ in _keys(client, prefix, b"*:log"):
            if (name := _session_of(client, key)) is not None:
                yield name


@contextmanager
def _asked(url: str) -> Iterator[Any]:
    """A client for the block, in which a server that does not answer raises OSError."""
    with closing(client_of(url, TIMEOUT_S)) as client:
        try:
            yield client
        except FAILURES as exc:
            raise OSError(str(exc)) from exc


def _keys(client: Any, prefix: str, pattern: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All keys under the prefix that fit the pattern, whole and without it."""
    start = f"{prefix}:{SCHEMA}:".encode()
    for key in client.scan_iter(match=_SIGNS.sub(rb"\\\g<0>", start) + pattern, count=1000):
        yield key, key[len(start) :]


def _session_of(client: Any, log: bytes) -> str | None:
    """The name of the session whose log it is; None where it was deleted, or is that of none."""
    entries = client.xrange(log)
    with suppress(TypeError, ValueError, LookupError):  # others have written to it
        state = fold(entries).state
        return None if state is None else state.spec.id
    return None


def _is_registered(entry: tuple[bytes, bytes]) -> bool:
    """Whether it is a worker, and was not removed."""
    name, data = entry
    return bool(name) and data != b"null"
