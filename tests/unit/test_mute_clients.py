"""Clients that connect and send no request, by the thousand: they are cut without a long stall."""

from __future__ import annotations

import asyncio
import logging

import pytest

from slime_router.server.slow_clients import CUT_AT_ONCE, LOOKS, SlowClients


class Transport:
    def __init__(self) -> None:
        self.is_aborted = False

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


class Protocol(asyncio.BaseProtocol):
    def __init__(self) -> None:
        self.transport = Transport()


@pytest.mark.parametrize("count", [1, CUT_AT_ONCE, CUT_AT_ONCE + 1, 3 * CUT_AT_ONCE])
async def test_they_are_cut_some_at_a_time_and_told_in_one_line(caplog, count):
    caplog.set_level(logging.INFO, "slime_router")
    watch = SlowClients(timeout_s=1.0)
    clients = [Protocol() for _ in range(count)]
    for client in clients:
        watch.note_new(client)
    left = Protocol()
    left.transport.abort()
    watch.note_new(left)
    for _ in range(LOOKS):
        watch.look()
    assert watch.cut == 0
    watch.look()
    assert watch.cut == sum(client.transport.is_aborted for client in clients)
    assert watch.cut <= CUT_AT_ONCE
    for _ in range(5):
        await asyncio.sleep(0)
    assert watch.cut == count
    assert all(client.transport.is_aborted for client in clients)
    assert caplog.messages == [f"{count} clients cut: they sent no request"]
    for _ in range(2 * LOOKS):
        watch.look()
    assert watch.cut == count
