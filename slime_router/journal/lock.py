"""Who may have a journal open: one router alone, or several that share it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from slime_router.errors import SetupError

FILE_NAME = "journal.lock"


class JournalLock:
    """Held until it is let go, or the process ends, however it ends.

    Raises:
        SetupError: another router has the journal, and one of the two wants it for itself.
    """

    def __init__(self, directory: Path, *, is_shared: bool) -> None:
        kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        self._file: int | None = None
        try:
            self._file = os.open(
                directory / FILE_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
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
