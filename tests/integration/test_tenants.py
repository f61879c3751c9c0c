"""Named keys: what one of them does is not there for another, whatever both of them ask for."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from slime_router.testing import FakeWorker
from slime_router.testing.script import Script
from tests.integration.gateway import CHAT, Served, assistant, served, until, user

Deed = Callable[["Tenant"], Awaitable[None]]
Other = Callable[[Served], Coroutine[Any, Any, None]]

SHORT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}

TEXT = "Say nothing"
ADMIN = {"Authorization": "Bearer admin"}
ANN, BOB = {"Authorization": "Bearer k-ann"}, {"x-api-key": "k-bob"}
PLAIN = {"Authorization": "Bearer plain"}

# Names that the router makes up; what depends on the clock, or on the worker's own cache.
_IDS = re.compile(
    r"\b((?:turn|resp|msg|rs|fc|req|sess|row|call|cmpl|chatcmpl)[_-])?[0-9a-f]{16,}\b"
)
_NOT_OURS = {"created", "created_at", "completed_at", "usage", "cached_tokens", "seq", "url"}
_NOT_OURS |= {"base_url", "meta_info", "started", "last_active", "duration_s", "first_token_s"}
_NOT_OURS |= {"queued_s", "prompt_s"}


@asynccontextmanager
async def tenants(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Served, FakeWorker]]:
    path = tmp_path / "keys"
    path.write_text("ann: k-ann\nbob: k-bob\n")
    given = {"api_key": "plain", "admin_api_key": "admin", "api_keys_file": str(path), **settings}
    worker_settings = {"reply": lambda _: Script(ids=[72, 105, 33], finish="length")}
    async with served(worker_settings, **given) as (router, worker):
        yield router, worker


def plain(value: Any, names: dict[str, str]) -> Any:
    """What a reply says, with made up names in the order in which they came."""
    if isinstance(value, dict):
        return {k: plain(v, names) for k, v in value.items() if k not in _NOT_OURS}
    if isinstance(value, list):
        return [plain(each, names) for each in value]
    if isinstance(value, str):
        return _IDS.sub(lambda m: names.setdefault(m[0], f"id-{len(names)}"), value)
    return value


class Tenant:
    """One key, and all that it was told."""

    def __init__(self, router: Served, headers: dict[str, str]) -> None:
        self.told: list[Any] = []
        self._router, self._headers = router, headers
        self._names: dict[str, str] = {}
        self._response: str | None = None
        self._talk = [user("Hi")]

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        http = self._router.http
        async with http.request(method, path, json=body, headers=self._headers) as answer:
            raw = await answer.read()
            receipt = orjson.loads(answer.headers.get("x-slime-receipt", "null"))
        values = [orjson.loads(line) for line in raw.splitlines() if line.startswith(b"{")]
        entry = [method, path, answer.status, receipt, values]
        self.told.append(plain(entry, self._names))
        return values[0] if values else None

    async def chat(self) -> None:
        reply = await self.ask("POST", CHAT, {"messages": self._talk, "max_tokens": 3})
        said = reply["choices"][0]["message"]["content"]
        self._talk += [assistant(said), user("Go on")]

    async def chat_in_session(self) -> None:
        await self.ask("POST", f"/sessions/s{CHAT}", {"messages": self._talk, "max_tokens": 3})

    async def chat_by_user(self) -> None:
        body = {"messages": [user("Hi")], "user": "o", "max_tokens": 3}
        await self.ask("POST", CHAT, body)

    async def message(self) -> None:
        await self.ask("POST", "/v1/messages", {"messages": self._talk, "max_tokens": 3})

    async def respond(self) -> None:
        body = {"input": "Hi", "previous_response_id": self._response, "max_output_tokens": 3}
        reply = await self.ask("POST", "/v1/responses", body)
        self._response = reply["id"]
        await self.ask("GET", f"/v1/responses/{self._response}")

    async def generate(self) -> None:
        params = {"max_new_tokens": 3}
        await self.ask("POST", "/generate", {"text": TEXT, "sampling_params": params})
        ids = {"input_ids": [72, 105], "session_id": "ids", "sampling_params": params}
        await self.ask("POST", "/generate", ids)

    async def retrieve(self) -> None:
        await self.ask("POST", "/retrieve_from_text", {"text": f"{TEXT}Hi!"})
        for named in ({}, {"session_id": "s"}):
            body = {"messages": [user("Hi"), assistant("Hi!")], **named}
            await self.ask("POST", "/retrieve_from_messages_template", body)

    async def diagnose(self) -> None:
        await self.ask("POST", "/diagnose", {"session_id": "s", "messages": [user("Hi")]})
        await self.ask("POST", "/sessions/o/diagnose", {"text": "Hi"})

    async def open(self) -> None:
        body = {"session_id": "o", "group_id": "g", "rollout_id": "r", "max_turns": 3}
        await self.ask("POST", "/sessions", body)

    async def reward(self) -> None:
        value = 1.0 if self._headers is ANN else 2.0
        await self.ask("POST", "/sessions/o/reward", {"reward": value})

    async def look(self) -> None:
        await self.ask("GET", "/sessions")
        await self.ask("GET", "/sessions?group_id=g")
        await self.ask("GET", "/sessions?limit=1")
        for name in ("s", "o", "ids"):
            await self.ask("GET", f"/sessions/{name}")
            await self.ask("GET", f"/sessions/{name}/rows")
        await self.ask("POST", "/rows", {"session_ids": ["s", "o"]})
        await self.ask("POST", "/rows", {"group_id": "g"})
        await self.ask("POST", "/rows", {"rollout_id": "r"})

    async def close(self) -> None:
        await self.ask("POST", "/sessions/o/close", {})

    async def delete(self) -> None:
        await self.ask("DELETE", "/sessions/s")


DEEDS = tuple(
    getattr(Tenant, name) for name in vars(Tenant) if not name.startswith("_") and name != "ask"
)


async def told(tmp_path: Path, deeds: Sequence[Deed], *, beside: bool, seed: int) -> list[Any]:
    """What ann gets, alone or with bob doing the same, now before her and now after."""
    order = random.Random(seed)
    async with tenants(tmp_path) as (router, _):
        ann, bob = Tenant(router, ANN), Tenant(router, BOB)
        for deed in deeds:
            who = [ann, bob] if order.random() < 0.5 else [bob, ann]
            for tenant in who if beside else [ann]:
                await deed(tenant)
        router.gateway.store.check_integrity()
        router.gateway.cache.check_integrity()
        return ann.told


@pytest.mark.parametrize("seed", range(3))
async def test_a_tenant_is_told_the_same_whether_another_does_the_same_or_nobody(seed, tmp_path):
    """All doors, in any order: receipts, ids, rows, rewards, lists, limits, retrieval, errors."""
    order = random.Random(seed)
    deeds = [*DEEDS, *order.choices(DEEDS, k=len(DEEDS))]
    order.shuffle(deeds)
    alone = await told(tmp_path, deeds, beside=False, seed=seed)
    beside = await told(tmp_path, deeds, beside=True, seed=seed)
    for one, other in zip(alone, beside, strict=True):
        assert one == other
    statuses = {entry[2] for entry in alone}
    assert {200, 404} <= statuses
    assert "extended" in {entry[3]["status"] for entry in alone if entry[3]}


async def ask(router: Served, method: str, path: str, who: dict[str, str], body: Any = None) -> Any:
    async with router.http.request(method, path, json=body, headers=who) as answer:
        raw = await answer.read()
        return answer.status, orjson.loads(raw.splitlines()[0]) if raw else None


async def test_what_a_tenant_has_is_not_there_for_another(tmp_path):
    body = {"messages": [user("Hi")], "max_tokens": 3}
    async with tenants(tmp_path) as (router, worker):
        await ask(router, "POST", f"/sessions/s{CHAT}", ANN, body)
        _, made = await ask(router, "POST", "/v1/responses", ANN, {"input": "Hi"})
        item = made["output"][0]["id"]
        for who in (BOB, PLAIN):
            for method, path, given in (
                ("GET", "/sessions/s", None),
                ("GET", "/sessions/ann%1Fs", None),
                ("GET", "/sessions/%1Fann%1Fs", None),
                ("DELETE", "/sessions/s", None),
                ("DELETE", "/sessions/ann%1Fs", None),
                ("POST", "/sessions/s/close", {}),
                ("POST", "/sessions/s/reward", {"reward": 1}),
                ("GET", "/sessions/s/rows", None),
                ("POST", "/diagnose", {"session_id": "s", "text": "Hi"}),
                ("GET", f"/v1/responses/{made['id']}", None),
                ("DELETE", f"/v1/responses/{made['id']}", None),
                ("GET", f"/v1/responses/{made['id']}/input_items", None),
                ("POST", f"/v1/responses/{made['id']}/cancel", None),
                ("POST", "/v1/responses", {"input": [{"type": "item_reference", "id": item}]}),
            ):
                status, reply = await ask(router, method, path, who, given)
                assert status == 404, (path, reply)
                assert "ann" not in reply["error"]["message"] or "ann" in path
            previous = {"input": "Hi", "previous_response_id": made["id"]}
            status, reply = await ask(router, "POST", "/v1/responses", who, previous)
            assert (status, reply["error"]["code"]) == (400, "previous_response_not_found")
            for name in ("s", "ann\x1fs"):
                _, line = await ask(router, "POST", "/rows", who, {"session_ids": [name]})
                assert line["error"]["code"] == "session_not_found"
        assert (await ask(router, "GET", "/sessions", BOB))[1] == {
            "sessions": [],
            "total": 0,
            "next_cursor": None,
        }
        assert len(worker.requests) == 2
        status, shown = await ask(router, "GET", "/sessions/s", ANN)
        assert (status, shown["session_id"], shown["turns"]) == (200, "s", 1)
        assert shown["url"].endswith("/sessions/s")
        assert (await ask(router, "GET", f"/v1/responses/{made['id']}", ANN))[0] == 200


async def test_a_name_of_anothers_turn_opens_nothing(tmp_path):
    """A turn's id stands in receipts; whoever learns it must not continue it."""
    hello = {"messages": [user("Hi")], "max_tokens": 3}
    async with tenants(tmp_path) as (router, _):
        async with router.http.post(CHAT, json=hello, headers=ANN) as answer:
            turn = orjson.loads(answer.headers["x-slime-receipt"])["turn"]
        item = {"type": "reasoning", "summary": [], "encrypted_content": turn}
        items = [
            {"role": "user", "content": "Hi"},
            item,
            {"role": "assistant", "content": "otherwise"},
            {"role": "user", "content": "Go on"},
        ]
        status = {}
        for name, who in (("bob", BOB), ("ann", ANN)):
            body = {"input": items, "store": False}
            async with router.http.post("/v1/responses", json=body, headers=who) as answer:
                status[name] = orjson.loads(answer.headers["x-slime-receipt"])["status"]
        assert status == {"ann": "extended", "bob": "fresh"}


async def test_two_retries_of_two_tenants_are_two_generations(tmp_path):
    body = {"messages": [user("Hi")], "max_tokens": 3}
    async with tenants(tmp_path, retry_grace_s=30.0) as (router, worker):
        worker.hold()
        both = [
            asyncio.create_task(
                ask(router, "POST", CHAT, {**ADMIN, **who, "x-stainless-retry-count": "1"}, body)
            )
            for who in ({"x-slime-owner": "ann"}, {"x-slime-owner": "bob"})
        ]
        await worker.wait_running(2)
        worker.release()
        assert [status for status, _ in await asyncio.gather(*both)] == [200, 200]
        assert router.gateway.joiner.joined == 0


# Limits


async def test_sessions_that_nobody_opened_count_once_they_are_closed(tmp_path):
    """Closing pins them: without a limit one tenant could fill the store for all of them."""
    chat = {"messages": [user("Hi")], "max_tokens": 3}
    async with tenants(tmp_path, max_sessions=6) as (router, _):
        statuses = []
        for number in range(12):
            assert (await ask(router, "POST", f"/sessions/i{number}{CHAT}", ANN, chat))[0] == 200
            status, reply = await ask(router, "POST", f"/sessions/i{number}/close", ANN, {})
            statuses.append(status)
        assert statuses == [200] * 4 + [429] * 8, "two places are due to the two other owners"
        assert reply["error"]["code"] == "too_many_sessions"
        _, refused = await ask(router, "GET", "/sessions/i11", ANN)
        assert refused["state"] == "implicit"
        assert (await ask(router, "POST", f"/sessions/i11{CHAT}", ANN, chat))[0] == 200
        assert (await ask(router, "POST", "/sessions", ANN, {}))[0] == 429
        assert (await ask(router, "POST", "/sessions", BOB, {}))[0] == 201
        assert (await ask(router, "POST", "/sessions", BOB, {}))[0] == 429
        assert (await ask(router, "POST", "/sessions", PLAIN, {}))[0] == 201
        assert (await ask(router, "DELETE", "/sessions/i0", ANN))[0] == 200
        assert (await ask(router, "POST", "/sessions", BOB, {}))[0] == 201


async def test_a_key_that_fills_the_endpoints_leaves_room_for_another(tmp_path):
    chat = {"messages": [user("Hi")], "max_tokens": 3}
    async with tenants(tmp_path, openai_max_concurrent_requests=6) as (router, worker):
        worker.hold()
        flood = [asyncio.create_task(ask(router, "POST", CHAT, ANN, chat)) for _ in range(6)]
        done, waiting = await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 2:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        assert [task.result()[0] for task in done] == [429, 429]
        other = asyncio.create_task(ask(router, "POST", CHAT, BOB, chat))
        await asyncio.sleep(0)
        worker.release()
        assert (await other)[0] == 200
        assert [(await task)[0] for task in waiting] == [200] * 4


LIMITS: dict[str, Any] = {
    "max_concurrent_requests": 1,
    "queue_size": 6,
    "max_sessions": 6,
    "openai_max_concurrent_requests": 6,
    "max_stored_responses": 12,
}


async def told_beside(tmp_path: Path, deeds: Sequence[Deed], other: Other | None) -> list[Any]:
    """What ann gets of a router with limits, while another tenant does as it likes."""
    async with tenants(tmp_path, **LIMITS) as (router, _):
        ann = Tenant(router, ANN)
        others: list[asyncio.Task[None]] = (
            [] if other is None else [asyncio.create_task(other(router))]
        )
        for deed in deeds:
            await deed(ann)
        for task in others:
            task.cancel()
        await asyncio.wait(others) if others else None
        assert not [task for task in others if not task.cancelled() and task.exception()]
        await until(lambda: router.gateway.pool.total_in_flight == 0)
        router.gateway.store.check_integrity()
        router.gateway.cache.check_integrity()
        return ann.told


async def in_lockstep(router: Served) -> None:
    """Another tenant that does the same, under the same names, at the same time."""
    order = random.Random(7)
    bob = Tenant(router, BOB)
    while True:
        await order.choice(DEEDS)(bob)


async def in_a_flood(router: Served) -> None:
    """One that asks for more than it may have of everything, and keeps what it gets."""
    chat = {"messages": [user("Hi")], "max_tokens": 3, "rid": "ids", "user": "o"}

    async def flood(method: str, path: str, body: Any) -> None:
        while True:
            await ask(router, method, path, BOB, body)

    await asyncio.gather(
        *(flood("POST", CHAT, chat) for _ in range(12)),
        flood("POST", "/sessions", {}),
        flood("POST", f"/sessions/s{CHAT}", chat),
        flood("POST", "/v1/responses", {"input": "Hi", "max_output_tokens": 3}),
    )


@pytest.mark.parametrize("other", [in_lockstep, in_a_flood])
async def test_limits_and_queues_tell_a_tenant_nothing_of_another(other, tmp_path):
    order = random.Random(1)
    deeds = [*DEEDS, *order.choices(DEEDS, k=len(DEEDS))]
    order.shuffle(deeds)
    alone = await told_beside(tmp_path, deeds, None)
    beside = await told_beside(tmp_path, deeds, other)
    for one, another in zip(alone, beside, strict=True):
        assert one == another
    assert {entry[2] for entry in alone} >= {200, 404}


async def test_a_tenant_that_stores_much_has_nothing_of_another_forgotten(tmp_path):
    short = {"input": "Hi", "max_output_tokens": 3}
    async with tenants(tmp_path, max_stored_responses=6) as (router, _):
        mine = [(await ask(router, "POST", "/v1/responses", ANN, short))[1]["id"] for _ in range(3)]
        for _ in range(12):
            assert (await ask(router, "POST", "/v1/responses", BOB, short))[0] == 200
        for made in mine:
            assert (await ask(router, "GET", f"/v1/responses/{made}", ANN))[0] == 200
            more = {**short, "previous_response_id": made, "store": False}
            assert (await ask(router, "POST", "/v1/responses", ANN, more))[0] == 200
        assert (await router.get("/health"))[0] == 200
        assert len(router.gateway.responses) == 6


async def test_a_tenant_waits_for_one_generation_of_another_and_not_for_its_queue(tmp_path):
    """However many wait, in however many sessions: owners take turns."""
    async with tenants(tmp_path, max_concurrent_requests=1, queue_size=60) as (router, worker):
        worker.hold()
        flood = [
            asyncio.create_task(ask(router, "POST", f"/sessions/{n}{CHAT}", BOB, SHORT))
            for n in range(40)
        ]
        figures = router.gateway.admission.figures
        await until(lambda: (figures.running, router.gateway.admission.figures.waiting) == (1, 39))
        mine = [
            asyncio.create_task(ask(router, "POST", CHAT, ANN, {**SHORT, "user": f"ann-{n}"}))
            for n in range(3)
        ]
        await until(lambda: router.gateway.admission.figures.waiting == 42)
        worker.release()
        assert [(await task)[0] for task in (*mine, *flood)] == [200] * 43
    owners = [request.body["rid"].partition(".")[0] for request in worker.requests]
    ann = next(owner for owner in owners if owner != owners[0])
    places = [place for place, owner in enumerate(owners) if owner == ann]
    assert places[-1] <= 6, "after the one that ran, they take turns"


# The admin


async def test_the_admin_sees_all_and_whose_it_is(tmp_path):
    opened = {"session_id": "s", "group_id": "g", "rollout_id": "r"}
    async with tenants(tmp_path) as (router, _):
        for who in (ANN, BOB, PLAIN):
            status, _ = await ask(router, "POST", "/sessions", who, opened)
            assert status == 201
        _, listed = await ask(router, "GET", "/sessions", ADMIN)
        shown = [(each["session_id"], each.get("owner")) for each in listed["sessions"]]
        assert shown == [("s", "ann"), ("s", "bob"), ("s", None)]
        assert (await ask(router, "GET", "/sessions", PLAIN))[0] == 401
        async with router.http.post("/rows", json={"group_id": "g"}, headers=ADMIN) as answer:
            assert len((await answer.read()).splitlines()) == 3
        _, own = await ask(router, "GET", "/sessions", BOB)
        assert [each["session_id"] for each in own["sessions"]] == ["s"]


async def test_the_admin_names_what_belongs_to_another_with_a_header(tmp_path):
    body = {"messages": [user("Hi")], "max_tokens": 3}
    as_ann = {**ADMIN, "x-slime-owner": "ann"}
    async with tenants(tmp_path) as (router, _):
        await ask(router, "POST", "/sessions", as_ann, {"session_id": "s"})
        assert (await ask(router, "POST", f"/sessions/s{CHAT}", ANN, body))[0] == 200
        _, rows = await ask(router, "GET", "/sessions/s/rows", as_ann)
        assert [(row["session_id"], row["owner"]) for row in rows["rows"]] == [("s", "ann")]
        assert (await ask(router, "GET", "/sessions/s", ADMIN))[0] == 404, "its own would be that"
        assert (await ask(router, "GET", "/sessions/s", {**BOB, "x-slime-owner": "ann"}))[0] == 401
        assert (await ask(router, "GET", "/sessions/s", {**ANN, "x-slime-owner": "ann"}))[0] == 200
        status, reply = await ask(
            router, "GET", "/sessions", {**ADMIN, "x-slime-owner": "no-such-name"}
        )
        assert (status, reply["error"]["param"]) == (404, "x-slime-owner")
        _, made = await ask(router, "POST", "/v1/responses", ANN, {"input": "Hi"})
        assert (await ask(router, "GET", f"/v1/responses/{made['id']}", ADMIN))[0] == 200


async def test_named_keys_never_open_admin_routes(tmp_path):
    path = tmp_path / "only"
    path.write_text("ann: k-ann")
    async with served(api_keys_file=str(path)) as (router, _):
        assert (await ask(router, "GET", "/workers", ANN))[0] == 401
        assert (await ask(router, "POST", "/flush_cache", ANN, {}))[0] == 401
        assert (await ask(router, "GET", "/sessions", ANN))[0] == 200
        assert (await ask(router, "GET", "/v1/models", BOB))[0] == 401


async def test_workers_are_told_nothing_of_owners_and_prefixes_are_shared_among_them(tmp_path):
    """What a worker's cache holds of one key's prompt serves another's."""
    body = {"messages": [user("Hi")], "max_tokens": 3}
    async with tenants(tmp_path) as (router, worker):
        for who in (ANN, BOB):
            await ask(router, "POST", f"/sessions/s{CHAT}", who, body)
        sent = [{k: v for k, v in r.body.items() if k != "rid"} for r in worker.requests]
        assert sent[0] == sent[1]
        assert "ann" not in repr([(r.body, r.headers) for r in worker.requests])


async def test_without_names_two_keys_share_what_there_is():
    """The trainer's key and the agents' key: one world, as without keys."""
    body = {"messages": [user("Hi")], "max_tokens": 3}
    async with served(api_key="plain", admin_api_key="admin") as (router, _):
        await ask(router, "POST", f"/sessions/s{CHAT}", PLAIN, body)
        for who in (PLAIN, ADMIN):
            status, shown = await ask(router, "GET", "/sessions/s", who)
            assert (status, shown["turns"]) == (200, 1)
            assert "owner" not in shown
        assert [session.id for session in router.gateway.store.sessions] == ["s"]
