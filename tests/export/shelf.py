"""Sessions without a router, and what a reader finds in an export of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from slime_router.api.sessions.listing import Listing
from slime_router.export.directory import ExportDirectory
from slime_router.export.disk import Disk
from slime_router.export.export import Export, ExportCounts
from slime_router.export.formats import FORMATS
from slime_router.export.manifest import NAME, Key
from slime_router.export.source import Found, Gone, Rows

ALL = Listing()


def row(session_id: str, row_id: str, *, length: int = 3, reward: Any = None) -> dict[str, Any]:
    """A row as JSON has it."""
    return {
        "row_id": row_id,
        "session_id": session_id,
        "group_id": None,
        "rollout_id": session_id,
        "turn_ids": [row_id],
        "turn_versions": ["v"],
        "response_length": 1,
        "status": "completed",
        "finish_reason": "stop",
        "truncated_sampling": False,
        "turns": [],
        "reward": reward,
        "metadata": {},
        "tokens": list(range(length)),
        "loss_mask": [0] * (length - 1) + [1],
        "logprobs": None,
        "weight_versions": [None] * (length - 1) + ["v"],
    }


@dataclass
class Kept:
    """A session of the source."""

    rows: Rows
    revision: int = 0
    dropped_turns: int = 0
    is_gone: bool = False


@dataclass
class FakeSource:
    """A source of what is put into `kept`."""

    kept: dict[str, Kept] = field(default_factory=dict)
    marked: list[Key] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # whose rows
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.kept)

    def sessions(self, _: Listing, min_reward: float | None) -> Iterator[Found]:
        for name, each in list(self.kept.items()):
            yield self._found(name, each)

    def _found(self, name: str, each: Kept) -> Found:
        def rows() -> Rows:
            self.asked.append(name)
            if each.is_gone:
                raise Gone(name)
            return each.rows

        return Found(Key("", name), str(each.revision), each.dropped_turns, rows)

    def exported(self, keys: Collection[Key]) -> None:
        self.marked += keys

    def close(self) -> None:
        """Nothing is open."""


def run(disk: Disk, source: FakeSource, *, file_bytes: int = 1) -> ExportCounts:
    """One export as JSON lines."""
    form = FORMATS["jsonl"]
    directory = ExportDirectory(disk, "jsonl", form.suffix, b"card")
    return Export(source, directory, form, file_bytes=file_bytes).run(ALL)


def visible(disk: Disk) -> list[dict[str, Any]]:
    """All rows that a pattern finds."""
    names = sorted(name for name in disk.names() if name.startswith("rows-"))
    return [orjson.loads(line) for name in names for line in disk.read(name).splitlines()]


def listed(disk: Disk) -> list[dict[str, Any]]:
    """The lines of the manifest after the first, as far as they are whole."""
    whole = disk.read(NAME).rpartition(b"\n")[0]
    return [orjson.loads(line) for line in whole.splitlines()[1:]]


def versions(disk: Disk) -> dict[str, int]:
    """Of each session the last one."""
    return {s["session_id"]: s["version"] for line in listed(disk) for s in line["sessions"]}


def check_each_once(disk: Disk) -> None:
    """No row is visible twice, and what is visible is what the manifest says."""
    counts = Counter((r["session_id"], r["version"], r["row_id"]) for r in visible(disk))
    assert not counts or max(counts.values()) == 1, counts
    files = {line["file"]: line["rows"] for line in listed(disk) if line["file"]}
    seen = {name for name in disk.names() if name.startswith("rows-")}
    assert seen <= files.keys()
    for name in seen:
        assert len(disk.read(name).splitlines()) == files[name]
    told = Counter(
        (s["session_id"], s["version"])
        for line in listed(disk)
        if line["file"]
        for s in line["sessions"]
        if s["rows"] and line["rows"]
    )
    assert all(counts[key[0], key[1], f"{key[0]}/0"] <= 1 for key in told)


def current(disk: Disk) -> dict[str, list[str]]:
    """The ids of the rows of each session, in its last version."""
    last = versions(disk)
    rows: dict[str, list[str]] = {name: [] for name in last}
    for each in visible(disk):
        if each["version"] == last[each["session_id"]]:
            rows[each["session_id"]].append(each["row_id"])
    return rows
