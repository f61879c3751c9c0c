"""`slime-router export`, run as a user runs it: from a router, a journal, or a shared archive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import pyarrow.dataset
import pytest

from slime_router.cli.main import main
from slime_router.export.manifest import NAME
from slime_router.journal.codec import unpacked_session
from slime_router.journal.database import Database
from tests.integration.gateway import CHAT, Served, serving, tiny_worker, user

pytestmark = pytest.mark.slow  # a gateway for each


@pytest.fixture(autouse=True)
def nobodys_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "API_KEY", "ADMIN_API_KEY"):
        monkeypatch.delenv(f"SLIME_ROUTER_{name}", raising=False)


class Command:
    """Runs the command in a thread, while routers serve in this one."""

    def __init__(self, capfd: pytest.CaptureFixture[str], directory: Path) -> None:
        self._capfd = capfd
        self.directory = directory

    async def __call__(self, *argv: str) -> tuple[int, Any, str]:
        """Exit code, what was done, and standard error."""
        given = ["export", str(self.directory), "--json", *argv]
        code = await asyncio.to_thread(main, given)
        out, error = self._capfd.readouterr()
        return code, json.loads(out) if out else None, error

    def rows(self) -> list[dict[str, Any]]:
        """What a trainer reads."""
        files = sorted(self.directory.glob("rows-*.parquet"))
        rows: list[dict[str, Any]] = (
            pyarrow.dataset.dataset(files, format="parquet").to_table().to_pylist()
        )
        return rows

    def sessions(self) -> dict[str, int]:
        """The last version of each session."""
        lines = (self.directory / NAME).read_text().splitlines()[1:]
        return {
            s["session_id"]: s["version"] for each in lines for s in json.loads(each)["sessions"]
        }


@pytest.fixture
def export(capfd, tmp_path) -> Command:
    return Command(capfd, tmp_path / "rows")


@asynccontextmanager
async def router_with(*names: str, **settings: Any) -> AsyncIterator[tuple[Served, str]]:
    """A router with closed sessions of these names, and one that is open; and where it listens."""
    async with tiny_worker() as worker, serving(worker.url, **settings) as router:
        if router.gateway.journal is not None:
            await router.gateway.journal.read()
        for name in (*names, "open"):
            await router.post("/sessions", {"session_id": name, "group_id": f"g-{name}"})
            await router.chat([user(f"I am {name}")], path=f"/sessions/{name}{CHAT}", max_tokens=4)
        for name in names:
            await close(router, name)
        yield router, str(router.http._base_url)


async def close(router: Served, name: str) -> None:
    status, _ = await router.post(f"/sessions/{name}/close", {})
    assert status == 200


async def written(router: Served) -> None:
    assert router.gateway.journal is not None
    await router.gateway.journal.written()


async def reward(router: Served, name: str, value: Any) -> None:
    status, _ = await router.post(f"/sessions/{name}/reward", {"reward": value})
    assert status == 200


async def test_each_session_once_and_again_only_when_its_rows_have_changed(export):
    async with router_with("a", "b") as (router, url):
        code, done, error = await export("--url", url)
        assert (code, error) == (0, "")
        assert (done["new"], done["rows"], done["files"]) == (2, 2, 1)
        _, wanted = await router.get("/sessions/a/rows")
        [row] = [row for row in export.rows() if row["session_id"] == "a"]
        [told] = wanted["rows"]
        assert (row["tokens"], row["loss_mask"]) == (told["tokens"], told["loss_mask"])
        assert (row["group_id"], row["version"], row["reward"]) == ("g-a", 1, None)

        code, done, _ = await export("--url", url)
        assert (code, done["as_it_was"], done["rows"]) == (0, 2, 0)

        await reward(router, "a", 0.5)
        await close(router, "open")
        _, done, _ = await export("--url", url)
        assert (done["new"], done["changed"], done["as_it_was"]) == (1, 1, 1)
        assert export.sessions() == {"a": 2, "b": 1, "open": 1}
        found = sorted((row["session_id"], row["version"], row["reward"]) for row in export.rows())
        assert found == [("a", 1, None), ("a", 2, 0.5), ("b", 1, None), ("open", 1, None)]


async def test_a_session_counts_as_exported_once_it_is_safe_and_not_before(export, monkeypatch):
    async with router_with("a", "b") as (router, url):
        sessions = router.gateway.store.sessions
        status, _ = await router.get("/sessions/a/rows?exported=false")
        assert status == 200
        assert not sessions.get("a").was_exported

        def fails(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("slime_router.export.disk.LocalDisk.rename", fails)
            code, _, error = await export("--url", url)
        assert code == 1
        assert "No space left on device" in error
        assert not sessions.get("a").was_exported
        code, done, error = await export("--url", url)
        assert (code, done["new"] + done["as_it_was"], error) == (0, 2, "")
        assert sessions.get("a").was_exported
        assert sessions.get("b").was_exported


async def test_what_has_changed_since_does_not_count_as_exported():
    async with router_with("a") as (router, _):
        _, listed = await router.get("/sessions?revisions=true&state=closed")
        [said] = listed["sessions"]
        assert said["exported"] is False
        await reward(router, "a", 1.0)
        path, body = "/sessions/a/exported", {"revision": said["revision"]}
        assert await router.post(path, body) == (200, {"session_id": "a", "exported": False})
        _, listed = await router.get("/sessions?revisions=true&state=closed")
        body = {"revision": listed["sessions"][0]["revision"]}
        assert await router.post(path, body) == (200, {"session_id": "a", "exported": True})
        for wrong in ({}, {"revision": 1}, {"revision": "x", "more": 1}):
            status, _ = await router.post(path, wrong)
            assert status == 400
        assert (await router.post("/sessions/none/exported", body))[0] == 404
        assert (await router.get("/sessions/a/rows?exported=maybe"))[0] == 400


async def test_filters_are_those_of_the_list_of_sessions(export):
    async with router_with("a", "b", "c") as (router, url):
        await reward(router, "a", 1.0)
        await reward(router, "b", 0.25)
        await reward(router, "c", {"score": 2})
        await export("--url", url, "--min-reward", "0.5")
        assert export.sessions() == {"a": 1}
        await export("--url", url, "--group-id", "g-b")
        assert export.sessions() == {"a": 1, "b": 1}
        await export("--url", url, "--until", "2001-01-01")
        await export("--url", url, "--state", "open")
        assert export.sessions() == {"a": 1, "b": 1, "open": 1}
        await export("--url", url, "--state", "all")
        assert export.sessions() == {"a": 1, "b": 1, "c": 1, "open": 1}


async def test_a_journal_gives_what_its_router_gave_and_knows_that_it_did(export, tmp_path):
    journal = tmp_path / "journal"
    async with router_with("a", "b", journal=str(journal)) as (_, url):
        await export("--url", url, "--group-id", "g-a")
        code, _, error = await export("--journal", str(journal))
        assert code == 2
        assert "is in use by another router" in error
    code, done, error = await export("--journal", str(journal))
    assert (code, error) == (0, "")
    assert (done["new"], done["as_it_was"]) == (1, 1)
    assert sorted(row["session_id"] for row in export.rows()) == ["a", "b"]
    database = Database(journal)
    states = {name: unpacked_session(data) for name, data in database.named("sessions")}
    database.close()
    assert {name: state.was_exported for name, state in states.items()} == {
        "a": True, "b": True, "open": False
    }  # fmt: skip


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def shared(request, tmp_path) -> tuple[dict[str, Any], list[str]]:
    """The settings by which routers share an archive, and the flags that name it."""
    if request.param == "sqlite":
        journal = str(tmp_path / "journal")
        return {"journal": journal, "journal_shared": True}, ["--journal", journal]
    url, prefix = request.getfixturevalue("redis_url"), token_hex(4)
    return {"store": url, "store_prefix": prefix}, ["--store", url, "--store-prefix", prefix]


async def test_an_archive_is_read_beside_the_routers_that_write_it(export, shared):
    settings, flags = shared
    async with router_with("a", "b", **settings) as (router, url):
        await written(router)
        await export("--url", url, "--group-id", "g-a")
        code, done, error = await export(*flags)
        assert (code, error) == (0, "")
        assert (done["new"], done["as_it_was"], done["rows"]) == (1, 1, 1)
        await router.get("/sessions/b")  # looks, and sees that it is exported
        assert router.gateway.store.sessions.get("b").was_exported
        assert router.gateway.store.sessions.get("a").was_exported
        await reward(router, "b", 2.0)
        await written(router)
        _, done, _ = await export(*flags)
        assert (done["changed"], done["as_it_was"]) == (1, 1)
        assert export.sessions() == {"a": 1, "b": 2}


async def test_sessions_of_another_key_are_said_to_be_left_out(export, tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    keys.write_text("ann: k-ann\n")
    settings: dict[str, Any] = {
        "api_key": "plain",
        "admin_api_key": "admin",
        "api_keys_file": str(keys),
    }
    async with tiny_worker() as worker, serving(worker.url, **settings) as router:
        url = str(router.http._base_url)
        for name, key in (
            ("mine", "admin"),
            ("both", "admin"),
            ("both", "k-ann"),
            ("hers", "k-ann"),
        ):
            ask = {"headers": {"Authorization": f"Bearer {key}"}}
            await router.post("/sessions", {"session_id": name}, **ask)
            said = {"messages": [user(key)], "max_tokens": 2}
            await router.post(f"/sessions/{name}{CHAT}", said, **ask)
            await router.post(f"/sessions/{name}/close", {}, **ask)
        monkeypatch.setenv("SLIME_ROUTER_ADMIN_API_KEY", "admin")
        code, done, _ = await export("--url", url)
        assert (code, done["new"], done["gone"]) == (1, 2, 2)
        monkeypatch.delenv("SLIME_ROUTER_ADMIN_API_KEY")
        monkeypatch.setenv("SLIME_ROUTER_API_KEY", "k-ann")
        code, done, _ = await export("--url", url)
        assert (code, done["new"], done["gone"]) == (0, 2, 0)
        found = sorted((row["session_id"], row["owner"]) for row in export.rows())
        assert found == [("both", ""), ("both", "ann"), ("hers", "ann"), ("mine", "")]


async def test_what_is_wrong_is_one_line(export, tmp_path, monkeypatch):
    for argv, words, wanted in (
        (["--url", "http://127.0.0.1:1"], "127.0.0.1:1", 1),
        (["--journal", str(tmp_path / "none")], "there is no journal", 2),
        (["--store", "redis://127.0.0.1:1"], "the store or journal cannot be read", 1),
        (["--store", "http://h"], "--store http://h cannot be used", 2),
        (["--since", "tomorrow"], "'since' must be a Unix time", 2),
    ):
        code, done, error = await export(*argv)
        assert (code, done) == (wanted, None), error
        assert words in error
        assert error.startswith("slime-router export: error: ")
        assert error.count("\n") == 1
        assert not (tmp_path / "rows").exists(), "nothing is made where there is nothing to read"
    await export("--format", "jsonl", "--url", "http://127.0.0.1:1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    code, _, error = await export("--url", "http://127.0.0.1:1")
    assert code == 2
    assert "pip install 'slime-router[parquet]'" in error
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(tmp_path), "--min-reward", "much"])


async def test_where_no_session_is_closed_it_says_how_to_get_the_others(export, capfd):
    async with router_with() as (_, url):
        argv = ["export", str(export.directory), "--format", "jsonl", "--url", url]
        assert await asyncio.to_thread(main, argv) == 0
        assert "no closed session was found; --state all" in capfd.readouterr().err
        assert await asyncio.to_thread(main, [*argv, "--state", "all"]) == 0
        assert capfd.readouterr().err == ""
