"""The file operations of an export, each of them durable or not done. Blocking."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from slime_router.errors import SetupError


class Disk(Protocol):
    """One directory. All operations raise OSError where they fail."""

    def names(self) -> list[str]:
        """The files in it."""

    def read(self, name: str) -> bytes:
        """What is in a file; nothing where there is none."""

    def write(self, name: str, data: bytes) -> None:
        """A new file, or an old one again; its bytes are durable, its name after `sync`."""

    def append(self, name: str, data: bytes) -> None:
        """At the end of a file; durable, and after a crash there in part at worst."""

    def cut(self, name: str, size: int) -> None:
        """Leave only the first bytes of a file."""

    def rename(self, name: str, new: str) -> None:
        """In place of the file that has this name, if one has; durable after `sync`."""

    def remove(self, name: str) -> None:
        """Durable after `sync`."""

    def sync(self) -> None:
        """Names are durable from here on."""


class LocalDisk:
    """A directory of this machine that nobody else writes to while it is open.

    Args:
        lock: the file that says so; its being there makes a directory one of ours.

    Raises:
        SetupError: it cannot be made or written to, is in use, or holds other things.
    """

    def __init__(self, directory: Path, *, lock: str) -> None:
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if not (directory / lock).exists() and any(directory.iterdir()):
                raise SetupError(f"{directory} holds other things: name an empty directory")
            self._lock = os.open(directory / lock, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as exc:
            raise SetupError(f"{exc.filename or directory}: {exc.strerror}") from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._lock)
            raise SetupError(f"{directory} is in use by another export") from exc

    def __repr__(self) -> str:
        return f"<LocalDisk {self._directory}>"

    def close(self) -> None:
        """Let others write to it."""
        os.close(self._lock)

    def names(self) -> list[str]:
        """See `Disk.names`."""
        return [path.name for path in self._directory.iterdir() if path.is_file()]

    def read(self, name: str) -> bytes:
        """See `Disk.read`."""
        with suppress(FileNotFoundError):
            return (self._directory / name).read_bytes()
        return b""

    def write(self, name: str, data: bytes) -> None:
        """See `Disk.write`."""
        self._put(name, data, os.O_TRUNC)

    def append(self, name: str, data: bytes) -> None:
        """See `Disk.append`."""
        self._put(name, data, os.O_APPEND)

    def _put(self, name: str, data: bytes, how: int) -> None:
        file = os.open(self._directory / name, os.O_CREAT | os.O_WRONLY | how, 0o666)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        finally:
            os.close(file)

    def cut(self, name: str, size: int) -> None:
        """See `Disk.cut`."""
        os.truncate(self._directory / name, size)

    def rename(self, name: str, new: str) -> None:
        """See `Disk.rename`."""
        (self._directory / name).replace(self._directory / new)

    def remove(self, name: str) -> None:
        """See `Disk.remove`."""
        (self._directory / name).unlink()

    def sync(self) -> None:
        """See `Disk.sync`."""
        file = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
