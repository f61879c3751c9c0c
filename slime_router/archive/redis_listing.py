"""What a prefix of a store holds, for who looks from outside. Blocking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from slime_router.archive.redis import SCHEMA
from slime_router.archive.redis_client import FAILURES, client_of
from slime_router.journal.codec import Damaged, unpacked_session

TIMEOUT_S = 10.0


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
    client, start = client_of(url, TIMEOUT_S), f"{prefix}:{SCHEMA}:".encode()
    counts: Counter[str] = Counter()
    try:
        for key in client.scan_iter(match=start + b"*", count=1000):
            counts["bytes"] += int(client.memory_usage(key) or 0)
            name = key[len(start) :]
            if name.endswith(b":turns"):
                counts["turns"] += int(client.hlen(key))
            elif name.endswith(b":log"):
                counts["homes"] += 1
            elif name.startswith(b"name:"):
                counts["names"] += 1
            elif name.startswith(b"response:"):
                counts["responses"] += 1
            elif name == b"workers":
                counts["workers"] += sum(map(_is_registered, client.hgetall(key).items()))
    except FAILURES as exc:
        raise OSError(str(exc)) from exc
    finally:
        client.close()
    counts["sessions"] = sum(1 for _ in sessions_in(url, prefix))
    return StoreStats(**{name: counts[name] for name in StoreStats.__dataclass_fields__})


def sessions_in(url: str, prefix: str) -> Iterator[str]:
    """The names of the sessions that are not deleted; raises as `stats_of`."""
    client, start = client_of(url, TIMEOUT_S), f"{prefix}:{SCHEMA}:".encode()
    try:
        for key in client.scan_iter(match=start + b"*:log", count=1000):
            name: str | None = None
            for _, entry in client.xrange(key):
                if entry[b"k"] == b"d":
                    name = None
                elif entry[b"k"] == b"s":
                    try:
                        name = unpacked_session(entry[b"d"]).spec.id
                    except Damaged:
                        continue
            if name is not None:
                yield name
    except FAILURES as exc:
        raise OSError(str(exc)) from exc
    finally:
        client.close()


def _is_registered(entry: tuple[bytes, bytes]) -> bool:
    """Whether it is a worker, and was not removed."""
    name, data = entry
    return bool(name) and data != b"null"
