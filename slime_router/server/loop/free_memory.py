"""Free memory, as far as this process may have it: of the machine, and of its control groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class _Names(NamedTuple):
    """The files of a control group, and the pages of files among its memory that may be dropped."""

    limit: str
    used: str
    droppable: str


_CURRENT = _Names("memory.max", "memory.current", "inactive_file")
_OLD = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that are free where the least are; None where the system does not say.

    A container often sees its own group as the topmost one, where that has another path outside:
    paths that are not there are those of the topmost. What counts as used is what Kubernetes counts
    as a working set: pages of files that nobody has used lately are dropped for others.

    `root` is where `proc` and `sys` are.
    """
    found = _field(root / "proc/meminfo", "MemAvailable:")
    free = [] if found is None else [found * 1024]
    for folder, names in _groups(root):
        with suppress(OSError, ValueError):  # "max", or the topmost group, which has no limit
            limit = int((folder / names.limit).read_text())
            used = int((folder / names.used).read_text())
            droppable = _field(folder / "memory.stat", names.droppable) or 0
            free.append(max(limit - used + droppable, 0))
    return min(free, default=None)


def _groups(root: Path) -> Iterator[tuple[Path, _Names]]:
    """The control groups of this process, each with all above it."""
    try:
        groups = (root / "proc/self/cgroup").read_text(errors="surrogateescape")
    except OSError:
        return
    for line in filter(None, groups.split("\n")):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = root / "sys/fs/cgroup", _CURRENT
        elif "memory" in controllers.split(","):
            top, names = root / "sys/fs/cgroup/memory", _OLD
        else:
            continue
        own = top / path.lstrip("/")
        yield own, names
        yield from ((above, names) for above in own.parents if above.is_relative_to(top))


def _field(file: Path, name: str) -> int | None:
    """The number after this name in a file of names and numbers."""
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            found, number, *_ = line.split()
            if found == name:
                return int(number)
    return None
