"""Which look at a client that stands still is the one at which it is cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from aiohttp import web

from slime_router.server.slow_clients import CLOSED_AT_ONCE, LOOKS, SlowClients


class Transport:
    """A connection with so many bytes that the client has yet to take."""

    def __init__(self) -> None:
        self.unsent = 0
        self.is_aborted, self.is_paused = False, False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, _: str) -> None:
        return None

    def is_reading(self) -> bool:
        return not self.is_paused

    def is_closing(self) -> bool:
        return self.is_aborted

    def close(self) -> None:
        self.is_aborted = True

    def abort(self) -> None:
        self.is_aborted = True


class Body:
    """A request's body, of which so many bytes came."""

    def __init__(self, total_bytes: int = 0) -> None:
        self.total_bytes = total_bytes
        self.fault: BaseException | None = None

    def is_eof(self) -> bool:
        return False

    def exception(self) -> BaseException | None:
        return self.fault

    def set_exception(self, exc: BaseException) -> None:
        self.fault = exc


def request(transport: Transport, body: Body) -> Any:
    return SimpleNamespace(
        transport=transport,
        protocol=object(),
        content=body,
        method="POST",
        rel_url=SimpleNamespace(raw_path="/x"),
    )


def looks(watch: SlowClients, count: int) -> None:
    for _ in range(count):
        watch.look()


async def test_one_that_takes_nothing_of_its_reply_is_cut_at_the_last_look():
    watch, transport, body = SlowClients(1.0), Transport(), Body()

    async def handler(_: web.Request) -> web.Response:
        for unsent in (10, 20, 5):  # each time there is more or less, it moves
            transport.unsent = unsent
            body.total_bytes += 1
            watch.look()
            body.fault = ValueError("nobody waits for more of it")
            looks(watch, LOOKS - 1)
            assert not transport.is_aborted
        watch.look()
        assert transport.is_aborted
        return web.Response()

    await watch.middleware(request(transport, body), handler)
    assert watch.cut == 1


async def test_one_that_sends_nothing_of_its_body_is_cut_at_the_last_look_of_each_request():
    watch, transport = SlowClients(1.0), Transport()

    async def handler(asked: Any) -> web.Response:
        looks(watch, LOOKS)
        assert asked.content.fault is None
        asked.content.total_bytes += 1
        watch.look()
        looks(watch, LOOKS - 1)
        assert asked.content.fault is None
        return web.Response()

    async def last(asked: Any) -> web.Response:
        looks(watch, LOOKS)
        assert asked.content.fault is None
        watch.look()
        assert asked.content.fault is not None
        cut = watch.cut
        looks(watch, LOOKS)
        assert watch.cut == cut, "it is cut once"
        return web.Response()

    for came, handle in enumerate((handler, handler, last)):  # as much as of the one before
        await watch.middleware(request(transport, Body(came)), handle)
    assert (watch.cut, transport.is_aborted) == (1, False)


async def test_one_whose_body_nobody_takes_or_who_has_left_is_not_cut():
    watch, transport, body = SlowClients(1.0), Transport(), Body()

    async def handler(_: web.Request) -> web.Response:
        transport.is_paused = True
        looks(watch, 2 * LOOKS)
        transport.is_paused = False
        looks(watch, LOOKS - 1)
        transport.abort()
        looks(watch, 2 * LOOKS)
        return web.Response()

    await watch.middleware(request(transport, body), handler)
    assert (watch.cut, len(watch), body.fault) == (0, 0, None)


async def test_when_all_are_cut_each_is_counted_once():
    watch = SlowClients(1.0)

    async def handler(_: web.Request) -> web.Response:
        assert (watch.cut_all(), watch.cut_all()) == (1, 0)
        return web.Response()

    await watch.middleware(request(Transport(), Body()), handler)
    assert watch.cut_all() == 0


async def empty(_: web.Request) -> web.Response:
    return web.Response()


async def test_idle_connections_are_closed_for_clients_that_wait_the_longest_idle_first():
    watch = SlowClients(1.0)
    again, unread, *rest = connections = [Transport() for _ in range(CLOSED_AT_ONCE + 3)]
    for transport in connections:
        await watch.middleware(request(transport, Body()), empty)
    unread.unsent = 1
    watch.close_idle()
    assert not any(each.is_aborted for each in connections), "they idle since just now"

    async def busy(_: web.Request) -> web.Response:
        watch.close_idle(0)
        return web.Response()

    await watch.middleware(request(again, Body()), busy)
    assert [each for each in connections if each.is_aborted] == rest[:CLOSED_AT_ONCE]
    watch.close_idle(0)
    assert [each for each in connections if not each.is_aborted] == [unread]


async def test_clients_that_left_are_not_counted_among_those_to_be_closed():
    watch = SlowClients(1.0)
    *gone, last = connections = [Transport() for _ in range(CLOSED_AT_ONCE + 1)]
    for transport in connections:
        await watch.middleware(request(transport, Body()), empty)
    for transport in gone:
        transport.close()
    watch.look()
    watch.close_idle(0)
    assert last.is_aborted
