"""TLS with a certificate made here, and what browsers get."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess

import aiohttp
import pytest
from aiohttp import web

from slime_router.cli import main as cli
from slime_router.cli import run
from slime_router.cli.banner import banner
from slime_router.config import Config
from slime_router.errors import SetupError
from slime_router.server.app import Gateway
from tests.integration.gateway import CHAT, Served, checkpoint, served, tiny_worker, user

BODY = {"messages": [user("Hi")], "max_tokens": 2}
PAGE = "https://page.example"
KEY = {"Authorization": "Bearer KEY"}
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate for 127.0.0.1 that signs itself, its key, another key, and a locked one."""
    folder = tmp_path_factory.mktemp("tls")
    made = {name: str(folder / name) for name in ("cert", "key", "other", "locked")}
    new_key = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    for command in (
        [*new_key, "-out", made["key"]],
        [*new_key, "-out", made["other"]],
        [*new_key, "-aes-128-cbc", "-pass", "pass:x", "-out", made["locked"]],
        [
            *("openssl", "req", "-x509", "-key", made["key"], "-out", made["cert"], "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
        ],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    return made


# TLS


@pytest.mark.openssl
async def test_a_new_certificate_is_taken_without_a_restart(certificate, tmp_path):
    """One that is broken changes nothing."""
    cert, key = tmp_path / "cert", tmp_path / "key"
    shutil.copy(certificate["cert"], cert)
    shutil.copy(certificate["key"], key)
    gateway = Gateway(
        Config(
            hf_checkpoint=str(checkpoint()), tls_cert_path=str(cert), tls_key_path=str(key), port=0
        )
    )
    runner = web.AppRunner(gateway.app(), access_log=None)
    await runner.setup()
    site = run.listener(gateway, runner)
    await site.start()
    port = site.addresses[0][1]
    try:
        first = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
        shutil.copy(certificate["other"], key)
        with pytest.raises(SetupError, match="--tls-key-path"):
            await gateway.reloader.reload()
        again = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
        command = ["openssl", "req", "-x509", "-key", str(key), "-out", str(cert)]
        await asyncio.to_thread(
            subprocess.run, [*command, "-subj", "/CN=new"], check=True, capture_output=True
        )
        await gateway.reloader.reload()
        renewed = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
    finally:
        await runner.cleanup()
    assert first == again != renewed
    assert renewed.split() == cert.read_text().split()


@pytest.mark.openssl
async def test_the_router_serves_https_streams_too_and_says_so(certificate):
    trust = ssl.create_default_context(cafile=certificate["cert"])
    async with tiny_worker() as worker:
        gateway = Gateway(
            Config(
                hf_checkpoint=str(checkpoint()),
                worker_urls=(worker.url,),
                tls_cert_path=certificate["cert"],
                tls_key_path=certificate["key"],
                port=0,
            ),
            greeting_delays_s=(0,),
        )
        runner = web.AppRunner(gateway.app(), access_log=None, handler_cancellation=True)
        await runner.setup()
        site = run.listener(gateway, runner)
        await site.start()
        base = f"https://127.0.0.1:{site.addresses[0][1]}"
        connector = aiohttp.TCPConnector(ssl=trust)
        async with aiohttp.ClientSession(base, connector=connector) as http:
            router = Served(gateway, http)
            assert await router.chat([user("Hi")], max_tokens=2)
            assert await router.chat([user("Hi")], max_tokens=2, stream=True)
            _, opened = await router.post("/sessions", {"session_id": "s"})
            with pytest.raises(aiohttp.ClientConnectionError):
                await http.get(base.replace("https", "http") + "/health")
        await runner.cleanup()
    assert opened["base_url"] == f"{base}/sessions/s/v1"
    assert "https://127.0.0.1:0" in banner(gateway)


@pytest.mark.openssl
@pytest.mark.parametrize(
    ("cert", "key", "told"),
    [
        ("cert", None, "given together"),
        (None, "key", "given together"),
        ("cert", "other", "key values mismatch"),
        ("key", "key", "--tls-cert-path"),
        ("cert", "cert", "--tls-key-path"),
        ("cert", "locked", "locked by a password"),
        ("gone", "key", "gone: No such file"),
    ],
)
def test_a_bad_certificate_ends_with_1_and_one_line(cert, key, told, certificate, capsys):
    flags: list[str] = []
    for flag, name in (("--tls-cert-path", cert), ("--tls-key-path", key)):
        flags += [flag, certificate.get(name, name)] if name else []
    assert cli.main(["--hf-checkpoint", str(checkpoint()), *flags]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert said.startswith("slime-router: error: ")
    assert told in said


# CORS


def cors(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {
        name.lower().removeprefix("access-control-"): value
        for name, value in answer.headers.items()
        if name.lower().startswith("access-control-")
    }


async def test_cors_is_off_by_default_whatever_a_worker_says():
    async def permissive(_: web.Request) -> web.Response:
        headers = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Credentials": "true"}
        return web.json_response({"success": True}, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", permissive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with served() as (router, worker):
        await router.post(f"/remove_worker?url={worker.url}")
        await router.post("/add_worker?url=http://{}:{}".format(*runner.addresses[0][:2]))
        for method, path in (("GET", "/v1/x"), ("POST", "/flush_cache"), ("OPTIONS", CHAT)):
            headers = {} if method == "POST" else PREFLIGHT
            async with router.http.request(method, path, headers=headers) as answer:
                assert (answer.status, cors(answer)) == (200, {}), path
    await runner.cleanup()


async def test_a_page_that_is_allowed_may_ask_without_a_key_and_then_needs_one():
    async with served(api_key="KEY", cors_allowed_origins=(PAGE,)) as (router, _):
        for path in (CHAT, f"/sessions/s{CHAT}", "/workers", "/no/such"):
            async with router.http.options(path, headers=PREFLIGHT) as answer:
                told = cors(answer)
                assert (answer.status, await answer.read()) == (204, b"")
            assert told["allow-origin"] == PAGE
            assert "POST" in told["allow-methods"]
            assert told["allow-headers"] == PREFLIGHT["Access-Control-Request-Headers"]
            assert "allow-credentials" not in told
            assert answer.headers["Vary"] == "Origin"
        async with router.http.post(CHAT, json=BODY, headers={"Origin": PAGE}) as answer:
            assert (answer.status, cors(answer)["allow-origin"]) == (401, PAGE)
        async with router.http.options(CHAT, headers={"Origin": PAGE}) as answer:
            assert answer.status == 401, "no preflight: it goes to a worker"


@pytest.mark.parametrize("stream", [False, True])
async def test_every_answer_says_who_may_read_it_and_which_headers(stream):
    """Of a stream too, whose head is sent long before the handler returns."""
    headers = {"Origin": PAGE, **KEY}
    async with served(api_key="KEY", cors_allowed_origins=(PAGE, "http://other")) as (router, _):
        body = {**BODY, "stream": stream}
        async with router.http.post(CHAT, json=body, headers=headers) as answer:
            assert answer.status == 200
            await answer.read()
        told = cors(answer)
        exposed = set(told["expose-headers"].split(", "))
        assert told["allow-origin"] == PAGE
        assert {"x-request-id", "x-slime-receipt"} <= exposed & {h.lower() for h in answer.headers}
        async with router.http.post(CHAT, json={}, headers=headers) as answer:
            assert (answer.status, cors(answer)["allow-origin"]) == (400, PAGE)


async def test_a_page_that_is_not_allowed_is_told_nothing():
    async with served(cors_allowed_origins=(PAGE,)) as (router, _):
        for origin in ("https://evil.example", f"{PAGE}.evil", "http://page.example", "null"):
            sent = {**PREFLIGHT, "Origin": origin}
            async with router.http.options(CHAT, headers=sent) as answer:
                assert (answer.status, cors(answer)) == (204, {})
            async with router.http.get("/v1/models", headers={"Origin": origin}) as answer:
                assert cors(answer) == {}
                assert answer.headers["Vary"] == "Origin", "no cache may give it to the other"
        async with router.http.get("/v1/models") as answer:
            assert (answer.status, cors(answer)) == (200, {})


async def test_a_star_allows_every_page():
    async with served(cors_allowed_origins=("*",)) as (router, _):
        async with router.http.get("/v1/models", headers={"Origin": "null"}) as answer:
            assert cors(answer)["allow-origin"] == "*"
            assert "Vary" not in answer.headers
        async with router.http.options(CHAT, headers=PREFLIGHT) as answer:
            assert cors(answer)["allow-origin"] == "*"
