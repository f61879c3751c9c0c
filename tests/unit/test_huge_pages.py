"""Which memory is asked to be in huge pages, and where none is asked for."""

from __future__ import annotations

import errno
import logging
import mmap
from collections.abc import Mapping
from pathlib import Path

import pytest

from slime_router.server.loop.free_memory import free_memory
from slime_router.server.loop.huge_pages import MAX_FAILURES, SIZE, SPARE, HugePages, regions

MIB = 2**20
FREE = f"MemTotal: 99999999 kB\nMemAvailable: {SPARE // 1024} kB\n"
FIRST = 16 * SIZE
MAPS = f"{FIRST:x}-{FIRST + 4 * SIZE:x} rw-p 00000000 00:00 0    [heap]\n"


class Machine:
    """A `/proc` and a `/sys`, and a kernel that answers `answer` when it is asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[int] = []
        self.pauses = 0
        self.answer = 0
        self.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
        self.write("proc/meminfo", FREE)
        self.write("proc/self/maps", MAPS)
        self.fill(dict.fromkeys(range(FIRST, FIRST + 4 * SIZE, SIZE), 1.0))

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def fill(self, shares: Mapping[int, float]) -> None:
        """These regions have such shares of their pages."""
        small = SIZE // mmap.PAGESIZE
        with (self.root / "proc/self/pagemap").open("wb") as pagemap:
            for address, share in shares.items():
                pagemap.seek(address // mmap.PAGESIZE * 8)
                there = int(small * share)
                pagemap.write(b"\0\0\0\0\0\0\0\x81" * there)
                pagemap.write(b"\xff\0\0\0\0\0\0\x01" * (small - there))

    def collapse(self, address: int, size: int) -> int:
        assert size == SIZE
        self.asked.append(address)
        return self.answer

    async def pause(self, _: float) -> None:
        self.pauses += 1

    async def gather(self) -> HugePages:
        pages = HugePages(collapse=self.collapse, root=self.root, sleep=self.pause)
        await pages.gather()
        return pages


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def line(start: int, end: int, rest: str) -> str:
    return f"{start:x}-{end:x} {rest}\n"


@pytest.mark.parametrize(
    ("rest", "is_wanted"),
    [
        ("rw-p 00000000 00:00 0                          [heap]", True),
        ("rw-p 00000000 00:00 0 ", True),
        ("rw-p 00000000 00:00 0    [anon: glibc: malloc arena]", True),
        ("rw-p 00000000 00:00 0    [stack]", False),
        ("---p 00000000 00:00 0 ", False),
        ("r-xp 00000000 00:00 0 ", False),
        ("rw-s 00000000 00:00 0 ", False),
        ("rw-p 00000000 fe:00 4711   /usr/lib/libpython3.11.so.1.0", False),
        ("rw-p 00000000 fe:00 4711   /a file with [heap] in its name", False),
        ("r-xp 00000000 00:00 0    [vdso]", False),
    ],
)
def test_memory_of_the_process_alone_is_wanted(rest, is_wanted):
    assert list(regions(line(SIZE, 2 * SIZE, rest))) == [SIZE] * is_wanted


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (3 * SIZE, 5 * SIZE, [3 * SIZE, 4 * SIZE]),
        (3 * SIZE + 4096, 5 * SIZE, [4 * SIZE]),
        (3 * SIZE, 5 * SIZE - 4096, [3 * SIZE]),
        (3 * SIZE + 4096, 5 * SIZE - 4096, []),
        (3 * SIZE + 4096, 3 * SIZE + 8192, []),
    ],
)
def test_a_region_is_a_whole_page_at_its_place(start, end, expected):
    assert list(regions(line(start, end, "rw-p 00000000 00:00 0"))) == expected


async def test_each_region_is_asked_for_with_a_pause_after_it(machine, caplog):
    caplog.set_level(logging.DEBUG)
    pages = await machine.gather()
    assert machine.asked == [FIRST, FIRST + SIZE, FIRST + 2 * SIZE, FIRST + 3 * SIZE]
    assert (pages.count, machine.pauses) == (4, 4)
    assert "8 MB of memory are in huge pages" in caplog.text


async def test_regions_with_many_holes_are_left_as_they_are(machine):
    machine.fill({FIRST: 0.0, FIRST + SIZE: 0.7, FIRST + 2 * SIZE: 0.8, FIRST + 3 * SIZE: 0.1})
    await machine.gather()
    assert machine.asked == [FIRST + 2 * SIZE]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EAGAIN])
async def test_a_region_that_is_refused_does_not_keep_the_others(machine, code, caplog):
    caplog.set_level(logging.DEBUG)
    machine.answer = code
    assert (await machine.gather()).count == 0
    assert (len(machine.asked), caplog.messages) == (4, [])


async def test_files_and_groups_may_have_any_name(machine):
    """The kernel takes names as bytes, which need not be text."""
    named = b"7f-80 r-xp 00000000 fe:00 4711  /opt/\xff\xe2\x80\xa8 a\xc2\x85 b/lib.so\n"
    (machine.root / "proc/self/maps").write_bytes(named + MAPS.encode())
    (machine.root / "proc/self/cgroup").write_bytes(b"0::/pods/\xff\xc2\x85\n")
    assert (await machine.gather()).count == 4


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EBUSY])
async def test_a_kernel_without_memory_is_not_asked_forever(machine, code):
    machine.answer = code
    await machine.gather()
    assert len(machine.asked) == MAX_FAILURES < 4


@pytest.mark.parametrize(
    "path",
    ["sys/kernel/mm/transparent_hugepage/enabled", "proc/self/maps", "proc/self/pagemap"],
)
async def test_elsewhere_nothing_is_asked(machine, path, caplog):
    (machine.root / path).unlink()
    await machine.gather()
    assert (machine.asked, caplog.messages) == ([], [])


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
        ("proc/meminfo", f"MemAvailable: {SPARE // 1024 - 1} kB\n"),
        ("proc/meminfo", "MemTotal: 99999999 kB\n"),
    ],
)
async def test_where_they_are_unwanted_or_memory_is_short_nothing_is_asked(machine, path, text):
    machine.write(path, text)
    await machine.gather()
    assert machine.asked == []


async def test_it_stops_once_memory_is_short(machine):
    def collapse(address: int, size: int) -> int:
        machine.write("proc/meminfo", "MemAvailable: 0 kB\n")
        return Machine.collapse(machine, address, size)

    machine.collapse = collapse
    await machine.gather()
    assert machine.asked == [FIRST]


CURRENT = ("memory.max", "memory.current", "inactive_file")
OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.mark.parametrize(
    ("cgroup", "top", "names"),
    [
        ("0::/pods/a\n", "sys/fs/cgroup", CURRENT),
        ("8:pids:/x\n4:memory:/pods/a\n0::/\n", "sys/fs/cgroup/memory", OLD),
    ],
)
def test_free_memory_is_that_of_the_fullest_group(machine, cgroup, top, names):
    limit, used, droppable = names

    def group(path: str, limit_mib: int | None, used_mib: int, droppable_mib: int) -> None:
        machine.write(f"{top}{path}/{limit}", "max" if limit_mib is None else f"{limit_mib * MIB}")
        machine.write(f"{top}{path}/{used}", f"{used_mib * MIB}\n")
        stat = f"anon 1\n{droppable} {droppable_mib * MIB}\n"
        machine.write(f"{top}{path}/memory.stat", stat)

    assert free_memory(machine.root) == SPARE
    machine.write("proc/self/cgroup", cgroup)
    assert free_memory(machine.root) == SPARE
    group("/pods/a", None, 900, 0)
    assert free_memory(machine.root) == SPARE
    group("/pods/a", 400, 300, 50)
    assert free_memory(machine.root) == 150 * MIB
    group("/pods", 1000, 990, 0)
    assert free_memory(machine.root) == 10 * MIB
    group("", 1000, 1001, 0)
    assert free_memory(machine.root) == 0


def test_without_a_word_from_the_system_free_memory_is_unknown(tmp_path):
    assert free_memory(tmp_path) is None
