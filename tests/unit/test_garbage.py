"""The collector that looks at each object once, on a clock of the test's own."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from slime_router.server.loop.garbage import (
    BUSY_PAUSE_S,
    CALM_PAUSE_S,
    CALM_SHARE,
    ENOUGH,
    GarbageCollector,
)
from tests.integration.gateway import until

pytestmark = pytest.mark.slow  # each looks through all that the process holds


class Loop:
    """Holds itself: only a collection finds it."""

    def __init__(self) -> None:
        self.me = self


class World:
    """A clock, and whether a request is under way."""

    def __init__(self) -> None:
        self.now = 100.0
        self.is_calm = True
        self.collector = GarbageCollector(lambda: self.is_calm, clock=lambda: self.now)

    def look(self, after_s: float = 0.0) -> None:
        self.now += after_s
        self.collector.look()


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture(autouse=True)
def collected_before() -> Iterator[None]:
    gc.collect()
    yield
    gc.unfreeze()
    assert gc.isenabled()


def lost() -> weakref.ref[Loop]:
    return weakref.ref(Loop())


def many() -> list[list[int]]:
    return [[] for _ in range(2 * ENOUGH)]


async def test_the_automatic_collection_is_off_for_as_long(world):
    with world.collector.collecting():
        assert not gc.isenabled()
        garbage = lost()
        kept = many()
        assert garbage() is not None
        assert len(kept) == 2 * ENOUGH
    assert gc.isenabled()


async def test_it_collects_where_there_is_much_that_is_new_and_looks_at_it_once(world):
    with world.collector.collecting():
        few = lost()
        world.look()
        assert few() is not None, "nobody would notice what a few objects take"
        kept = many()
        world.look()
        assert few() is None
        assert gc.get_freeze_count() > len(kept)
        before = gc.get_freeze_count()
        world.look()
        assert gc.get_freeze_count() == before, "there is nothing new to look at"
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(("is_calm", "pause_s"), [(True, CALM_PAUSE_S), (False, BUSY_PAUSE_S)])
async def test_everything_is_looked_through_in_a_calm_moment_or_else_late(world, is_calm, pause_s):
    with world.collector.collecting():
        frozen = Loop()
        garbage = weakref.ref(frozen)
        kept = many()
        world.look()
        assert kept
        del frozen
        world.is_calm = False
        world.look(pause_s - 1.0)
        assert garbage() is not None
        world.is_calm = is_calm
        world.look(2.0)
        assert garbage() is None
        assert gc.get_freeze_count() > len(kept)


async def test_where_it_takes_long_it_is_done_less_often(world, monkeypatch):
    took_s = 3.0

    def collect() -> int:
        world.now += took_s
        return 0

    with world.collector.collecting():
        monkeypatch.setattr(gc, "collect", collect)
        world.look(CALM_PAUSE_S)
        done = world.now
        world.look(took_s / CALM_SHARE - 1.0)
        assert world.now == done + took_s / CALM_SHARE - 1.0, "it was not done again"
        world.look(1.0)
        assert world.now == done + took_s / CALM_SHARE + took_s
        monkeypatch.undo()


async def test_it_goes_on_by_itself(monkeypatch, world):
    monkeypatch.setattr("slime_router.server.loop.garbage.LOOK_S", 0.0)
    with world.collector.collecting():
        garbage, kept = lost(), many()
        await until(lambda: garbage() is None)
        assert kept
