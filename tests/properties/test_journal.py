"""What comes back from a journal is what was put in, whatever happened to the file."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from slime_router.archive.port import ArchiveDown
from slime_router.errors import SetupError
from slime_router.journal.database import FILE_NAME, Database
from slime_router.trajectory.turn import Turn
from tests.archives.archives import Shelf, recorded
from tests.unit.test_journal import same

CUTS = 100


@pytest.fixture(scope="module")
def written() -> Iterator[tuple[Path, list[Turn]]]:
    shelf = Shelf()
    turns = recorded(shelf, 60)
    copy = Path(tempfile.mkdtemp(prefix="written-"))
    for path in shelf.directory.iterdir():  # as a kill leaves it
        shutil.copy(path, copy)
    shelf.clear()
    yield copy, turns
    shutil.rmtree(copy)


def read_again(directory: Path, turns: list[Turn]) -> int:
    """How many turns come back: the first ones, whole, and none that never was."""
    shelf = Shelf(directory)
    store = shelf.opened()
    store.check_integrity()
    found = [turn for turn in turns if turn.id in store]
    assert found == turns[: len(found)]
    assert len(store) == len(found)
    for turn in found:
        again = store.get(turn.id)
        assert again is not None
        assert same(again, turn)
    shelf.close()
    return len(found)


@pytest.mark.parametrize("seed", range(CUTS))
def test_a_log_that_is_cut_anywhere_loses_only_its_end(written, tmp_path, seed):
    source, turns = written
    wal = f"{FILE_NAME}-wal"
    size = (source / wal).stat().st_size
    assert size > 100_000
    for path in source.iterdir():
        shutil.copy(path, tmp_path)
    cut = Random(seed).randrange(size)
    with (tmp_path / wal).open("r+b") as file:
        file.truncate(cut)
    count = read_again(tmp_path, turns)
    if seed == 0:
        shutil.copy(source / wal, tmp_path)  # nothing was cut: all is there
        shutil.copy(source / FILE_NAME, tmp_path)
        assert read_again(tmp_path, turns) == len(turns)
    assert count < len(turns)


@pytest.mark.parametrize("seed", range(20))
def test_a_page_of_zeros_is_noticed(written, tmp_path, seed):
    """What cannot be read is said; what can be is as it was. Nothing is made up."""
    source, turns = written
    for path in source.iterdir():
        shutil.copy(path, tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as sql:
        sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (tmp_path / FILE_NAME).open("r+b") as file:
        pages = (tmp_path / FILE_NAME).stat().st_size // 4096
        file.seek(4096 * Random(seed).randrange(pages))
        file.write(bytes(4096))
    shelf = Shelf(tmp_path)
    try:
        store = shelf.opened()
    except (SetupError, ArchiveDown):  # said in one line
        return
    finally:
        shelf.close()
    store.check_integrity()
    for turn in turns:
        again = store.get(turn.id)
        assert again is None or same(again, turn)
    lost = sum(turn.id not in store for turn in turns)
    has_fault = bool(store.skipped_turns)
    if lost and not has_fault:
        with closing(Database(tmp_path)) as database:
            assert database.faults() != []
