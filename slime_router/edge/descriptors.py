"""File descriptors: as many as the system allows, how many of them clients may have, and a word in
the log when there are no more.

Each client takes one, and its generation another one, for the worker. So clients get one half of
what is left at the start, and whoever is connected finds one for what it asks.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from slime_router.errors import OUT_OF_DESCRIPTORS
from slime_router.supervisor import Supervisor

logger = logging.getLogger(__name__)

LOOK_S = 0.5  # between two looks
SPARE = 8  # for files that are opened in between
MIN_CLIENTS = 4  # however few there are
UNKNOWN_IN_USE = 64  # where the system does not list them


def raise_limit() -> int | None:
    """Raises this process's limit to what the system allows; returns it, where there is one."""
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError) as exc:  # macOS allows less than it says
            logger.debug("the limit of files stays at %d: %s", soft, exc)
    return None if soft == resource.RLIM_INFINITY else soft


class DescriptorWatch:
    """Says how many clients may be connected, notices when there are no descriptors left, and when
    there are again.

    `probe` takes one and gives it back; it raises OSError where it cannot.
    """

    def __init__(self, limit: int | None, probe: Callable[[], None] | None = None) -> None:
        self._limit = limit
        self._probe = probe or _take_one
        self._is_out = False
        self.times_out = 0
        self.pauses = 0  # of accepting clients

    def most_clients(self) -> int | None:
        """How many clients may be connected at once, by what is in use now; None: any number."""
        if self._limit is None:
            return None
        return max((self._limit - _in_use() - SPARE) // 2, MIN_CLIENTS)

    def note_pause(self, clients: int) -> None:
        """Accepting pauses, with this many clients connected. Logged for the first time only."""
        self.pauses += 1
        if self.pauses == 1:
            logger.warning(
                "new clients wait until others leave: %d are connected, and file descriptors are"
                " needed for workers too (limit %s); raise it with ulimit -n",
                clients,
                self._limit or "of the system",
            )

    def __repr__(self) -> str:
        return f"<DescriptorWatch {'out' if self._is_out else 'well'}, limit {self._limit}>"

    def start(self, supervisor: Supervisor) -> None:
        """Watches as long as the supervisor lasts."""
        supervisor.every(LOOK_S, "descriptor watch", self.look)

    def look(self) -> None:
        """To be called every `LOOK_S`."""
        try:
            self._probe()
        except OSError as exc:
            if exc.errno not in OUT_OF_DESCRIPTORS:
                raise
            self._note_out()
            return
        if self._is_out:
            self._is_out = False
            logger.warning("there are file descriptors again: new connections are accepted")

    def _note_out(self) -> None:
        if self._is_out:
            return
        self._is_out = True
        self.times_out += 1
        logger.error(
            "no file descriptors are left (limit %s): nothing is accepted until some are closed;"
            " raise it with ulimit -n",
            self._limit or "of the system",
        )


def _take_one() -> None:
    os.close(os.open(os.devnull, os.O_RDONLY))


def _in_use() -> int:
    for listing in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(listing))
        except OSError:
            continue
    return UNKNOWN_IN_USE
