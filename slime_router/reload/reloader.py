"""`POST /reload`, and SIGHUP: keys, certificates and workers are read again, without a restart.

Everything is read and checked before anything changes: what cannot be used changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, TypeAlias

from aiohttp import web

from slime_router.api.context import EndpointContext
from slime_router.auth.access import Access
from slime_router.auth.tls import load_certificate, tls_context
from slime_router.config import Config
from slime_router.errors import BadRequest, RouterError, SetupError
from slime_router.pool.address import worker_url
from slime_router.pool.pool import WorkerPool
from slime_router.setting import flags_of
from slime_router.siblings.siblings import Siblings
from slime_router.supervisor import Supervisor
from slime_router.trajectory.store import TrajectoryStore

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger(__name__)

KEYS = ("api_key", "admin_api_key", "api_keys_file")
CERTIFICATE = ("tls_cert_path", "tls_key_path")
RELOAD, RELOAD_TIMEOUT_S = "reload", 30.0
READ_AGAIN = frozenset((*KEYS, *CERTIFICATE, "worker_urls"))


class Parts(Protocol):
    """The parts of a router that a reload concerns."""

    config: Config
    access: Access
    pool: WorkerPool
    tls: ssl.SSLContext | None
    supervisor: Supervisor
    context: EndpointContext
    store: TrajectoryStore
    siblings: Siblings


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload has changed. `needs_restart` names settings that have another value by now."""

    keys: int
    added: tuple[str, ...]
    removed: tuple[str, ...]
    needs_restart: tuple[str, ...]


class Reloader:
    """Reads the settings again, and applies those that can change while requests run.

    `read_again` gives the configuration as it is now, or raises SetupError. Without it, only the
    files that the configuration names are read again.
    """

    def __init__(self, router: Parts, read_again: Callable[[], Config] | None = None) -> None:
        self._started_with = self._config = router.config
        self._read_again = read_again or (lambda: router.config)
        self._access = router.access
        self._pool = router.pool
        self._tls = router.tls
        self._supervisor = router.supervisor
        self._share_among = (
            router.context.admission.share_among,
            router.store.sessions.share_among,
        )
        self._turn = asyncio.Lock()
        self._siblings = router.siblings
        router.siblings.answer(RELOAD, self._asked)

    def __repr__(self) -> str:
        return f"<Reloader of {self._access!r} and {self._pool!r}>"

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path and handler."""
        return [("POST", "/reload", self.handle)]

    async def handle(self, _: web.Request) -> web.Response:
        """`POST /reload`: says what has changed, or a 400 says why nothing has."""
        try:
            done = await self.reload()
        except SetupError as exc:
            raise BadRequest(exc.message, code="invalid_settings") from exc
        heard = await self._siblings.ask(RELOAD, timeout_s=RELOAD_TIMEOUT_S)
        refused = {n: why for n, why in heard.answers.items() if why is not None}
        silent = {str(number): why for number, why in {**heard.silent, **refused}.items()}
        reply = {
            "status": "success",
            "keys": done.keys,
            "workers": {"added": done.added, "removed": done.removed},
            "needs_restart": done.needs_restart,
            **({"silent_processes": silent} if silent else {}),
        }
        return web.json_response(reply)

    async def _asked(self, _: object) -> str | None:
        """Another process was asked to reload: why this one does not, if it does not."""
        try:
            await self.reload()
        except SetupError as exc:
            logger.error("settings stay as they are: %s", exc.message)
            return exc.message
        return None

    def start(self) -> None:
        """Reloads in the background, as a signal asks for; the log says how it went."""
        self._supervisor.start("reload", self._reload_logged)

    async def reload(self) -> Reloaded:
        """Reads all again and applies it.

        Raises:
            SetupError: something cannot be used; nothing was changed.
        """
        async with self._turn:
            config, access = await asyncio.to_thread(self._read)
            if self._tls is not None and config.tls_cert_path and config.tls_key_path:
                load_certificate(self._tls, config.tls_cert_path, config.tls_key_path)
            self._access.become(access)
            for share_among in self._share_among:
                share_among(access.owners)
            added, removed = self._move_workers(config.worker_urls)
            self._config = config
        done = Reloaded(len(access), added, removed, self._needs_restart(config))
        logger.info(
            "settings are read again: %d keys, %d workers added, %d removed",
            done.keys,
            len(added),
            len(removed),
        )
        if done.needs_restart:
            logger.warning(
                "these settings change only with a restart: %s", ", ".join(done.needs_restart)
            )
        return done

    async def _reload_logged(self) -> None:
        try:
            await self.reload()
        except RouterError as exc:
            logger.error("settings stay as they are: %s", exc.message)

    def _read(self) -> tuple[Config, Access]:
        """Runs in a thread: files may be slow."""
        config = self._read_again()
        access = Access.of(config)
        self._access.check_change(access)
        if self._tls is not None:
            tls_context(config.tls_cert_path, config.tls_key_path)
        for url in config.worker_urls:
            try:
                worker_url(url)
            except BadRequest as exc:
                raise SetupError(f"worker {url!r}: {exc.message}") from exc
        return config, access

    def _move_workers(self, urls: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Only those that the settings name: others were registered by somebody else."""
        before = dict.fromkeys(map(worker_url, self._config.worker_urls))  # in order, each once
        after = dict.fromkeys(map(worker_url, urls))
        added = tuple(url for url in after if url not in before)
        known = {worker.url for worker in self._pool.list()}
        removed = tuple(url for url in before if url not in after and url in known)
        for url in added:
            self._pool.add(url)
            logger.info("worker %s joins: the settings name it", url)
        for url in removed:
            worker = self._pool.drain(url)
            logger.info("worker %s leaves, %d in flight", url, worker.in_flight)
        return added, removed

    def _needs_restart(self, config: Config) -> tuple[str, ...]:
        kept = set(READ_AGAIN)
        if (self._tls is None) != (config.tls_cert_path is None):
            kept -= set(CERTIFICATE)
        return tuple(
            (flags_of(field) or (field.name,))[0]
            for field in fields(Config)
            if field.name not in kept
            and getattr(config, field.name) != getattr(self._started_with, field.name)
        )
