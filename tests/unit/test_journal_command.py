"""`slime-router journal`, run as a user runs it."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pyarrow.parquet
import pytest

from slime_router.archive.database import SharedDatabase
from slime_router.archive.home import put_of
from slime_router.archive.homes import home_of_session
from slime_router.cli.main import main
from slime_router.journal.codec import packed_session
from slime_router.journal.database import FILE_NAME, Database, Put, PutTurn
from slime_router.rows.rows import RowOptions, RowSet, build_rows
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.store import TrajectoryStore
from tests.archives.archives import Shelf, recorded
from tests.archives.older import write
from tests.archives.test_conformance import state, turn

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Exit code, standard output and standard error of one action."""

    def call(*argv: str) -> tuple[int, str, str]:
        code = main(["journal", *argv])
        out, error = capfd.readouterr()
        return code, out, error

    return call


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """A journal of twelve turns in one session."""
    shelf = Shelf()
    recorded(shelf, 12)
    shelf.close()
    shelf.directory.rename(tmp_path / "journal")
    return str(tmp_path / "journal")


def test_stats_say_what_it_holds(run, directory):
    code, out, error = run("stats", directory)
    assert (code, error) == (0, "")
    lines = dict(line.rsplit(None, 1) for line in out.splitlines())
    assert (lines["turns"], lines["sessions"], lines["sampled tokens"]) == ("12", "1", "480")
    _, out, _ = run("stats", directory, "--json")
    assert json.loads(out)["sampled_tokens"] == 480


def test_verify_finds_what_is_wrong(run, directory):
    assert run("verify", directory) == (0, "12 turns: sound\n", "")
    with closing(sqlite3.connect(Path(directory) / FILE_NAME)) as sql, sql:
        sql.execute("UPDATE turns SET data = substr(data, 1, length(data) - 1) WHERE seq = 3 << 16")
    code, out, error = run("verify", directory)
    assert (code, error) == (1, "")
    assert out.splitlines() == [
        f"turn number {3 << 16}: a turn with a wrong checksum",
        "turn t3 continues t2, which is not there",
        "12 turns: 2 faults",
    ]


def test_verify_sees_a_turn_under_another_number(run, directory):
    database = Database(Path(directory))
    [*_, (_, _, data)] = database.turns()
    write(database, PutTurn(50, "copy", None, data))
    database.close()
    code, out, _ = run("verify", directory)
    assert code == 1
    assert f"turn t11 has number {12 << 16} and is kept as 50" in out


def test_export_writes_the_rows_of_all_sessions(run, directory, tmp_path):
    code, out, error = run("export", directory)
    assert (code, error) == (0, "")
    row, stats = map(json.loads, out.splitlines())
    assert sum(row["loss_mask"]) == 12 * 40
    assert stats["session_id"] == "s"
    file = tmp_path / "rows.jsonl"
    assert run("export", directory, "--output", str(file)) == (0, "", "")
    assert file.read_text(encoding="utf-8") == out


def test_export_writes_parquet_that_other_tools_read(run, directory, tmp_path):
    file = tmp_path / "rows.parquet"
    assert run("export", directory, "--format", "parquet", "--output", str(file)) == (0, "", "")
    table = pyarrow.parquet.read_table(file)
    [row] = table.to_pylist()
    assert sum(row["loss_mask"]) == 12 * 40
    assert (row["session_id"], row["logprobs"], row["metadata"]) == ("s", None, "{}")
    assert set(filter(None, row["weight_versions"])) == {"v"}
    assert json.loads(table.schema.metadata[b"stats"])["s"]["trained_tokens"] == 480
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_export_has_one_session_in_memory_at_a_time(run, tmp_path, monkeypatch, form):
    with closing(SharedDatabase(tmp_path)) as database:
        for number in range(6):
            name = f"s{number % 3}"
            given = state(spec=SessionSpec(id=name))
            made = turn(f"t{number}", number + 1, name)
            home = home_of_session(name)
            database.apply([Put("sessions", name, packed_session(given)), put_of(made, home)])
    held: list[int] = []

    def noted(store: TrajectoryStore, turns: Sequence[str], options: RowOptions) -> RowSet:
        held.append(len(store))
        return build_rows(store, turns, options)

    monkeypatch.setattr("slime_router.cli.journal.build_rows", noted)
    monkeypatch.setattr("slime_router.cli.journal.GROUP_TOKENS", 1)
    file = tmp_path / "rows"
    assert run("export", str(tmp_path), "--format", form, "--output", str(file)) == (0, "", "")
    assert held == [2, 2, 2] * (2 if form == "parquet" else 1)
    if form == "parquet":
        found = pyarrow.parquet.ParquetFile(file)
        names = {row["session_id"] for row in found.read().to_pylist()}
        assert (names, found.num_row_groups) == ({"s0", "s1", "s2"}, 4)
        assert json.loads(found.schema_arrow.metadata[b"stats"]).keys() == names
    else:
        written = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        stats = [line for line in written if "stats" in line]
        assert [line["session_id"] for line in stats] == ["s0", "s1", "s2"]


def test_where_pyarrow_is_missing_export_says_what_to_install(run, directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, out, error = run("export", directory, "--format", "parquet")
    assert (code, out) == (2, "")
    assert "pip install 'slime-router[parquet]'" in error


def test_export_says_what_it_could_not_read(run, directory):
    with closing(sqlite3.connect(Path(directory) / FILE_NAME)) as sql, sql:
        sql.execute("UPDATE turns SET data = x'00' WHERE seq = 12 << 16")
    code, out, error = run("export", directory)
    assert code == 1
    assert sum(json.loads(out.splitlines()[0])["loss_mask"]) == 11 * 40
    assert error.endswith("slime-router journal: error: 1 turns or sessions cannot be read\n")


def test_vacuum_gives_space_back(run, directory):
    with closing(sqlite3.connect(Path(directory) / FILE_NAME)) as sql, sql:
        sql.execute("CREATE TABLE big AS SELECT randomblob(1000000) AS x")
        sql.execute("DROP TABLE big")
    code, out, _ = run("vacuum", directory)
    before, after = (int(part.split()[0].replace(",", "")) for part in out.split(" before, "))
    assert code == 0
    assert after < before - 900_000


@pytest.mark.parametrize("action", ["stats", "verify", "export", "vacuum"])
def test_where_there_is_none_it_says_so_in_one_line(run, tmp_path, action):
    code, out, error = run(action, str(tmp_path / "none"))
    assert (code, out) == (2, "")
    assert error == f"slime-router journal: error: {tmp_path / 'none'}: there is no journal\n"


def test_one_that_is_in_use_is_left_alone(run, directory):
    with closing(Database(Path(directory))):
        code, _, error = run("stats", directory)
    assert code == 2
    assert "is in use by another router" in error
