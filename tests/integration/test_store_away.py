"""A shared store that does not answer: what is in it is not said to be missing."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from slime_router.archive.fetching import absence
from slime_router.archive.port import ArchiveDown, ArchiveOdd
from slime_router.journal.progress import Progress
from tests.integration.gateway import CHAT, Served, assistant, tiny_worker, user
from tests.integration.test_several_routers import (
    archive_of,
    routers,
    store_of,
    workers_of,
)

ASKED = ("find", "news", "sessions", "states", "get", "named", "workers_version")


@pytest.fixture
def shared(tmp_path) -> dict[str, Any]:
    return {"journal": str(tmp_path), "journal_shared": True}


@contextmanager
def away(router: Served) -> Iterator[None]:
    """Nothing is answered to this router."""

    async def no_answer(*_: object) -> None:
        raise ArchiveDown("gone")

    archive = archive_of(router)
    with pytest.MonkeyPatch.context() as patch:
        for name in ASKED:
            patch.setattr(archive._archive, name, no_answer)
        yield
    assert archive.fetch is not None
    archive.fetch.absence.reason = None  # it is asked again at once


def count_calls(router: Served, name: str, asked: Counter[str]) -> None:
    archive = archive_of(router)._archive
    ask = getattr(archive, name)

    async def counted(*args: object) -> object:
        asked[name] += 1
        return await ask(*args)

    setattr(archive, name, counted)  # undone with what `away` did


async def degraded(router: Served, path: str) -> tuple[int, bool, Any]:
    """Status, whether the reply says that it may lack something, and the body."""
    async with router.http.get(path) as response:
        says = response.headers.get("x-slime-degraded") == "the store did not answer"
        return response.status, says, await response.json()


@pytest.mark.parametrize("path", ["/sessions/s", "/sessions/s/rows", "/sessions/s/tree"])
async def test_a_session_of_another_router_is_not_said_to_be_missing(shared, path):
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
        await one.chat([user("hi")], path=f"/sessions/s{CHAT}")
        with away(two):
            status, _, body = await degraded(two, path)
            assert (status, body["error"]["code"]) == (503, "journal_failed"), body
        assert (await degraded(two, path))[:2] == (200, False)
        assert (await degraded(two, path.replace("sessions/s", "sessions/t")))[0] == 404


async def test_among_many_sessions_one_of_another_router_is_not_said_to_be_missing(shared):
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
        await one.chat([user("hi")], path=f"/sessions/s{CHAT}")
        with away(two):
            async with two.http.post("/rows", json={"session_ids": ["s"]}) as response:
                line = await response.json(content_type=None)
        assert (line["session_id"], line["error"]["code"]) == ("s", "journal_failed")


async def test_rows_that_may_lack_a_turn_say_so(shared):
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
        path = f"/sessions/s{CHAT}"
        text, _ = await one.chat([user("hi")], path=path)
        with away(one):
            talk = [user("hi"), assistant(text), user("more")]
            _, receipt = await two.chat(talk, path=path)
            assert receipt["status"] == "extended"
            status, says, rows = await degraded(one, "/sessions/s/rows")
            assert (status, says, rows["stats"]["turns"]) == (200, True, 1)
            assert (await degraded(one, "/sessions"))[:2] == (200, True)
        status, says, rows = await degraded(one, "/sessions/s/rows")
        assert (status, says, rows["stats"]["turns"]) == (200, False, 2)


async def test_no_home_is_held_once_its_requests_have_ended(shared):
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
        await one.chat([user("hi")], path=f"/sessions/s{CHAT}")
        for path in ("/sessions/s", "/sessions/s/rows", "/sessions", "/sessions/t"):
            await two.get(path)
        reply, _ = await one.chat([user("hi")])
        more = [user("hi"), assistant(reply), user("and")]
        again, _ = await one.chat(more)
        await two.chat([*more, assistant(again), user("then")])
        homes = store_of(two)._homes
        assert homes
        assert [home.users for home in homes.values()] == [0] * len(homes)


@pytest.mark.parametrize("kept", [b"hello", b"7", b"[]", b"{}", b"\xff"])
async def test_a_response_that_is_not_ours_is_not_read(shared, kept):
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
        name = f"resp_{'0' * 48}"
        archive_of(one).put("responses", name, lambda: kept)
        await archive_of(one).written()
        status, body = await two.get(f"/v1/responses/{name}")
        assert (status, body["error"]["code"]) == (503, "journal_failed")


async def test_what_is_away_is_asked_by_one_request_and_by_no_other(shared, monkeypatch):
    """One that hangs costs each that asks as long as a look may take."""
    monkeypatch.setattr(absence, "RETRY_S", 3600.0)  # who finds out whether it is back waits
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, _):
        with away(one):
            asked = Counter[str]()
            for name in ASKED:
                count_calls(one, name, asked)
            response = f"/v1/responses/resp_{'0' * 48}"
            for path in (response, response, "/sessions/s", "/sessions/s/rows", "/sessions"):
                await one.get(path)
            await one.chat([user("hi"), assistant("ho"), user("more")])
            await one.chat([user("hi")], path=f"/sessions/s{CHAT}")
            await one.gateway.together.enrolment.look()
            assert asked.total() == 1, asked


async def test_an_answer_that_is_not_of_its_form_does_not_make_others_go_without(
    shared, monkeypatch
):
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, _):

        async def odd(*_: object) -> bytes:
            raise ArchiveOdd("somebody else's")

        archive = archive_of(one)
        monkeypatch.setattr(archive._archive, "get", odd)
        assert (await one.get(f"/v1/responses/resp_{'0' * 48}"))[0] == 503
        assert archive.fetch is not None
        assert archive.fetch.absence.reason is None


async def test_a_response_of_another_router_is_not_said_to_be_missing(shared):
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
        _, first = await one.post("/v1/responses", {"input": "hi"})
        given = {"input": "more", "previous_response_id": first["id"]}
        with away(two):
            status, body = await two.post("/v1/responses", given)
            assert (status, body["error"]["code"]) == (503, "journal_failed")
            assert (await two.get(f"/v1/responses/{first['id']}"))[0] == 503
            item = {**user("hi"), "type": "message", "id": "msg_of_nobody"}
            status, body = await two.post("/v1/responses", {"input": [item]})
            assert status == 200, "whose items the client has needs nobody else"
        assert (await two.post("/v1/responses", given))[0] == 200
        with away(one):
            assert (await one.get(f"/v1/responses/{first['id']}"))[0] == 200, "it is here"


NOT_OURS = {
    "no json": b"garbage",
    "no utf-8": b"\xff",
    "no object": b"5",
    "of another kind": b'{"kind":"other"}',
    "of other types": b'{"priority":"x","labels":[]}',
}


@pytest.mark.parametrize(
    ("url", "data"),
    [*(("http://127.0.0.1:9", data) for data in NOT_OURS.values()), ("http://h..x:1", b"{}")],
    ids=[*NOT_OURS, "no address"],
)
async def test_a_worker_that_is_not_ours_is_passed_over(shared, url, data, caplog):
    """Others may have access to the store; and it keeps no router from starting."""
    async with tiny_worker() as worker, tiny_worker() as more:
        async with routers(worker.url, shared) as (one, two):
            archive_of(one).put("workers", url, lambda: data)
            assert (await one.post(f"/add_worker?url={more.url}"))[0] == 200
            await archive_of(one).written()
            await two.gateway.together.enrolment.look()
            assert workers_of(two).keys() == {worker.url, more.url}
        async with routers(worker.url, shared, 1) as [late]:
            assert workers_of(late).keys() == {worker.url, more.url}
            await late.chat([user("hi")])
    assert caplog.text.count("of the store cannot be registered") >= 2


async def test_a_newer_router_may_say_more_of_a_worker(shared):
    async with tiny_worker() as worker, routers(worker.url, shared) as (one, two):
        data = b'{"priority":7,"of_a_newer_router":[1]}'
        archive_of(one).put("workers", "http://127.0.0.1:9", lambda: data)
        assert (await one.post(f"/add_worker?url={worker.url}"))[0] == 200
        await archive_of(one).written()
        await two.gateway.together.enrolment.look()
        [found] = [each for each in two.gateway.pool.list() if each.url != worker.url]
        assert found.registration.priority == 7


NOT_LISTS = b'{"response":{},"asked":5,"said":[],"previous":null,"owner":"","is_named":true}'


@pytest.mark.parametrize("kept", [b"\xff", b"5", b"{}", NOT_LISTS])
async def test_a_damaged_response_keeps_no_router_from_starting(tmp_path, kept, caplog):
    alone = {"journal": str(tmp_path)}
    async with tiny_worker() as worker:
        async with routers(worker.url, alone, 1) as [one]:
            first = (await one.post("/v1/responses", {"input": "hi"}))[1]["id"]
            archive_of(one).put("responses", f"resp_{'0' * 48}", lambda: kept)
        async with routers(worker.url, alone, 1) as [again]:
            given = {"input": "more", "previous_response_id": first}
            assert (await again.post("/v1/responses", given))[0] == 200
    assert "it is not as it was written" in caplog.text


async def test_what_cannot_be_brought_back_ends_the_router_in_one_line(tmp_path, monkeypatch):
    """Or all requests would wait forever for a journal that is read."""
    ends: list[str] = []
    async with tiny_worker() as worker, routers(worker.url, {"journal": str(tmp_path)}, 1) as [one]:
        archive = archive_of(one)
        monkeypatch.setattr(archive, "_on_end", ends.append)

        def fault() -> None:
            raise KeyError("a fault")

        archive.progress = Progress(0, 0)
        await archive._begin(lambda _: 0, fault)
    assert ends == ["what the journal holds cannot be brought back: 'a fault'"]


SPOILT = {
    "state": "UPDATE sessions SET data = 5 WHERE id = ?",
    "turn's id": "UPDATE turns SET id = 'x' || seq WHERE session = ?",
    "turn": "UPDATE turns SET data = 5 WHERE session = ?",
}


@pytest.mark.parametrize("change", SPOILT.values(), ids=SPOILT)
async def test_what_is_of_another_type_in_a_journal_spoils_its_own_session_alone(tmp_path, change):
    alone = {"journal": str(tmp_path)}
    async with tiny_worker() as worker:
        async with routers(worker.url, alone, 1) as [one]:
            for name in ("bad", "good"):
                await one.post("/sessions", {"session_id": name})
                await one.chat([user("hi")], path=f"/sessions/{name}{CHAT}")
        with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as file, file:
            assert file.execute(change, (b"bad",)).rowcount == 1
        async with routers(worker.url, alone, 1) as [again]:
            status, listed = await again.get("/sessions")
            assert status == 200
            assert "good" in {each["session_id"] for each in listed["sessions"]}
            assert (await again.get("/sessions/good/rows"))[1]["stats"]["turns"] == 1
            status, _ = await again.post(f"/sessions/bad{CHAT}", {"messages": [user("more")]})
            assert status == 200
