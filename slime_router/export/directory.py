"""An export's directory, which a crash at any point leaves good.

What is written first has a hidden name. The line in the manifest makes it count; then it gets its
own name. So a pattern like `rows-*` finds only what counts, each session and version once; and who
opens the directory ends what a crash has left half done.
"""

from __future__ import annotations

from collections.abc import Sequence

from slime_router.export import manifest
from slime_router.export.disk import Disk
from slime_router.export.manifest import Entry, Key

CARD = "README.md"
_PART = ".{}.part"


class ExportDirectory:
    """An open directory of one format.

    Args:
        suffix: of its files.
        card: what stands in its README.

    Raises:
        SetupError: it holds something else.
        OSError: it cannot be read or written.
    """

    def __init__(self, disk: Disk, form: str, suffix: str, card: bytes = b"") -> None:
        self._disk = disk
        self._suffix = suffix
        self._manifest = self._opened(form)
        self._card(card)

    def __repr__(self) -> str:
        return f"<ExportDirectory {len(self._manifest.files)} files>"

    def __len__(self) -> int:
        return len(self._manifest.entries)

    def find(self, key: Key) -> Entry | None:
        """The session as it was exported last; None where it was not."""
        return self._manifest.entries.get(key)

    def commit(self, data: bytes | None, rows: int, entries: Sequence[Entry]) -> str | None:
        """These sessions are exported, with their rows in `data`; returns the file that has them.

        Raises:
            OSError: they are not, or whoever opens the directory next finds that they are.
        """
        file = None
        if data is not None:
            file = f"rows-{self._next_number():06d}{self._suffix}"
            self._disk.write(_PART.format(file), data)
            self._disk.sync()
        line = manifest.line_of(file, rows, len(data or b""), entries)
        self._disk.append(manifest.NAME, manifest.packed(line))  # from here on it counts
        self._manifest.take(line)
        if file is not None:
            self._disk.rename(_PART.format(file), file)
            self._disk.sync()
        return file

    def _next_number(self) -> int:
        numbers = (
            int(name.removeprefix("rows-").partition(".")[0]) for name in self._manifest.files
        )
        return max(numbers, default=0) + 1

    def _opened(self, form: str) -> manifest.Manifest:
        data = self._disk.read(manifest.NAME)
        found = manifest.read(data, form)
        if found.size < len(data):
            self._disk.cut(manifest.NAME, found.size)
        if not found.size:
            self._disk.append(manifest.NAME, manifest.header(form))
        names = set(self._disk.names())
        for file in found.files:
            part = _PART.format(file)
            if part in names and file not in names:
                self._disk.rename(part, file)
                names.discard(part)
        for name in names:
            if name.startswith(".") and name.endswith(".part"):
                self._disk.remove(name)
        self._disk.sync()
        return found

    def _card(self, card: bytes) -> None:
        if not card or self._disk.read(CARD) == card:
            return
        self._disk.write(_PART.format(CARD), card)
        self._disk.rename(_PART.format(CARD), CARD)
        self._disk.sync()
