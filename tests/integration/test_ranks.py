"""Workers with data-parallel ranks: each conversation stays at the rank that has its tokens."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from slime_router.pool.policy import make_policy
from slime_router.pool.pool import WorkerPool
from slime_router.pool.rank import RANK_FIELD
from slime_router.pool.worker import Need
from slime_router.testing import FakeWorker
from slime_router.types import token_ids
from tests.integration.gateway import CHAT, Served, assistant, serving, tiny_worker, until, user

A, B = "http://a:1", "http://b:2"
LONG = "A long beginning, so that cached tokens are worth more than an idle rank. " * 20


def ranked(worker: FakeWorker, count: int) -> FakeWorker:
    worker.queued = [0] * count
    return worker


async def known(router: Served, count: int) -> None:
    pool = router.gateway.pool
    (worker,) = pool.list()
    await until(lambda: len(pool.ranks.of(worker)) == count)


def asked_ranks(worker: FakeWorker) -> list[Any]:
    return [request.body.get(RANK_FIELD) for request in worker.requests]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "policy", ["cache_aware", "least_inflight", "consistent_hashing", "round_robin"]
)
async def test_a_conversation_stays_at_its_rank_and_others_go_elsewhere(policy, stream):
    async with (
        tiny_worker() as worker,
        serving(ranked(worker, 4).url, health_check_interval_s=0.01, policy=policy) as router,
    ):
        await known(router, 4)
        talks: list[list[Any]] = [[user(f"{number} {LONG}")] for number in range(8)]
        for _ in range(3):
            for number, messages in enumerate(talks):
                headers = {"x-session-id": f"s{number}"}
                text, _ = await router.chat(messages, headers=headers, stream=stream)
                messages += [assistant(text), user("And then?")]
        ranks = asked_ranks(worker)
        assert ranks[:8] == ranks[8:16] == ranks[16:]
        assert len({*ranks}) > (1 if policy == "consistent_hashing" else 3)
        dp_sizes = [each["dp_size"] for each in (await router.get("/workers"))[1]["workers"]]
        assert dp_sizes == [4]
        assert not any(rank.in_flight for rank in router.gateway.pool.ranks.of(_only(router)))


def _only(router: Served) -> Any:
    (worker,) = router.gateway.pool.list()
    return worker


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [user("Hi")]}),
        ("/generate", {"input_ids": [5, 6]}),
        ("/generate", {"text": "Hi", "stream": True}),
        ("/inference/v1/generate", {"token_ids": [5, 6], "sampling_params": {}}),
    ],
)
async def test_the_rank_that_a_client_names_is_the_one_that_it_gets(path, body):
    async with (
        tiny_worker() as worker,
        serving(ranked(worker, 3).url, health_check_interval_s=0.01) as router,
    ):
        await known(router, 3)
        names = {} if path.startswith("/inference") else {RANK_FIELD: 2}
        for fields, headers in ((names, {}), ({}, {"x-data-parallel-rank": "2"})):
            async with router.http.post(path, json={**body, **fields}, headers=headers) as reply:
                assert reply.status == 200, await reply.text()
                await reply.read()
        expected = [2 if names else asked_ranks(worker)[0], 2]
        assert asked_ranks(worker) == expected
        if path == "/generate":
            ids = token_ids(worker.requests[0].body["input_ids"])
            assert ids.tolist() == worker.requests[1].body["input_ids"]


async def test_a_rank_that_is_not_there_is_the_workers_to_refuse():
    async with (
        tiny_worker() as worker,
        serving(ranked(worker, 2).url, health_check_interval_s=0.01) as router,
    ):
        await known(router, 2)
        await router.post(CHAT, {"messages": [user("Hi")], RANK_FIELD: 7})
        assert asked_ranks(worker) == [7]


@pytest.mark.parametrize("numbers", [[0], [1, 0], [0, 2], [None, None], ["0", "1"]])
async def test_where_not_all_ranks_are_there_none_is_named(numbers):
    class Odd(FakeWorker):
        async def _control(self, request: web.Request) -> web.Response:
            answer = await super()._control(request)
            if request.path != "/v1/loads":
                return answer
            return web.json_response({"loads": [{"dp_rank": number} for number in numbers]})

    async with Odd() as worker, serving(worker.url, health_check_interval_s=0.01) as router:
        await until(lambda: sum(each.path == "/v1/loads" for each in worker.controls) > 1)
        assert router.gateway.pool.ranks.of(_only(router)) == ()


def pool_of(*urls: str, policy: Any = "cache_aware", count: int = 2) -> WorkerPool:
    pool = WorkerPool(urls, policy=make_policy(policy))
    for worker in pool.list():
        pool.ranks.reported(worker, [(0, 1_000)] * count)
    return pool


def prompt(number: int, size: int = 640) -> Need:
    return Need(ids=token_ids([number] * size))


def test_ranks_are_counted_with_their_worker_and_apart():
    pool = pool_of(A)
    (worker,) = pool.list()
    first, second = pool.lease(prompt(1)), pool.lease(prompt(2))
    ranks = pool.ranks.of(worker)
    assert {first.place, second.place} == {*ranks}
    assert ([rank.in_flight for rank in ranks], worker.in_flight) == ([1, 1], 2)
    assert [rank.pending_tokens for rank in ranks] == [640, 640]
    first.answered()
    second.close()
    assert sum(rank.pending_tokens for rank in ranks) == worker.pending_tokens == 0
    assert ([rank.in_flight for rank in ranks].count(0), worker.in_flight) == (1, 1)
    first.close()
    first.close()
    assert [rank.in_flight for rank in ranks] == [0, 0]


def test_a_flush_and_a_restart_empty_the_ranks():
    pool = pool_of(A, B)
    home = pool.lease(prompt(1)).place
    busy = [pool.lease(prompt(1)) for _ in range(3)]
    assert {lease.place for lease in busy} == {home}  # its tokens are worth the company
    pool.held(home, "", prompt(1).ids)
    pool.flushed(busy[0].worker)
    assert pool.lease(prompt(1)).place is not home
    pool.ranks.reported(busy[0].worker, [(0, 1_000)] * 4)
    assert len(pool.ranks.of(busy[0].worker)) == 4
    for lease in busy:
        lease.close()
    pool.ranks.reported(busy[0].worker, [(5, 1_000)])
    assert pool.ranks.of(busy[0].worker) == ()


def test_a_pair_matches_its_ranks_itself():
    pool = WorkerPool()
    worker = pool.add(A, kind="decode")
    pool.ranks.reported(worker, [(0, 1_000)] * 2)
    assert pool.lease(prompt(1)).rank is None


def test_processes_tell_each_other_the_rank_of_a_key():
    here, there = pool_of(A, B, count=3), pool_of(A, B, count=3)
    homes = {}
    for key in ("one", "two", "three", "four", "five"):
        with here.lease(Need(key=key)) as lease:
            homes[key] = lease.place.url
    assert here.sharing.take_moved_keys() == homes
    assert all(url.rpartition("@")[2] in {"0", "1", "2"} for url in homes.values())
    there.sharing.learn_keys({**homes, "odd": f"{A}@x", "gone": "http://c:3@1", "more": f"{A}@3"})
    for key, url in homes.items():
        with there.lease(Need(key=key)) as lease:
            assert lease.place.url == url


def test_what_other_processes_have_counts_for_all_ranks_alike():
    pool = pool_of(A)
    (worker,) = pool.list()
    pool.sharing.note_elsewhere(1, {A: 6})
    assert [rank.busy_with for rank in pool.ranks.of(worker)] == [3, 3]
