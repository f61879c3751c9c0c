"""Worker groups: a teacher scores the rows of a session, token by token, aligned by our ids."""

from __future__ import annotations

import asyncio
import io
import math
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet
import pytest
import safetensors.numpy

from slime_router.errors import SetupError
from slime_router.testing import FakeWorker
from tests.integration.gateway import Served, serving, tiny_worker, until
from tests.stack import tiny_tokenizer

SCORE = "/sessions/s/score"
TEACHER = {"worker_group": "teacher"}


@asynccontextmanager
async def taught(**settings: Any) -> AsyncIterator[tuple[Served, FakeWorker, FakeWorker]]:
    """A router with a worker, and another one that is the group `teacher`."""
    async with (
        tiny_worker() as worker,
        tiny_worker(weight_version="wise") as teacher,
        serving(worker.url, worker_group=(("teacher", teacher.url),), **settings) as router,
    ):
        yield router, worker, teacher


async def play(router: Served, worker: FakeWorker) -> None:
    """Two rows: one of two turns, and one of a single turn."""
    for prompt, output in (([5, 6], [11, 12]), ([5, 6, 11, 12, 7], [13]), ([9, 8], [21, 22, 23])):
        worker.script(output)
        params = {"max_new_tokens": len(output)}
        body = {"input_ids": prompt, "sampling_params": params}
        status, _ = await router.post("/sessions/s/generate", body)
        assert status == 200


def by_group(column: list[dict[str, Any]] | None) -> dict[str, Any]:
    return {each["worker_group"]: each["values"] for each in column or ()}


def given(position: int) -> float:
    """What a worker without a model gives the token at a position of its prompt."""
    return -0.25 * (position % 8 + 1)


async def test_rows_have_what_the_teacher_thinks_of_their_responses():
    async with taught() as (router, worker, teacher):
        await play(router, worker)
        status, reply = await router.post(SCORE, {**TEACHER, "top_logprobs": 2})
        assert (status, reply) == (
            200,
            {
                "session_id": "s",
                "worker_group": "teacher",
                "rows": 2,
                "tokens": 7,
                "weight_versions": ["wise"],
            },
        )
        _, body = await router.get("/sessions/s/rows")
        for row in body["rows"]:
            count, start = len(row["tokens"]), len(row["tokens"]) - row["response_length"]
            logprobs = row["teacher_logprobs"]["teacher"]
            assert logprobs == [None] * start + [given(n) for n in range(start, count)]
            ids = row["teacher_top_ids"]["teacher"]
            assert ids[:start] == [[-1, -1]] * start
            assert ids[start:] == [[token, token + 1] for token in row["tokens"][start:]]
            assert row["teacher_top_logprobs"]["teacher"][start] == [
                given(start),
                given(start) - 1,
            ]
            assert row["teacher_versions"] == {"teacher": "wise"}
        assert len(worker.requests) == 3, "the policy's own workers score nothing"
        sent = {tuple(each.body["input_ids"]): each.body for each in teacher.requests}
        assert sent.keys() == {tuple(row["tokens"]) for row in body["rows"]}
        for row in body["rows"]:
            asked = sent[tuple(row["tokens"])]
            start = len(row["tokens"]) - row["response_length"]
            assert asked["logprob_start_len"] == start - 1
            assert asked["sampling_params"]["max_new_tokens"] == 0
            assert asked["top_logprobs_num"] == 2


async def test_every_format_has_them():
    async with taught() as (router, worker, _):
        await play(router, worker)
        await router.post(SCORE, {**TEACHER, "top_logprobs": 1})
        worker.script([31])  # a row that was not scored
        body = {"input_ids": [3], "sampling_params": {"max_new_tokens": 1}}
        await router.post("/sessions/s/generate", body)

        async def raw(form: str) -> bytes:
            async with router.http.get(f"/sessions/s/rows?format={form}") as response:
                return await response.read()

        rows = orjson.loads(await raw("json"))["rows"]
        assert "teacher_logprobs" not in rows[-1]
        wanted = [row.get("teacher_logprobs", {}).get("teacher") for row in rows]
        samples = orjson.loads(await raw("slime"))["samples"]
        for row, sample, whole in zip(rows, samples, wanted, strict=True):
            found = sample.get("teacher_logprobs", {}).get("teacher")
            assert found == (None if whole is None else whole[-row["response_length"] :])
        columns = safetensors.numpy.load(await raw("safetensors"))
        with np.load(io.BytesIO(await raw("npz"))) as archive:
            arrays = dict(archive)
        for name in ("teacher_logprobs", "teacher_top_ids", "teacher_top_logprobs"):
            column = columns[f"{name}.teacher"]
            assert np.array_equal(arrays[f"{name}.teacher"], column, equal_nan=True)
            assert len(column) == len(columns["tokens"])
        plain = [
            value
            for row, whole in zip(rows, wanted, strict=True)
            for value in (whole or [None] * len(row["tokens"]))
        ]
        flat = columns["teacher_logprobs.teacher"].tolist()
        assert [None if math.isnan(value) else value for value in flat] == plain
        assert orjson.loads(arrays["meta"].tobytes())["rows"][0]["teacher_versions"] == {
            "teacher": "wise"
        }
        table = pyarrow.parquet.read_table(io.BytesIO(await raw("parquet"))).to_pylist()
        for written, row, whole in zip(table, rows, wanted, strict=True):
            found = by_group(written["teacher_logprobs"]).get("teacher", [])
            if whole is None:
                assert found == []
            else:
                assert [None if math.isnan(value) else value for value in found] == whole
                ids = by_group(written["teacher_top_ids"])["teacher"]
                assert ids == row["teacher_top_ids"]["teacher"]


async def test_the_last_token_of_the_vocabulary_is_known_by_its_place():
    """SGLang writes it as 0; no other token may be."""
    last = tiny_tokenizer().vocab_size - 1
    async with taught() as (router, worker, teacher):
        worker.script([11, last, 12])
        params = {"max_new_tokens": 3, "ignore_eos": True}
        body = {"input_ids": [5, last, 6], "sampling_params": params}
        await router.post("/sessions/s/generate", body)
        status, _ = await router.post(SCORE, TEACHER)
        assert status == 200
        _, rows = await router.get("/sessions/s/rows")
        found = rows["rows"][0]["teacher_logprobs"]["teacher"]
        assert found == [None, None, None, given(3), given(4), given(5)]
        for _ in range(3):
            wrong = [[None, 6, None], [-1.0, 0, None], [-1.0, 0, None], [-1.0, 12, None]]
            teacher.script([1], input_token_logprobs=wrong)
        assert (await router.post(SCORE, TEACHER))[0] == 502


async def test_groups_are_kept_apart_and_a_second_score_takes_the_place_of_the_first():
    async with (
        tiny_worker() as worker,
        tiny_worker(weight_version="a") as one,
        tiny_worker(weight_version="b") as other,
        serving(worker.url, worker_group=(("teacher", one.url), ("critic", other.url))) as router,
    ):
        await play(router, worker)
        for _ in range(2):
            for group in ("teacher", "critic"):
                status, _ = await router.post(SCORE, {"worker_group": group})
                assert status == 200
        one.weight_version = "c"
        await router.post(SCORE, TEACHER)
        _, body = await router.get("/sessions/s/rows")
        assert [row["teacher_versions"] for row in body["rows"]] == [
            {"teacher": "c", "critic": "b"}
        ] * 2
        assert "teacher_top_ids" not in body["rows"][0]
        await router.http.delete("/sessions/s")
        [size] = [router.gateway.store.sessions._bytes.taken("")]
        assert size == 0


async def test_scoring_is_no_export():
    async with taught() as (router, worker, _):
        await router.post("/sessions", {"session_id": "s"})
        await play(router, worker)
        await router.post("/sessions/s/close", {})
        await router.post(SCORE, TEACHER)
        assert not router.gateway.store.sessions.get("s").was_exported


async def test_the_options_of_rows_say_which_rows_are_scored():
    async with taught() as (router, worker, _):
        await play(router, worker)
        status, reply = await router.post(SCORE, {**TEACHER, "max_len": 4})
        assert (status, reply["rows"], reply["tokens"]) == (200, 1, 2)
        _, body = await router.get("/sessions/s/rows?max_len=4")
        assert "teacher_logprobs" in body["rows"][0]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "worker_group"),
        ({"worker_group": 3}, 400, "worker_group"),
        ({"worker_group": "nobody"}, 404, "worker_group"),
        ({**TEACHER, "top_logprobs": -1}, 400, "top_logprobs"),
        ({**TEACHER, "top_logprobs": 129}, 400, "top_logprobs"),
        ({**TEACHER, "top_logprobs": 1.0}, 400, "top_logprobs"),
        ({**TEACHER, "top_logprobs": False}, 400, "top_logprobs"),
        ({**TEACHER, "top_logprobs": ""}, 400, "top_logprobs"),
        ({**TEACHER, "group": 1}, 400, "group"),
        ({**TEACHER, "max_len": 0}, 400, "max_len"),
    ],
)
async def test_what_is_wrong_is_named(body, status, param):
    async with taught() as (router, worker, teacher):
        await play(router, worker)
        found, reply = await router.post(SCORE, body)
        assert (found, reply["error"]["param"]) == (status, param)
        assert teacher.requests == []


async def test_a_session_that_is_not_there_is_not_scored():
    async with taught() as (router, *_):
        status, reply = await router.post("/sessions/none/score", TEACHER)
        assert (status, reply["error"]["code"]) == (404, "session_not_found")


LIES: dict[str, dict[str, Any]] = {
    "other tokens": {"input_token_logprobs": [[None, 6, None], [-1.0, 99, None]]},
    "none": {"input_token_logprobs": None},
    "a gap": {"input_token_logprobs": [[None, 6, None], [None, 11, None]]},
    "a positive one": {"input_token_logprobs": [[None, 6, None], [0.5, 11, None]]},
    "no tops": {"input_top_logprobs": [None]},
    "tops outside": {"input_top_logprobs": [None, [[-1.0, 10**7, None]]]},
}


@pytest.mark.parametrize("meta", LIES.values(), ids=LIES)
async def test_what_a_teacher_cannot_have_computed_is_refused(meta):
    async with taught() as (router, worker, teacher):
        worker.script([11])
        body = {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 1}}
        await router.post("/sessions/s/generate", body)
        for _ in range(3):
            teacher.script([1], **meta)
        status, reply = await router.post(SCORE, {**TEACHER, "top_logprobs": 1})
        assert (status, reply["error"]["code"]) == (502, "upstream_error")
        assert len(teacher.requests) == 3
        _, rows = await router.get("/sessions/s/rows")
        assert "teacher_logprobs" not in rows["rows"][0]


async def test_a_teacher_that_breaks_off_is_asked_again():
    async with taught() as (router, worker, teacher):
        await play(router, worker)
        teacher.drop_next(after_bytes=20)
        status, reply = await router.post(SCORE, TEACHER)
        assert (status, reply["rows"]) == (200, 2)


async def test_a_teachers_refusal_is_the_answer():
    async with taught() as (router, worker, teacher):
        await play(router, worker)
        refusal = orjson.dumps({"error": {"message": "too long"}})
        for _ in range(2):
            teacher.answer_next(400, refusal)
        status, reply = await router.post(SCORE, TEACHER)
        assert (status, reply["error"]["message"]) == (400, "too long")


@pytest.mark.parametrize(
    "groups",
    [
        (("teacher",),),
        (("http://127.0.0.1:1",),),
        (("a", "http://127.0.0.1:1"), ("a", "http://127.0.0.1:2")),
        (("a", "no address"),),
    ],
)
async def test_groups_that_cannot_be_keep_the_router_from_starting(groups):
    with pytest.raises(SetupError):
        async with serving(worker_group=groups):
            pass


async def told(router: Served) -> list[dict[str, Any]]:
    """What the rows say of teachers."""
    _, body = await router.get("/sessions/s/rows")
    names = ("teacher_logprobs", "teacher_top_ids", "teacher_top_logprobs", "teacher_versions")
    return [{name: row[name] for name in names} for row in body["rows"]]


async def test_scores_outlive_the_router(tmp_path):
    settings = {"journal": str(tmp_path)}
    async with taught(**settings) as (router, worker, teacher):
        await play(router, worker)
        await router.post(SCORE, {**TEACHER, "top_logprobs": 2})
        before = await told(router)
        taken = router.gateway.store.sessions._bytes.taken("")
        assert taken > 0
        group = (("teacher", teacher.url),)
        copy = tmp_path.with_name("copy")  # as it is when the router is killed now
        shutil.copytree(tmp_path, copy)
        async with serving(worker.url, worker_group=group, journal=str(copy)) as again:
            while (await again.get("/readiness"))[0] == 503:
                pass
            assert await told(again) == before
            assert again.gateway.store.sessions._bytes.taken("") == taken
            await again.http.delete("/sessions/s")
            assert again.gateway.store.sessions._bytes.taken("") == 0


@pytest.mark.parametrize("max_memory", [None, 1])
async def test_scores_are_those_of_all_routers_that_share_a_journal(tmp_path, max_memory):
    settings = {"journal": str(tmp_path), "journal_shared": True, "max_memory": max_memory}
    async with taught(**settings) as (one, worker, teacher):
        group = (("teacher", teacher.url),)
        async with serving(worker.url, worker_group=group, **settings) as two:
            for router in (one, two):
                archive = router.gateway.journal
                assert archive is not None
                await archive.read()
            await play(one, worker)
            await told_nothing(two)
            await one.post(SCORE, {**TEACHER, "top_logprobs": 2})
            assert await told(two) == await told(one)
            teacher.weight_version = "wiser"
            await two.post(SCORE, TEACHER)
            await two.post("/sessions/other/generate", {"input_ids": [3]})  # its home may leave
            versions = [
                row["teacher_versions"] for row in (await one.get("/sessions/s/rows"))[1]["rows"]
            ]
            assert versions == [{"teacher": "wiser"}] * 2
            for router in (one, two):
                router.gateway.store.check_integrity()


async def told_nothing(router: Served) -> None:
    _, body = await router.get("/sessions/s/rows")
    assert not [name for row in body["rows"] for name in row if name.startswith("teacher")]


async def test_a_session_that_is_deleted_while_it_is_scored_gets_a_404():
    async with taught() as (router, worker, teacher):
        await play(router, worker)
        teacher.hold()
        asked = asyncio.create_task(router.post(SCORE, TEACHER))
        await until(lambda: len(teacher.requests) == 2)
        await router.http.delete("/sessions/s")
        teacher.release()
        status, reply = await asked
        assert (status, reply["error"]["code"]) == (404, "session_not_found")


async def test_the_groups_are_listed_with_their_workers_and_weights():
    async with taught(policy="round_robin") as (router, worker, teacher):
        await play(router, worker)
        await router.post(SCORE, TEACHER)
        status, body = await router.get("/worker_groups")
        assert (status, body["total"]) == (200, 1)
        [group] = body["groups"]
        assert (group["name"], group["policy"]) == ("teacher", "round_robin")
        assert (group["is_healthy"], group["weight_versions"]) == (True, ["wise"])
        [shown] = group["workers"]
        assert (shown["url"], shown["weight_version"]) == (teacher.url, "wise")
        assert (await router.get("/workers"))[1]["total"] == 1, "those of the policy alone"
        await teacher.refuse_connections()
        assert (await router.post(SCORE, TEACHER))[0] >= 500
        [group] = (await router.get("/worker_groups"))[1]["groups"]
        assert group["is_healthy"] is False
        await teacher.accept_connections()


async def test_where_there_are_keys_only_the_admin_sees_the_groups():
    async with taught(api_key="one", admin_api_key="other") as (router, *_):
        for key, wanted in (("one", 401), ("other", 200)):
            headers = {"Authorization": f"Bearer {key}"}
            async with router.http.get("/worker_groups", headers=headers) as response:
                assert response.status == wanted
    async with serving() as router:
        assert await router.get("/worker_groups") == (200, {"groups": [], "total": 0})
