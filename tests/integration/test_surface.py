"""What reaches a worker past the doors: bodies that would kill it do not."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from tests.integration.any_worker import any_worker
from tests.integration.gateway import CHAT, served, serving, user
from tests.stack import tiny_tokenizer

SIZE = tiny_tokenizer().vocab_size
BAD_IDS: list[Any] = [[SIZE], [-1], [2**31], [2**70], [1, True], [1.5, 1], [1, "a"], [1, None]]


def killing(ids: Any) -> list[tuple[str, dict[str, Any]]]:
    """Every route of SGLang's that takes ids, with these."""
    params = {"sampling_params": {"max_new_tokens": 1}}
    return [
        ("/v1/score", {"query": [3], "items": [ids], "label_token_ids": [5]}),
        ("/v1/score", {"query": ids, "items": [[1]], "label_token_ids": [5]}),
        ("/v1/score", {"query": [3], "items": [[1]], "label_token_ids": ids}),
        ("/v1/score", {"query": [3], "items": [[1]], "label_token_ids": [[1], ids]}),
        ("/vertex_generate", {"instances": [{"input_ids": ids}], "parameters": params}),
        (
            "/vertex_generate",
            {
                "instances": [{"text": "a"}],
                "parameters": {"sampling_params": {"stop_token_ids": ids}},
            },
        ),
        ("/vertex_generate", {"instances": [{"text": "a"}], "parameters": {"input_ids": ids}}),
        ("/encode", {"input_ids": ids}),
        ("/encode", {"input_ids": [[1], ids]}),
        ("/classify", {"input_ids": ids}),
        ("/v1/embeddings", {"input": ids}),
        ("/v1/embeddings", {"input": [[1, 2], ids]}),
        ("/v1/classify", {"input": ids}),
        ("/pooling", {"input": ids}),
        ("/v1/rerank", {"query": ids, "documents": ["a"]}),
        ("/rerank", {"query": "a", "documents": [ids]}),
        ("/api/generate", {"prompt": "a", "options": {"stop_token_ids": ids}}),
        ("/api/generate", {"prompt": ids}),
        ("/embed", {"some": {"field": {"of": [{"tomorrow": ids}]}}}),
    ]


@pytest.mark.parametrize("prefix", ["", "/sessions/s"])
@pytest.mark.parametrize("ids", BAD_IDS, ids=str)
async def test_no_id_outside_the_vocabulary_reaches_a_worker(prefix, ids):
    async with any_worker() as worker, serving(worker.url) as router:
        for path, body in killing(ids):
            for spelled in (path, f"{path}/", f"/{path[1:].replace('/', '%2F')}"):
                raw = orjson.dumps(body) if 2**70 not in ids else str(body).replace("'", '"')
                async with router.http.post(prefix + spelled, data=raw) as answer:
                    assert answer.status == 400, (path, body, await answer.read())
        assert worker.heard == []


@pytest.mark.parametrize(
    "number", [float(SIZE), 1e30, -1.0, str(SIZE), " -1 ", "9" * 100, f"{SIZE}.0"]
)
async def test_a_number_that_sglang_would_take_for_such_an_id_is_one(number):
    async with any_worker() as worker, serving(worker.url) as router:
        for path, body in (
            ("/v1/score", {"query": [number], "items": ["a"], "label_token_ids": [5]}),
            ("/v1/score", {"query": "a", "items": [[number]], "label_token_ids": [5]}),
            ("/v1/score", {"query": "a", "items": ["a"], "label_token_ids": [number]}),
            ("/v1/embeddings", {"input": [[number]]}),
            ("/encode", {"input_ids": [number]}),
        ):
            async with router.http.post(path, json=body) as answer:
                assert answer.status == 400, (path, body)
        assert worker.heard == []


async def test_texts_may_be_numbers():
    texts = ["123456789", "2024", "-5"]
    async with any_worker() as worker, serving(worker.url) as router:
        for path, body in (
            ("/v1/embeddings", {"input": texts}),
            ("/v1/score", {"query": "99999999", "items": texts}),
            ("/v1/rerank", {"query": "99999999", "documents": texts}),
            ("/encode", {"text": [["99999999", "a"], ["b", "-1"]]}),
        ):
            async with router.http.post(path, json=body) as answer:
                assert answer.status == 200, (path, await answer.read())
        assert len(worker.heard) == 4


async def test_ids_of_the_vocabulary_do():
    async with any_worker() as worker, serving(worker.url) as router:
        asked = killing([0, SIZE - 1])
        for path, body in asked:
            async with router.http.post(path, data=orjson.dumps(body)) as answer:
                assert answer.status == 200, (path, await answer.read())
        assert [h.body for h in worker.heard] == [orjson.dumps(body) for _, body in asked]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ""}),
        ("/v1/embeddings", {"input": ["a", ""]}),
        ("/v1/embeddings", {"input": []}),
        ("/encode", {"text": ""}),
        ("/encode", {"input_ids": [[1], []]}),
        ("/encode", {"input_ids": []}),
        ("/classify", {"input_ids": [1, None]}),
        ("/vertex_generate", {"instances": [{"input_ids": [5.5]}]}),
        ("/vertex_generate", {"instances": [{"input_ids": [None]}]}),
        ("/vertex_generate", {"instances": [{"input_ids": [[1], [2, 0.5]]}]}),
        ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [1, 2.5]}),
        ("/encode", {"input_ids": json.loads("[" * 200 + "0.5" + "]" * 200)}),
        ("/v1/score", {"query": "", "items": ["a"]}),
        ("/vertex_generate", {"instances": [{"text": ""}]}),
        ("/vertex_generate", {"instances": [{"text": "a"}], "parameters": {"sampling_params": 5}}),
        (
            "/vertex_generate",
            {"instances": [{"text": "a"}], "parameters": {"sampling_params": {"choice": 1}}},
        ),
        ("/v1/score", {"query": "a", "items": ["b"], "embed_override_token_id": SIZE}),
        ("/v1/score", {"query": "a", "items": ["b"], "score_extraction_token": -1}),
        ("/encode", {"text": "a", "session_params": {"foo": 1}}),
        ("/encode", {"text": "a", "image_data": "file:///etc/passwd"}),
        ("/v1/decisions", {"input": "a", "images": ["http://169.254.169.254/"], "questions": []}),
        ("/encode", {"text": "a", "logit_bias": {str(SIZE): 1}}),
    ],
)
async def test_other_bodies_that_no_worker_survives_are_refused_too(path, body):
    async with any_worker() as worker, serving(worker.url) as router:
        async with router.http.post(path, data=orjson.dumps(body)) as answer:
            assert answer.status == 400, await answer.read()
        assert worker.heard == []


@pytest.mark.parametrize(
    "raw", [b"[", b"[1]", b'"a"', b"\xff", b'{"input_ids": [NaN]}', b"[" * 10**5]
)
async def test_what_is_not_a_json_object_goes_nowhere(raw):
    async with any_worker() as worker, serving(worker.url) as router:
        async with router.http.post("/v1/score", data=raw) as answer:
            assert (answer.status, (await answer.json())["error"]["type"]) == (
                400,
                "invalid_request_error",
            )
        assert worker.heard == []


async def test_numbers_that_are_not_ids_are_fine():
    body = {
        "query": "a",
        "items": ["b"],
        "query_embed_overrides": [[0.5, 1.5]],
        "logprob_start_len": [-1, -1],
        "bootstrap_room": [2**40],
        "dimensions": 5,
        "temperature": 1.5,
        "rid": ["x", "y"],
    }
    async with any_worker() as worker, serving(worker.url) as router:
        async with router.http.post("/v1/score", json=body) as answer:
            assert answer.status == 200, await answer.read()
        assert len(worker.heard) == 1


@pytest.mark.parametrize("path", ["/invocations", "/sessions/s/invocations", "/invocations/"])
async def test_amazons_path_is_chats(path):
    async with served() as (router, worker):
        status, reply = await router.post(path, {"messages": [user("hi")], "max_tokens": 2})
        assert (status, reply["object"]) == (200, "chat.completion")
        assert len(router.gateway.store) == 1
    assert len(worker.requests) == 1


@pytest.mark.parametrize("path", ["/vertex_generate", "/api/generate", "/api/chat"])
async def test_aliases_that_no_door_reads_are_the_admins(path):
    keys: Any = {"api_key": "KEY", "admin_api_key": "ADMIN"}
    async with any_worker() as worker, serving(worker.url, **keys) as router:
        for key, status in (("KEY", 401), ("ADMIN", 200)):
            headers = {"Authorization": f"Bearer {key}"}
            async with router.http.post(path, json={"prompt": "a"}, headers=headers) as answer:
                assert answer.status == status
        assert len(worker.heard) == 1


@pytest.mark.parametrize(
    "path",
    ["/freeze_gc", "/slow_down", "/set_trace_level", "/weights_checker", "/open_session"],
)
async def test_what_changes_a_worker_takes_no_get(path):
    async with any_worker() as worker, serving(worker.url) as router:
        for spelled in (path, f"{path}/", f"/sessions/s{path}"):
            async with router.http.get(spelled) as answer:
                assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert worker.heard == []
        async with router.http.post(path) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_ids_beside_a_picture_are_checked_too(stream):
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    body = {"messages": [user([part])], "stream": stream}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"enum": [10**9]}}}
    async with any_worker() as worker, serving(worker.url, enable_multimodal=True) as router:
        for harm in (
            {"stop_token_ids": [SIZE]},
            {"logit_bias": {str(SIZE): 1}},
            {"input_ids": [-1]},
            {"custom_logit_processor": "x"},
            {"session_params": {"foo": 1}},
            {"messages": [user([{**part, "image_url": {"url": "file:///etc/passwd"}}])]},
        ):
            async with router.http.post(CHAT, json={**body, **harm}) as answer:
                assert answer.status == 400, harm
        assert worker.heard == []
        assert router.gateway.context.media.passed == 0
        async with router.http.post(CHAT, json={**body, "tools": [tool]}) as answer:
            assert answer.status == 200
        assert len(worker.heard) == 1


async def test_a_chat_that_the_router_does_not_serve_is_checked_on_its_way():
    body = {"messages": [user("a")], "logit_bias": {str(SIZE): 1}}
    settings: Any = {"enable_openai_chat_completion": False}
    async with any_worker() as worker, serving(worker.url, **settings) as router:
        async with router.http.post(CHAT, json=body) as answer:
            assert answer.status == 400
        del body["logit_bias"]
        async with router.http.post(CHAT, json=body) as answer:
            assert answer.status == 200
        assert len(worker.heard) == 1
