"""A shared store that does not answer: what is in it is not said to be missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from slime_router.archive.filling import RETRY_S
from slime_router.archive.port import ArchiveDown
from tests.integration.gateway import CHAT, Served, assistant, tiny_worker, user
from tests.integration.test_several_routers import archive_of, routers, store_of

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
    archive.fetch._down_until -= 2 * RETRY_S  # it is asked again at once


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
