"""Keys at the door: which key opens what, what a refusal looks like, and where keys never go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from slime_router.cli import main as cli
from slime_router.cli import run
from slime_router.cli.banner import banner
from slime_router.cli.log import start_log
from slime_router.server.app import Gateway
from slime_router.testing import FakeWorker
from tests.integration.gateway import (
    CHAT,
    FOUR_KEYS,
    Served,
    checkpoint,
    served,
    serving,
    tiny_worker,
    until,
    user,
)

BODY = {"messages": [user("Hi")], "max_tokens": 2}
CLIENT, ADMIN, WORKER = "SECRET-client", "SECRET-admin", "SECRET-worker"
BOTH: dict[str, Any] = {"api_key": CLIENT, "admin_api_key": ADMIN}


def url_of(router: Served) -> str:
    return str(router.http._base_url).rstrip("/")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def status(
    http: aiohttp.ClientSession, method: str, path: str | URL, headers: dict[str, str] | None = None
) -> int:
    json = BODY if method == "POST" else None
    async with http.request(method, path, json=json, headers=headers) as answer:
        await answer.read()
        return answer.status


# Who is let in


@pytest.mark.parametrize(
    "headers",
    [
        bearer(CLIENT),
        {"authorization": f"bearer  {CLIENT} "},
        {"x-api-key": CLIENT},
        {"api-key": CLIENT},
        {"Authorization": "Basic eDp5", "x-api-key": CLIENT},
        {"x-api-key": "session:s", **bearer(CLIENT)},
    ],
)
async def test_a_client_shows_its_key_in_one_of_three_headers(headers):
    async with served(api_key=CLIENT) as (router, _):
        assert await status(router.http, "POST", CHAT, headers) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        bearer(""),
        bearer(CLIENT + "x"),
        bearer(CLIENT[:-1]),
        {"Authorization": CLIENT},
        {"Authorization": f"Basic {CLIENT}"},
        {"Cookie": f"api-key={CLIENT}"},
        {"x-api-key": "session:s"},
    ],
)
async def test_who_shows_no_valid_key_is_refused_and_leaves_nothing(headers):
    async with served(api_key=CLIENT) as (router, worker):
        before = router.footprint()
        assert await status(router.http, "POST", CHAT, headers) == 401
        assert await status(router.http, "GET", f"{CHAT}?api_key={CLIENT}", headers) == 401
        assert worker.requests == []
        assert router.footprint() == before


async def test_a_key_names_no_session():
    """Else the key would stand in lists and rows."""
    async with served(api_key=CLIENT) as (router, _):
        await router.post(CHAT, BODY, headers=bearer(CLIENT))
        assert list(router.gateway.store.sessions) == []
        await router.post(CHAT, BODY, headers={"x-api-key": "session:s", **bearer(CLIENT)})
        assert [session.id for session in router.gateway.store.sessions] == ["s"]


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "session:s"},
        {"api-key": "session:s"},
        {"Authorization": "Bearer session:s"},
        {"Authorization": "bearer  session:s "},
        {"Authorization": "Bearer session:s", "x-api-key": CLIENT},
    ],
)
async def test_a_session_is_named_wherever_a_key_may_stand(headers):
    async with served() as (router, _):
        await router.post(CHAT, BODY, headers=headers)
        assert [session.id for session in router.gateway.store.sessions] == ["s"]


OPEN = [("GET", "/health"), ("HEAD", "/health"), ("HEAD", "/")]
CLIENTS = [
    ("POST", CHAT),
    ("POST", f"/sessions/s{CHAT}"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/responses/input_tokens"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("GET", "/"),
    ("GET", "/sessions/s"),
    ("POST", "/rows"),
    ("GET", "/v1/some/thing"),
    ("GET", "/sessions/s/v1/some/thing"),
    ("OPTIONS", CHAT),
]
ADMINS = [
    ("GET", "/workers"),
    ("HEAD", "/workers"),
    ("POST", "/workers"),
    ("GET", "/workers/x"),
    ("DELETE", "/workers/http://nobody"),
    ("POST", "/add_worker"),
    ("POST", "/remove_worker"),
    ("GET", "/list_workers"),
    ("GET", "/sessions"),
    ("POST", "/flush_cache"),
    ("GET", "/flush_cache"),
    ("POST", "/abort_request"),
    ("POST", "/update_weights_from_disk"),
    ("POST", "/pause_generation"),
    ("GET", "/server_info"),
    ("GET", "/sessions/s/get_server_info"),
    # Ways around: a worker would understand these.
    ("POST", "//flush_cache"),
    ("POST", "/sessions/s/flush_cache"),
    ("POST", "/sessions/s//flush_cache"),
    ("POST", "/%66lush_cache"),
    ("POST", "/v1/%2e%2e/flush_cache"),
    ("DELETE", "/flush_cache"),
    ("POST", "/echo"),
]


async def test_where_there_is_an_admin_key_its_routes_take_no_other():
    """All routes at once: a gateway for each would be slow. One of them pauses generation."""
    settings = {**BOTH, "pause_wait_s": 0}
    async with served(**settings) as (router, _), aiohttp.ClientSession() as http:
        got: dict[tuple[str, str], list[bool]] = {}
        for method, path in OPEN + CLIENTS + ADMINS:
            url = URL(f"{url_of(router)}{path}", encoded=True)
            for headers in ({}, bearer(CLIENT), bearer(ADMIN)):
                found = await status(http, method, url, headers)
                got.setdefault((method, path), []).append(found != 401)
        assert {r: seen for r, seen in got.items() if r in OPEN and seen != [True] * 3} == {}
        told = {r: seen for r, seen in got.items() if r in CLIENTS and seen != [False, True, True]}
        assert told == {}
        told = {r: seen for r, seen in got.items() if r in ADMINS and seen != [False, False, True]}
        assert told == {}


async def test_every_route_but_the_open_ones_needs_a_key():
    """Whatever is added to the routing table later, too."""
    async with served(**BOTH) as (router, _):
        seen = set()
        gateway = Gateway(router.gateway.config)  # an application is made once of each
        routes = list(gateway.app().router.routes())
        gateway.tokenizer.close()
        for route in routes:
            assert route.resource is not None
            path = route.resource.canonical.replace("{session}", "s").replace("{path}", "x")
            path = path.replace("{file}", "main.js")
            seen.add((route.method, path))
            method = "POST" if route.method == "*" else route.method
            expected = (200, 404) if (method, path) in open_routes() else (401,)
            assert await status(router.http, method, path) in expected, (method, path)
        assert len(seen) > 60


def open_routes() -> set[tuple[str, str]]:
    probes = ("/health", "/liveness", "/readiness")
    paths = (*probes, "/openapi.json", "/docs", "/dashboard", "/dashboard/main.js")
    return {("HEAD", "/"), *((method, path) for path in paths for method in ("GET", "HEAD"))}


async def test_with_a_clients_key_alone_it_opens_everything():
    async with served(api_key=CLIENT) as (router, _):
        for path in ("/workers", "/sessions", "/list_workers"):
            assert await status(router.http, "GET", path, bearer(CLIENT)) == 200
            assert await status(router.http, "GET", path) == 401


async def test_with_an_admins_key_alone_clients_need_none():
    async with served(admin_api_key=ADMIN) as (router, _):
        for headers in ({}, bearer("whatever an SDK sends")):
            assert await status(router.http, "POST", CHAT, headers) == 200
            assert await status(router.http, "GET", "/workers", headers) == 401
        assert await status(router.http, "GET", "/workers", bearer(ADMIN)) == 200


async def test_without_keys_everything_is_open_whatever_is_sent():
    async with served() as (router, _):
        for headers in ({}, bearer("any")):
            assert await status(router.http, "POST", CHAT, headers) == 200
            assert await status(router.http, "GET", "/workers", headers) == 200


# What a refusal looks like


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/completions", "/v1/responses", "/rows", "/tokenize", "/v1/other", "/other"]
)
async def test_a_refusal_has_the_shape_of_openai(path):
    async with served(**BOTH) as (router, _):
        headers = {"x-request-id": "mine", **bearer("SECRET-wrong")}
        async with router.http.post(path, json=BODY, headers=headers) as answer:
            text = await answer.text()
            error = (await answer.json())["error"]
        assert answer.status == 401
        assert set(error) == FOUR_KEYS
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert error["param"] is None
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"] == "mine"
        assert "SECRET" not in text


@pytest.mark.parametrize("path", ["/v1/messages", "/sessions/s/v1/messages/count_tokens"])
async def test_a_refusal_has_the_shape_of_anthropic(path):
    async with served(api_key=CLIENT) as (router, _):
        async with router.http.post(path, json=BODY, headers={"x-request-id": "mine"}) as answer:
            body = await answer.json()
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert body["type"] == "error"
        assert body["error"]["type"] == "authentication_error"
        assert body["request_id"] == answer.headers["request-id"] == "mine"


@pytest.mark.parametrize("path", ["/generate", "/sessions/s/generate"])
async def test_a_refusal_has_the_shape_of_sglang(path):
    async with served(api_key=CLIENT) as (router, _):
        async with router.http.put(path, json={"text": "Hi"}) as answer:
            body = await answer.json()
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert list(body) == ["error"]
        assert list(body["error"]) == ["message"]


async def test_sdks_know_a_refusal():
    import anthropic
    import openai

    asked: Any = [user("Hi")]
    async with served(api_key=CLIENT) as (router, _):
        url = url_of(router)
        async with openai.AsyncOpenAI(api_key="wrong", base_url=f"{url}/v1") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with openai.AsyncOpenAI(api_key=CLIENT, base_url=f"{url}/v1") as client:
            assert [model.id async for model in client.models.list()]
        async with anthropic.AsyncAnthropic(api_key="wrong", base_url=url) as claude:
            with pytest.raises(anthropic.AuthenticationError):
                await claude.messages.create(model="m", max_tokens=1, messages=asked)
        async with anthropic.AsyncAnthropic(api_key=CLIENT, base_url=url) as claude:
            reply = await claude.messages.create(model="m", max_tokens=1, messages=asked)
            assert reply.usage.output_tokens == 1


# Where keys never go

KEYED = {
    **bearer(CLIENT),
    "x-api-key": CLIENT,
    "api-key": CLIENT,
    "Cookie": f"session={CLIENT}",
    "Proxy-Authorization": f"Bearer {CLIENT}",
}
ASKED = [
    ("POST", CHAT, BODY),
    ("POST", CHAT, {**BODY, "stream": True}),
    ("POST", "/v1/completions", {"prompt": "Hi", "max_tokens": 2}),
    ("POST", "/v1/messages", BODY),
    ("POST", "/v1/responses", {"input": "Hi", "max_output_tokens": 2}),
    ("POST", "/generate", {"text": "Hi", "sampling_params": {"max_new_tokens": 2}}),
    ("POST", f"/sessions/s{CHAT}", BODY),
    ("POST", "/flush_cache", {}),
    ("POST", "/abort_request", {"rid": "nobody"}),
    ("POST", "/update_weight_version", {"new_version": "v2"}),
    ("POST", "/v1/embeddings", {"input": "Hi"}),
    ("GET", "/server_info", None),
    ("POST", "/sessions/s/v1/embeddings", {"input": "Hi"}),
    ("GET", "/sessions", None),
    ("GET", "/sessions/s/rows", None),
    ("GET", "/no/such", None),
]


class Overheard:
    """A worker that notes the headers of everything that reaches it."""

    def __init__(self, behind: FakeWorker) -> None:
        self.heard: list[tuple[str, dict[str, str]]] = []
        self._behind = behind

    async def relay(self, request: web.Request) -> web.StreamResponse:
        self.heard.append((request.path, {k.lower(): v for k, v in request.headers.items()}))
        body = await request.read()
        async with (
            aiohttp.ClientSession(auto_decompress=False) as http,
            http.request(
                request.method,
                self._behind.url + request.raw_path,
                data=body,
                headers={"Content-Type": "application/json"},
            ) as answer,
        ):
            reply = web.StreamResponse(status=answer.status)
            reply.content_type = answer.content_type
            await reply.prepare(request)
            async for data in answer.content.iter_any():
                await reply.write(data)
            return reply


class Log:
    """What is printed anywhere."""

    def __init__(self, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
        self._caplog, self._capsys = caplog, capsys

    def text(self) -> str:
        out, err = self._capsys.readouterr()
        records = [repr(vars(record)) for record in self._caplog.records]
        return "\n".join([self._caplog.text, out, err, *records])


@pytest.mark.parametrize("worker_key", [None, WORKER])
async def test_no_key_of_a_client_reaches_a_worker_or_a_log(worker_key, caplog, capsys):
    """Of the worker's own key every request has one, and nothing else says it."""
    caplog.set_level(logging.DEBUG)
    async with tiny_worker() as behind:
        overheard = Overheard(behind)
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", overheard.relay)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = "http://{}:{}".format(*runner.addresses[0][:2])
        settings = {"api_key": CLIENT, "worker_api_key": worker_key}
        async with serving(url, **settings) as router:
            replies = []
            for method, path, body in ASKED:
                async with router.http.request(method, path, json=body, headers=KEYED) as answer:
                    replies.append(repr(answer.headers) + await answer.text())
                    assert answer.status != 401, path
            await _leave_in_the_middle(router, behind, overheard)
            replies.append(banner(router.gateway))
            replies.append(repr([router.gateway.config, vars(router.gateway)]))
        await runner.cleanup()
    paths = {path for path, _ in overheard.heard}
    probes = {"/tokenize", "/model_info"}
    told = {"/generate", "/flush_cache", "/abort_request", "/v1/embeddings", "/server_info"}
    assert paths >= told | probes
    own = None if worker_key is None else f"Bearer {worker_key}"
    assert {headers.get("authorization") for _, headers in overheard.heard} == {own}
    assert [path for path, headers in overheard.heard if CLIENT in repr(headers)] == []
    assert "SECRET" not in "".join(replies)
    assert "SECRET" not in Log(caplog, capsys).text()


async def _leave_in_the_middle(router: Any, behind: FakeWorker, overheard: Overheard) -> None:
    """The abort of a generation goes to the worker by itself."""
    before = len(overheard.heard)
    behind.hold()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await router.post(CHAT, BODY, headers=KEYED)
    await until(lambda: "/abort_request" in [path for path, _ in overheard.heard[before:]])
    behind.release()


async def test_a_workers_own_key_wins_over_the_common_one():
    async with tiny_worker() as one, tiny_worker() as other:
        async with serving(one.url, worker_api_key=WORKER) as router:
            await router.post("/workers", {"url": other.url, "api_key": "SECRET-other"})
            await router.post("/flush_cache", {})
            _, listed = await router.get("/workers")
        keys = [worker.controls[-1].headers["Authorization"] for worker in (one, other)]
    assert keys == [f"Bearer {WORKER}", "Bearer SECRET-other"]
    assert "SECRET" not in repr(listed)


async def test_a_broken_request_does_not_put_its_key_into_the_log(caplog, capsys, monkeypatch):
    """aiohttp would print the line of the header that it cannot read."""
    monkeypatch.setattr(logging.getLogger("aiohttp.server"), "filters", [])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    start_log("debug")
    caplog.set_level(logging.DEBUG)
    async with served(api_key=CLIENT) as (router, _):
        url = URL(url_of(router))
        for broken in ("Bad Header: x", f"Authorization: {CLIENT}\x00", f"x-api-key : {CLIENT}"):
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(f"GET / HTTP/1.1\r\nHost: x\r\n{broken}\r\n\r\n".encode())
            assert b"400" in (await asyncio.wait_for(reader.read(), 60)).splitlines()[0]
            writer.close()
            await writer.wait_closed()
    assert CLIENT not in Log(caplog, capsys).text()
    assert caplog.text.count("a request that is not HTTP") == 3


# What is said at the start


def started(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    """Everything but the server itself is done."""

    async def serving(gateway: Any, app: Any, announce: Callable[[], None]) -> None:
        announce()

    monkeypatch.setattr(run, "_serving", serving)
    monkeypatch.setattr(run, "start_log", lambda *_: None)
    return cli.main(["--hf-checkpoint", str(checkpoint()), *flags])


def test_a_router_that_others_reach_without_a_key_warns_once_and_in_the_banner(
    monkeypatch, caplog, capsys
):
    assert started(monkeypatch, "--host", "0.0.0.0") == 0
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert ["0.0.0.0" in r.getMessage() for r in warnings if "API key" in r.getMessage()] == [True]
    assert "WARNING   0.0.0.0 is open to others" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [(), ("--host", "0.0.0.0", "--api-key", CLIENT)])
def test_who_is_safe_is_not_warned(flags, monkeypatch, caplog, capsys):
    assert started(monkeypatch, *flags) == 0
    assert "API key" not in caplog.text
    said = capsys.readouterr()
    assert "WARNING" not in said.out
    assert CLIENT not in said.out + said.err


def test_a_bad_file_of_keys_ends_with_1_and_one_line(monkeypatch, capsys, tmp_path):
    path = tmp_path / "keys"
    path.write_text("ann SECRET")
    assert started(monkeypatch, "--api-keys-file", str(path)) == 1
    told = capsys.readouterr().err
    assert told == f"slime-router: error: --api-keys-file {path}, line 1: is not 'name: key'\n"
