"""What every archive does, whichever it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from random import Random
from secrets import token_hex

import pytest

from slime_router.archive.homes import home_of_session, name_of_id, name_of_key, names_of
from slime_router.archive.port import NOTHING_SEEN, Archive, Kept, News
from slime_router.archive.redis import RedisArchive
from slime_router.archive.redis_client import RedisClients
from slime_router.journal.codec import SessionState, packed_session, packed_turn, unpacked_turn
from slime_router.journal.database import Drop, MarkUndelivered, Put, PutTurn
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.turn import Turn
from slime_router.types import Finish, token_ids
from tests.archives.archives import KINDS, Opened, opener
from tests.archives.test_several_stores import Router

HOME = home_of_session("s")


@pytest.fixture(params=KINDS)
async def two(request, tmp_path: Path) -> AsyncIterator[tuple[Archive, Archive]]:
    """One archive, as two routers see it."""
    opened: Opened = opener(request.param, request, tmp_path)
    one, other = opened(), opened()
    yield one, other
    await one.close()
    if other is not one:
        await other.close()


def turn(name: str, seq: int, session: str | None = "s", **fields) -> Turn:
    given = {
        "id": name,
        "base": None,
        "base_len": 0,
        "prompt_ids": token_ids([1]),
        "output_ids": token_ids([2]),
        "logprobs": None,
        "weight_versions": (),
        "finish": Finish("stop"),
        "session_id": session,
        "keys": (b"key",),
        "seq": seq,
    }
    return Turn(**{**given, **fields})


def put(turn: Turn, home: str = HOME, *, is_change: bool = False) -> PutTurn:
    return PutTurn(
        turn.seq, turn.id, turn.session_id, packed_turn(turn), home, names_of(turn), is_change
    )


def state(opener: str = "a", *, was_opened: bool = True, **fields) -> SessionState:
    given = {
        "spec": SessionSpec(id="s", metadata={"by": opener}),
        "was_opened": was_opened,
        "is_closed": False,
        "was_exported": False,
        "reward": None,
        "dropped_turns": 0,
        "dropped_tokens": 0,
        "opener": opener,
    }
    return SessionState(**{**given, **fields})


def said(state: SessionState) -> Put:
    return Put("sessions", state.spec.id, packed_session(state))


def unpacked(kept: Kept) -> Turn:
    assert kept.data is not None
    return unpacked_turn(kept.data)


async def news(archive: Archive, since: str = NOTHING_SEEN, *known: str, home: str = HOME) -> News:
    return await archive.news(home, since, known.__contains__)


async def test_what_one_writes_the_other_reads_and_only_what_is_new(two):
    one, other = two
    empty = await news(other)
    assert (empty.turns, empty.state, empty.is_deleted, empty.is_gone) == ((), None, False, False)
    one.apply([said(state()), put(turn("a", 1)), put(turn("b", 2))])
    first = await news(other, empty.cursor)
    assert [kept.id for kept in first.turns] == ["a", "b"]
    assert [unpacked(kept).seq for kept in first.turns] == [1, 2]
    assert first.state == state()
    again = await news(other, first.cursor)
    assert (again.turns, again.state) == ((), None)
    one.apply([put(turn("c", 3)), MarkUndelivered(1, "a", HOME)])
    second = await news(other, first.cursor, "a", "b")
    found = {kept.id: (kept.is_undelivered, kept.data is None) for kept in second.turns}
    assert found == {"a": (True, True), "c": (False, False)}


async def test_turns_come_in_the_order_of_their_numbers_whoever_wrote_them_first(two):
    one, other = two
    one.apply([put(turn("b", 5))])
    other.apply([put(turn("a", 4))])
    assert [kept.id for kept in (await news(one)).turns] == ["a", "b"]


async def test_turns_are_found_by_their_names_newest_home_first(two):
    one, other = two
    one.apply([put(turn("a", 1, None), "ta"), put(turn("b", 2, None), "tb")])
    assert await other.find([name_of_id("a")]) == ["ta"]
    assert await other.find([name_of_key(b"key")]) == ["tb", "ta"]
    assert await other.find([name_of_id("c"), name_of_id("b")]) == ["tb"]
    assert await other.find([name_of_key(b"no")]) == []


async def test_of_many_homes_with_one_name_the_newest_are_found(two):
    one, other = two
    one.apply([put(turn(f"t{n}", n, None), f"tt{n}") for n in range(1, 41)])
    for _ in range(2):
        found = await other.find([name_of_key(b"key")])
        assert found == [f"tt{n}" for n in range(40, 24, -1)]


async def test_marks_of_a_turn_are_sent_to_those_who_have_it(two):
    one, other = two
    one.apply([put(turn("a", 1))])
    since = (await news(other)).cursor
    one.apply([put(turn("a", 1, reward=0.5), is_change=True)])
    [kept] = (await news(other, since, "a")).turns
    assert unpacked(kept).reward == 0.5


async def test_the_first_that_opens_a_session_has_opened_it_and_what_happened_stays(two):
    one, other = two
    before = (await news(one)).cursor
    one.apply([said(state("a"))])
    other.apply([said(state("b", reward=0.5))])
    one.apply([said(state("a", is_closed=True))])
    other.apply([said(state("b", was_exported=True))])
    for archive in two:
        for since in (before, NOTHING_SEEN):
            found = (await news(archive, since)).state
            wanted = state("a", is_closed=True, was_exported=True, reward=0.5)
            assert found == wanted


async def test_a_turn_that_comes_after_its_session_was_closed_is_late(two):
    one, other = two
    one.apply([said(state())])
    assert other.apply([put(turn("a", 1))]) == {}
    one.apply([said(state(is_closed=True))])
    assert other.apply([put(turn("b", 2)), put(turn("c", 3, None), "tc")]) == {"s": "closed"}
    assert other.apply([put(turn("a", 1, reward=0.5), is_change=True)]) == {}, "it was there"


async def test_a_deleted_session_is_deleted_for_all_and_may_be_opened_again(two):
    one, other = two
    one.apply([said(state("a")), put(turn("a", 1)), put(turn("b", 2, None, base="a"))])
    since = (await news(other)).cursor
    one.apply([Drop("sessions", "s", is_deleted=True), put(turn("a", 1, None))])
    gone = await news(other, since, "a", "b")
    assert (gone.is_deleted, gone.is_gone, gone.state) == (True, False, None)
    late = await news(other)
    assert late.is_deleted
    assert {unpacked(kept).session_id for kept in late.turns} == {None}
    assert "a" in {kept.id for kept in late.turns}
    other.apply([said(state("c"))])
    again = await news(one, since)
    assert again.is_deleted
    assert again.state == state("c")
    after = await news(one, again.cursor)
    assert not after.is_deleted


@pytest.mark.redis
async def test_of_a_deleted_session_redis_has_only_that_it_was_deleted(request, tmp_path):
    archive = opener("redis", request, tmp_path)()
    assert isinstance(archive, RedisArchive)
    archive.apply([said(state()), put(turn("a", 1)), said(state(is_closed=True))])
    client, keys = archive._clients.blocking, archive._prefix + b"{*"
    assert len(client.keys(keys)) == 3
    archive.apply([Drop("sessions", "s", is_deleted=True)])
    assert client.keys(keys) == [archive._log(HOME)]
    assert client.xlen(archive._log(HOME)) == 1
    await archive.close()


async def test_a_deleted_session_is_not_found_by_its_conversations(two):
    one, other = two
    one.apply([said(state("a")), put(turn("a", 1))])
    one.apply([Drop("sessions", "s", is_deleted=True)])
    homes = await other.find([name_of_key(b"key")])
    assert [kept for home in homes for kept in (await news(other, home=home)).turns] == []


async def test_sessions_are_listed_as_they_change(two):
    one, other = two
    assert (await other.sessions(NOTHING_SEEN))[0] == []
    one.apply([said(state())])
    one.apply([said(replace(state(), spec=SessionSpec(id="t\ud800")))])
    names, cursor = await other.sessions(NOTHING_SEEN)
    assert names == ["s", "t\ud800"]
    assert (await other.sessions(cursor))[0] == []
    other.apply([said(state(is_closed=True))])
    assert (await one.sessions(cursor))[0] == ["s"]


async def test_the_same_change_twice_is_one_change(two):
    one, other = two
    changes = [said(state()), put(turn("a", 1)), MarkUndelivered(1, "a", HOME)]
    one.apply(changes)
    one.apply(changes)
    found = await news(other)
    assert [(kept.id, kept.is_undelivered) for kept in found.turns] == [("a", True)]
    assert found.state == state()


async def test_numbers_of_routers_differ_and_a_name_is_bound_once(two):
    one, other = two
    numbers = [await archive.number() for archive in (one, other, one, other)]
    assert len(set(numbers)) == 4
    assert all(0 <= number < 65536 for number in numbers)
    assert await one.bind("vocabulary", b"1") == b"1"
    assert await other.bind("vocabulary", b"2") == b"1"


async def test_things_are_kept_by_name(two):
    one, other = two
    one.apply([Put("workers", "http://w", b"1"), Put("workers", "http://v", b"2")])
    one.apply([Put("responses", "r", b"3"), Drop("workers", "http://v")])
    assert await other.named("workers") == [("http://w", b"1")]
    assert await other.get("workers", "http://w") == b"1"
    assert await other.get("responses", "r") == b"3"
    assert await other.get("responses", "no") is None


async def test_whoever_looks_sees_that_the_workers_have_changed(two):
    one, other = two
    versions = [await other.workers_version()]
    for change in (
        Put("workers", "http://w", b"1"),
        Put("workers", "http://w", b"2"),
        Drop("workers", "http://w"),
    ):
        one.apply([change])
        versions.append(await other.workers_version())
    assert len(set(versions)) == 4
    assert await other.named("workers") == []
    assert await other.workers_version() == versions[-1]


async def test_where_nothing_was_written_there_may_be_no_news_and_where_something_was_there_are(
    two,
):
    one, other = two
    one.apply([put(turn("a", 1))])
    since = (await news(other)).cursor
    assert other.has_news(NOTHING_SEEN)
    random = Random(1)
    for number in range(2, 12):
        writer = random.choice(two)
        writer.apply([put(turn(f"t{number}", number))])
        assert other.has_news(since)
        since = (await news(other, since)).cursor


@pytest.mark.redis
async def test_a_store_that_lost_a_home_says_so(redis_url):
    clients = RedisClients(redis_url, timeout_s=60.0, write_timeout_s=60.0)
    archive = RedisArchive(clients, prefix=token_hex(6), ttl_s=1000)
    archive.apply([put(turn("a", 1))])
    since = (await news(archive)).cursor
    assert not (await news(archive, since, "a")).is_gone
    clients.blocking.flushall()
    assert (await news(archive, since, "a")).is_gone
    assert not (await news(archive)).is_gone
    await archive.close()


@pytest.mark.redis
async def test_what_a_replica_had_not_heard_of_is_written_again_by_whoever_has_it(
    redis_url, caplog
):
    """The end of a home's log is lost, and somebody has written to it since."""
    prefix = token_hex(6)

    def opened() -> RedisArchive:
        clients = RedisClients(redis_url, timeout_s=5.0, write_timeout_s=5.0)
        return RedisArchive(clients, prefix=prefix, ttl_s=1000)

    archive = opened()
    one, other = Router(archive, 1, 10**6), Router(opened(), 2, 10**6)
    one.store.open_session(SessionSpec(id="s"))
    one.store.delete_session("s")  # that was long ago
    one.store.open_session(SessionSpec(id="s"))
    for name in ("a", "b"):
        one.store.add(turn(name, 0))
    with await one.fetch.of_session("s"):
        pass
    redis, log = archive._clients.blocking, archive._log(HOME)
    redis.xdel(log, redis.xrevrange(log, count=1)[0][0])
    redis.hdel(archive._turns(HOME), "b")
    with await other.fetch.of_session("s"):
        assert "b" not in other.store
        other.store.add(turn("c", 0))
    with await one.fetch.of_session("s"):
        assert {"a", "b", "c"} <= {name for name in "abc" if name in one.store}
    with await other.fetch.of_session("s"):
        assert {name for name in "abc" if name in other.store} == {"a", "b", "c"}
    rewritten = one.store.rewritten_turns
    assert rewritten + other.store.rewritten_turns > 0
    assert "the store had lost session s: " in caplog.text
    with await one.fetch.of_session("s"):
        assert one.store.rewritten_turns == rewritten
    for router in (one, other):
        router.store.check_integrity()
        await router.archive.close()
