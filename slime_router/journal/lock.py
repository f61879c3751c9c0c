"""Who may have a journal open: one router alone, or several that share it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from slime_router.errors import SetupError
from slime_router.journal.database import FILE_NAME as DATABASE
from slime_router.journal.database import SCHEMA

FILE_NAME = "journal.lock"
UPDATE_FILE_NAME = "journal.update.lock"  # of those who would bring it up to date
TRIES, PAUSE_S = 100, 0.05  # while another one brings it up to date
_LOOK_S = 1.0  # at the version, where another one has the file to itself for a moment


class JournalLock:
    """Held until it is let go, or the process ends, however it ends.

    Raises:
        SetupError: another router has the journal, and one of the two wants it for itself.
    """

    def __init__(self, directory: Path, *, is_shared: bool, file_name: str = FILE_NAME) -> None:
        kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        self._file: int | None = None
        try:
            self._file = os.open(
                directory / file_name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
            )
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except OSError as exc:
            self.let_go()
            if isinstance(exc, BlockingIOError):
                raise SetupError(f"the journal {directory} is in use by another router") from exc
            raise SetupError(f"the journal {directory} cannot be opened: {exc}") from exc

    def let_go(self) -> None:
        """Another router may have it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


@contextmanager
def alone_with_an_older_one(directory: Path) -> Iterator[None]:
    """Hold a journal of an older schema alone for the block, which brings it up to date.

    A router of that schema could write nothing to it from then on. Several new ones may come at
    once: all but the first wait until it is done. Blocking.

    Raises:
        SetupError: an older router has it open, or another new one takes too long.
    """
    # Whoever has just brought it up to date may still hold it alone.
    is_settled = _is_older(directory / DATABASE) is False
    if is_settled and not os.path.exists(directory / UPDATE_FILE_NAME):
        yield
        return
    locks = [_after_others(directory)]
    try:
        if not _is_older(directory / DATABASE):
            locks.pop().let_go()
        else:
            try:
                locks.append(JournalLock(directory, is_shared=False))
            except SetupError as exc:
                raise SetupError(
                    f"the journal {directory} is still open in an older router: stop that first"
                ) from exc
        yield
    finally:
        for lock in reversed(locks):
            lock.let_go()


def _after_others(directory: Path) -> JournalLock:
    for _ in range(TRIES):
        with suppress(SetupError):
            return JournalLock(directory, is_shared=False, file_name=UPDATE_FILE_NAME)
        time.sleep(PAUSE_S)
    return JournalLock(directory, is_shared=False, file_name=UPDATE_FILE_NAME)


def _is_older(path: Path) -> bool | None:
    """None where it cannot be read now: others may look at it at once, or bring it up to date."""
    if not os.path.isfile(path):  # nor may it be looked at
        return False
    try:
        with closing(sqlite3.connect(path, timeout=_LOOK_S)) as sql:
            version = sql.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error:  # whoever opens it says what is wrong with it
        return None
    return bool(0 < version < SCHEMA)
