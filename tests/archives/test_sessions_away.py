"""Sessions that are in the archive and not in memory: they count, and are listed without a read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from slime_router.archive.fetching import absence
from slime_router.archive.fetching.filling import Filler
from slime_router.archive.port import Archive
from slime_router.archive.store import ArchivedStore
from slime_router.errors import Conflict, TooManyRequests
from slime_router.trajectory.session import Session, SessionSpec
from tests.archives.archives import KINDS, Opened, Straight, opener
from tests.archives.memory import MemoryArchive
from tests.archives.test_conformance import turn
from tests.archives.test_several_stores import Router
from tests.stack import chat_template, tiny_tokenizer


class Small(Router):
    """A router that may have three opened sessions, and nothing in memory for long."""

    def __init__(self, archive: Archive, number: int) -> None:
        super().__init__(archive, number, 0)
        self.store = ArchivedStore(Straight(archive), 0, max_sessions=3)
        self.store.number = number
        self.fetch = Filler(archive, self.store, chat_template(tiny_tokenizer()), self.written)

    async def open(self, name: str, rollout: str | None = None) -> None:
        await self.fetch.know_sessions()
        with await self.fetch.of_session(name):
            self.store.open_session(SessionSpec(id=name, rollout_id=rollout))
            self.store.add(replace(turn(f"turn of {name}", 0, name), seq=0))

    async def reward(self, name: str, reward: float) -> None:
        with await self.fetch.of_rollout(name):
            self.store.sessions.set_reward(name, reward)

    async def delete(self, name: str) -> None:
        with await self.fetch.of_session(name):
            self.store.delete_session(name)

    def here(self) -> list[str]:
        return [session.id for session in self.store.sessions]

    def check(self) -> None:
        self.store.check_integrity()


@pytest.fixture(params=KINDS)
def opened(request, tmp_path: Path) -> Opened:
    return opener(request.param, request, tmp_path)


async def small(opened: Opened) -> Small:
    archive = opened()
    return Small(archive, await archive.number())


async def closed(*routers: Small) -> None:
    for router in routers:
        router.check()
    for archive in {id(router.archive): router.archive for router in routers}.values():
        await archive.close()


async def test_sessions_count_until_they_are_deleted_wherever_they_are(opened):
    one, other = await small(opened), await small(opened)
    for name in "abc":
        await one.open(name)
    assert one.here() == ["c"]
    third = await small(opened)
    for router in (one, other, third):
        with pytest.raises(TooManyRequests):
            await router.open("d")
        assert router.store.sessions.opened == 3
    await other.delete("a")
    await one.open("d")
    with pytest.raises(TooManyRequests):
        await other.open("e")
    await one.delete("d")
    await one.open("a")
    assert one.store.sessions.opened == 3
    await closed(one, other, third)


async def test_a_rollout_has_one_reward_wherever_its_sessions_are(opened):
    one, other = await small(opened), await small(opened)
    await one.open("a", "rollout")
    await one.open("b", "rollout")
    await one.open("c", "another")
    await one.reward("a", 1.0)
    await one.reward("c", 3.0)
    for router in (one, other):
        with pytest.raises(Conflict, match="another reward in session 'a'"):
            await router.reward("b", 2.0)
    await other.reward("b", 1.0)
    await other.delete("a")
    await one.delete("b")
    await one.open("d", "rollout")
    await one.reward("d", 2.0)
    await closed(one, other)


async def test_a_rewarded_session_that_nobody_opened_leaves_nothing_behind(opened):
    one = await small(opened)
    with await one.fetch.of_session("a"):
        one.store.add(replace(turn("turn of a", 0, "a"), seq=0))
    await one.reward("a", 1.0)
    await one.open("b")
    assert one.here() == ["b"]
    assert one.store.sessions._rewarded_away == {("", "a"): {"a": None}}
    await one.delete("a")
    assert one.store.sessions._rewarded_away == {}
    await closed(one)


class Reads:
    """Counts the turns that are read with their data."""

    def __init__(self, router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        news = router.archive.news

        async def counted(home, since, knows):
            found = await news(home, since, knows)
            self.count += sum(kept.data is not None for kept in found.turns)
            return found

        monkeypatch.setattr(router.archive, "news", counted)

    def taken(self) -> int:
        count, self.count = self.count, 0
        return count


def said(sessions: Sequence[Session]) -> list[tuple[object, ...]]:
    return [
        (s.id, s.number, s.state, s.turn_count, s.recorded_turns, s.sampled_tokens, s.reward)
        for s in sessions
    ]


async def test_a_list_reads_a_session_that_is_not_in_memory_once(opened, monkeypatch):
    one = await small(opened)
    for name in "abc":
        await one.open(name)
    reads = Reads(one, monkeypatch)
    listed = await one.fetch.of_sessions()
    assert said(listed) == [
        ("a", 1, "open", 1, 1, 1, None),
        ("b", 2, "open", 1, 1, 1, None),
        ("c", 3, "open", 1, 1, 1, None),
    ]
    assert reads.taken() <= 3
    await one.fetch.of_sessions()
    reads.taken()  # one that was in memory is not any more
    assert said(await one.fetch.of_sessions()) == said(listed)
    assert reads.taken() == 0
    await one.reward("a", 1.0)
    with await one.fetch.of_session("b"):
        one.store.add(turn("another of b", 0, "b"))
    await one.delete("c")
    assert said(await one.fetch.of_sessions()) == [
        ("a", 1, "open", 1, 1, 1, 1.0),
        ("b", 2, "open", 2, 2, 2, None),
    ]
    await closed(one)


async def test_of_few_sessions_is_remembered_how_they_were_listed(opened, monkeypatch):
    monkeypatch.setattr("slime_router.archive.fetching.filling.MAX_AT_REST", 2)
    one = await small(opened)
    for name in "abc":
        await one.open(name)
    with await one.fetch.of_session("d"):
        one.store.add(replace(turn("turn of d", 0, "d"), seq=0))
    listed = said(await one.fetch.of_sessions())
    assert len(one.fetch._at_rest) == 2
    assert said(await one.fetch.of_sessions()) == listed
    await closed(one)


async def test_no_request_asks_an_archive_that_does_not_answer_until_it_does(monkeypatch):
    monkeypatch.setattr(absence, "RETRY_S", 0.0)
    archive = MemoryArchive()
    one = Small(archive, 1)
    await one.open("a")
    archive.is_away = True
    for _ in range(3):
        with await one.fetch.of_session("a") as trouble:
            assert trouble is not None
    assert (one.fetch.counts.failures, one.fetch.counts.unasked) == (1, 2)
    for _ in range(10):  # it was looked for meanwhile
        await asyncio.sleep(0)
    with await one.fetch.of_session("a") as trouble:
        assert trouble is not None
    assert one.fetch.counts.failures == 1, "no request looked"
    archive.is_away = False
    async with asyncio.timeout(60):
        while one.fetch.absence.reason is not None:  # noqa: ASYNC110 - the task has its own pace
            await asyncio.sleep(0)
    with await one.fetch.of_session("a") as trouble:
        assert trouble is None
