"""Where workers are found: the lines of a file, or the addresses that a name has in the DNS."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Collection, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from slime_router.errors import BadRequest, SetupError
from slime_router.pool.address import worker_url

MAX_FOUND = 1024  # workers of one source
MAX_FILE_BYTES = 2**20
LOOKUP_TIMEOUT_S = 10.0

AddressInfo: TypeAlias = tuple[Any, Any, int, str, tuple[Any, ...]]
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[AddressInfo]]]


class SourceFailed(Exception):
    """A source cannot say which workers there are; the message is one line."""


class Source(Protocol):
    """Says which workers there are.

    Attributes:
        name: how log lines call it.
        patience: answers in a row without a worker after which that worker leaves.
    """

    name: str
    patience: int

    async def find(self) -> frozenset[str]:
        """The URLs of all workers that it knows now.

        Raises:
            SourceFailed: it cannot be asked, or its answer is not to be relied on.
        """


class FileSource:
    """A file with one URL per line; `#` begins a comment. An empty file means no workers.

    A worker leaves after two looks without it: a file that is being written over is empty, or ends
    anywhere, for a moment.
    """

    patience = 2

    def __init__(self, path: Path) -> None:
        self.name = f"file:{path}"
        self._path = path

    def __repr__(self) -> str:
        return f"<FileSource {self.name}>"

    async def find(self) -> frozenset[str]:
        """The URLs in the file, read in a thread: it may be on another machine."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> frozenset[str]:
        try:
            about = self._path.stat()
            if not stat.S_ISREG(about.st_mode):
                raise SourceFailed("it is not a file")
            if about.st_size > MAX_FILE_BYTES:
                raise SourceFailed(f"it is longer than {MAX_FILE_BYTES} bytes")
            text = self._path.read_text(encoding="utf-8-sig")
        except OSError as exc:
            raise SourceFailed(f"it cannot be read: {exc.strerror}") from exc
        except UnicodeDecodeError as exc:
            raise SourceFailed("it is not UTF-8") from exc
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        return _within_limit(
            frozenset(_checked(line, number) for number, line in enumerate(lines, 1) if line)
        )


class NameSource:
    """The addresses of a name, such as that of a headless service of Kubernetes, with one port.

    An empty answer counts as a failure: a name that does not resolve for a moment removes nobody.
    A worker leaves after three answers without it: some servers name only a part of the addresses.
    Where a name has addresses of both kinds, only those of IPv4 count: a pod has one of each.
    """

    patience = 3

    def __init__(self, host: str, port: int, *, resolve: Resolve | None = None) -> None:
        self.name = f"dns:{host}:{port}"
        self._host, self._port = host, port
        self._resolve = resolve or _look_up

    def __repr__(self) -> str:
        return f"<NameSource {self.name}>"

    async def find(self) -> frozenset[str]:
        """The URLs of the addresses."""
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                answers = await self._resolve(self._host, self._port)
        except TimeoutError as exc:
            raise SourceFailed(f"no answer in {LOOKUP_TIMEOUT_S:.0f} s") from exc
        except (OSError, UnicodeError) as exc:
            reason = getattr(exc, "strerror", None) or str(exc)
            raise SourceFailed(f"the name does not resolve: {reason}") from exc
        hosts = {str(address[0]) for *_, address in answers}
        old = {host for host in hosts if ip_address(host.partition("%")[0]).version == 4}
        if not hosts:
            raise SourceFailed("the name has no address")
        urls = (f"http://{host}:{self._port}" for host in old)
        new = (f"http://[{host}]:{self._port}" for host in hosts - old)
        return _within_limit(frozenset(urls if old else new))


def read_source(text: str) -> Source:
    """The source that a user writes as `file:PATH` or `dns:NAME:PORT`.

    Raises:
        SetupError: it is neither.
    """
    kind, _, rest = text.partition(":")
    if kind == "file" and rest:
        return FileSource(Path(os.path.expanduser(rest)))
    host, _, port = rest.rpartition(":")
    if kind == "dns" and host and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536:
        return NameSource(host.strip("[]"), int(port))
    raise SetupError(f"--worker-discovery takes file:PATH or dns:NAME:PORT, not {text!r}")


def _checked(line: str, number: int) -> str:
    try:
        return worker_url(line)
    except BadRequest as exc:
        raise SourceFailed(f"line {number}: {exc.message}") from exc


def _within_limit(found: Collection[str]) -> frozenset[str]:
    if len(found) > MAX_FOUND:
        raise SourceFailed(f"{len(found)} workers are more than the limit of {MAX_FOUND}")
    return frozenset(found)


async def _look_up(host: str, port: int) -> Sequence[AddressInfo]:
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
