"""What the archive says is odd, or not said, for one home: the others stay as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from slime_router.archive.fetching import filling
from slime_router.archive.homes import home_of_session
from slime_router.archive.port import Archive, ArchiveOdd, Kept, News
from slime_router.journal.codec import Damaged, packed_turn
from slime_router.trajectory.session import SessionSpec
from tests.archives.memory import MemoryArchive
from tests.archives.test_conformance import turn
from tests.archives.test_several_stores import Router


async def two_routers(budget: int) -> tuple[MemoryArchive, Router, Router]:
    archive = MemoryArchive()
    writer = Router(archive, await archive.number(), 10_000)
    return archive, writer, Router(archive, await archive.number(), budget)


def make_odd(archive: Archive, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this session cannot be read."""
    news = archive.news

    async def odd(home: str, since: str, knows: Callable[[str], bool]) -> News:
        if home == home_of_session(name):
            raise ArchiveOdd("somebody else's")
        return await news(home, since, knows)

    monkeypatch.setattr(archive, "news", odd)


async def test_a_look_that_fails_leaves_no_other_look_behind(monkeypatch):
    """Nobody holds its home any more: half of it could leave the memory, and look whole."""
    monkeypatch.setattr(filling, "PART_TURNS", 2)
    archive, writer, reader = await two_routers(budget=0)
    count = 40
    for name in ("odd", "long", "other"):
        writer.store.open_session(SessionSpec(id=name))
    writer.store.add(replace(turn("odd", 0, "odd"), request_id="r"))
    base = None
    for number in range(count):
        made = replace(turn(f"t{number}", 0, "long"), request_id="r")
        base = writer.store.add(
            made if base is None else replace(made, base=base.id, base_len=base.held_len)
        )
    with monkeypatch.context() as patched:
        make_odd(archive, "odd", patched)
        with await reader.fetch.of_turn("r") as trouble:
            assert trouble is not None
        with await reader.fetch.of_session("other"):  # what nobody holds may leave now
            pass
        for _ in range(count):
            await asyncio.sleep(0)
    with await reader.fetch.of_session("long"):
        assert len(reader.store.sessions.get("long").turns) == count
    assert reader.store.skipped_turns == 0
    reader.store.check_integrity()


@pytest.mark.parametrize("is_here", [True, False], ids=["in memory", "away"])
async def test_a_session_that_could_not_be_read_is_listed_once_it_can(is_here, monkeypatch):
    archive, writer, reader = await two_routers(budget=10_000)
    for name in ("a", "b"):
        writer.store.open_session(SessionSpec(id=name))
    if is_here:
        with await reader.fetch.of_session("a"):
            pass
        writer.store.sessions.set_reward("a", 1.0)
    with monkeypatch.context() as patched:
        make_odd(archive, "a", patched)
        listed = [session.id for session in await reader.fetch.of_sessions()]
        assert listed == (["a", "b"] if is_here else ["b"])
        assert reader.fetch.counts.failures == 1
        assert reader.fetch.absence.reason is None, "it does answer"
    assert sorted(session.id for session in await reader.fetch.of_sessions()) == ["a", "b"]


def test_a_turn_that_is_kept_as_another_one_is_damaged():
    data = packed_turn(turn("a", 1))
    assert Kept("a", 1, is_undelivered=False, data=data).turn().id == "a"
    with pytest.raises(Damaged, match="it is a"):
        Kept("b", 1, is_undelivered=False, data=data).turn()
