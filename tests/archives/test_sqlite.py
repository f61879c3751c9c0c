"""How a journal is written: few statements, few pages; and what an older file becomes."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.api.request import fresh_hex
from slime_router.archive.database import SharedDatabase
from slime_router.archive.home import put_of
from slime_router.archive.homes import home_of_session, name_of_id, name_of_key, names_of
from slime_router.archive.indexing import MAX_HOMES, number_of
from slime_router.archive.opening import opened
from slime_router.archive.sqlite import SqliteArchive
from slime_router.config import JournalSettings
from slime_router.errors import SetupError
from slime_router.journal.closings import Leaving
from slime_router.journal.codec import packed_session
from slime_router.journal.database import (
    FILE_NAME,
    Change,
    Drop,
    MarkUndelivered,
    Put,
    as_blob,
    as_text,
)
from slime_router.journal.lock import UPDATE_FILE_NAME, JournalLock
from slime_router.journal.reading import faults
from slime_router.journal.writing import MOST_ROWS
from slime_router.trajectory.session import SessionSpec
from tests.archives.test_conformance import put, state, turn

MOST_STATEMENTS = 8  # of a transaction that is full of turns


@contextmanager
def opened_database(directory: Path, **options) -> Iterator[SharedDatabase]:
    with closing(SharedDatabase(directory, **options)) as database:
        yield database


def said(name: str, **fields) -> Put:
    return Put("sessions", name, packed_session(state(spec=SessionSpec(id=name), **fields)))


async def test_what_is_written_after_the_log_was_removed_survives_a_kill(tmp_path, caplog):
    """SQLite goes on writing to a log that nobody will find again."""
    archive = SqliteArchive(tmp_path / "one")
    archive.apply([put(turn("a", 1))])
    (tmp_path / "one" / f"{FILE_NAME}-wal").unlink()
    for number, name in enumerate("bc", 2):
        archive.apply([put(turn(name, number))])
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "one" / FILE_NAME, tmp_path / name)
        other = SqliteArchive(tmp_path / name)
        assert await other.last_seq() == number
        assert list(faults(other.database)) == []
        await other.close()
    await archive.close()
    [said] = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert "restart the router" in said


@pytest.mark.parametrize("keeps_idles", [False, True])
@pytest.mark.parametrize("home", ["ss", "tree"])
def test_many_turns_are_written_with_few_statements(tmp_path, home, keeps_idles):
    """Each is a chance to wait for the loop: up to 5 ms."""
    of = "s" if home == "ss" else None
    with opened_database(tmp_path, keeps_idles=keeps_idles) as database:
        database.apply([said("s")])
        root = turn("root", 1, of)
        database.apply([put_of(root, home)])
        made = [turn(f"t{n}", n, of, base="root", base_len=2) for n in range(2, 18)]
        puts, statements = [put_of(each, home) for each in made], list[str]()
        database._sql.set_trace_callback(statements.append)
        database.apply(puts)
        assert len(statements) <= MOST_STATEMENTS, statements
        assert database.count("turns") == 17


def test_all_homes_of_a_transaction_are_noted_as_used_then(tmp_path):
    clock = [1.0]
    with opened_database(tmp_path, now=lambda: clock[0]) as database:
        database.apply([said("seen", was_opened=False)])
        database.apply([put_of(turn("a", 1, None), "ta")])
        puts = [put_of(turn(f"b{n}", 2 + n, None), f"tb{n}") for n in range(MOST_ROWS + 1)]
        clock[0] = 3.0
        more = put_of(turn("c", 100, "seen"), "sseen"), put_of(turn("d", 101, None), "sgone")
        database.apply([*puts, *more, put_of(turn("e", 102, None, base="a"), "ta")])
        rows = database._sql.execute("SELECT home, at, is_exported FROM idles").fetchall()
    used = {as_text(home): (at, is_exported) for home, at, is_exported in rows}
    names = ["ta", "sgone", *(f"tb{n}" for n in range(MOST_ROWS + 1))]
    assert used == {"sseen": (3.0, 0)} | dict.fromkeys(names, (3.0, 1))


def test_more_turns_than_one_statement_takes(tmp_path):
    with opened_database(tmp_path) as database:
        names = [f"turn {n}" for n in range(3 * MOST_ROWS + 1)]
        made = [turn(name, n, None) for n, name in enumerate(names)]
        database.apply([put_of(each, f"t{each.id}") for each in made])
        assert [seq for seq, *_ in database.turns()] == list(range(len(names)))


async def test_a_turn_is_found_by_all_of_its_names_and_each_home_by_one_of_many(tmp_path):
    archive = SqliteArchive(tmp_path)
    made = turn("a", 1, request_id="asked", handles=("call",))
    archive.apply([put(made)])
    for name in names_of(made):
        assert await archive.find([name]) == ["ss"]
    others = [turn(f"t{n}", 2 + n, None) for n in range(2 * MAX_HOMES)]
    archive.apply([put(each, f"t{each.id}") for each in others])
    found = await archive.find([name_of_key(b"key")])
    assert found == [f"t{each.id}" for each in reversed(others)][:MAX_HOMES]
    await archive.close()


def test_ids_that_are_made_later_are_found_further_on_in_the_index(monkeypatch):
    numbers = []
    for now_ms in range(1_800_000_000_000, 1_800_000_100_000, 1_000):
        monkeypatch.setattr("time.time_ns", lambda now_ms=now_ms: now_ms * 1_000_000)
        ids = [f"turn_{fresh_hex(24)}", f"chatcmpl-{fresh_hex(32)}", fresh_hex(32)]
        assert [len(each) for each in ids] == [29, 41, 32]
        numbers.append([number_of(name_of_id(each)) for each in ids])
    assert all(max(before) < min(after) for before, after in pairwise(numbers))
    assert len({each for some in numbers for each in some}) == 300
    assert all(-(2**63) <= each < 2**63 for some in numbers for each in some)


@given(st.binary(max_size=80))
def test_every_name_has_a_number_that_fits(name):
    assert -(2**63) <= number_of(name) < 2**63
    assert number_of(name) == number_of(bytes(name))


async def test_two_names_with_one_number_are_two_homes_to_look_into(tmp_path, monkeypatch):
    monkeypatch.setattr("slime_router.archive.indexing.number_of", lambda _: 7)
    archive = SqliteArchive(tmp_path)
    archive.apply([put(turn("a", 1, None), "ta"), put(turn("b", 2, None), "tb")])
    assert await archive.find([name_of_id("a")]) == ["tb", "ta"]
    await archive.close()


changes = st.lists(
    st.one_of(
        st.builds(
            lambda n, session, base: put_of(
                turn(
                    f"t{n}",
                    n,
                    session,
                    base=f"t{base}" if base < n else None,
                    keys=(bytes([n % 3]),),
                ),
                "t0" if session is None else home_of_session(session),
                is_change=base == 3,
            ),
            st.integers(1, 6),
            st.sampled_from([None, "a", "b"]),
            st.integers(0, 8),
        ),
        st.builds(lambda n: MarkUndelivered(n), st.integers(1, 6)),
        st.builds(
            lambda name, shut: said(name, is_closed=shut), st.sampled_from("ab"), st.booleans()
        ),
        st.builds(lambda name: Drop("sessions", name, is_deleted=True), st.sampled_from("ab")),
    ),
    max_size=12,
)


def contents(database: SharedDatabase) -> list[object]:
    """All but when it happened."""
    queries = (
        "SELECT seq, id, session, is_undelivered, data, home, changed > -1 FROM turns ORDER BY seq",
        "SELECT * FROM names ORDER BY name, seq",
        "SELECT id, data, is_closed FROM sessions ORDER BY id",
        "SELECT id FROM deleted ORDER BY number",
        "SELECT id, is_exported FROM closings ORDER BY id",
        "SELECT home, is_exported FROM idles ORDER BY home",
    )
    return [database._sql.execute(query).fetchall() for query in queries]


@pytest.mark.slow  # files for each example
@given(changes)
def test_many_changes_at_once_are_as_one_after_the_other(history: Sequence[Change]):
    with (
        tempfile.TemporaryDirectory() as folder,
        opened_database(Path(folder, "one")) as one,
        opened_database(Path(folder, "all")) as other,
    ):
        late = set[str]()
        for change in history:
            late |= set(one.apply([change]))
        assert set(other.apply(history)) == late
        assert contents(one) == contents(other)


# A file of schema 2


def of_schema_2(directory: Path) -> None:
    """A journal as it was: names with their homes, and homes that somebody noted as long idle."""
    with opened_database(directory) as database:
        made = [turn("a", 1, request_id="asked"), turn("b", 2, None, keys=(b"other",))]
        homes = ["ss", "tb"]
        database.apply([said("s", is_closed=True, was_exported=True)])
        database.apply([put(each, home) for each, home in zip(made, homes, strict=True)])
    with closing(sqlite3.connect(directory / FILE_NAME)) as sql, sql:
        sql.execute("DROP TABLE names")
        sql.execute(
            "CREATE TABLE names (name BLOB NOT NULL, seq INTEGER NOT NULL, home BLOB NOT NULL,"
            " PRIMARY KEY (name, seq)) WITHOUT ROWID"
        )
        for each, home in zip(made, homes, strict=True):
            rows = ((name, each.seq, as_blob(home)) for name in names_of(each))
            sql.executemany("INSERT INTO names VALUES (?, ?, ?)", rows)
        sql.execute("UPDATE idles SET at = 0")
        sql.execute("DELETE FROM counters WHERE name = 'idles'")
        sql.execute("PRAGMA user_version = 2")


async def test_what_is_in_a_file_of_schema_2_is_found_by_its_names(tmp_path):
    of_schema_2(tmp_path)
    archive = SqliteArchive(tmp_path)
    archive.apply([put(turn("c", 3, None), "tc")])
    assert await archive.find([name_of_id("asked")]) == ["ss"]
    assert await archive.find([name_of_key(b"other")]) == ["tb"]
    assert await archive.find([name_of_key(b"key")]) == ["tc", "ss"]
    assert list(faults(archive.database)) == []
    await archive.close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as sql:
        assert sql.execute("PRAGMA user_version").fetchone() == (3,)


async def test_a_file_that_an_older_router_still_has_open_is_left_alone(tmp_path):
    """It could write nothing more to it, and would lose what it has acknowledged meanwhile."""
    of_schema_2(tmp_path)
    older = JournalLock(tmp_path, is_shared=True)
    with pytest.raises(SetupError, match="still open in an older router: stop that first"):
        SqliteArchive(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as sql:
        assert sql.execute("PRAGMA user_version").fetchone() == (2,)
    older.let_go()
    one = SqliteArchive(tmp_path)
    await SqliteArchive(tmp_path).close()
    await one.close()


async def test_several_new_routers_may_bring_it_up_to_date_at_once(tmp_path):
    of_schema_2(tmp_path)
    opened = await asyncio.gather(*(asyncio.to_thread(found_and_closed, tmp_path) for _ in "1234"))
    assert opened == [["ss"]] * 4


def test_whoever_comes_as_it_is_just_up_to_date_waits_for_the_one_who_did_that(
    tmp_path, monkeypatch
):
    of_schema_2(tmp_path)
    assert found_and_closed(tmp_path) == ["ss"]
    locks = [
        JournalLock(tmp_path, is_shared=False, file_name=UPDATE_FILE_NAME),
        JournalLock(tmp_path, is_shared=False),
    ]

    def let_go(_: float) -> None:
        for lock in reversed(locks):
            lock.let_go()

    monkeypatch.setattr("slime_router.journal.lock.time.sleep", let_go)
    assert found_and_closed(tmp_path) == ["ss"]


def test_whoever_cannot_read_its_version_does_not_take_it_for_up_to_date(tmp_path, monkeypatch):
    """Several that look at it at once may find it busy, before one of them has it to itself."""
    of_schema_2(tmp_path)
    others: list[JournalLock] = []

    def busy(*_: object, **__: object) -> None:
        monkeypatch.undo()
        monkeypatch.setattr("slime_router.journal.lock.os.path.exists", not_yet)
        raise sqlite3.OperationalError("database is locked")

    def not_yet(_: object) -> bool:
        others.append(JournalLock(tmp_path, is_shared=False))
        return False

    monkeypatch.setattr("slime_router.journal.lock.sqlite3.connect", busy)
    assert found_and_closed(tmp_path) == ["ss"]
    assert not others


def found_and_closed(directory: Path) -> list[str]:
    async def found() -> list[str]:
        archive = SqliteArchive(directory)
        homes = await archive.find([name_of_id("asked")])
        await archive.close()
        return homes

    return asyncio.run(found())


async def test_what_leaves_a_file_of_schema_2_leaves_no_name(tmp_path):
    of_schema_2(tmp_path)
    archive = SqliteArchive(tmp_path)
    archive.apply([Drop("sessions", "s", is_deleted=True)])
    assert await archive.find([name_of_id("asked")]) == []
    left = archive.database._sql.execute("SELECT count(*) FROM older_names").fetchone()
    assert left == (len(names_of(turn("b", 2, None))),)
    await archive.close()


def test_when_homes_of_schema_2_were_used_is_learnt_anew(tmp_path):
    """Older routers wrote turns without a word of it: they would leave too early."""
    of_schema_2(tmp_path)
    with opened_database(tmp_path, now=lambda: 1e9) as database:
        assert database.closings.learn_homes(b"") is None
        found = database.closings.oldest(is_exported=True, before=0.0, idle_before=2e9)
        assert found == Leaving(1e9, b"tb", None, is_exported=True, is_idle=True)


# Which homes are idle: only where somebody asks


def idle(database: SharedDatabase) -> list[bytes]:
    return [home for (home,) in database._sql.execute("SELECT home FROM idles ORDER BY home")]


def test_idle_homes_are_noted_by_all_from_when_one_asks(tmp_path):
    with opened_database(tmp_path, keeps_idles=False) as one:
        one.apply([put(turn("a", 1, None), "ta")])
        assert idle(one) == []
        with opened_database(tmp_path) as other:
            one.apply([put(turn("b", 2, None), "tb")])
            assert idle(one) == [b"tb"]
            assert other.closings.learn_homes(b"") is None
            assert idle(one) == [b"ta", b"tb"]


async def test_a_router_alone_without_retention_forgets_them(tmp_path):
    """Else they would be the earlier ones once there is retention again."""
    with opened_database(tmp_path) as database:
        database.apply([put(turn("a", 1, None), "ta")])
    for settings, noted in (
        (JournalSettings(journal=str(tmp_path)), []),
        (JournalSettings(journal=str(tmp_path), journal_max_bytes=10**9), [b"tc"]),
    ):
        archive = opened(settings, b"v", lambda _: None)
        assert archive is not None
        made = turn("c", 3, None)
        archive.writer._target.apply([put(made, "tc")])
        await archive.close()
        with closing(sqlite3.connect(tmp_path / FILE_NAME)) as sql:
            assert sql.execute("SELECT home FROM idles").fetchall() == [(h,) for h in noted]
