"""A router with a journal, and the one that comes after it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from slime_router.archive.shared import SharedArchive
from slime_router.archive.store import ArchivedStore
from slime_router.errors import SetupError
from slime_router.journal.database import FILE_NAME, Database, Drop
from slime_router.journal.progress import Progress
from slime_router.server.app import Gateway
from tests.integration.gateway import CHAT, Served, assistant, serving, tiny_worker, until, user
from tests.integration.scripted import events

QUESTION = [user("the weather?")]


@asynccontextmanager
async def journaled(url: str, directory: Path, **settings):
    """A router that has read its journal."""
    async with serving(url, journal=str(directory), **settings) as router:
        await journal_of(router).read()
        yield router


def journal_of(router: Served) -> SharedArchive:
    journal = router.gateway.journal
    assert isinstance(journal, SharedArchive)
    return journal


async def rows_of(router: Served, session: str) -> dict[str, Any]:
    rows: dict[str, Any]
    status, rows = await router.get(f"/sessions/{session}/rows")
    assert status == 200, rows
    return rows


def without_urls(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if not name.endswith("url")}


async def summary(router: Served, session: str) -> dict[str, Any]:
    """Without its addresses, which name the port."""
    status, found = await router.get(f"/sessions/{session}")
    assert status == 200, found
    return {name: value for name, value in found.items() if not name.endswith("url")}


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_conversation_goes_on_with_its_tokens_after_a_restart(tmp_path, is_streamed):
    async with tiny_worker() as worker:
        async with journaled(worker.url, tmp_path) as router:
            await router.post("/sessions", {"session_id": "s", "metadata": {"a": [1, "é\ud800"]}})
            text, _ = await router.chat(QUESTION, path=f"/sessions/s{CHAT}", stream=is_streamed)
            before = await rows_of(router, "s")
            held = router.gateway.store.held_ids(before["rows"][0]["row_id"]).tolist()
        async with journaled(worker.url, tmp_path) as router:
            router.gateway.store.check_integrity()
            assert await rows_of(router, "s") == before
            messages = [*QUESTION, assistant(text), user("and then?")]
            _, receipt = await router.chat(messages, path=f"/sessions/s{CHAT}")
            assert (receipt["status"], receipt["reused"]) == ("extended", len(held))
            assert worker.requests[-1].body["input_ids"][: len(held)] == held


async def test_what_happened_to_sessions_outlives_the_router(tmp_path):
    spec = {
        "session_id": "s",
        "group_id": "g",
        "rollout_id": "r",
        "metadata": {"n": 1},
        "max_turns": 3,
        "sampling": {"temperature": 0.5, "stop": ["END"]},
    }
    async with tiny_worker() as worker:
        async with journaled(worker.url, tmp_path) as router:
            await router.post("/sessions", spec)
            await router.post("/sessions", {"session_id": "gone"})
            await router.post("/sessions", {"session_id": "exported"})
            for name in ("s", "gone", "exported", "implicit"):
                await router.chat(QUESTION, path=f"/sessions/{name}{CHAT}")
            await router.post("/sessions/s/reward", {"reward": {"score": 0.5}})
            await router.post("/sessions/s/close")
            await router.post("/sessions/exported/close")
            await rows_of(router, "exported")
            await router.http.delete("/sessions/gone")
            before = await summary(router, "s")
            listed = (await router.get("/sessions"))[1]["sessions"]
        async with journaled(worker.url, tmp_path) as router:
            router.gateway.store.check_integrity()
            assert await summary(router, "s") == before
            again = (await router.get("/sessions"))[1]["sessions"]
            assert sorted(s["session_id"] for s in again) == sorted(s["session_id"] for s in listed)
            status, answer = await router.post(f"/sessions/s{CHAT}", {"messages": QUESTION})
            assert (status, answer["error"]["code"]) == (409, "session_closed")
            status, answer = await router.post(f"/sessions/gone{CHAT}", {"messages": QUESTION})
            assert (status, answer["error"]["code"]) == (404, "session_not_found")
            found = {s.id: s.was_exported for s in router.gateway.store.sessions}
            assert found == {"s": False, "exported": True, "implicit": False}


async def test_registered_workers_come_back_and_removed_ones_do_not(tmp_path):
    async with tiny_worker() as first, tiny_worker() as second, tiny_worker() as third:
        async with journaled(first.url, tmp_path) as router:
            body = {"url": second.url, "api_key": "k", "priority": 7, "labels": {"a": "b"}}
            await router.post("/workers", body)
            await router.post(f"/add_worker?url={third.url}")
            await router.post(f"/remove_worker?url={third.url}")
        async with journaled(first.url, tmp_path) as router:
            workers = {w.url: w for w in router.gateway.pool.list()}
            assert set(workers) == {first.url, second.url}
            assert workers[second.url].registration.priority == 7
            assert workers[second.url].api_key == "k"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_stored_responses_outlive_the_router(tmp_path, is_streamed):
    """With all that they continue, also where the id of that was deleted; others stay deleted."""
    ids: list[str] = []

    async def ask(router: Served, text: str, previous: str | None = None) -> dict[str, Any]:
        body = {"input": text, "previous_response_id": previous, "stream": is_streamed}
        async with router.http.post("/v1/responses", json=body) as answer:
            raw = await answer.read()
            assert answer.status == 200, raw
        if not is_streamed:
            return dict(orjson.loads(raw))
        return dict(orjson.loads(raw.rpartition(b"data: ")[2])["response"])

    async with tiny_worker() as worker:
        async with journaled(worker.url, tmp_path) as router:
            for text in ("one", "two é", "three"):
                ids.append((await ask(router, text, ids[-1] if ids else None))["id"])
            gone = (await ask(router, "gone"))["id"]
            for name in (ids[0], gone):
                await router.http.delete(f"/v1/responses/{name}")
            _, shown = await router.get(f"/v1/responses/{ids[1]}")
            prompts = len(worker.requests[-2].body["input_ids"])
        async with journaled(worker.url, tmp_path) as router:
            assert (await router.get(f"/v1/responses/{ids[1]}"))[1] == shown
            assert (await router.get(f"/v1/responses/{ids[0]}"))[0] == 404
            assert (await router.get(f"/v1/responses/{gone}"))[0] == 404
            again = await ask(router, "four", ids[2])
            assert again["previous_response_id"] == ids[2]
            assert len(worker.requests[-1].body["input_ids"]) > prompts
            assert router.gateway.responses.size > 0
        async with journaled(worker.url, tmp_path, max_stored_responses=1) as router:
            found = [(await router.get(f"/v1/responses/{name}"))[0] for name in ids]
            assert found == [404, 404, 404]
            assert (await router.get(f"/v1/responses/{again['id']}"))[0] == 200


class Held:
    """A file that forgets nothing, and takes nothing while it is held."""

    def __init__(self, target) -> None:
        self._target = target
        self._may_go_on = threading.Event()
        self._may_go_on.set()
        self.is_waiting = False

    def hold(self) -> None:
        self._may_go_on.clear()

    def release(self) -> None:
        self._may_go_on.set()

    def apply(self, changes):
        self.is_waiting = not self._may_go_on.is_set()
        assert self._may_go_on.wait(30.0)
        return self._target.apply([each for each in changes if not isinstance(each, Drop)])


async def test_a_router_alone_has_forgotten_what_its_journal_still_holds(tmp_path):
    """It does not look there: what is to be dropped may not be dropped yet."""
    async with (
        tiny_worker() as worker,
        journaled(worker.url, tmp_path, max_stored_responses=1) as router,
    ):
        journal_of(router).writer._target = Held(journal_of(router).writer._target)
        said = [await router.post("/v1/responses", {"input": text}) for text in ("one", "two")]
        archive = journal_of(router)._archive
        assert len(await archive.named("responses")) == 2
        found = [(await router.get(f"/v1/responses/{each['id']}"))[0] for _, each in said]
        assert found == [404, 200]


@pytest.mark.parametrize("is_shared", [False, True])
async def test_what_is_said_to_be_deleted_does_not_come_back(tmp_path, is_shared):
    """It is deleted in the journal, too, before the client learns of it."""
    async with (
        tiny_worker() as worker,
        journaled(worker.url, tmp_path, journal_shared=is_shared) as router,
    ):
        target = Held(journal_of(router).writer._target)
        journal_of(router).writer._target = target
        path = "/v1/responses/" + (await router.post("/v1/responses", {"input": "a"}))[1]["id"]
        target.hold()
        deleting = asyncio.create_task(router.http.delete(path))
        await until(lambda: target.is_waiting)
        for _ in range(20):  # time enough for a reply
            await router.get("/health")
        assert not deleting.done()
        target.release()
        async with await deleting as answer:
            assert answer.status == 200
        assert (await router.get(path))[0] == 404


async def test_a_turn_is_in_the_file_before_its_reply_has_ended(tmp_path):
    """Read by somebody else at the moment the client has it all."""
    async with tiny_worker() as worker, journaled(worker.url, tmp_path) as router:
        commits = journal_of(router).writer.counts
        await router.chat(QUESTION, stream=True)
        assert commits.commits >= 1
        assert journal_of(router).writer.waiting == 0


async def test_whoever_left_before_the_end_is_marked_for_good(tmp_path):
    async with tiny_worker() as worker:
        async with journaled(worker.url, tmp_path, retry_grace_s=0.0) as router:
            worker.hold(after_tokens=2)
            body = {"messages": QUESTION, "stream": True}
            answer = await router.http.post(f"/sessions/s{CHAT}", json=body)
            await answer.content.readany()
            answer.close()
            await until(lambda: router.gateway.recording.counts.undelivered == 1)
        async with journaled(worker.url, tmp_path) as router:
            rows = await rows_of(router, "s")
            assert rows["stats"]["left_out"].keys() == {"undelivered"}


async def test_while_the_journal_is_read_everybody_is_asked_to_wait(tmp_path):
    async with tiny_worker() as worker:
        async with journaled(worker.url, tmp_path) as router:
            await router.chat(QUESTION, path=f"/sessions/s{CHAT}")
        async with serving(worker.url, journal=str(tmp_path)) as router:
            journal = journal_of(router)
            await journal.read()
            progress, journal.progress = journal.progress, Progress(1, 2)
            for path in ("/readiness", "/sessions", "/sessions/s/rows", "/workers"):
                async with router.http.get(path) as answer:
                    assert answer.status == 503
                    assert answer.headers["retry-after"] == "1"
                    error = (await answer.json())["error"]
                    assert error["code"] == "starting_up"
                    assert "1 of 2 turns" in error["message"]
            assert (await router.get("/health"))[0] == 200
            assert (await router.get("/metrics"))[0] == 200
            journal.progress = progress
            assert (await router.get("/readiness"))[0] == 200


async def test_a_journal_that_cannot_be_written_is_said_in_receipts_and_caught_up(tmp_path):
    async with tiny_worker() as worker, journaled(worker.url, tmp_path) as router:
        target = Broken(journal_of(router).writer._target)
        journal_of(router).writer._target = target
        journal_of(router).writer._retry_s = 0.01
        _, receipt = await router.chat(QUESTION, stream=False)
        assert receipt["notes"] == ["not in the journal: database or disk is full"]
        async with router.http.post(CHAT, json={"messages": QUESTION, "stream": True}) as answer:
            assert events(await answer.read())[-1] == "[DONE]"
        figures = (await router.get("/metrics"))[1]
        assert figures["journal"]["degraded"] == 1
        assert figures["trajectories"]["recorded_not_durable"] == 2
        target.is_broken = False
        await until(lambda: not journal_of(router).figures()["degraded"])
        _, receipt = await router.chat(QUESTION)
        assert "notes" not in receipt
        held = len(router.gateway.store)
    with closing(Database(tmp_path)) as database:
        assert database.count("turns") == held == 3


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_journal_that_is_moved_away_is_said_in_receipts_and_caught_up(
    tmp_path, is_shared, is_replaced
):
    """SQLite goes on writing to a file that nobody will find again."""
    place, aside = tmp_path / "journal", tmp_path / "aside"
    async with (
        tiny_worker() as worker,
        journaled(worker.url, place, journal_shared=is_shared) as router,
    ):
        journal_of(router).writer._retry_s = 0.01
        await router.chat(QUESTION)
        place.rename(aside)
        if is_replaced:
            shutil.copytree(aside, place)
        _, receipt = await router.chat(QUESTION)
        [note] = receipt["notes"]
        assert note.endswith("journal.sqlite was removed or replaced while it was open")
        if is_replaced:
            shutil.rmtree(place)
        aside.rename(place)
        await until(lambda: not journal_of(router).figures()["degraded"])
        _, receipt = await router.chat(QUESTION)
        assert "notes" not in receipt
    with closing(Database(place)) as database:
        assert database.count("turns") == 3


async def test_where_it_must_be_written_the_reply_fails_and_the_router_stops(tmp_path):
    async with (
        tiny_worker() as worker,
        journaled(worker.url, tmp_path, journal_on_error="stop") as router,
    ):
        ended: list[str] = []
        journal_of(router)._on_end = ended.append
        journal_of(router).writer._target = Broken(journal_of(router).writer._target)
        status, answer = await router.post(CHAT, {"messages": QUESTION})
        assert (status, answer["error"]["code"]) == (503, "journal_failed")
        status, answer = await router.post("/sessions", {"session_id": "s"})
        assert (status, answer["error"]["code"]) == (503, "journal_failed")
        assert ended == ["the journal cannot be written: database or disk is full"]


class Broken:
    """A file system that is full."""

    def __init__(self, target) -> None:
        self._target = target
        self.is_broken = True

    def apply(self, changes) -> None:
        if self.is_broken:
            raise sqlite3.OperationalError("database or disk is full")
        self._target.apply(changes)


async def test_a_restart_reads_no_turn_before_somebody_asks_for_it(tmp_path):
    names = [f"s{number}" for number in range(5)]
    async with tiny_worker() as worker:
        async with journaled(worker.url, tmp_path) as router:
            for name in names:
                await router.post("/sessions", {"session_id": name})
                await router.chat(QUESTION, path=f"/sessions/{name}{CHAT}")
            before = (await router.get("/sessions"))[1]["sessions"]
        async with journaled(worker.url, tmp_path) as router:
            assert len(router.gateway.store) == 0
            await rows_of(router, "s3")  # this one comes first, and stays the fourth
            assert len(router.gateway.store) == 1
            found: list[dict[str, Any]] = []
            page: dict[str, Any] = {"next_cursor": ""}
            while (cursor := page["next_cursor"]) is not None:
                path = "/sessions?limit=2" + (f"&cursor={cursor}" if cursor else "")
                _, page = await router.get(path)
                found += page["sessions"]
            assert [without_urls(each) for each in found] == [without_urls(e) for e in before]


async def test_what_is_listed_and_searched_need_not_find_room_in_memory(tmp_path):
    async with tiny_worker() as worker, journaled(worker.url, tmp_path, max_memory=1) as router:
        turns = {}
        for number in range(6):
            path = f"/sessions/s{number}{CHAT}"
            turns[f"s{number}"] = (await router.chat(QUESTION, path=path))[1]["turn"]
        store = router.gateway.store
        assert len(store) < 3
        pages = [(await router.get(f"/sessions?limit=3{more}"))[1] for more in ("", "&cursor=3")]
        names = [each["session_id"] for page in pages for each in page["sessions"]]
        assert names == list(turns)
        assert {each["turns"] for page in pages for each in page["sessions"]} == {1}
        assert len(store) < 3
        for name, turn in turns.items():
            _, found = await router.get(f"/sessions?search={turn}")
            assert [each["session_id"] for each in found["sessions"]] == [name]


@pytest.mark.slow
async def test_five_times_as_much_as_may_be_held_stays_within_the_limit(tmp_path):
    """Sessions that are open, too; none of their turns is missing in the rows."""
    limit = 60_000
    async with tiny_worker() as worker:
        async with journaled(worker.url, tmp_path, max_memory=limit) as router:
            store = router.gateway.store
            assert isinstance(store, ArchivedStore)
            names = [f"s{number}" for number in range(12)]
            for name in names:
                assert (await router.post("/sessions", {"session_id": name}))[0] == 201
            conversations = {name: [user(f"{name}: the weather?")] for name in names}
            for _ in range(5):  # each session is cold when its next turn comes
                for name, messages in conversations.items():
                    text, receipt = await router.chat(messages, path=f"/sessions/{name}{CHAT}")
                    assert receipt["status"] == ("extended" if len(messages) > 1 else "fresh")
                    messages += [assistant(text), user("and then?")]
                    assert store.held_bytes <= limit
            figures = router.gateway.journal.figures()
            assert figures["evicted_turns"] > 0
            await router.get("/sessions")
            assert store.held_bytes <= limit
            before = [await rows_of(router, name) for name in names]
            assert store.held_bytes <= limit
        async with journaled(worker.url, tmp_path) as router:
            assert [await rows_of(router, name) for name in names] == before
            assert {rows["stats"]["turns"] for rows in before} == {5}
            store = router.gateway.store
            assert isinstance(store, ArchivedStore)
            assert store.held_bytes >= 5 * limit


async def test_a_damaged_page_ends_the_router_once_it_is_read(tmp_path, monkeypatch):
    async with tiny_worker() as worker:
        async with journaled(worker.url, tmp_path) as router:
            await router.chat(QUESTION, path=f"/sessions/s{CHAT}")
        with closing(sqlite3.connect(tmp_path / FILE_NAME)) as sql:
            sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            page = sql.execute("SELECT rootpage FROM sqlite_master WHERE name = 'turns'").fetchone()
        with (tmp_path / FILE_NAME).open("r+b") as file:
            file.seek(4096 * (page[0] - 1))
            file.write(bytes(4096))
        ended: list[str] = []
        monkeypatch.setattr(Gateway, "end", lambda _, reason: ended.append(reason))
        async with serving(worker.url, journal=str(tmp_path)) as router:
            await journal_of(router).read()
            await router.get("/sessions/s/rows")
        assert ended
        assert "the journal is damaged" in ended[0]
        assert "restore it" in ended[0]


# What cannot be opened


async def refusal(directory: Path, **settings) -> str:
    with pytest.raises(SetupError) as raised:
        async with serving(journal=str(directory), **settings):
            pass
    assert "\n" not in raised.value.message
    return raised.value.message


async def test_two_routers_cannot_have_one_journal(tmp_path):
    async with tiny_worker() as worker, journaled(worker.url, tmp_path):
        assert "in use by another router" in await refusal(tmp_path)
        with pytest.raises(SetupError, match="in use by another router"):
            Database(tmp_path)  # as `slime-router journal` opens it


async def test_a_newer_journal_is_refused(tmp_path):
    async with tiny_worker() as worker, journaled(worker.url, tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as sql:
        sql.execute("PRAGMA user_version = 99")
    assert "was written by a newer router: it has schema 99" in await refusal(tmp_path)


@pytest.mark.parametrize("table", ["turns", "sessions", "responses", "names", "counters"])
async def test_a_journal_without_one_of_its_tables_is_refused(table, tmp_path):
    """It was waited for, as for one that is away, or not written."""
    Database(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as sql:
        sql.execute(f"DROP TABLE {table}")
    said = await refusal(tmp_path)
    assert f"has no table '{table}'" in said
    assert "restore it" in said


@pytest.mark.parametrize(
    ("change", "table"),
    [
        ("DELETE FROM counters", "counters"),
        ("DELETE FROM counters WHERE name = 'router'", "counters"),
        ("UPDATE counters SET value = 'x'", "counters"),
        ("UPDATE counters SET value = 0.5", "counters"),
        ("UPDATE meta SET value = 'other'", "meta"),
        ("UPDATE meta SET value = 5", "meta"),
        ("INSERT INTO workers VALUES ('http://h:1', x'7b7d')", "workers"),
        ("INSERT INTO workers VALUES (x'61', 'text')", "workers"),
        ("INSERT INTO workers VALUES (x'ff', x'7b7d')", "workers"),
    ],
)
@pytest.mark.parametrize("is_shared", [False, True])
async def test_a_journal_with_rows_that_no_router_wrote_is_refused(
    change, table, is_shared, tmp_path
):
    async with tiny_worker() as worker, journaled(worker.url, tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as sql:
        sql.execute(change)
        sql.commit()
    said = await refusal(tmp_path, journal_shared=is_shared)
    assert f"in '{table}'" in said
    assert "restore it" in said
    assert "\n" not in said


async def test_a_journal_of_another_vocabulary_is_refused(tmp_path, monkeypatch):
    async with tiny_worker() as worker, journaled(worker.url, tmp_path):
        pass
    monkeypatch.setattr("slime_router.server.app.PROBE_TEXT", "another")
    assert "holds the tokens of another checkpoint" in await refusal(tmp_path)


async def test_one_that_is_shared_and_nowhere_is_refused():
    with pytest.raises(SetupError, match="--journal-shared needs --journal"):
        async with serving(journal_shared=True):
            pass


async def test_what_is_no_journal_is_refused(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    assert "cannot be read (file is not a database)" in await refusal(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "cannot be opened" in await refusal(tmp_path / "file")


async def test_only_its_owner_can_read_it(tmp_path):
    directory = tmp_path / "new" / "journal"
    async with tiny_worker() as worker, journaled(worker.url, directory) as router:
        await router.chat(QUESTION)
        assert directory.stat().st_mode & 0o077 == 0
        for path in directory.iterdir():
            assert path.stat().st_mode & 0o077 == 0, path


async def test_a_cancelled_wait_leaves_the_others_waiting(tmp_path):
    async with tiny_worker() as worker, journaled(worker.url, tmp_path) as router:
        replies = [asyncio.create_task(router.chat([user(str(i))])) for i in range(20)]
        await asyncio.sleep(0)
        replies[3].cancel()
        done = await asyncio.gather(*replies, return_exceptions=True)
        assert sum(isinstance(each, asyncio.CancelledError) for each in done) == 1
