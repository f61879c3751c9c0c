"""The workers that the parent of several processes launches once for all of them."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus

import aiohttp

from slime_router.config import Config
from slime_router.launch.launcher import Launcher
from slime_router.server.fleet import PROBE_TIMEOUT_S, launcher_of, worker_commands
from slime_router.siblings.place import LaunchedFile, LaunchedWorker
from slime_router.supervisor import Supervisor


class ParentsWorkers:
    """Writes down which of them are up; `LaunchedFile` is read by the processes."""

    def __init__(self, file: LaunchedFile, api_key: str | None) -> None:
        self._file = file
        self._api_key = api_key
        self._workers: dict[str, LaunchedWorker] = {}

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
        self._file.write(self._workers)

    def note_down(self, url: str) -> None:
        """Record that the worker's process has ended."""
        self._workers[url] = replace(self._workers[url], is_up=False)
        self._file.write(self._workers)


def parents_launcher(config: Config, file: LaunchedFile, supervisor: Supervisor) -> Launcher:
    """What launches the workers that the settings ask for. Raises SetupError."""
    commands = worker_commands(config)
    workers = ParentsWorkers(file, commands[0].api_key)
    return launcher_of(
        config,
        commands,
        supervisor,
        answers=workers.answers,
        on_up=workers.note_up,
        on_down=workers.note_down,
    )
