"""A load of requests: the cheapest HTTP client that does, on a fixed number of connections."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable, Iterator

import uvloop

TIMEOUT_S = 120.0  # for a whole load
_LAST_CHUNK = b"\r\n0\r\n\r\n"


def post(path: str, body: bytes) -> bytes:
    """The bytes of one request."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def send(
    port: int,
    requests: Iterable[bytes],
    connections: int,
    seconds: list[float] | None = None,
) -> list[bytes]:
    """Send all requests, at most one at a time on each connection; returns the answers' bodies.

    The bodies come in the order of their ends; a chunked one is returned with its framing. How
    long each took is appended to `seconds`.

    Raises:
        ConnectionError: an answer is not a 200, or the connection broke.
        TimeoutError: the load took longer than `TIMEOUT_S`.
    """
    return uvloop.run(_send(port, iter(requests), connections, [] if seconds is None else seconds))


class Line:
    """A connection that is kept, for one request after the other."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> bytes:
        """The body of the answer, which says how long it is.

        Raises:
            ConnectionError: it is not a 200, or the connection broke.
            TimeoutError: nothing came for `TIMEOUT_S`.
        """
        self._socket.sendall(request)
        answer, head_len, length = bytearray(), 0, 0
        while not head_len or len(answer) < head_len + length:
            if not (data := self._socket.recv(2**16)):
                raise ConnectionError("the server closed the connection")
            answer += data
            if not head_len and (head_len := answer.find(b"\r\n\r\n") + 4) < 4:
                head_len = 0
            elif not length:
                head = bytes(answer[:head_len]).lower()
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = bytes(answer[head_len:])
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(body[:500].decode(errors="replace"))
        return body

    def close(self) -> None:
        self._socket.close()


async def _send(
    port: int, requests: Iterator[bytes], connections: int, seconds: list[float]
) -> list[bytes]:
    answers: list[bytes] = []
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(_converse(port, requests, answers, seconds))
    return answers


async def _converse(
    port: int, requests: Iterator[bytes], answers: list[bytes], seconds: list[float]
) -> None:
    loop = asyncio.get_running_loop()
    transport, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
    try:
        for request in requests:
            started_s = time.perf_counter()
            transport.write(request)
            answers.append(await connection.answer())
            seconds.append(time.perf_counter() - started_s)
    finally:
        transport.close()


class _Connection(asyncio.Protocol):
    """Collects one answer at a time."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._whole = asyncio.get_running_loop().create_future()

    async def answer(self) -> bytes:
        answer: bytes = await self._whole
        self._whole = asyncio.get_running_loop().create_future()
        return answer

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        head_len = self._bytes.find(b"\r\n\r\n") + 4
        if head_len < 4:
            return
        head = bytes(self._bytes[:head_len]).lower()
        if b"content-length: " in head:
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if len(self._bytes) < head_len + length:
                return
        elif not self._bytes.endswith(_LAST_CHUNK):
            return
        body = bytes(self._bytes[head_len:])
        self._bytes.clear()
        if head.startswith(b"http/1.1 200"):
            self._whole.set_result(body)
        else:
            self._whole.set_exception(ConnectionError(body[:500].decode(errors="replace")))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._whole.done():
            self._whole.set_exception(exc or ConnectionError("the server closed the connection"))
            self._whole.exception()  # perhaps nobody waits for it: then it is not news
