"""What the router has no route for goes to a worker and back, byte for byte."""

from __future__ import annotations

import asyncio
import gzip
import io
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from slime_router.errors import NoWorker, RouterError
from slime_router.pool.pool import WorkerPool
from slime_router.server.proxy import PassThrough
from slime_router.testing import FakeWorker
from tests.relayed import Relayed


@asynccontextmanager
async def router(*urls, seen=None):
    """A server that passes everything through, and a client session with its URL as base."""
    pool = WorkerPool(urls)
    async with Relayed(pool, capture="off", request_timeout_s=60.0) as client:
        passthrough = PassThrough(client.relay, max_payload_size=2**30)

        async def handle(request):
            try:
                return await passthrough.hand_on(request, request.raw_path)
            except RouterError as error:
                return web.json_response({"code": error.code}, status=error.status)
            finally:
                if seen is not None:
                    seen.append(pool.total_in_flight)

        app = web.Application(client_max_size=10)  # bodies are not collected: no limit of ours
        app.router.add_route("*", "/{path:.*}", handle)
        async with (
            TestServer(app, handler_cancellation=True) as server,
            aiohttp.ClientSession(server.make_url("/"), auto_decompress=False) as http,
        ):
            yield http
        assert pool.total_in_flight == 0


@asynccontextmanager
async def serving(handler):
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app, handler_cancellation=True) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_method_target_and_body_arrive_as_they_were_sent(method):
    async with FakeWorker() as worker, router(worker.url) as http:
        url = URL("/echo/a%2Fb/%e4%7e?x=1&x=%7E", encoded=True)
        body = bytes(range(256)) if method != "GET" else None
        async with http.request(method, url, data=body) as answer:
            heard = await answer.json()
    assert heard["method"] == method
    assert heard["target"] == "/echo/a%2Fb/%e4%7e?x=1&x=%7E"
    assert heard["body"].encode("latin-1") == (body or b"")
    names = {name.lower() for name, _ in heard["headers"]}
    assert "transfer-encoding" not in names, "neither a body nor a new way to frame one"


async def test_headers_of_the_message_go_on_those_of_the_connection_do_not():
    sent = [
        ("Authorization", "Bearer k"),
        ("X-Twice", "1"),
        ("X-Twice", "2"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("TE", "trailers"),
        ("Proxy-Authorization", "secret"),
        ("Content-Type", "a/b"),
    ]
    async with (
        FakeWorker() as worker,
        router(worker.url) as http,
        http.post("/echo", data=b"abc", headers=sent) as answer,
    ):
        heard = (await answer.json())["headers"]
    pairs = [(name.lower(), value) for name, value in heard]
    names = [name for name, _ in pairs]
    assert [value for name, value in pairs if name == "x-twice"] == ["1", "2"]
    assert "authorization" not in names, "a client's key is for the router alone"
    assert ("content-type", "a/b") in pairs
    assert ("content-length", "3") in pairs
    assert ("host", worker.url.removeprefix("http://")) in pairs
    assert not {"x-hop", "te", "proxy-authorization", "transfer-encoding"} & set(names)
    once = [name for name in names if name != "x-twice"]
    assert len(once) == len(set(once))


async def test_status_headers_and_packed_bytes_come_back_as_they_are():
    """Nothing is unpacked; Server and Date are there once (a proxy that copies doubles them)."""
    packed = gzip.compress(b"hello" * 100)

    async def handler(request):
        headers = [("X-Twice", "a=1"), ("X-Twice", "b=2"), ("Server", "uvicorn")]
        headers += [("Content-Encoding", "gzip"), ("X-Own", "y"), ("Content-Type", "x/y")]
        return web.Response(status=418, reason="Short", body=packed, headers=headers)

    async with serving(handler) as url, router(url) as http, http.get("/any") as answer:
        assert await answer.read() == packed
        assert (answer.status, answer.reason) == (418, "Short")
        assert answer.headers.getall("X-Twice") == ["a=1", "b=2"]
        assert answer.headers["Content-Length"] == str(len(packed))
        assert answer.headers["X-Own"] == "y"
        assert len(answer.headers.getall("Server")) == len(answer.headers.getall("Date")) == 1
        assert "uvicorn" not in answer.headers["Server"]


async def test_a_packed_body_is_handed_on_unpacked_and_says_so():
    """Our server has unpacked it: a worker that was told otherwise could not read it."""
    heard = []

    async def handler(request):
        heard.append((await request.read(), "Content-Encoding" in request.headers))
        return web.Response()

    async with serving(handler) as url, router(url) as http:
        packed = gzip.compress(b"hello")
        async with http.post("/x", data=packed, headers={"Content-Encoding": "gzip"}) as answer:
            assert answer.status == 200
    assert heard == [(b"hello", False)]


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_of_the_worker(status):
    """It names an address of the worker's, where a client would go past the router."""

    async def handler(request):
        return web.Response(status=status, headers={"Location": "http://elsewhere/"})

    async with (
        serving(handler) as url,
        router(url) as http,
        http.get("/x", allow_redirects=False) as answer,
    ):
        assert (answer.status, await answer.json()) == (502, {"code": "upstream_error"})
        assert "Location" not in answer.headers
        assert "elsewhere" not in await answer.text()


@pytest.mark.parametrize("status", [0, 101, 199, 401, 407, 408, 421, 425, 600, 999])
async def test_what_is_no_answer_for_a_client_is_a_failure_of_the_worker(status):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %03d X\r\nContent-Length: 0\r\nUpgrade: x\r\n\r\n" % status)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with router(url) as http, http.get("/x") as reply:
            assert (reply.status, await reply.json()) == (502, {"code": "upstream_error"})
            assert "Upgrade" not in reply.headers


async def test_what_only_the_router_says_does_not_come_from_a_worker():
    said = {
        "Set-Cookie": "a=1",
        "WWW-Authenticate": "Basic",
        "X-Slime-Receipt": "{}",
        "X-Slime-Joined": "true",
        "X-Request-ID": "of the worker",
        "Request-ID": "of the worker",
        "X-Should-Retry": "true",
        "Location": "http://10.0.0.1/",
        "Access-Control-Allow-Origin": "*",
        "Alt-Svc": 'h2="10.0.0.1:1"',
        "Set-Cookie2": "a=1",
        "Authentication-Info": "x",
        "X-Accel-Redirect": "/internal",
        "X-Sendfile": "/etc/passwd",
        "NEL": "{}",
        "X-Own": "y",
    }

    async def handler(request):
        return web.Response(headers=said)

    async with serving(handler) as url, router(url) as http, http.get("/x") as answer:
        heard = {name: answer.headers.get(name) for name in said}
    assert heard.pop("X-Own") == "y"
    assert heard.pop("X-Request-ID").startswith("req_"), "the router's own"
    assert set(heard.values()) == {None}


async def test_who_the_client_is_does_not_go_to_a_worker():
    sent = {
        "Cookie": "a=1",
        "Forwarded": "for=10.0.0.1",
        "X-Forwarded-For": "10.0.0.1",
        "X-Forwarded-Proto": "https",
        "X-Real-IP": "10.0.0.1",
        "X-Slime-Owner": "ann",
        "X-Api-Key": "k",
        "X-Own": "y",
    }
    async with (
        FakeWorker() as worker,
        router(worker.url) as http,
        http.post("/echo", data=b"", headers=sent) as answer,
    ):
        heard = {name.lower() for name, _ in (await answer.json())["headers"]}
    assert heard & {name.lower() for name in sent} == {"x-own"}


async def test_head_has_a_length_and_no_body():
    async def handler(request):
        return web.Response(headers={"Content-Length": "5"}, body=b"hello")

    async with serving(handler) as url, router(url) as http, http.head("/x") as answer:
        assert (answer.status, await answer.read()) == (200, b"")
        assert answer.headers["Content-Length"] == "5"


async def test_both_ways_are_streams():
    """Each side hears a piece before the other has sent the next."""

    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in request.content.iter_any():
            await response.write(piece.upper())
        return response

    turn: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def body():
        while (piece := await turn.get()) is not None:
            yield piece

    async with asyncio.timeout(60), serving(handler) as url, router(url) as http:
        turn.put_nowait(b"one")
        async with http.post("/x", data=body()) as answer:
            assert await answer.content.readany() == b"ONE"
            turn.put_nowait(b"two")
            assert await answer.content.readany() == b"TWO"
            turn.put_nowait(None)
            assert await answer.read() == b""


async def test_a_dead_worker_is_passed_over_with_the_body_still_whole():
    async with FakeWorker() as dead, FakeWorker() as alive:
        await dead.refuse_connections()
        body = io.BytesIO(b"x" * 3_000_000)
        async with (
            router(dead.url, alive.url) as http,
            http.post("/echo", data=body) as answer,
        ):
            assert len((await answer.json())["body"]) == 3_000_000


@pytest.mark.parametrize("count", [0, 1])
async def test_no_worker_is_an_error_of_ours(count):
    async with FakeWorker() as dead:
        await dead.refuse_connections()
        async with router(*[dead.url][:count]) as http, http.get("/x") as answer:
            assert (answer.status, await answer.json()) == (503, {"code": NoWorker.code})


async def test_an_answer_that_breaks_off_does_not_look_whole():
    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        request.transport.abort()
        return response

    async with serving(handler) as url, router(url) as http:
        with pytest.raises(aiohttp.ClientError):
            async with http.get("/x") as answer:
                await answer.read()


async def test_a_client_that_leaves_closes_the_way_to_the_worker():
    gone = asyncio.Event()

    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()
        return response

    seen: list[int] = []
    async with serving(handler) as url, router(url, seen=seen) as http:
        async with http.get("/x") as answer:
            assert await answer.content.readany() == b"first"
            answer.close()
        async with asyncio.timeout(60):
            await gone.wait()
    assert seen == [0]
