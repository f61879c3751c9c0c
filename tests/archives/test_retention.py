"""What leaves a journal by itself, in which order, and what never does."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.archive.database import SharedDatabase
from slime_router.archive.home import put_of
from slime_router.archive.homes import home_of_session
from slime_router.archive.opening import opened
from slime_router.config import JournalSettings
from slime_router.errors import SetupError
from slime_router.journal.closings import PAGES, SLICE, Leaving
from slime_router.journal.codec import packed_session, unpacked_turn
from slime_router.journal.database import FILE_NAME, Change, Drop, Put, PutTurn, as_text
from slime_router.journal.reading import faults, stats
from slime_router.journal.retention import PERIOD_S, STEP, Retention, RetentionLimits
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.turn import Turn
from tests.archives.test_conformance import state, turn


@dataclass
class Known:
    """A session, or a tree of turns without one, as the model has it."""

    turns: int = 0
    is_closed: bool = False
    was_exported: bool = False
    was_opened: bool = True
    at: float = 0.0


class Shelf:
    """A journal with its own clock, in which each turn counts a hundred bytes.

    Names in capitals are those of trees.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = 1e9
        self.seq = 0
        self.roots: dict[str, Turn] = {}
        self.dropped: list[str] = []
        self.open()

    def open(self) -> None:
        self.database = SharedDatabase(self.directory, now=lambda: self.clock)
        self.closings = self.database.closings
        self.closings.used = self.used  # type: ignore[method-assign]

    def used(self) -> int:
        return 100 * self.database.count("turns")

    def drop(self, leaving: Leaving) -> int | None:
        name = as_text(leaving.name)
        self.dropped.append(name[1:] if leaving.is_idle else name)
        return self.database.drop(leaving)

    def put(self, name: str, known: Known) -> None:
        if name.isupper():
            return
        given = state(
            is_closed=known.is_closed,
            was_exported=known.was_exported,
            was_opened=known.was_opened,
            spec=SessionSpec(id=name),
        )
        self.database.apply([Put("sessions", name, packed_session(given))])

    def add(self, name: str) -> None:
        """One more turn; those of a tree continue its first, which has its name."""
        self.seq += 1
        session = None if name.isupper() else name
        home = "t" + name if session is None else home_of_session(name)
        root = self.roots.get(name)
        fields = {} if root is None or session else {"base": root.id}
        made = turn(
            name if session is None and root is None else f"{name}/{self.seq}",
            self.seq,
            session,
            keys=(name.encode(),),
            **fields,
        )
        put, needed = put_of(made, home), list[Change]()
        if session is None:
            needed = [put_of(self.roots.setdefault(name, made), home)]
        self.database.apply([replace(put, needed=lambda: needed)])

    def keep_up(self, limits: RetentionLimits) -> Retention:
        """Until nothing is left to do."""
        retention = Retention(self, limits)
        while not retention.step():
            pass
        return retention


def kept_by(model: dict[str, Known], now: float, limits: RetentionLimits) -> list[str]:
    """Drops from the model what must go; in that order."""
    gone: list[str] = []

    def may_go(name: str, age: float | None) -> bool:
        each = model[name]
        if each.is_closed:
            return age is None or each.at < now - age
        return not each.was_opened and each.at < now - max(age or 0.0, limits.idle_s)

    def order(*, age: float | None = None, is_exported: bool) -> list[str]:
        found = [n for n in model if may_go(n, age) and is_exported == model[n].was_exported]
        return sorted(found, key=lambda n: (model[n].at, not model[n].is_closed, n.encode()))

    while True:
        used = 100 * sum(each.turns for each in model.values())
        old = order(age=limits.max_age_s, is_exported=True)
        exported, others = order(is_exported=True), order(is_exported=False)
        soft = limits.hard_bytes if limits.max_bytes is None else limits.max_bytes
        if limits.max_age_s is not None and old:
            name = old[0]
        elif soft is not None and used > soft and exported:
            name = exported[0]
        elif limits.hard_bytes is not None and used > limits.hard_bytes and others:
            name = others[0]
        else:
            return gone
        del model[name]
        gone.append(name)


names = st.sampled_from("abcdefXYZ")
steps = st.one_of(
    st.tuples(st.sampled_from(["turn", "turn", "open", "close", "export", "delete"]), names),
    st.tuples(st.just("wait"), st.integers(1, 80)),
    st.tuples(st.sampled_from(["keep up", "open again"]), st.none()),
)
limits = st.builds(
    RetentionLimits,
    max_age_s=st.sampled_from([None, 100.0]),
    max_bytes=st.sampled_from([None, 0, 300]),
    hard_bytes=st.sampled_from([None, 400, 700]),
    idle_s=st.sampled_from([0.0, 50.0, 150.0]),
)


@pytest.mark.slow  # files for each example
@given(st.lists(steps, max_size=40), limits)
def test_what_stays_and_in_which_order_the_others_go(history, limits):
    directory = Path(tempfile.mkdtemp(prefix="journal-"))
    shelf, model = Shelf(directory), dict[str, Known]()
    try:
        for what, value in [*history, ("keep up", None)]:
            known = model.get(value)
            if value in ("X", "Y", "Z") and what != "turn":
                continue
            if what == "turn" and (known is None or not known.is_closed):
                is_tree = value in ("X", "Y", "Z")
                if known is None:
                    known = model[value] = Known(was_opened=False, was_exported=is_tree)
                    # its first turn is in memory, and is written again
                    known.turns = int(is_tree and value in shelf.roots)
                known.turns += 1
                known.at = shelf.clock
                shelf.put(value, known)
                shelf.add(value)
            elif what == "open" and known is not None and not known.is_closed:
                known.was_opened, known.at = True, shelf.clock
                shelf.put(value, known)
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
        assert left == {name for name in model if not name.isupper()}
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
    while retention._homes is not None:
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


def test_turns_without_a_session_leave_once_nobody_went_on_with_them(shelf):
    limits = RetentionLimits(max_bytes=100, hard_bytes=200, idle_s=50.0)
    for name in ("X", "Y", "implicit"):
        shelf.put(name, Known(was_opened=False))
        shelf.add(name)
        shelf.clock += 10
    shelf.put("open", Known())
    shelf.add("open")
    shelf.clock += 25
    shelf.keep_up(limits)
    assert shelf.dropped == ["X"]  # the others had a turn in the last 50 seconds
    shelf.add("Y")
    shelf.clock += 1000
    found = shelf.keep_up(limits)
    assert shelf.dropped == ["X", "Y"]
    assert (found.counts.sessions, found.counts.unexported, found.counts.turns) == (0, 0, 2)
    found = shelf.keep_up(RetentionLimits(hard_bytes=100, idle_s=50.0))
    assert shelf.dropped == ["X", "Y", "implicit"]
    assert (found.counts.sessions, found.counts.unexported, found.counts.turns) == (1, 1, 1)
    shelf.keep_up(RetentionLimits(hard_bytes=0))
    assert shelf.dropped == ["X", "Y", "implicit"]
    named = shelf.database._sql.execute("SELECT count(*) FROM names").fetchone()
    assert named[0] == 2  # those of the open session


def test_whoever_goes_on_with_what_left_writes_it_again(shelf):
    shelf.add("X")
    shelf.clock += 1
    shelf.keep_up(RetentionLimits(max_age_s=0.5))
    assert (shelf.dropped, shelf.database.count("turns")) == (["X"], 0)
    shelf.add("X")
    assert shelf.database.count("turns") == 2
    assert list(faults(shelf.database)) == []


def test_a_session_takes_what_continued_it_with_it(shelf):
    """As it could not be read without it."""
    filled(shelf, exported=1)
    made = turn("after", 2, None, base="s000/1", base_len=1)
    shelf.database.apply([put_of(made, home_of_session("s000"))])
    shelf.clock += 10
    shelf.keep_up(RetentionLimits(max_age_s=1.0))
    assert shelf.database.count("turns") == 0
    assert list(faults(shelf.database)) == []


def test_what_continued_a_session_that_was_deleted_leaves_in_its_time(shelf):
    filled(shelf, exported=0, opened=1)
    shelf.database.apply([put_of(turn("after", 2, None), home_of_session("s000"))])
    shelf.database.apply([Drop("sessions", "s000", is_deleted=True)])
    assert shelf.database.count("turns") == 1
    shelf.clock += 10
    found = shelf.keep_up(RetentionLimits(max_age_s=1.0))
    assert shelf.database.count("turns") == 0
    assert (found.counts.sessions, found.counts.turns) == (0, 1)


def test_homes_of_an_older_router_are_learnt(shelf):
    for number in range(SLICE + 5):
        shelf.add(f"T{number:03}")
    filled(shelf, exported=0, opened=2)
    shelf.put("implicit", Known(was_opened=False))
    shelf.add("implicit")
    shelf.database._sql.execute("DELETE FROM idles")
    shelf.keep_up(RetentionLimits(max_age_s=1.0, hard_bytes=100))
    assert shelf.dropped == []
    shelf.clock += 10
    found = shelf.keep_up(RetentionLimits(max_age_s=1.0, hard_bytes=100, idle_s=5.0))
    assert len(shelf.dropped) == SLICE + 6
    assert (found.counts.sessions, found.counts.turns) == (1, SLICE + 6)
    assert {name for name, _ in shelf.database.named("sessions")} == {"s000", "s001"}


def in_flight(shelf: Shelf, session: str | None) -> PutTurn:
    """A turn that continues the only one of the session `s000`, which retention drops before."""
    filled(shelf, exported=1)
    base = turn("s000/1", 1, "s000", keys=(b"s000",))
    home = home_of_session("s000")
    made = turn("in flight", 2, session, base=base.id, base_len=base.held_len)
    needed: list[Change] = [put_of(base, home)]
    if session is not None:
        given = state(is_closed=True, was_exported=True, spec=SessionSpec(id=session))
        needed.insert(0, Put("sessions", session, packed_session(given)))
    shelf.clock += 10
    shelf.keep_up(RetentionLimits(max_age_s=1.0))
    assert shelf.database.count("turns") == 0
    return replace(put_of(made, home), needed=lambda: needed)


def test_a_turn_in_flight_of_a_session_that_has_left_is_not_written_without_its_base(shelf):
    made = in_flight(shelf, "s000")
    assert shelf.database.apply([made]) == {"s000": "deleted"}
    assert list(faults(shelf.database)) == []
    assert shelf.database.count("turns") == shelf.database.count("sessions") == 0
    shelf.put("s000", Known())  # the name is used again
    assert shelf.database.apply([replace(made, base=None)]) == {}
    assert shelf.database.count("turns") == 1


def test_a_turn_in_flight_that_continues_it_without_its_session_has_its_base_so(shelf):
    """As those have that others build on when a session is deleted."""
    assert shelf.database.apply([in_flight(shelf, None)]) == {}
    assert list(faults(shelf.database)) == []
    turns = [unpacked_turn(data) for _, _, data in shelf.database.turns()]
    assert [(each.id, each.session_id) for each in turns] == [("s000/1", None), ("in flight", None)]
    assert shelf.database.count("sessions") == 0
