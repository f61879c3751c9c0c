"""`/workers`: registration as sglang-router has it, and how workers change and leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.integration.gateway import Served, served, serving, tiny_worker, until, user

URL = "http://10.0.0.1:1"


async def told(router: Served, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON body of any request."""
    async with router.http.request(method, path, json=body) as response:
        return response.status, await response.json(content_type=None)


async def test_a_worker_is_accepted_with_its_place():
    async with serving() as router:
        async with router.http.post("/workers", json={"url": URL}) as response:
            added = await response.json()
            assert (response.status, response.headers["Location"]) == (202, added["location"])
        assert added == {
            "status": "accepted",
            "worker_id": added["worker_id"],
            "url": URL,
            "location": f"/workers/{added['worker_id']}",
            "message": "Worker added",
        }
        again = (await router.post("/workers", {"url": URL + "/"}))[1]
        assert again["worker_id"] == added["worker_id"], "trainers register again and again"


async def test_the_list_tells_all_that_is_known_but_keys():
    async with serving() as router:
        asked = {
            "url": URL,
            "worker_type": "prefill",
            "bootstrap_port": 8998,
            "api_key": "secret",
            "priority": 7,
            "cost": 2,
            "labels": {"zone": "a"},
            "model_id": "whatever",
        }
        worker_id = (await router.post("/workers", asked))[1]["worker_id"]
        await router.post("/workers", {"url": "http://10.0.0.1:2"})
        status, listed = await router.get("/workers")
        assert (status, listed["total"]) == (200, 2)
        assert listed["stats"] == {"regular_count": 1, "prefill_count": 1, "decode_count": 0}
        card = listed["workers"][0]
        expected = {key: asked[key] for key in asked.keys() - {"api_key", "model_id"}}
        assert card.items() >= {**expected, "id": worker_id, "load": 0}.items()
        assert "secret" not in str(listed)
        for name in (worker_id, URL, "http:%2F%2F10.0.0.1:1", "http%3A%2F%2F10.0.0.1%3A1%2F"):
            _, shown = await router.get(f"/workers/{name}")
            assert shown["id"] == worker_id
    assert router.gateway.pool.get(URL).api_key == "secret"


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_a_change_changes_what_it_names(method):
    async with serving() as router:
        worker_id = (await router.post("/workers", {"url": URL, "priority": 7}))[1]["worker_id"]
        status, reply = await told(router, method, f"/workers/{worker_id}", {"cost": 0.5})
        assert (status, reply["worker_id"]) == (202, worker_id)
        _, card = await router.get(f"/workers/{worker_id}")
        assert (card["priority"], card["cost"]) == (7, 0.5)
        assert (await told(router, method, "/workers/none", {"cost": 1}))[0] == 404


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("worker_type", "big"),
        ("worker_type", ["regular"]),
        ("worker_type", "prefill"),  # without its bootstrap port
        ("bootstrap_port", 0),
        ("bootstrap_port", "8998"),
        ("api_key", "a\nb"),
        ("api_key", ""),
        ("priority", 1.5),
        ("cost", -1),
        ("cost", "2"),
        ("cost", True),
        ("cost", 1e9),
        ("labels", {"a": 1}),
        ("labels", ["a"]),
        ("labels", {"a": "x" * 513}),
        ("labels", {"x" * 513: "a"}),
    ],
)
async def test_a_field_that_is_wrong_is_named_and_changes_nothing(field, value):
    param = "bootstrap_port" if value == "prefill" else field
    async with serving() as router:
        status, body = await told(router, "POST", "/workers", {"url": URL, field: value})
        assert (status, body["error"]["param"]) == (400, param)
        assert len(router.gateway.pool) == 0
        await router.post("/workers", {"url": URL})
        _, before = await router.get("/workers")
        status, body = await told(router, "PATCH", f"/workers/{URL}", {"cost": 3, field: value})
        assert (status, body["error"]["param"]) == (400, param)
        before["workers"][0].pop("status"), before["workers"][0].pop("is_healthy")
        _, after = await router.get("/workers")
        after["workers"][0].pop("status"), after["workers"][0].pop("is_healthy")
        assert after == before


@pytest.mark.parametrize("method", ["PATCH", "POST"])
async def test_a_prefill_worker_keeps_its_bootstrap_port(method):
    async with serving() as router:
        await router.post(
            "/workers", {"url": URL, "worker_type": "prefill", "bootstrap_port": 8998}
        )
        path = f"/workers/{URL}" if method == "PATCH" else "/workers"
        for change, wanted in (
            ({"bootstrap_port": None}, 400),
            ({"worker_type": "prefill", "cost": 2}, 202),
            ({"worker_type": "decode", "bootstrap_port": None}, 202),
            ({"worker_type": "prefill"}, 400),
        ):
            status, _ = await told(router, method, path, {"url": URL, **change})
            assert status == wanted, change


@pytest.mark.parametrize("by", ["id", "url"])
async def test_a_deleted_worker_is_gone_when_it_has_answered(by):
    async with served() as (router, worker), tiny_worker() as other:
        await until(lambda: bool(worker.controls))
        worker.hold(after_tokens=1)
        asked = asyncio.create_task(router.chat([user("hi")]))
        await worker.wait_running(1)
        name = worker.url if by == "url" else router.gateway.pool.list()[0].id
        status, reply = await told(router, "DELETE", f"/workers/{name}")
        assert (status, reply["status"]) == (202, "accepted")
        _, card = await router.get(f"/workers/{name}")
        assert (card["status"], card["is_healthy"], card["load"]) == ("draining", False, 1)
        await router.post("/workers", {"url": other.url})
        await router.chat([user("another")])
        assert len(other.requests) == 1
        worker.release()
        await asked
        assert (await router.get(f"/workers/{name}"))[0] == 404
        assert (await router.get("/list_workers"))[1] == {"urls": [other.url]}


async def test_a_worker_that_is_registered_while_it_leaves_stays():
    async with served() as (router, worker):
        worker.hold(after_tokens=1)
        asked = asyncio.create_task(router.chat([user("hi")]))
        await worker.wait_running(1)
        await told(router, "DELETE", f"/workers/{worker.url}")
        await router.post("/workers", {"url": worker.url})
        worker.release()
        await asked
        _, card = await router.get(f"/workers/{worker.url}")
        assert (card["status"], card["load"]) == ("ready", 0)


async def test_a_removed_worker_is_gone_at_once_and_finishes_what_it_has():
    async with served() as (router, worker):
        worker.hold(after_tokens=1)
        asked = asyncio.create_task(router.chat([user("hi")]))
        await worker.wait_running(1)
        await router.post(f"/remove_worker?url={worker.url}")
        assert (await router.get("/list_workers"))[1] == {"urls": []}
        worker.release()
        await asked
