"""Has the kernel keep the memory of a router that has started in pages of 2 MB, not of 4 KB.

A turn runs through code and objects that lie all over some hundred megabytes. The processor finds
few of their pages in its own tables (TLB), and looks for each of the others in the kernel's, on a
virtual machine twice. There are 512 times fewer of the large ones: a turn takes 3 to 11 % less CPU.

Since Linux 6.1 a process can ask for this with `madvise(MADV_COLLAPSE)`; older kernels refuse. A
region is copied in a millisecond or less, and only a thread that touches it meanwhile waits. It is
asked for once: memory allocated later comes in small pages as usual.

A whole region becomes one page, including any part that was not in use. So only regions that are
nearly full are asked for, which leaves out the stacks of threads.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import mmap
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from slime_router.server.loop.free_memory import free_memory

logger = logging.getLogger(__name__)

SIZE = 2**21  # bytes of a page; other processors than x86-64 and most ARMs have others, and refuse
SPARE = 2**29  # bytes that have to be free
MIN_FULL = 0.75  # of a region
MAX_FAILURES = 3  # for want of memory: it may be in too small pieces
PAUSE_S = 0.01  # after each: others get to run, also where it takes long
_COLLAPSE = 25  # MADV_COLLAPSE
_OUT_OF_MEMORY = {errno.ENOMEM, errno.EBUSY}  # of the machine, of the control group
_ENTRY = 8  # bytes in /proc/self/pagemap for each small page; the first bit says that it is there
_ENABLED = Path("sys/kernel/mm/transparent_hugepage/enabled")

Collapse = Callable[[int, int], int]  # (address, bytes) -> 0, or what went wrong: an errno


def regions(maps: str) -> Iterator[int]:
    """The addresses of the regions of one page each that are memory of the process alone.

    `maps` is the text of `/proc/self/maps`.
    """
    for line in filter(None, maps.split("\n")):  # a path may hold what else ends lines
        span, permissions, _, _, inode, *path = line.split(None, 5)
        is_nameless = not path or path[0].startswith("[anon:")
        if permissions == "rw-p" and inode == "0" and (is_nameless or path[0] == "[heap]"):
            start, end = (int(address, 16) for address in span.split("-"))
            yield from range(-(-start // SIZE) * SIZE, end - SIZE + 1, SIZE)


class HugePages:
    """Asks for them, region by region, in a thread. `root` is where `proc` and `sys` are."""

    def __init__(
        self,
        *,
        collapse: Collapse | None = None,
        root: Path = Path("/"),
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._collapse = collapse
        self._root = root
        self._sleep = sleep
        self._failures = 0
        self.count = 0  # regions that became huge pages

    def __repr__(self) -> str:
        return f"<HugePages {self.count}>"

    async def gather(self) -> None:
        """Asks for all of them, once. It does not log that a system has none."""
        for address in await asyncio.to_thread(self._wanted):
            if not await asyncio.to_thread(self._ask, address):
                break
            await self._sleep(PAUSE_S)
        if self.count:
            logger.debug("%d MB of memory are in huge pages", self.count * SIZE >> 20)

    def _wanted(self) -> list[int]:
        """The regions to ask for: none where there are no such pages, or must not be."""
        try:
            if "[never]" in (self._root / _ENABLED).read_text():
                return []
            maps = (self._root / "proc/self/maps").read_text(errors="replace")  # it names files
            with (self._root / "proc/self/pagemap").open("rb", buffering=0) as pagemap:
                found = [each for each in regions(maps) if _share(pagemap, each) >= MIN_FULL]
        except OSError:  # not Linux, or without them
            return []
        self._collapse = self._collapse or _kernels_collapse()
        return [] if self._collapse is None else found

    def _ask(self, address: int) -> bool:
        """Asks for one; returns whether to go on. What was given back meanwhile is refused."""
        assert self._collapse is not None
        free = free_memory(self._root)
        if free is None or free < SPARE:
            return False
        code = self._collapse(address, SIZE)
        self.count += code == 0
        self._failures += code in _OUT_OF_MEMORY
        return self._failures < MAX_FAILURES


def _share(pagemap: BinaryIO, address: int) -> float:
    """How much of the region is there."""
    small = SIZE // mmap.PAGESIZE
    pagemap.seek(address // mmap.PAGESIZE * _ENTRY)
    entries = pagemap.read(small * _ENTRY)
    return sum(last >> 7 for last in entries[_ENTRY - 1 :: _ENTRY]) / small  # of little-endian ones


def _kernels_collapse() -> Collapse | None:
    """`madvise(MADV_COLLAPSE)`, which lets go of the interpreter while it works."""
    if sys.platform != "linux":
        return None
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

    def collapse(address: int, size: int) -> int:
        return 0 if madvise(address, size, _COLLAPSE) == 0 else ctypes.get_errno()

    return collapse
