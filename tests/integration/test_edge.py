"""The edge: heads that are too long or broken, foreign pages and names, untidy paths, proxies."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from slime_router.server.app import Gateway
from slime_router.testing import FakeWorker
from tests.integration.any_worker import any_worker
from tests.integration.gateway import CHAT, FOUR_KEYS, Served, served, serving, user

EVIL = "https://evil.example"
BODY = {"messages": [user("hi")], "max_tokens": 2}
CONTROL = [
    ("POST", "/add_worker?url=http://127.0.0.1:9"),
    ("POST", "/workers"),
    ("POST", "/flush_cache"),
    ("POST", "/abort_request"),
    ("GET", "/workers"),
    ("GET", "/sessions"),
    ("GET", "/server_info"),
    ("POST", "/freeze_gc"),
]


async def raw(router: Served, head: str | bytes, body: bytes = b"") -> tuple[int, str, bytes]:
    """Status, headers and body of the answer to a request as it is written here."""
    url = router.http._base_url
    assert url is not None
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        data = head.encode() if isinstance(head, str) else head
        writer.write(data.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body)
        heard = await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()
        await writer.wait_closed()
    first, _, rest = heard.partition(b"\r\n")
    headers, _, content = rest.partition(b"\r\n\r\n")
    return int(first.split()[1]), headers.decode(), content


def asked(worker: FakeWorker) -> list[str]:
    """What a worker was asked for, apart from what the router asks by itself."""
    own = ("/ping", "/health", "/model_info", "/server_info", "/tokenize", "/v1/loads")
    return [r.path for r in (*worker.requests, *worker.controls) if r.path not in own]


def error(content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(content)["error"]
    return found


# Heads


@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings", "/health", "/workers", "/no/such"])
@pytest.mark.parametrize("length", [8191, 20_000, 60_000])
async def test_a_header_that_is_too_long_is_a_431_in_the_apis_form(path, length):
    async with served() as (router, _):
        head = f"GET {path} HTTP/1.1\nHost: x\nConnection: close\nX-Long: {'x' * length}"
        status, _, content = await raw(router, head)
        assert status == 431
        assert set(error(content)) == FOUR_KEYS
        assert (error(content)["code"], error(content)["param"]) == (
            "request_head_too_large",
            "x-long",
        )


@pytest.mark.parametrize(
    "rest",
    [
        f"X-Long: {'x' * 70_000}",
        f"{'X' * 70_000}: 1",
        f"X-Folded: 1\nCookie: {'x=1; ' * 20_000}",
        "\n".join(f"X-{i}: 1" for i in range(3000)),
    ],
    ids=["long", "name", "cookie", "many"],
)
async def test_a_head_beyond_what_is_read_is_a_431_as_well(rest):
    async with served() as (router, _):
        status, headers, content = await raw(router, f"GET /health HTTP/1.1\nHost: x\n{rest}")
        assert status == 431
        assert set(error(content)) == FOUR_KEYS
        assert error(content)["code"] == "request_head_too_large"
        assert "content-type: application/json" in headers.lower()
        assert "x-request-id: " in headers.lower()
        assert (await router.get("/health"))[0] == 200


async def test_a_url_beyond_what_is_read_is_refused_likewise():
    async with served() as (router, _):
        status, _, content = await raw(router, f"GET /{'x' * 100_000} HTTP/1.1\nHost: x")
        assert (status, error(content)["code"]) == (431, "request_head_too_large")


@pytest.mark.parametrize("head", ["not HTTP at all", "GET / HTTP/1.1\nBad Header: x\nHost: x"])
async def test_what_is_not_http_gets_an_error_in_the_apis_form(head):
    async with served() as (router, _):
        status, _, content = await raw(router, head)
        assert (status, error(content)["code"]) == (400, "invalid_value")
        assert set(error(content)) == FOUR_KEYS


async def test_a_431_of_anthropics_api_has_its_form():
    async with served() as (router, _):
        head = "POST /v1/messages HTTP/1.1\nHost: x\nConnection: close\nContent-Length: 0\nX-A: "
        status, _, content = await raw(router, head + "x" * 9000)
    assert (status, json.loads(content)["type"]) == (431, "error")


async def test_many_headers_and_a_long_url_are_refused_likewise():
    async with served() as (router, _):
        many = "".join(f"\nX-{i}: 1" for i in range(200))
        status, _, content = await raw(router, f"GET / HTTP/1.1\nHost: x\nConnection: close{many}")
        assert (status, error(content)["code"]) == (431, "request_head_too_large")
        head = f"GET /{'x' * 9000} HTTP/1.1\nHost: x\nConnection: close"
        status, _, content = await raw(router, head)
        assert (status, error(content)["code"]) == (414, "request_head_too_large")
        fine = f"GET /health HTTP/1.1\nHost: x\nConnection: close\nX-A: {'x' * 8000}"
        assert (await raw(router, fine))[0] == 200


@pytest.mark.parametrize("path", ["/sessions", CHAT, "/v1/embeddings", "/flush_cache"])
@pytest.mark.parametrize(
    "header",
    [
        b"Host: \xff",
        b"Host: a b",
        b"Host: a/b",
        b"Host: x\nHost: y",
        b"Host: x\nX-SMG-Target-Worker: \xff",
        b"Host: x\nX-SMG-Routing-Key: \xc3",
        b"Host: x\nX-Request-ID: a\xed\xa0\x80",
        b"Host: x\nX-Any: a\x01b",
        b"Host: x\nExpect: \xff",
        b"Host: x\nExpect: banana",
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_broken_header_is_a_400_that_changes_nothing(path, header, unchanged):
    router, worker = unchanged
    before = router.footprint()
    body = json.dumps(BODY if path == CHAT else {}).encode()
    head = b"POST %s HTTP/1.1\n%s\nConnection: close\nContent-Length: %d"
    status, _, _ = await raw(router, head % (path.encode(), header, len(body)), body)
    assert status == 400
    assert router.footprint() == before
    assert len(router.gateway.store.sessions) == 0
    assert [r for r in worker.requests if r.path in ("/generate", path)] == []


@pytest.mark.parametrize("path", ["/tokenize", "/no/such"])
async def test_who_waits_for_it_is_asked_for_the_body(path):
    async with served() as (router, _):
        head = "POST %s HTTP/1.1\nHost: x\nExpect: 100-Continue\nConnection: close\n%s"
        body = b'{"prompt": "x"}'
        length = f"Content-Length: {len(body)}"
        status, rest, _ = await raw(router, head % (path, length), body)
    assert status == 100
    assert rest.startswith(f"\r\nHTTP/1.1 {200 if path == '/tokenize' else 404} ")


async def test_text_in_headers_need_not_be_ascii():
    async with served() as (router, _):
        head = "GET /health HTTP/1.1\nHost: x\nConnection: close\nX-Name: Zo\u00eb\u00a0\u4e2d"
        assert (await raw(router, head))[0] == 200


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "BREW", "PROPFIND"])
@pytest.mark.parametrize("path", [CHAT, "/any", "/flush_cache"])
async def test_a_method_that_no_api_has_is_refused(method, path):
    async with any_worker() as worker, serving(worker.url) as router:
        target = "x:1" if method == "CONNECT" else path
        status, headers, _ = await raw(
            router, f"{method} {target} HTTP/1.1\nHost: x\nConnection: close"
        )
        assert status in (400, 405)
        assert status == 400 or "Allow: " in headers
        assert worker.heard == []


async def test_http_1_0_is_served_but_not_with_chunks():
    async with served() as (router, worker):
        before = len(worker.requests)
        chunked = "POST /echo HTTP/1.0\nHost: x\nTransfer-Encoding: chunked"
        status, _, _ = await raw(router, chunked, b"2\r\n{}\r\n0\r\n\r\n")
        assert status == 400
        assert len(worker.requests) == before
        assert (await raw(router, "GET /health HTTP/1.0"))[0] == 200


# Where a request comes from


@pytest.mark.parametrize(("method", "path"), CONTROL)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
async def test_no_foreign_page_controls_anything(method, path, headers):
    sent = {**headers, "Content-Type": "text/plain"}
    async with served(cors_allowed_origins=("*",)) as (router, worker):
        before = [w.url for w in router.gateway.pool.list()]
        async with router.http.request(method, path, headers=sent, data=b"{}") as answer:
            assert answer.status == 403, await answer.read()
            found = (await answer.json())["error"]
        assert (found["type"], found["code"]) == ("permission_error", "forbidden_origin")
        assert [w.url for w in router.gateway.pool.list()] == before
    assert asked(worker) == []


@pytest.mark.parametrize("path", [CHAT, "/generate", "/sessions", "/v1/embeddings", "/rows"])
async def test_no_foreign_page_changes_anything_unless_it_is_allowed(path):
    async with served(cors_allowed_origins=("https://page.example",)) as (router, worker):
        before = router.footprint()
        for headers in ({"Origin": EVIL}, {"Sec-Fetch-Site": "cross-site"}):
            async with router.http.post(path, json=BODY, headers=headers) as answer:
                assert answer.status == 403
        assert router.footprint() == before
        assert [r for r in worker.requests if r.path in ("/generate", path)] == []
        headers = {"Origin": "https://page.example", "Sec-Fetch-Site": "cross-site"}
        async with router.http.post(path, json=BODY, headers=headers) as answer:
            assert answer.status != 403
        async with router.http.get("/v1/models", headers={"Origin": EVIL}) as answer:
            assert answer.status == 200, "it may be asked, and not be read"


async def test_the_routers_own_page_is_not_foreign():
    async with served() as (router, _):
        url = router.http._base_url
        assert url is not None
        own = {"Origin": f"http://{url.host}:{url.port}", "Sec-Fetch-Site": "same-origin"}
        for headers in (own, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"}):
            async with router.http.post("/flush_cache", headers=headers) as answer:
                assert answer.status == 200
        ours = {"Host": "router", "Origin": "https://router"}
        async with router.http.post("/flush_cache", headers=ours) as answer:
            assert answer.status == 200, "a proxy in front speaks TLS"


async def test_with_an_admins_key_an_allowed_page_may_control():
    page = {"Origin": "https://page.example", "Authorization": "Bearer ADMIN"}
    settings: Any = {"admin_api_key": "ADMIN", "cors_allowed_origins": ("https://page.example",)}
    async with served(**settings) as (router, _):
        async with router.http.post("/flush_cache", headers=page) as answer:
            assert answer.status == 200
        async with router.http.post("/flush_cache", headers={**page, "Origin": EVIL}) as answer:
            assert answer.status == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:30000", "127.0.0.1.evil.example"])
@pytest.mark.parametrize("path", ["/health", CHAT, "/workers", "/v1/embeddings"])
async def test_a_router_for_this_machine_is_not_asked_under_foreign_names(host, path):
    async with served() as (router, _):
        for method in ("GET", "POST", "OPTIONS"):
            async with router.http.request(method, path, headers={"Host": host}) as answer:
                assert answer.status == 403
                assert (await answer.json())["error"]["code"] == "forbidden_host"


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1", "a.localhost", "127.0.0.1:9", "[::1]:5", "10.1.2.3", "box"]
)
async def test_addresses_and_local_names_are_its_own(host):
    async with (
        served() as (router, _),
        router.http.get("/health", headers={"Host": host}) as answer,
    ):
        assert answer.status == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_hosts": ("router.example",)},
        {"allowed_hosts": ("*",)},
        {"host": "0.0.0.0"},
        {"api_key": "KEY"},
    ],
)
async def test_names_may_be_allowed_and_matter_only_where_nothing_else_protects(settings):
    async with (
        served(**settings) as (router, _),
        router.http.get("/health", headers={"Host": "Router.Example:80"}) as answer,
    ):
        assert answer.status == 200


@pytest.mark.parametrize("prefix", ["", "//"])
@pytest.mark.parametrize(
    "path",
    [
        "/flush_cache",
        "/release_memory_occupation",
        "/resume_memory_occupation",
        "/start_profile",
        "/stop_profile",
    ],
)
async def test_control_routes_take_no_get(path, prefix):
    async with served() as (router, worker):
        for method in ("GET", "HEAD"):
            async with router.http.request(method, prefix + path) as answer:
                assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert asked(worker) == []


# Headers that replace fields


OVERRIDES = [
    {"X-Override-Rid": "mine", "x-override-priority": "9"},
    {"X-SMG-Target-Worker": "0"},
]


def overrides(headers: Any) -> list[str]:
    """The names of those that arrived."""
    names = (name.lower() for name in headers)
    return sorted(n for n in names if n.startswith("x-override-") or n == "x-smg-target-worker")


@pytest.mark.parametrize("sent", OVERRIDES)
@pytest.mark.parametrize(
    ("given", "key", "is_let_in"),
    [
        ({"api_keys_file": "ann: ANN", "admin_api_key": "ADMIN"}, "ANN", False),
        ({"api_keys_file": "ann: ANN", "admin_api_key": "ADMIN"}, "ADMIN", True),
        ({"api_key": "KEY", "admin_api_key": "ADMIN"}, "KEY", False),
        ({"api_key": "KEY"}, "KEY", True),  # the admin's, where there is no other
        ({"admin_api_key": "ADMIN"}, None, False),
        ({"admin_api_key": "ADMIN"}, "WRONG", False),
        ({"admin_api_key": "ADMIN"}, "ADMIN", True),
        ({}, None, True),
    ],
)
async def test_headers_that_override_need_the_admins_key_where_there_are_keys(
    sent, given, key, is_let_in, tmp_path
):
    settings: Any = dict(given)
    if "api_keys_file" in settings:
        (tmp_path / "keys").write_text(settings["api_keys_file"])
        settings["api_keys_file"] = str(tmp_path / "keys")
    headers = {**sent, **({} if key is None else {"Authorization": f"Bearer {key}"})}
    async with served(**settings) as (router, worker):
        before = router.footprint()
        for path in (CHAT, f"/sessions/s{CHAT}"):
            status, reply = await router.post(path, BODY, headers=headers)
            assert status == (200 if is_let_in else 401), reply
        if is_let_in:
            assert overrides(worker.requests[-1].headers) == overrides(sent)
        else:
            assert next(iter(sent)).lower() in reply["error"]["message"]
            assert router.footprint() == before
            assert worker.requests == []
    async with any_worker() as other, serving(other.url, **settings) as router:
        async with router.http.post("/v1/embeddings", json={"input": "a"}, headers=headers) as got:
            assert got.status == (200 if is_let_in else 401)
        heard = [h for h in other.heard if h.target == "/v1/embeddings"]
        assert [overrides(h.headers) for h in heard] == ([overrides(sent)] if is_let_in else [])


# Paths


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1//chat/completions"),
        ("POST", "//v1/chat/completions"),
        ("POST", "//v1///chat//completions//"),
        ("POST", "/sessions/s/v1/chat/completions/"),
        ("POST", "/sessions/s//v1/chat/completions"),
        ("POST", "//sessions//s/v1/chat/completions?x=1"),
    ],
)
async def test_a_chat_is_recorded_however_its_path_is_written(method, path):
    async with served() as (router, worker):
        url = router.http._base_url
        assert url is not None
        head = f"{method} {path} HTTP/1.1\nHost: {url.host}\nConnection: close\nContent-Length: "
        body = json.dumps(BODY).encode()
        status, headers, _ = await raw(router, head + str(len(body)), body)
        assert status == 200
        assert "x-slime-receipt" in headers.lower()
        assert len(router.gateway.store) == 1
        if "sessions" in path:
            assert len(router.gateway.store.sessions) == 1
    assert [r.path for r in worker.requests if "chat" in r.path] == []


async def test_every_route_of_ours_is_the_same_with_more_slashes():
    async with serving() as router:
        app = Gateway(router.gateway.config).app()
        seen = 0
        for route in app.router.routes():
            resource = route.resource
            path = "" if resource is None else resource.canonical
            if resource is None or "{path}" in path or path == "/":
                continue
            asked_for = re.sub(r"\{\w+\}", "x", path)
            for spelled in (f"{asked_for}/", f"/{asked_for[1:].replace('/', '//')}/"):
                found = await app.router.resolve(make_mocked_request(route.method, spelled))
                matched = found.route.resource
                assert matched is not None
                if "{model}" in path or "{worker}" in path:
                    assert "{path}" not in matched.canonical
                else:
                    assert (found.route.method, matched.canonical) == (route.method, path)
            seen += 1
        assert seen > 60


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions/", "POST"),
        ("GET", "//sessions/s/v1/chat/completions/", "POST"),
        ("POST", "/health/", "GET, HEAD"),
    ],
)
async def test_an_untidy_path_has_the_routes_methods(method, path, allowed):
    async with any_worker() as worker, serving(worker.url) as router:
        head = f"{method} {path} HTTP/1.1\nHost: x\nConnection: close\nContent-Length: 0"
        status, headers, _ = await raw(router, head)
        assert status == 405
        assert f"Allow: {allowed}" in headers
        assert worker.heard == []


async def test_an_untidy_control_route_is_still_the_admins():
    async with served(api_key="KEY", admin_api_key="ADMIN") as (router, worker):
        for path in ("/flush_cache/", "//flush_cache", "/sessions/", "//workers"):
            head = f"GET {path} HTTP/1.1\nHost: x\nConnection: close\nAuthorization: Bearer KEY"
            head = head if "flush" not in path else head.replace("GET", "POST", 1)
            assert (await raw(router, head + "\nContent-Length: 0"))[0] == 401, path
        for path, status in (("/model_info/", 200), ("/v1/models/", 200), ("/health//", 200)):
            head = f"GET {path} HTTP/1.1\nHost: x\nConnection: close\nAuthorization: Bearer KEY"
            assert (await raw(router, head))[0] == status, path
    assert asked(worker) == []


# Proxies


@pytest.mark.parametrize(
    ("proxies", "headers", "url"),
    [
        ((), {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "r.example"}, "http://x/"),
        (("127.0.0.0/8",), {"X-Forwarded-Proto": "https"}, "https://x/"),
        (("127.0.0.1",), {"X-Forwarded-Proto": "https, HTTPS"}, "https://x/"),
        (
            ("10.0.0.0/8", "127.0.0.1"),
            {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil, r.example:1"},
            "https://r.example:1/",
        ),
        (("127.0.0.1",), {"X-Forwarded-Proto": "gopher", "X-Forwarded-Host": "a/b"}, "http://x/"),
        (("10.0.0.0/8",), {"X-Forwarded-Proto": "https"}, "http://x/"),
    ],
)
async def test_a_session_has_the_url_that_the_client_asked_for(proxies, headers, url):
    sent = {"Host": "x", **headers}
    async with (
        served(trusted_proxies=proxies, allowed_hosts=("r.example",)) as (router, _),
        router.http.post("/sessions", json={}, headers=sent) as answer,
    ):
        assert answer.status == 201
        found = (await answer.json())["url"]
    assert found.startswith(url), found
