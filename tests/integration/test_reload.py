"""`POST /reload`: keys, certificates and workers change while the router runs, or nothing does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from slime_router.config import Config
from slime_router.errors import SetupError
from tests.integration.gateway import CHAT, Served, served, serving, tiny_worker, until, user

ADMIN = {"Authorization": "Bearer admin-1"}


class Again:
    """The settings as they are now; a test changes them."""

    def __init__(self, router: Served) -> None:
        self.config = router.gateway.config
        self.failure: str | None = None
        router.gateway.reloader._read_again = self.read

    def read(self) -> Config:
        if self.failure is not None:
            raise SetupError(self.failure)
        return self.config

    def change(self, **settings: Any) -> None:
        self.config = replace(self.config, **settings)


async def ask(router: Served, key: str) -> int:
    status, _ = await router.post(
        CHAT, json={"messages": [user("Hi")]}, headers={"Authorization": f"Bearer {key}"}
    )
    return status


async def reload(router: Served, **headers: str) -> tuple[int, Any]:
    return await router.post("/reload", headers=headers or ADMIN)


async def test_a_file_of_keys_is_read_again(tmp_path):
    path = tmp_path / "keys"
    path.write_text("anna: anna-1\n")
    settings: dict[str, Any] = {"api_keys_file": str(path), "admin_api_key": "admin-1"}
    async with served(**settings) as (router, _):
        path.write_text("anna: anna-2\nben: ben-1\n")
        assert [await ask(router, key) for key in ("anna-1", "anna-2", "ben-1")] == [200, 401, 401]
        assert await reload(router) == (
            200,
            {
                "status": "success",
                "keys": 3,
                "workers": {"added": [], "removed": []},
                "needs_restart": [],
            },
        )
        assert [await ask(router, key) for key in ("anna-1", "anna-2", "ben-1")] == [401, 200, 200]
        owners = router.gateway.access.owners
        assert router.gateway.context.admission._places._owners == owners == {"", "anna", "ben"}
        assert router.gateway.store.sessions._opened._owners == owners


async def test_only_the_admin_may(tmp_path):
    async with served(api_key="user-1", admin_api_key="admin-1") as (router, _):
        assert (await reload(router, Authorization="Bearer user-1"))[0] == 401
        assert (await reload(router))[0] == 200


async def test_what_cannot_be_used_changes_nothing(tmp_path):
    path = tmp_path / "keys"
    path.write_text("anna: anna-1\n")
    settings: dict[str, Any] = {"api_keys_file": str(path), "admin_api_key": "admin-1"}
    async with served(**settings) as (router, worker):
        again = Again(router)
        path.write_text("anna\n")
        again.change(worker_urls=())
        status, reply = await reload(router)
        assert (status, reply["error"]["code"]) == (400, "invalid_settings")
        assert "line 1: is not 'name: key'" in reply["error"]["message"]
        assert await ask(router, "anna-1") == 200
        assert [each.url for each in router.gateway.pool.list()] == [worker.url]


@pytest.mark.parametrize("urls", [("nonsense",), ("http://a", "http://b/path")])
async def test_a_url_that_cannot_be_used_changes_nothing(urls):
    async with served() as (router, worker):
        Again(router).change(worker_urls=urls)
        status, reply = await reload(router)
        assert (status, reply["error"]["code"]) == (400, "invalid_settings")
        assert [each.url for each in router.gateway.pool.list()] == [worker.url]


async def test_whether_keys_are_needed_does_not_change():
    """A file that was emptied by mistake does not open the router."""
    async with served(api_key="user-1", admin_api_key="admin-1") as (router, _):
        again = Again(router)
        again.change(api_key=None)
        assert (await reload(router))[0] == 400
        again.change(admin_api_key=None)
        assert (await reload(router))[0] == 400
        assert await ask(router, "user-1") == 200
    async with served() as (router, _):
        Again(router).change(api_key="user-1")
        assert (await reload(router))[0] == 400


async def test_workers_that_the_settings_name_come_and_go():
    async with (
        tiny_worker() as one,
        tiny_worker() as other,
        tiny_worker() as registered,
        serving(one.url) as router,
    ):
        await router.post("/workers", json={"url": registered.url})
        again = Again(router)
        again.change(worker_urls=(other.url,))
        _, reply = await reload(router)
        assert reply["workers"] == {"added": [other.url], "removed": [one.url]}
        assert [each.url for each in router.gateway.pool.list()] == [registered.url, other.url]
        _, reply = await reload(router)
        assert reply["workers"] == {"added": [], "removed": []}


async def test_a_worker_that_is_named_twice_comes_once():
    async with tiny_worker() as one, tiny_worker() as other, serving(one.url) as router:
        again = Again(router)
        again.change(worker_urls=(one.url, other.url, f"{other.url}/"))
        _, reply = await reload(router)
        assert reply["workers"] == {"added": [other.url], "removed": []}
        again.change(worker_urls=(one.url,))
        _, reply = await reload(router)
        assert reply["workers"] == {"added": [], "removed": [other.url]}


async def test_one_that_was_removed_by_hand_is_not_removed_twice():
    async with served() as (router, worker):
        await router.post(f"/remove_worker?url={worker.url}")
        Again(router).change(worker_urls=())
        _, reply = await reload(router)
        assert reply["workers"] == {"added": [], "removed": []}


async def test_other_settings_are_named_and_stay(caplog):
    async with served() as (router, _):
        again = Again(router)
        again.change(queue_size=7, worker_wait_s=9.0)
        status, reply = await reload(router)
        assert (status, reply["needs_restart"]) == (200, ["--queue-size", "--worker-wait-secs"])
        assert "only with a restart" in caplog.text


async def test_a_signal_that_finds_wrong_settings_leaves_a_line(caplog):
    async with served() as (router, worker):
        again = Again(router)
        again.failure = "router.toml: unknown setting 'prot'"
        router.gateway.reloader.start()
        await until(lambda: "unknown setting 'prot'" in caplog.text)
        assert "settings stay as they are: router.toml" in caplog.text
        assert [each.url for each in router.gateway.pool.list()] == [worker.url]


async def test_workers_are_found_in_a_file_before_the_router_is_up_and_later(tmp_path):
    path = tmp_path / "workers"
    async with tiny_worker() as one, tiny_worker() as other:
        path.write_text(f"{one.url}\n")
        settings: dict[str, Any] = {
            "worker_discovery": (f"file:{path}",),
            "worker_discovery_interval_s": 0.01,
        }
        async with serving(**settings) as router:
            assert await router.chat([user("Hi")])
            path.write_text(f"{other.url}\n")
            pool = router.gateway.pool
            await until(lambda: [each.url for each in pool.list()] == [other.url])
            assert await router.chat([user("Hi")])
            path.unlink()
            await until(lambda: router.gateway.fleet.discovery.failures > 1)
            assert [each.url for each in pool.list()] == [other.url]


async def test_a_source_that_is_none_keeps_the_router_from_starting():
    with pytest.raises(SetupError, match="--worker-discovery takes"):
        async with serving(worker_discovery=("workers.txt",)):
            raise AssertionError("it started")
