"""The place of one process among its siblings, and the private directory that they share.

The directory holds a socket for each of them, the settings that all have, and what each says to the
process that started it: that it is up, or why it cannot be.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from slime_router.config import Config
from slime_router.errors import SetupError

logger = logging.getLogger(__name__)

_SETTINGS = "settings.json"
MAX_SOCKET_PATH_LEN = 100  # bytes; the kernel takes 107, macOS 103


@dataclass(frozen=True, slots=True)
class LaunchedWorker:
    """A worker that was launched for all of them; `lives`: how often it has come up."""

    is_up: bool
    lives: int
    api_key: str | None = field(default=None, repr=False)


class LaunchedFile:
    """The workers that were launched, by URL, for the processes to read. Only this user can."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "launched.json"

    @property
    def version(self) -> tuple[int, int] | None:
        """Changes with what is written, also within a tick of the clock; None: nothing was yet."""
        try:
            about = self._path.stat()
        except FileNotFoundError:
            return None
        return about.st_ino, about.st_mtime_ns

    def read(self) -> dict[str, LaunchedWorker]:
        """What was written last."""
        text = _read(self._path)
        listed: dict[str, Any] = {} if text is None else orjson.loads(text)
        return {url: LaunchedWorker(**worker) for url, worker in listed.items()}

    def write(self, workers: Mapping[str, LaunchedWorker]) -> None:
        """All at once. Raises OSError: the file stays as it is."""
        listed = {url: asdict(worker) for url, worker in workers.items()}
        _write(self._path, orjson.dumps(listed).decode())


@dataclass(frozen=True, slots=True)
class Place:
    """Which process this is: `number` of `count`, from 1 on, started for the `lives`th time."""

    directory: Path
    number: int
    count: int
    lives: int = 1

    @classmethod
    def of(cls, argv: Iterable[str]) -> Place:
        """The place that a command line names; the inverse of `arguments`."""
        directory, number, count, lives = argv
        return cls(Path(directory), int(number), int(count), int(lives))

    @property
    def arguments(self) -> tuple[str, ...]:
        """How a command line names it."""
        return (str(self.directory), str(self.number), str(self.count), str(self.lives))

    @property
    def others(self) -> tuple[int, ...]:
        """The numbers of its siblings."""
        return tuple(n for n in range(1, self.count + 1) if n != self.number)

    def socket(self, number: int | None = None) -> Path:
        """Where this one, or another one, listens for its siblings."""
        return self.directory / f"{number or self.number}.sock"

    @property
    def config(self) -> Config:
        """The settings that all of them were started with."""
        fields: dict[str, Any] = {}
        for name, value in self._settings()["config"].items():
            fields[name] = tuple(value) if isinstance(value, list) else value
        return Config(**fields)

    @property
    def argv(self) -> list[str]:
        """The words of the command line that the settings come from."""
        argv: list[str] = self._settings()["argv"]
        return argv

    def _settings(self) -> dict[str, Any]:
        known: dict[str, Any] = orjson.loads((self.directory / _SETTINGS).read_bytes())
        return known

    @property
    def launched(self) -> LaunchedFile:
        """The file that says which workers were launched."""
        return LaunchedFile(self.directory)

    # What it says to whoever started it

    def up(self, banner: str) -> None:
        """Record that this process serves; `banner` says what.

        Raises:
            SetupError: it cannot be recorded, as on a full disk.
        """
        try:
            _write(self._up_file, banner)
        except OSError as exc:
            raise SetupError(f"cannot write to {self.directory}: {exc.strerror}") from exc

    def failed(self, message: str) -> None:
        """Record that this process cannot serve; `message` says why in one line."""
        try:
            _write(self._failed_file, message)
        except OSError:  # then it is in the log alone
            logger.error("%s", message)

    def begin(self) -> None:
        """Nothing that an earlier process in this place has said holds any longer."""
        for path in (self._up_file, self._failed_file, self.socket()):
            path.unlink(missing_ok=True)

    @property
    def banner(self) -> str | None:
        """What it serves; None until it does."""
        return _read(self._up_file)

    @property
    def failure(self) -> str | None:
        """Why it cannot serve, if it has said so."""
        return _read(self._failed_file)

    @property
    def _up_file(self) -> Path:
        return self.directory / f"{self.number}.up"

    @property
    def _failed_file(self) -> Path:
        return self.directory / f"{self.number}.failed"


def write_settings(directory: Path, config: Config, argv: Sequence[str]) -> None:
    """Leaves the settings for those who are started there; only this user can read them.

    Raises:
        SetupError: others could, or a socket there would have too long a name.
    """
    if stat.S_IMODE(directory.stat().st_mode) & 0o077:
        raise SetupError(f"{directory} must be private: what the processes say stands there")
    if len(os.fsencode(Place(directory, 999, 999).socket())) > MAX_SOCKET_PATH_LEN:
        raise SetupError(f"{directory} is too long a path for a socket: set a shorter TMPDIR")
    known = {"config": asdict(config), "argv": list(argv)}
    (directory / _SETTINGS).write_bytes(orjson.dumps(known))


def _write(path: Path, text: str) -> None:
    """All at once: whoever reads it sees the whole text or no file."""
    draft = path.with_suffix(f".{secrets.token_hex(4)}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
