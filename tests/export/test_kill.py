"""`kill -9` of a real export, again and again: in the end each session is there once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from slime_router.export.manifest import NAME
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.turn import Turn
from slime_router.types import Finish, VersionSpan, token_ids
from tests.archives.archives import Shelf

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SESSIONS = 120
KILLS = 4
PATIENCE_S = 60.0


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Closed sessions of one turn each."""
    shelf = Shelf(tmp_path / "journal")
    store = shelf.opened()
    for number in range(SESSIONS):
        name = f"s{number}"
        session = store.open_session(SessionSpec(id=name))
        store.add(
            Turn(
                id=f"t{number}",
                base=None,
                base_len=0,
                prompt_ids=token_ids([1, 2]),
                output_ids=token_ids([number]),
                logprobs=None,
                weight_versions=(VersionSpan("v", 0, 1),),
                finish=Finish("stop"),
                session_id=name,
            )
        )
        store.freeze(session)
    shelf.close()
    return shelf.directory


def started(journal: Path, directory: Path) -> subprocess.Popen[bytes]:
    """An export that makes a file of each session."""
    flags = ["--journal", str(journal), "--format", "jsonl", "--file-bytes", "1"]
    command = [sys.executable, "-m", "slime_router", "export", str(directory), *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def size(directory: Path) -> int:
    manifest = directory / NAME
    return manifest.stat().st_size if manifest.exists() else 0


def test_in_the_end_each_session_is_there_once(journal, tmp_path):
    directory, random = tmp_path / "rows", Random(7)
    for _ in range(KILLS):
        before, process = size(directory), started(journal, directory)
        deadline = time.monotonic() + PATIENCE_S
        while size(directory) <= before + random.randrange(2_000) and process.poll() is None:
            assert time.monotonic() < deadline, "nothing is exported"
        process.kill()
        process.communicate()
        seen = [json.loads(line)["row_id"] for line in lines(directory)]
        assert len(seen) == len(set(seen))
    process = started(journal, directory)
    _, error = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, error) == (0, b"")
    rows = [json.loads(line) for line in lines(directory)]
    assert Counter(row["session_id"] for row in rows) == {f"s{n}": 1 for n in range(SESSIONS)}
    assert all(row["tokens"] == [1, 2, int(row["session_id"][1:])] for row in rows)
    assert not list(directory.glob(".*.part"))


def lines(directory: Path) -> list[str]:
    """Of all files that a pattern finds."""
    found = [path.read_text().splitlines() for path in sorted(directory.glob("rows-*.jsonl"))]
    return [line for each in found for line in each]
