"""The workers that the parent of several processes launches once for all of them."""

from __future__ import annotations

import logging
from dataclasses import replace
from http import HTTPStatus

import aiohttp

from slime_router.config import Config
from slime_router.launch.launcher import Launcher
from slime_router.server.fleet import PROBE_TIMEOUT_S, launcher_of, worker_commands
from slime_router.siblings.place import LaunchedFile, LaunchedWorker
from slime_router.supervisor import Supervisor

logger = logging.getLogger(__name__)

WRITE_AGAIN_S = 1.0


class ParentsWorkers:
    """Writes down which of them are up; `LaunchedFile` is read by the processes.

    What cannot be written, as on a full disk, is written later; no worker ends because of that.
    """

    def __init__(self, file: LaunchedFile, api_key: str | None) -> None:
        self._file = file
        self._api_key = api_key
        self._workers: dict[str, LaunchedWorker] = {}
        self._is_behind = False  # the file is

    async def answers(self, url: str) -> bool:
        """Whether the worker at `url` is ready to serve."""
        headers = {} if self._api_key is None else {"Authorization": f"Bearer {self._api_key}"}
        limit = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as http,
                http.get(f"{url}/health", headers=headers) as reply,
            ):
                return reply.status == HTTPStatus.OK
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def note_up(self, url: str) -> None:
        """Record that the worker serves, for the first time or again."""
        before = self._workers.get(url) or LaunchedWorker(False, 0, self._api_key)
        self._workers[url] = replace(before, is_up=True, lives=before.lives + 1)
        self._write()

    def note_down(self, url: str) -> None:
        """Record that the worker's process has ended."""
        self._workers[url] = replace(self._workers[url], is_up=False)
        self._write()

    def catch_up(self) -> None:
        """Write what could not be written before."""
        if self._is_behind:
            self._write()

    def _write(self) -> None:
        try:
            self._file.write(self._workers)
        except OSError as exc:
            if not self._is_behind:
                logger.error("which workers are up cannot be written for the processes: %s", exc)
            self._is_behind = True
        else:
            self._is_behind = False


def parents_launcher(config: Config, file: LaunchedFile, supervisor: Supervisor) -> Launcher:
    """What launches the workers that the settings ask for. Raises SetupError."""
    commands = worker_commands(config)
    workers = ParentsWorkers(file, commands[0].api_key)
    supervisor.every(WRITE_AGAIN_S, "list of launched workers", workers.catch_up)
    return launcher_of(
        config,
        commands,
        supervisor,
        answers=workers.answers,
        on_up=workers.note_up,
        on_down=workers.note_down,
    )
