"""A bare proxy hop on aiohttp and uvloop: the least that any router written with them costs."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientResponse, ClientSession, TCPConnector, web

SESSION = web.AppKey("session", ClientSession)
WORKER_URL = web.AppKey("worker_url", str)


async def handle(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    url = request.app[WORKER_URL] + request.path
    async with request.app[SESSION].post(url, data=body, headers=_JSON) as answer:
        if answer.content_type == "text/event-stream":
            return await _stream(request, answer)
        content = await answer.read()
        return web.Response(body=content, status=answer.status, content_type=answer.content_type)


async def _stream(request: web.Request, answer: ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    async for data in answer.content.iter_any():
        await response.write(data)
    await response.write_eof()
    return response


async def _session(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        app[SESSION] = session
        yield


_JSON = {"Content-Type": "application/json"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--worker-url", required=True)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    if args.processes > 1:
        _run_several(args.processes, [f"--port={args.port}", f"--worker-url={args.worker_url}"])
        return
    app = web.Application()
    app[WORKER_URL] = args.worker_url
    app.cleanup_ctx.append(_session)
    app.router.add_post("/{path:.*}", handle)
    loop = uvloop.new_event_loop()
    web.run_app(
        app,
        host="127.0.0.1",
        port=args.port,
        access_log=None,
        print=None,
        loop=loop,
        reuse_port=True,
    )


def _run_several(count: int, arguments: list[str]) -> None:
    """As many on the same port, until this one is asked to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    command = [sys.executable, "-m", "benchmarks.hop", *arguments]
    hops = [subprocess.Popen(command) for _ in range(count)]
    try:
        for hop in hops:
            hop.wait()
    finally:
        for hop in hops:
            hop.terminate()


if __name__ == "__main__":
    main()
