"""The workers that the parent of several processes has launched: each process registers them."""

from __future__ import annotations

from slime_router.server.fleet import Fleet
from slime_router.siblings.place import LaunchedFile, LaunchedWorker
from slime_router.supervisor import Supervisor

EVERY_S = 0.25


class Launched:
    """Looks from time to time which of them are up."""

    def __init__(self, file: LaunchedFile, fleet: Fleet) -> None:
        self._file = file
        self._fleet = fleet
        self._seen: tuple[int, int] | None = None
        self._known: dict[str, LaunchedWorker] = {}

    def start(self, supervisor: Supervisor) -> None:
        """Looks at once, then in the background, as long as the supervisor lasts."""
        self.look()
        supervisor.every(EVERY_S, "look at launched workers", self.look)

    def look(self) -> None:
        """Registers what came up, and takes out of service what died."""
        version = self._file.version
        if version == self._seen:
            return
        listed = self._file.read()
        for url, worker in listed.items():
            before = self._known.get(url)
            if worker == before:
                continue
            workers = self._fleet.launched(worker.api_key)
            if before is not None and before.is_up:  # even where it is up again by now
                workers.note_down(url)
            if worker.is_up:
                workers.note_up(url)
        self._known, self._seen = listed, version
