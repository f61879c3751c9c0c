"""The watch that counts when the event loop stands still, on a clock of the test's own."""

from __future__ import annotations

import asyncio
import logging

import pytest

from slime_router.server.loop.stalls import (
    LOG_PAUSE_S,
    MAX_NAMED,
    REST_S,
    STALL_S,
    TICK_S,
    StallWatch,
)
from slime_router.telemetry.meters import DELAYS
from slime_router.telemetry.request_record import Times
from tests.integration.gateway import CHAT, served, until, user


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Requests(list[str]):
    @property
    def has_requests(self) -> bool:
        return bool(self)

    def under_way(self) -> list[str]:
        return self


def test_ticks_in_time_are_no_stalls_and_late_ones_are(caplog):
    clock = Clock()
    watch = StallWatch(Requests(["POST /v1/x"]), Times(DELAYS), clock=clock)
    for late_s in (0.0, 0.0, STALL_S / 2, STALL_S + 0.01, 0.0, 0.2):
        clock.now += TICK_S + late_s
        watch.tick()
    assert watch.count == 2
    assert watch.total_s == pytest.approx(STALL_S + 0.01 + 0.2)
    assert watch.longest_s == pytest.approx(0.2)
    (line,) = caplog.messages
    assert line.endswith("60 ms; under way: POST /v1/x")


def test_short_stalls_are_counted_by_how_late_a_tick_came():
    clock = Clock()
    watch = StallWatch(Requests(["POST /a"]), Times(DELAYS), clock=clock)
    for late_s in (0.0, 0.0, -0.001, 0.004, 0.007, 0.007, 0.03, 0.3, 2.0):
        clock.now += TICK_S + late_s
        watch.tick()
        assert watch.lag_s == pytest.approx(max(late_s, 0.0))
    assert watch.late_by_ms() == {
        "5": 5,
        "10": 3,
        "20": 3,
        "50": 2,
        "100": 2,
        "500": 1,
        "1000": 1,
    }
    assert watch.count == 2


def test_the_log_is_not_filled_and_many_requests_are_a_number(caplog):
    clock = Clock()
    watch = StallWatch(Requests(["POST /a"] * 40), Times(DELAYS), clock=clock)
    watch.tick()
    for _ in range(5):
        clock.now += 1.0
        watch.tick()
    clock.now += LOG_PAUSE_S
    watch.tick()
    clock.now += LOG_PAUSE_S + 1.0
    watch.tick()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert "under way: 40 requests; 4 earlier stalls were not logged" in caplog.messages[1]
    assert "were not logged" not in caplog.messages[2]


def test_a_time_is_up_to_its_own_bound():
    times = Times((0.5, 1.0))
    for seconds in (0.5, 1.0, 1.5):
        times.add(seconds)
    assert times.over() == {0.5: 2, 1.0: 1}


def test_few_requests_are_named(caplog):
    clock = Clock()
    watch = StallWatch(Requests(["POST /a"] * MAX_NAMED), Times(DELAYS), clock=clock)
    watch.tick()
    clock.now += 1.0
    watch.tick()
    assert caplog.messages[0].endswith("under way: POST /a, POST /a, POST /a")


def test_without_requests_ticks_are_rare():
    clock, requests = Clock(), Requests()
    watch = StallWatch(requests, Times(DELAYS), clock=clock)
    watch.tick()
    clock.now += REST_S + STALL_S / 2
    requests.append("POST /a")
    watch.tick()
    assert watch.lag_s == pytest.approx(STALL_S / 2)
    clock.now += TICK_S + STALL_S / 2
    watch.tick()
    assert watch.lag_s == pytest.approx(STALL_S / 2)
    assert watch.count == 0


async def test_after_the_watch_there_are_no_more_ticks():
    watch = StallWatch(Requests(), Times(DELAYS))
    with watch.watching():
        timer = watch._timer
        assert timer is not None
        assert not timer.cancelled()
    assert timer.cancelled()
    watch.tick()
    assert watch._timer is timer


async def test_the_router_watches_its_loop_and_names_the_request():
    async with served() as (router, worker):
        clock = Clock()
        router.gateway.stalls._clock = clock
        router.gateway.stalls._last = clock.now
        before = router.gateway.stalls.count
        worker.hold()
        asking = asyncio.create_task(router.chat([user("Hi")]))
        await until(lambda: router.gateway.slow_clients.under_way() == [f"POST {CHAT}"])
        clock.now += 1.0
        await until(lambda: router.gateway.stalls.count == before + 1)
        worker.release()
        await asking
        async with router.http.get("/metrics") as answer:
            loop = (await answer.json())["loop"]
        assert loop["longest_stall_s"] >= 0.9
        assert loop["late"]["500"] == 1
        async with router.http.get("/metrics/prometheus") as answer:
            text = await answer.text()
        assert 'slime_router_loop_delay_seconds_bucket{le="0.005"}' in text
