"""A Redis whose answers are not of their form counts as away: others may write to our keys."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
from redis.exceptions import ResponseError

from slime_router.archive.port import ArchiveDown
from slime_router.archive.redis import RedisArchive
from slime_router.archive.redis_client import RedisClients

Asked = Callable[[RedisArchive], Coroutine[Any, Any, object]]


class Says:
    """A client to which everything is answered with the same."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.waiting = self

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
    "states": lambda a: a.states(["s"]),
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
