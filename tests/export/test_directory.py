"""A crash between any two steps of an export loses nothing and doubles nothing."""

from __future__ import annotations

from itertools import count

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.errors import SetupError
from slime_router.export.directory import CARD, ExportDirectory
from slime_router.export.disk import LocalDisk
from slime_router.export.manifest import NAME, Key
from tests.export.disks import FakeDisk, Killed
from tests.export.shelf import (
    FakeSource,
    Kept,
    check_each_once,
    current,
    listed,
    row,
    run,
    versions,
    visible,
)


def source(*names: str) -> FakeSource:
    return FakeSource({name: Kept([row(name, f"{name}/{n}") for n in range(2)]) for name in names})


def changed(names: FakeSource) -> FakeSource:
    """One session has got a turn more, one a reward that changes nothing in its rows."""
    names.kept["a"].rows.append(row("a", "a/2"))
    names.kept["a"].revision = names.kept["b"].revision = 1
    return names


@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("file_bytes", [1, 10**6])
def test_killed_at_any_step_the_next_run_ends_it(power_cut, file_bytes):
    for fuse in count():
        disk, names = FakeDisk(), source("a", "b")
        run(disk, names, file_bytes=file_bytes)
        names.marked.clear()
        changed(names).kept["c"] = Kept([row("c", "c/0")])
        names.kept["empty"] = Kept([])
        disk.fuse = fuse
        try:
            run(disk, names, file_bytes=file_bytes)
        except Killed:
            was_killed = True
        else:
            was_killed = False
        check_each_once(disk)
        disk = disk.after(power_cut=power_cut)
        check_each_once(disk)
        exported = {s["session_id"] for line in listed(disk) for s in line["sessions"]}
        assert {key.session_id for key in names.marked} <= exported
        run(disk, names, file_bytes=file_bytes)
        check_each_once(disk)
        assert versions(disk) == {"a": 2, "b": 1, "c": 1, "empty": 1}
        assert current(disk) == {
            "a": ["a/0", "a/1", "a/2"], "b": ["b/0", "b/1"], "c": ["c/0"], "empty": []
        }  # fmt: skip
        assert len(visible(disk)) == 2 + 2 + 3 + 1  # with the first version of a
        assert {key.session_id for key in names.marked} == set(names.kept)
        assert not [name for name in disk.names() if name.endswith(".part")]
        size = disk.read(NAME)
        counts = run(disk, names, file_bytes=file_bytes)
        assert (counts.as_it_was, counts.rows, disk.read(NAME)) == (4, 0, size)
        if not was_killed:
            return


@pytest.mark.parametrize("power_cut", [False, True])
def test_killed_at_any_step_of_its_first_run_too(power_cut):
    for fuse in count():
        disk, names = FakeDisk(fuse), source("a", "b")
        try:
            run(disk, names)
        except Killed:
            was_killed = True
        else:
            was_killed = False
        disk = disk.after(power_cut=power_cut)
        check_each_once(disk)
        run(disk, names)
        check_each_once(disk)
        assert current(disk) == {"a": ["a/0", "a/1"], "b": ["b/0", "b/1"]}
        assert disk.read(CARD) == b"card"
        if not was_killed:
            return


changes = st.one_of(
    st.tuples(st.just("new"), st.sampled_from("abcd")),
    st.tuples(st.just("turn"), st.sampled_from("abcd")),
    st.tuples(st.just("touch"), st.sampled_from("abcd")),
    st.tuples(st.just("drop"), st.sampled_from("abcd")),
    st.tuples(st.just("run"), st.integers(0, 60)),
)


@pytest.mark.slow  # a second
@given(st.lists(changes, max_size=25), st.booleans(), st.sampled_from([1, 60, 10**6]))
def test_whatever_happens_between_runs_each_version_is_there_once(steps, power_cut, file_bytes):
    disk, names = FakeDisk(), FakeSource()
    model: dict[str, tuple[int, list[str]]] = {}  # version, and the rows of it
    dropped: dict[str, int] = {}
    for what, value in [*steps, ("run", 10**6)]:
        each = names.kept.get(value) if isinstance(value, str) else None
        if what == "new":
            names.kept.setdefault(value, Kept([row(value, f"{value}/0")]))
        elif what == "run":
            disk.fuse = value
            try:
                run(disk, names, file_bytes=file_bytes)
            except Killed:
                disk = disk.after(power_cut=power_cut)
                disk.fuse = None
                check_each_once(disk)
                run(disk, names, file_bytes=file_bytes)
            for name, kept in names.kept.items():
                ids = [each["row_id"] for each in kept.rows]
                version, before = model.get(name, (0, None))
                is_less = before is not None and kept.dropped_turns > dropped[name]
                if before != ids and not is_less:
                    model[name] = (version + 1, ids)
                if not is_less:
                    dropped[name] = kept.dropped_turns
            check_each_once(disk)
            assert versions(disk) == {name: version for name, (version, _) in model.items()}
            assert current(disk) == {name: ids for name, (_, ids) in model.items()}
        elif each is not None:
            each.revision += 1
            if what == "turn":
                each.rows = [*each.rows, row(value, f"{value}/{each.revision}")]
            elif what == "drop" and each.rows:
                each.rows = each.rows[1:]
                each.dropped_turns += 1


def test_what_nothing_happened_to_is_not_even_asked_for():
    disk, names = FakeDisk(), source("a", "b")
    counts = run(disk, names)
    assert (counts.new, counts.rows, counts.files) == (2, 4, 2)
    names.asked.clear()
    counts = run(disk, changed(names))
    assert (counts.changed, counts.same, counts.as_it_was) == (1, 1, 0)
    assert names.asked == ["a", "b"]
    assert run(disk, names).as_it_was == 2
    assert names.asked == ["a", "b"]


def test_a_session_that_lost_turns_stays_as_it_was_exported():
    disk, names = FakeDisk(), source("a")
    run(disk, names)
    names.kept["a"] = Kept([row("a", "a/1")], revision=1, dropped_turns=1)
    assert run(disk, names).shrunk == 1
    assert current(disk) == {"a": ["a/0", "a/1"]}


def test_a_session_that_is_gone_does_not_end_the_others():
    disk, names = FakeDisk(), source("a", "b")
    names.kept["a"].is_gone = True
    counts = run(disk, names)
    assert (counts.gone, counts.new) == (1, 1)
    assert names.marked == [Key("", "b")]


def test_a_manifest_that_is_damaged_in_the_middle_is_refused():
    disk = FakeDisk()
    run(disk, source("a", "b"))
    first, second, third = disk.read(NAME).splitlines(keepends=True)
    disk.write(NAME, first + b"{" + second + third)
    with pytest.raises(SetupError, match=r"line 2 of manifest\.jsonl is damaged"):
        run(disk, source("a"))
    disk.write(NAME, first + second + b"{" + third)  # pages of the last write may be missing
    run(disk, source("a", "b"))
    assert current(disk) == {"a": ["a/0", "a/1"], "b": ["b/0", "b/1"]}


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ({"slime_router_export": 1, "format": "parquet"}, "holds an export as parquet"),
        ({"slime_router_export": 2, "format": "jsonl"}, "was written by a newer router"),
        ([], "line 1 of manifest.jsonl is damaged"),
    ],
)
def test_a_directory_of_another_kind_is_refused(first, words):
    disk = FakeDisk()
    line = orjson.dumps({"file": None, "rows": 0, "sessions": []})
    disk.append(NAME, orjson.dumps(first) + b"\n" + line + b"\n")
    with pytest.raises(SetupError, match=words):
        ExportDirectory(disk, "jsonl", ".jsonl")


def test_a_real_directory_is_ours_alone_while_it_is_open(tmp_path):
    disk = LocalDisk(tmp_path / "rows", lock=NAME)
    with pytest.raises(SetupError, match="is in use by another export"):
        LocalDisk(tmp_path / "rows", lock=NAME)
    run(disk, source("a", "b"))
    disk.close()
    again = LocalDisk(tmp_path / "rows", lock=NAME)
    run(again, changed(source("a", "b")))
    assert current(again) == {"a": ["a/0", "a/1", "a/2"], "b": ["b/0", "b/1"]}
    assert sorted(again.names()) == [CARD, NAME, *(f"rows-00000{n}.jsonl" for n in (1, 2, 3))]
    again.close()


def test_a_directory_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SetupError, match="holds other things"):
        LocalDisk(tmp_path, lock=NAME)
    with pytest.raises(SetupError, match="Not a directory"):
        LocalDisk(tmp_path / "thesis.tex" / "rows", lock=NAME)
