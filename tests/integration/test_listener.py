"""Connections to a router that runs as a process: too many for its descriptors, many at once."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from slime_router.testing import FakeWorker
from tests.chaos.processes import RouterProcess, eventually
from tests.integration.gateway import checkpoint, serving, tiny_worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200"
FEW = 64  # descriptors
MANY = 400  # connections; more than most servers let wait
ANSWER_S = 20.0
SURE_TO_WAIT_S = 0.6

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def running(
    tmp_path: Path, *flags: str, descriptors: int | None = None
) -> AsyncIterator[tuple[RouterProcess, FakeWorker]]:
    """A router as a user starts it, which may have `descriptors`, and its worker."""
    async with tiny_worker() as worker:
        log = tmp_path / "router.log"
        router = RouterProcess(checkpoint(), log, "--worker-urls", worker.url, *flags)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        router.start()
        if descriptors is not None:
            resource.prlimit(router.pid, resource.RLIMIT_NOFILE, (descriptors, descriptors))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
        try:
            await router.wait_ready()
            yield router, worker
        finally:
            router.kill()


@asynccontextmanager
async def connections(router: RouterProcess, count: int) -> AsyncIterator[list[Pair]]:
    """This many connections, opened at once."""
    host, port = router.url.removeprefix("http://").split(":")
    opening = [asyncio.open_connection(host, int(port)) for _ in range(count)]
    pairs = await asyncio.gather(*opening)
    try:
        yield pairs
    finally:
        for _, writer in pairs:
            writer.close()


async def health(pair: Pair) -> bytes:
    """The first bytes of the answer of /health on a connection that is kept."""
    reader, writer = pair
    writer.write(HEALTH)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if b"content-length" in line)
    await reader.readexactly(int(length.split(b":")[1]))
    return head[: len(OK)]


def cpu_s(router: RouterProcess) -> float:
    """The CPU time that the process has used."""
    fields = Path(f"/proc/{router.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def is_said(router: RouterProcess, words: str) -> None:
    """Raises AssertionError until these words stand in the log."""
    assert words in router.log.read_text()


async def test_more_clients_than_descriptors_wait_and_none_is_reset(tmp_path):
    async with running(tmp_path, descriptors=FEW) as (router, worker):
        async with connections(router, FEW + 20) as pairs:
            asked = [asyncio.create_task(health(pair)) for pair in pairs]
            await eventually(partial(is_said, router, "ulimit -n"), "a line", process=router)
            before = cpu_s(router)
            await asyncio.sleep(SURE_TO_WAIT_S)
            assert cpu_s(router) - before < SURE_TO_WAIT_S / 2, "it spins"
            served = [index for index, task in enumerate(asked) if task.done()]
            assert 8 <= len(served) < FEW // 2
            assert {asked[index].result() for index in served} == {OK}
            first = pairs[served[0]]
            assert await asyncio.wait_for(health(first), ANSWER_S) == OK
            assert await chat_on(first) == OK, "nothing is left for the worker's connection"
            assert worker.requests
            for index in served:  # each that leaves makes room for one that waits
                pairs[index][1].close()
            while len(served) < len(pairs):
                waiting = [task for task in asked if not task.done()]
                await asyncio.wait(waiting, timeout=ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
                new = [i for i, task in enumerate(asked) if task.done() and i not in served]
                assert new, "accepting was not resumed"
                for index in new:
                    assert asked[index].result() == OK
                    pairs[index][1].close()
                served += new
        await eventually(lambda: router.get("/health"), "well again", process=router)
        figures = await router.get("/metrics")
    assert figures["loop"]["accept_pauses"] >= 1
    lines = router.log.read_text().splitlines()
    assert len([line for line in lines if "ulimit -n" in line]) == 1
    assert not [line for line in lines if "Traceback" in line or " ERROR " in line]


async def chat_on(pair: Pair) -> bytes:
    """The first bytes of the answer of a chat on a connection that is kept."""
    reader, writer = pair
    body = b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_S))[: len(OK)]


async def test_many_connections_are_opened_at_once_while_the_loop_stands_still(tmp_path):
    async with running(tmp_path) as (router, _):
        router.stop()
        try:
            # One that finds no place is not opened before the loop goes on.
            async with asyncio.timeout(ANSWER_S), connections(router, MANY) as pairs:
                router.go_on()
                assert set(await asyncio.gather(*map(health, pairs))) == {OK}
        finally:
            router.go_on()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ECONNABORTED])
async def test_accepting_goes_on_where_one_fails(number, monkeypatch):
    """More may be open than the router counted: several samples of a request, plug-ins."""
    loop = asyncio.get_running_loop()
    accept, failures = loop.sock_accept, [number] * 3

    async def failing(sock: socket.socket) -> Any:
        if failures:
            raise OSError(failures.pop(), "no")
        return await accept(sock)

    monkeypatch.setattr(loop, "sock_accept", failing)
    async with serving() as router:
        assert (await router.get("/health"))[0] == 200
        assert failures == []
        assert router.gateway.supervisor.failures.total() == 0
