"""Connections to Redis or Valkey: one server, a cluster, or whatever sentinels name.

redis://HOST:PORT/DB, rediss:// (TLS), unix://PATH      as the `redis` package takes them
redis+cluster://HOST:PORT                               any node of a cluster; rediss+cluster://
redis+sentinel://HOST:PORT,HOST:PORT/NAME               the primary that they call NAME
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.exceptions import RedisError

from slime_router.archive.port import ArchiveDown, ArchiveOdd
from slime_router.errors import SetupError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_CLUSTER, _SENTINEL = "+cluster", "+sentinel"


class RedisClients:
    """A blocking client for the thread that writes, and one that waits on the loop.

    Raises:
        SetupError: the URL is not one of these.
    """

    def __init__(self, url: str, *, timeout_s: float, write_timeout_s: float) -> None:
        self.shown = _without_secrets(url)
        self.blocking = client_of(url, write_timeout_s)
        self.waiting = _client(url, timeout_s, is_async=True)

    def __repr__(self) -> str:
        return f"<RedisClients {self.shown}>"

    async def close(self) -> None:
        """Ends all connections."""
        await self.waiting.aclose()
        for sentinel in _sentinels(self.waiting):
            await sentinel.aclose()
        self.blocking.close()
        for sentinel in _sentinels(self.blocking):
            sentinel.close()


async def answered(answer: Awaitable[Any]) -> Any:
    """What the server answers. Raises ArchiveDown where it does not, or with an error."""
    try:
        return await answer
    except (RedisError, OSError) as exc:
        kind = ArchiveOdd if _is_of_key(exc) else ArchiveDown
        raise kind(str(exc) or type(exc).__name__) from exc


def refused(answers: Sequence[Any]) -> list[str]:
    """Why parts of what was written are refused for good, each: somebody else's value is there.

    Raises:
        OSError: for a reason that may pass.
    """
    errors = [each for each in answers if isinstance(each, Exception)]
    for each in errors:
        if not _is_of_key(each):
            raise OSError(str(each)) from each
    if errors:
        logger.error(
            "not in the store, where others write to its keys: %s (%d commands)",
            errors[0],
            len(errors),
        )
    return list(map(str, errors))


def _is_of_key(exc: BaseException) -> bool:
    """Whether an error says that somebody else has written to a key: that does not pass."""
    return "WRONGTYPE" in str(exc)


def as_expected(
    read: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """What reads answers, and raises ArchiveOdd where they are not of their form.

    Others may have written to a key of ours, or what answers is another kind of server.
    """

    @wraps(read)
    async def reading(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await read(*args, **kwargs)
        except (TypeError, ValueError, LookupError, AttributeError) as exc:
            what = f"{type(exc).__name__}: {exc}"
            raise ArchiveOdd(f"an answer that is not of its form ({what})") from exc

    return reading


def client_of(url: str, timeout_s: float) -> Any:
    """One blocking client.

    Raises:
        SetupError: the URL is not one of these.
    """
    try:
        return _client(url, timeout_s, is_async=False)
    except (ValueError, RedisError) as exc:
        raise SetupError(f"--store {_without_secrets(url)} cannot be used: {exc}") from exc


def is_cluster(url: str) -> bool:
    """Whether the URL is that of a cluster."""
    return url.partition("://")[0].endswith(_CLUSTER)


def _client(url: str, timeout_s: float, *, is_async: bool) -> Any:
    module: Any = redis.asyncio if is_async else redis
    settings: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    scheme, _, rest = url.partition("://")
    if is_cluster(url):
        plain = f"{scheme.removesuffix(_CLUSTER)}://{rest}"
        return module.RedisCluster.from_url(plain, **settings)
    if scheme.endswith(_SENTINEL):
        hosts, _, name = rest.partition("/")
        if not name:
            raise ValueError("the name of the primary is missing")
        addresses = [_address(host) for host in hosts.split(",")]
        return module.sentinel.Sentinel(addresses, **settings).master_for(name)
    return module.Redis.from_url(url, retry=None, **settings)


def _sentinels(client: Any) -> list[Any]:
    """The clients of the sentinels that are asked for the primary; they are not closed with it."""
    pool = getattr(client, "connection_pool", None)
    manager = getattr(pool, "sentinel_manager", None)
    return [] if manager is None else list(manager.sentinels)


def _address(host: str) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    return parts.hostname or "", parts.port or 26379


def _without_secrets(url: str) -> str:
    """The URL without what stands before its host."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
