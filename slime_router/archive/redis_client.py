"""Connections to Redis or Valkey: one server, a cluster, or whatever sentinels name.

redis://HOST:PORT/DB, rediss:// (TLS), unix://PATH      as the `redis` package takes them
redis+cluster://HOST:PORT                               any node of a cluster; rediss+cluster://
redis+sentinel://HOST:PORT,HOST:PORT/NAME               the primary that they call NAME; an account
                                                        before the hosts is that of the primary
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from functools import cached_property, partial
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
import redis.asyncio
from redis.exceptions import RedisClusterException, RedisError

from slime_router.archive.port import ArchiveDown, ArchiveOdd
from slime_router.errors import SetupError

logger = logging.getLogger(__name__)

FAILURES = (RedisError, RedisClusterException)  # the second is not one of the first
REDIS_PORT, SENTINEL_PORT = 6379, 26379
_SCHEMES, _KINDS = ("redis", "rediss", "unix"), ("", "cluster", "sentinel")
_BEGINNINGS = ("redis://", "rediss://", "unix://", "redis+cluster://", "redis+sentinel://")
# Others would change how answers are read, or how long they are waited for.
_OPTIONS = frozenset(
    ("db", "username", "password", "client_name", "health_check_interval", "socket_keepalive",
     "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile",
     "ssl_check_hostname")
)  # fmt: skip
_AS_WORDS = ", ".join(sorted(_OPTIONS))


class RedisClients:
    """A blocking client for the thread that writes, and one that waits on the loop.

    Raises:
        SetupError: the URL is not one of these.
    """

    def __init__(self, url: str, *, timeout_s: float, write_timeout_s: float) -> None:
        read = StoreUrl(url)
        self.shown = read.shown
        self._new_blocking = partial(_client, read, write_timeout_s, is_async=False)
        if not read.is_cluster:
            self.blocking  # noqa: B018 - so that a wrong URL shows here
        self.waiting = _client(read, timeout_s, is_async=True)

    def __repr__(self) -> str:
        return f"<RedisClients {self.shown}>"

    @cached_property
    def blocking(self) -> Any:
        """The client of the thread that writes; that of a cluster connects when it is made.

        Raises:
            RedisClusterException: the cluster does not answer.
        """
        return self._new_blocking()

    async def close(self) -> None:
        """Ends all connections."""
        await self.waiting.aclose()
        for sentinel in _sentinels(self.waiting):
            await sentinel.aclose()
        if "blocking" in self.__dict__:
            self.blocking.close()
            for sentinel in _sentinels(self.blocking):
                sentinel.close()


async def answered(answer: Awaitable[Any]) -> Any:
    """What the server answers. Raises ArchiveDown where it does not, or with an error."""
    try:
        return await answer
    except (*FAILURES, OSError) as exc:
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


def client_of(url: str, timeout_s: float) -> Any:
    """One blocking client; that of a cluster connects at once.

    Raises:
        SetupError: the URL is not one of these.
        OSError: the cluster does not answer.
    """
    try:
        return _client(StoreUrl(url), timeout_s, is_async=False)
    except RedisClusterException as exc:
        raise OSError(str(exc)) from exc


class StoreUrl:
    """The URL of a store, read and checked. No message has what may be a part of a password.

    Raises:
        SetupError: it is not one of these.

    Attributes:
        plain: as the `redis` package takes it.
        shown: without account and options, which may be secret.
    """

    def __init__(self, url: str) -> None:
        scheme, mark, rest = url.partition("://")
        base, _, self._kind = scheme.partition("+")
        network, slash, path = rest.partition("?")[0].partition("/")
        is_split = bool(mark) and "#" not in rest and "@" not in rest[len(network) :]
        account, _, self._hosts = network.rpartition("@")
        self.shown = f"{scheme}://{self._hosts}{slash}{path}" if is_split else "URL"
        if base not in _SCHEMES or self._kind not in _KINDS or (base == "unix" and self._kind):
            raise self._error(f"it begins with {', '.join(_BEGINNINGS)}")
        if not is_split:
            raise self._error("@ / ? and # in a password are written %40 %2F %3F and %23")
        user, _, password = account.partition(":")
        self._account = {"username": unquote(user) or None, "password": unquote(password) or None}
        self._name = path
        self._is_tls = base == "rediss"
        self.plain = f"{base}://{rest}"
        self._check(base, rest.partition("?")[2])

    def __repr__(self) -> str:
        return f"<StoreUrl {self.shown}>"

    @property
    def is_cluster(self) -> bool:
        """Whether it is that of a cluster."""
        return self._kind == "cluster"

    @property
    def primary(self) -> str | None:
        """What sentinels call it, if they are to be asked."""
        return self._name if self._kind == "sentinel" else None

    def sentinels(self) -> list[tuple[str, int]]:
        """Their addresses."""
        return [self._address(host, SENTINEL_PORT) for host in self._hosts.split(",")]

    def of_primary(self) -> dict[str, Any]:
        """What a connection to it needs; the package reads it from other URLs itself."""
        return {**self._account, "ssl": self._is_tls}

    def _check(self, base: str, query: str) -> None:
        if self._kind == "sentinel":
            self.sentinels()
            if not self._name or "/" in self._name or query:
                raise self._error("the name of the primary is missing, or something follows it")
            return
        names = {name for name, _ in parse_qsl(query, keep_blank_values=True)}
        if unknown := names - _OPTIONS:
            raise self._error(f"it has an option {min(unknown)!r}, and may have {_AS_WORDS}")
        if base == "unix":
            return
        self._address(self._hosts, REDIS_PORT)
        is_plain = not self._kind
        if self._name and not (is_plain and self._name.isascii() and self._name.isdecimal()):
            raise self._error("nothing but the number of a database may follow the host")

    def _address(self, host: str, port: int) -> tuple[str, int]:
        try:
            parts = urlsplit(f"//{host}")
            name, given = parts.hostname, parts.port
        except ValueError:
            raise self._error("a host looks like HOST:PORT") from None
        if self._kind and not name:
            raise self._error("a host is missing")
        return name or "", given or port

    def _error(self, reason: str) -> SetupError:
        return SetupError(f"--store {self.shown} cannot be used: {reason}")


def _client(url: StoreUrl, timeout_s: float, *, is_async: bool) -> Any:
    module: Any = redis.asyncio if is_async else redis
    settings: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    if url.is_cluster:
        return module.RedisCluster.from_url(url.plain, **settings)
    if url.primary is not None:
        primary = url.of_primary()
        sentinel = module.sentinel.Sentinel(
            url.sentinels(), sentinel_kwargs={**settings, "ssl": primary["ssl"]}, **settings
        )
        return sentinel.master_for(url.primary, **primary)
    try:
        return module.Redis.from_url(url.plain, retry=None, **settings)
    except (ValueError, RedisError):  # the value of an option, which it names
        raise SetupError(f"--store {url.shown} cannot be used: an option is wrong") from None


def _sentinels(client: Any) -> list[Any]:
    """The clients of the sentinels that are asked for the primary; they are not closed with it."""
    pool = getattr(client, "connection_pool", None)
    manager = getattr(pool, "sentinel_manager", None)
    return [] if manager is None else list(manager.sentinels)
