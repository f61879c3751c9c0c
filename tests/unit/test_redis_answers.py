"""A Redis whose answers are not of their form counts as away: others may write to our keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as RedisAway
from redis.exceptions import ResponseError

from slime_router.archive.port import MAX_HOMES, ArchiveDown, ArchiveOdd
from slime_router.archive.redis import RENEWALS, RedisArchive
from slime_router.archive.redis_client import RedisClients

Asked = Callable[[RedisArchive], Coroutine[Any, Any, object]]


class Says:
    """A client to which everything is answered with the same."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.waiting = self.blocking = self

    def __getattr__(self, _: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def answer(*_: object, **__: object) -> Any:
            if isinstance(self._answer, Exception):
                raise self._answer
            return self._answer

        return answer

    def pipeline(self, **_: object) -> Says:
        return self


def archive(answer: Any) -> RedisArchive:
    clients = cast("RedisClients", Says(answer))
    return RedisArchive(clients, prefix="p", ttl_s=10)


ASKED: dict[str, Asked] = {
    "news": lambda a: a.news("home", "", lambda _: False),
    "sessions": lambda a: a.sessions(""),
    "named": lambda a: a.named("workers"),
    "number": lambda a: a.number(),
    "workers_version": lambda a: a.workers_version(),
    "bind": lambda a: a.bind("vocabulary", b"x"),
}


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize(
    "answer",
    [ResponseError("WRONGTYPE"), object(), [(b"1-1", {b"x": b"y"})], [(b"no", {b"k": b"t"})]],
    ids=["error", "object", "foreign entry", "foreign name"],
)
async def test_it_counts_as_away(ask, answer):
    with pytest.raises(ArchiveDown):
        await ask(archive(answer))


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("seq", [b"-1", b"1.5", b"%d" % 2**53, b"x"])
async def test_a_number_that_no_turn_can_have_is_not_taken(seq):
    """Turns that follow have higher numbers: one that is too high would spoil all of them."""
    entry = (b"1-1", {b"k": b"t", b"i": b"turn", b"s": seq})
    with pytest.raises(ArchiveOdd):
        await archive([entry]).news("home", "", lambda _: True)


@pytest.mark.filterwarnings("ignore:coroutine")
async def test_a_session_that_is_not_ours_does_not_keep_others_from_being_counted():
    assert await archive([(b"1-1", {b"x": b"y"})]).states(["s"]) == {}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (ResponseError("WRONGTYPE Operation against a key"), ArchiveOdd),
        (ResponseError("OOM command not allowed"), ArchiveDown),
        (RedisAway("nobody is there"), ArchiveDown),
        (OSError("no route"), ArchiveDown),
    ],
)
async def test_only_what_others_have_written_is_no_reason_to_stop_asking(fault, kind):
    with pytest.raises(ArchiveDown) as caught:
        await archive(fault).workers_version()
    assert type(caught.value) is kind


class Writes:
    """A client whose pipeline answers so."""

    def __init__(self, *answers: list[Any]) -> None:
        self._answers = iter(answers)
        self.blocking = self
        self.asked: list[tuple[object, ...]] = []

    def pipeline(self, **_: object) -> Writes:
        return self

    def __enter__(self) -> Writes:
        return self

    def __exit__(self, *_: object) -> None: ...

    def execute_command(self, *command: object) -> None:
        self.asked.append(command)

    def execute(self, **_: object) -> list[Any]:
        return next(self._answers)


def test_what_is_refused_for_good_is_counted_and_all_else_is_tried_again():
    foreign = ResponseError("WRONGTYPE Operation against a key")
    passing = ResponseError("OOM command not allowed")
    clients = Writes([1, foreign, foreign], [1, foreign, passing], [1])
    made = RedisArchive(cast("RedisClients", clients), prefix="p", ttl_s=10)
    made.apply([])
    assert (made.refusal, made.refused) == (str(foreign), 2)
    with pytest.raises(OSError, match="OOM"):
        made.apply([])
    made.apply([])
    assert (made.refusal, made.refused) == (None, 2)


def test_a_write_waits_for_as_many_replicas_and_never_for_ever():
    clients = Writes([1], [2], [3])
    made = RedisArchive(
        cast("RedisClients", clients), prefix="p", ttl_s=10, wait_replicas=2, wait_s=0.0001
    )
    short = []
    for _ in range(3):
        made.apply([])
        short.append(made.shortfall)
    assert short == ["1 of 2 replicas have it", None, None]
    assert clients.asked == [("WAIT", 2, 1)] * 3


class Finds:
    """A client whose names have so many homes each, and which counts the trips to it."""

    def __init__(self, homes: int) -> None:
        self._homes = [b"home %d" % number for number in range(homes)]
        self._answers: list[Any] = []
        self.trips: list[list[str]] = []
        self.waiting = self

    def pipeline(self, **_: object) -> Finds:
        self._answers = []
        self.trips.append([])
        return self

    def zrevrange(self, _: bytes, start: int, end: int) -> None:
        self.trips[-1].append("look")
        self._answers.append(self._homes[start : end + 1])

    def zremrangebyrank(self, *_: object) -> None:
        self.trips[-1].append("trim")
        self._homes = self._homes[:MAX_HOMES]

    async def execute(self) -> list[Any]:
        return self._answers


async def test_homes_that_nobody_looks_for_are_dropped_once():
    clients = Finds(MAX_HOMES + 4)
    made = RedisArchive(cast("RedisClients", clients), prefix="p", ttl_s=10)
    for _ in range(2):
        assert await made.find([b"name"]) == [f"home {number}" for number in range(MAX_HOMES)]
    assert clients.trips == [["look"], ["trim"], ["look"]], "a request waits for each"


class Renews:
    """A client of an empty server, which counts the keys that are kept for longer."""

    def __init__(self) -> None:
        self.renewed: list[bytes] = []
        self.waiting = self

    async def xrange(self, *_: object, **__: object) -> list[Any]:
        return []

    def pipeline(self, **_: object) -> Renews:
        return self

    def expire(self, key: bytes, _: int) -> None:
        self.renewed.append(key)

    async def execute(self) -> list[Any]:
        return []


async def test_what_is_looked_at_is_kept_for_longer_and_not_at_each_look(monkeypatch):
    clients, ttl_s = Renews(), 1000
    made = RedisArchive(cast("RedisClients", clients), prefix="p", ttl_s=ttl_s)
    renewed = []
    for now in (0.0, ttl_s / RENEWALS - 1, ttl_s / RENEWALS, 2 * ttl_s):
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda now=now: now)
        await made.news("home", "", lambda _: False)
        renewed.append(len(clients.renewed))
    monkeypatch.undo()
    assert renewed == [3, 3, 6, 9]
    assert len(set(clients.renewed)) == 3
