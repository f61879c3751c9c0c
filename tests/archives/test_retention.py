"""What leaves a journal by itself, in which order, and what never does."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.archive.homes import home_of_session, names_of
from slime_router.archive.opening import opened
from slime_router.archive.sqlite import SharedDatabase
from slime_router.config import JournalSettings
from slime_router.errors import SetupError
from slime_router.journal.closings import PAGES, SLICE
from slime_router.journal.codec import packed_session, packed_turn
from slime_router.journal.database import FILE_NAME, Drop, Put, PutTurn, as_text
from slime_router.journal.reading import faults, stats
from slime_router.journal.retention import PERIOD_S, STEP, Retention, RetentionLimits
from slime_router.trajectory.session import SessionSpec
from tests.archives.test_conformance import state, turn

ALL = RetentionLimits(max_age_s=100.0, max_bytes=300, hard_bytes=600)


@dataclass
class Known:
    """A session, as the model has it."""

    turns: int = 0
    is_closed: bool = False
    was_exported: bool = False
    at: float = 0.0


class Shelf:
    """A journal with a clock of its own, in which each turn counts a hundred bytes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = 1e9
        self.seq = 0
        self.dropped: list[str] = []
        self.open()

    def open(self) -> None:
        self.database = SharedDatabase(self.directory, now=lambda: self.clock)
        self.closings = self.database.closings
        self.closings.used = self.used  # type: ignore[method-assign]

    def used(self) -> int:
        return 100 * self.database.count("turns")

    def drop_closed(self, name: bytes) -> bool:
        self.dropped.append(as_text(name))
        return self.database.drop_closed(name)

    def put(self, name: str, known: Known) -> None:
        given = state(is_closed=known.is_closed, was_exported=known.was_exported)
        given = type(given)(
            **{
                **{each: getattr(given, each) for each in given.__slots__},
                "spec": SessionSpec(id=name),
            }
        )
        self.database.apply([Put("sessions", name, packed_session(given))])

    def add(self, name: str) -> None:
        self.seq += 1
        made = turn(f"{name}/{self.seq}", self.seq, name, keys=(name.encode(),))
        home = home_of_session(name)
        self.database.apply(
            [PutTurn(self.seq, made.id, name, packed_turn(made), home, names_of(made))]
        )

    def keep_up(self, limits: RetentionLimits) -> Retention:
        """Until nothing is left to do."""
        retention = Retention(self, limits)
        while not retention.step():
            pass
        return retention


def kept_by(model: dict[str, Known], now: float, limits: RetentionLimits) -> list[str]:
    """Drops from the model what must go; in that order."""
    gone: list[str] = []
    while True:
        closed = [name for name, each in model.items() if each.is_closed]
        order = sorted(closed, key=lambda name: (model[name].at, name.encode()))
        exported = [name for name in order if model[name].was_exported]
        used = 100 * sum(each.turns for each in model.values())
        old = [name for name in exported if model[name].at < now - (limits.max_age_s or 0)]
        if limits.max_age_s is not None and old:
            name = old[0]
        elif limits.max_bytes is not None and used > limits.max_bytes and exported:
            name = exported[0]
        elif limits.hard_bytes is not None and used > limits.hard_bytes and order:
            name = order[0] if not exported else exported[0]
        else:
            return gone
        del model[name]
        gone.append(name)


names = st.sampled_from("abcdef")
steps = st.one_of(
    st.tuples(st.sampled_from(["turn", "turn", "close", "export", "delete"]), names),
    st.tuples(st.just("wait"), st.integers(1, 80)),
    st.tuples(st.sampled_from(["keep up", "open again"]), st.none()),
)
limits = st.builds(
    RetentionLimits,
    max_age_s=st.sampled_from([None, 100.0]),
    max_bytes=st.sampled_from([None, 0, 300]),
    hard_bytes=st.sampled_from([None, 400, 700]),
)


@pytest.mark.slow  # files for each example
@given(st.lists(steps, max_size=40), limits)
def test_what_stays_and_in_which_order_the_others_go(history, limits):
    directory = Path(tempfile.mkdtemp(prefix="journal-"))
    shelf, model = Shelf(directory), dict[str, Known]()
    try:
        for what, value in [*history, ("keep up", None)]:
            known = model.get(value)
            if what == "turn" and (known is None or not known.is_closed):
                known = model.setdefault(value, Known())
                known.turns += 1
                shelf.put(value, known)
                shelf.add(value)
            elif what in ("close", "export") and known is not None:
                known.was_exported |= known.is_closed and what == "export"
                known.is_closed |= what == "close"
                known.at = shelf.clock
                shelf.put(value, known)
            elif what == "delete" and known is not None:
                del model[value]
                shelf.database.apply([Drop("sessions", value, is_deleted=True)])
            elif what == "wait":
                shelf.clock += value
            elif what == "open again":
                shelf.database.close()
                shelf.open()
            elif what == "keep up":
                before = set(model)
                shelf.dropped.clear()
                shelf.keep_up(limits)
                assert shelf.dropped == kept_by(model, shelf.clock, limits)
                assert set(shelf.dropped) <= before
        left = {name for name, _ in shelf.database.named("sessions")}
        assert left == set(model)
        assert shelf.database.count("turns") == sum(each.turns for each in model.values())
        assert list(faults(shelf.database)) == []
    finally:
        shelf.database.close()
        shutil.rmtree(directory)


def filled(shelf: Shelf, *, exported: int, closed: int = 0, opened: int = 0) -> None:
    """Sessions of one turn each, one a second."""
    for number in range(exported + closed + opened):
        name = f"s{number:03}"
        known = Known(1, number < exported + closed, number < exported)
        shelf.put(name, known)
        shelf.add(name)
        shelf.clock += 1


@pytest.fixture
def shelf(tmp_path):
    made = Shelf(tmp_path)
    yield made
    made.database.close()


def test_a_step_is_small_and_the_next_look_comes_later(shelf):
    filled(shelf, exported=10)
    retention = Retention(shelf, RetentionLimits(max_bytes=100))
    while retention._learnt is not None:
        assert retention.step() == 0.0
    waits = [retention.step() for _ in range(4)]
    assert waits == [0.0, 0.0, PERIOD_S, PERIOD_S]
    assert shelf.dropped == [f"s{n:03}" for n in range(9)]
    assert retention.counts.sessions == 9
    assert STEP == 4


def test_what_nobody_has_exported_goes_last_with_a_word_in_log_counters_and_stats(shelf, caplog):
    filled(shelf, exported=2, closed=3, opened=2)
    retention = shelf.keep_up(RetentionLimits(max_bytes=100, hard_bytes=300))
    assert shelf.dropped == ["s000", "s001", "s002", "s003"]
    assert (retention.counts.sessions, retention.counts.unexported) == (4, 2)
    assert "nobody has exported: s002, s003" in caplog.text
    found = stats(shelf.database)
    assert (found.dropped_sessions, found.dropped_unexported_sessions) == (4, 2)
    assert (found.dropped_turns, found.turns) == (4, 3)
    caplog.clear()
    shelf.keep_up(RetentionLimits(max_bytes=100, hard_bytes=100))
    assert shelf.dropped[4:] == ["s004"]
    assert "the journal holds 200 bytes, more than its limit" in caplog.text


def test_what_an_older_router_closed_is_learnt(shelf):
    filled(shelf, exported=SLICE + 5, opened=3)
    shelf.database.close()
    with closing(sqlite3.connect(shelf.directory / FILE_NAME)) as sql, sql:
        sql.execute("DROP TABLE closings")
        sql.execute("UPDATE sessions SET data = x'00' WHERE id = CAST('s001' AS BLOB)")
    shelf.open()
    shelf.keep_up(RetentionLimits(max_age_s=1.0))
    assert shelf.dropped == []  # it is not known how long they have been closed
    shelf.clock += 10
    shelf.keep_up(RetentionLimits(max_age_s=1.0))
    assert len(shelf.dropped) == SLICE + 4
    assert "s001" not in shelf.dropped


def test_after_each_step_the_file_is_good_whoever_opens_it(shelf, tmp_path_factory):
    filled(shelf, exported=6)
    retention, left = Retention(shelf, RetentionLimits(max_age_s=0.5)), []
    while not retention.step():
        copy = tmp_path_factory.mktemp("copy") / "journal"
        shutil.copytree(shelf.directory, copy)
        database = SharedDatabase(copy)
        assert list(faults(database)) == []
        left.append(database.count("sessions"))
        assert database.count("turns") == left[-1] == 6 - stats(database).dropped_sessions
        database.close()
    assert left[-1] < 6
    assert left == sorted(left, reverse=True)


def test_space_goes_back_to_the_file_system(tmp_path):
    database = SharedDatabase(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as sql, sql:
        sql.execute("CREATE TABLE big AS SELECT randomblob(8000000) AS x")
        sql.execute("DROP TABLE big")
    used, steps = database.closings.used(), 1
    while database.closings.give_back():
        steps += 1
    assert steps > 2
    database._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    size = (tmp_path / FILE_NAME).stat().st_size
    assert used < size < used + 2 * PAGES * 4096
    database.close()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"journal_max_bytes": 1}, "need --journal"),
        ({"journal": "d", "journal_max_bytes": 2, "journal_hard_bytes": 1}, "is less than"),
    ],
)
def test_limits_that_cannot_be_are_refused(tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match=words):
        opened(JournalSettings(**given), b"v", lambda _: None)
