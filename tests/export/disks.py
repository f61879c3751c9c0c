"""A disk in memory that ends its user at any point, with or without the power."""

from __future__ import annotations

from dataclasses import dataclass


class Killed(BaseException):
    """Nothing that the program does comes after it."""


@dataclass(eq=False)
class Inode:
    """A file: as programs see it, and as a power cut leaves it."""

    seen: bytes = b""
    kept: bytes = b""


class FakeDisk:
    """As `LocalDisk`. After `fuse` steps it kills; each write counts as three: none, half, all."""

    def __init__(self, fuse: int | None = None) -> None:
        self.fuse = fuse
        self._seen: dict[str, Inode] = {}
        self._kept: dict[str, Inode] = {}

    def after(self, *, power_cut: bool) -> FakeDisk:
        """What the next program finds."""
        disk = FakeDisk()
        names = self._kept if power_cut else self._seen
        for name, inode in names.items():
            left = inode.kept if power_cut else inode.seen
            disk._seen[name] = disk._kept[name] = Inode(left, left)
        return disk

    def _step(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Killed

    def names(self) -> list[str]:
        return list(self._seen)

    def read(self, name: str) -> bytes:
        return self._seen[name].seen if name in self._seen else b""

    def write(self, name: str, data: bytes) -> None:
        self._put(self._seen.setdefault(name, Inode()), b"", data)

    def append(self, name: str, data: bytes) -> None:
        inode = self._seen.setdefault(name, Inode())
        self._put(inode, inode.seen, data)

    def _put(self, inode: Inode, start: bytes, data: bytes) -> None:
        self._step()
        inode.seen = inode.kept = start + data[: len(data) // 2]
        self._step()
        inode.seen = start + data
        self._step()
        inode.kept = inode.seen

    def cut(self, name: str, size: int) -> None:
        self._step()
        self._seen[name].seen = self._seen[name].seen[:size]

    def rename(self, name: str, new: str) -> None:
        self._step()
        self._seen[new] = self._seen.pop(name)

    def remove(self, name: str) -> None:
        self._step()
        del self._seen[name]

    def sync(self) -> None:
        self._step()
        self._kept = dict(self._seen)
