"""What comes back from a journal is what was put in, whatever happened before and to the file."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from slime_router.errors import SetupError
from slime_router.journal.database import FILE_NAME, Database, Made
from slime_router.journal.progress import Progress
from slime_router.journal.reading import read_into
from slime_router.journal.store import JournaledStore
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn
from slime_router.types import Finish, VersionSpan, token_ids
from tests.examples import examples
from tests.properties.test_sessions import NAMES, SessionMachine
from tests.properties.test_store import StoreMachine
from tests.unit.test_journal import same

CUTS = 100


class Straight:
    """Writes each change at once, where the router's writer gathers them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, made: Made) -> None:
        self._database.apply([made()])


class Shelf:
    """A directory with a journal, closed and opened again."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="journal-"))
        self.database: Database | None = None
        self.progress = Progress(0, 0)

    def opened(self, budget: int, **limits) -> JournaledStore:
        self.close()
        self.database = Database(self.directory)
        store = JournaledStore(Straight(self.database), budget, **limits)
        self.progress = Progress(0, self.database.count("turns"))
        for _ in read_into(store, self.database, lambda _: 0, self.progress):
            pass
        return store

    def close(self) -> None:
        if self.database is not None:
            self.database.close()

    def clear(self) -> None:
        self.close()
        shutil.rmtree(self.directory)


class JournaledStoreMachine(StoreMachine):
    """The store as its model has it, with restarts in between."""

    @initialize(budget=st.integers(0, 40), kept=st.sampled_from((0, 12, 10**9)))
    def open(self, budget: int, kept: int) -> None:
        super().open(budget, kept)
        self.shelf = Shelf()
        self.store: TrajectoryStore = self.shelf.opened(budget)

    @rule()
    def restart(self) -> None:
        self.store = self.shelf.opened(self.budget)
        assert self.shelf.progress.skipped == 0
        for known in sorted(self.known, key=lambda known: known.seq):
            turn = self.store.get(known.turn.id)
            assert turn is not None
            assert same(turn, known.turn)
            known.turn = turn
            known.stamp = self.tick()  # what was used when is forgotten
        self.gone.clear()

    def teardown(self) -> None:
        self.shelf.clear()


TestJournaledStore = JournaledStoreMachine.TestCase
TestJournaledStore.settings = settings(max_examples=examples(40), stateful_step_count=30)


class JournaledSessionMachine(SessionMachine):
    """Sessions as their model has them, with restarts in between."""

    @initialize(budget=st.integers(5, 60))
    def begin(self, budget: int) -> None:
        super().begin(budget)
        self.shelf = Shelf()
        self.store: TrajectoryStore = self.shelf.opened(budget, max_sessions=len(NAMES))

    @rule()
    def restart(self) -> None:
        before = {s.id: (s.state, s.was_exported, tuple(s.turns)) for s in self.store.sessions}
        self.store = self.shelf.opened(self.budget, max_sessions=len(NAMES))
        after = {s.id: (s.state, s.was_exported, tuple(s.turns)) for s in self.store.sessions}
        assert after == before
        self.store.check_integrity()

    def teardown(self) -> None:
        self.shelf.clear()


TestJournaledSessions = JournaledSessionMachine.TestCase
TestJournaledSessions.settings = settings(max_examples=examples(40), stateful_step_count=30)


# Files that are not as they were written


def recorded(shelf: Shelf, count: int) -> list[Turn]:
    """Turns in a session, each after the one before it; the file stays open, so its WAL is long."""
    store = shelf.opened(1_000_000)
    store.open_session(SessionSpec(id="s"))
    turns: list[Turn] = []
    for number in range(count):
        base = turns[-1] if turns else None
        turns.append(
            store.add(
                Turn(
                    id=f"t{number}",
                    base=None if base is None else base.id,
                    base_len=0 if base is None else base.held_len,
                    prompt_ids=token_ids(range(number % 7 + 1)),
                    output_ids=token_ids(range(40)),
                    logprobs=None,
                    weight_versions=(VersionSpan("v", 0, 40),),
                    finish=Finish("stop"),
                    session_id="s",
                )
            )
        )
    return turns


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
    shelf = Shelf()
    shutil.rmtree(shelf.directory)
    shelf.directory = directory
    store = shelf.opened(1_000_000)
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
    shelf = Shelf()
    shutil.rmtree(shelf.directory)
    shelf.directory = tmp_path
    try:
        store = shelf.opened(1_000_000)
    except (SetupError, sqlite3.Error):  # said in one line
        return
    finally:
        shelf.close()
    store.check_integrity()
    for turn in turns:
        again = store.get(turn.id)
        assert again is None or same(again, turn)
    lost = sum(turn.id not in store for turn in turns)
    has_fault = bool(shelf.progress.skipped)
    if lost and not has_fault:
        with closing(Database(tmp_path)) as database:
            assert database.faults() != []


def turn(name: str, base: Turn | None = None, session_id: str | None = None) -> Turn:
    return Turn(
        id=name,
        base=None if base is None else base.id,
        base_len=0 if base is None else base.held_len,
        prompt_ids=token_ids([1]),
        output_ids=token_ids([2, 3]),
        logprobs=None,
        weight_versions=(),
        finish=Finish("stop"),
        session_id=session_id,
    )


def test_what_others_build_on_comes_back_without_the_session_that_was_deleted():
    shelf = Shelf()
    store = shelf.opened(100)
    store.open_session(SessionSpec(id="s"))
    base = store.add(turn("base", session_id="s"))
    store.add(turn("next", base))
    store.delete_session("s")
    store = shelf.opened(100)
    assert shelf.progress.skipped == 0
    assert store.held_ids("next").tolist() == [1, 2, 3, 1, 2, 3]
    found = store.get("base")
    assert found is not None
    assert found.session_id is None
    shelf.clear()


def test_how_many_turns_a_session_has_lost_is_known_after_a_restart():
    shelf = Shelf()
    store = shelf.opened(8)
    store.open_session(SessionSpec(id="s"))
    for name in ("a", "b"):
        store.add(turn(name, session_id="s"))
    store.freeze(store.sessions.get("s"))
    store.mark_exported("s")
    store.add(turn("more"))
    store.add(turn("yet more"))
    before = store.sessions.get("s")
    assert before.dropped_turns > 0
    store = shelf.opened(8)
    after = store.sessions.get("s")
    for name in ("recorded_turns", "sampled_tokens", "dropped_turns", "dropped_tokens"):
        assert getattr(after, name) == getattr(before, name), name
    shelf.clear()
