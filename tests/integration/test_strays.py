"""What has no route: the APIs that only workers have, wrong methods, unknown paths, websockets."""

from __future__ import annotations

import aiohttp
import orjson
import pytest
from yarl import URL

from tests.integration.any_worker import any_worker
from tests.integration.gateway import CHAT, FOUR_KEYS, serving, tiny_worker

OF_WORKERS = [
    ("/v1/embeddings", {"model": "m", "input": ["a", "b"], "encoding_format": "base64"}),
    ("/v1/embeddings", {"model": "m", "input": [[1, 2], [3]]}),
    ("/v1/rerank", {"query": "q", "documents": ["a"]}),
    ("/rerank", {"query": "q", "documents": ["a"]}),
    ("/v2/rerank", {"query": "q", "documents": ["a"]}),
    ("/v1/score", {"query": "q", "items": ["a"]}),
    ("/score", {"query": "q", "items": ["a"]}),
    ("/v1/classify", {"input": "a"}),
    ("/classify", {"text": "a"}),
    ("/pooling", {"input": "a"}),
]
OF_TOMORROW = ("/some/path/of/tomorrow", {"x": 1})


@pytest.mark.parametrize(
    ("prefix", "path", "body"),
    [
        *(("", *of) for of in (OF_TOMORROW, *OF_WORKERS)),
        *(("/sessions/s", *of) for of in OF_WORKERS if of[0] != "/score"),  # that is ours
    ],
)
async def test_an_api_that_only_workers_have_is_handed_on_unread(prefix, path, body):
    said = b'{"data": [{"embedding":"AACAPw=="}] }\n'
    raw = orjson.dumps(body) + b"  "
    async with any_worker(pieces=[said]) as worker, serving(worker.url) as router:
        before = router.footprint()[:4]
        async with router.http.post(f"{prefix}{path}?a=b", data=raw) as answer:
            assert (answer.status, await answer.read()) == (200, said)
            assert "x-slime-receipt" not in answer.headers
        assert [(h.target, h.body) for h in worker.heard] == [(f"{path}?a=b", raw)]
        assert router.footprint()[:4] == before


async def test_each_path_without_a_route_is_looked_at_by_itself():
    async with serving("http://127.0.0.1:1") as router:
        names = []
        for path in ("/v1/of/tomorrow", "/proxied/v1/messages", "/v1/of/tomorrow"):
            async with router.http.get(path) as answer:
                names.append("request-id" in answer.headers)
        assert names == [False, True, False], "Anthropic's has another name for its id"


async def test_an_upload_is_streamed_and_not_parsed():
    """In its sender's own parts; the limit on bodies holds for it too."""
    sound = bytes(range(256)) * 4000
    path = "/v1/audio/transcriptions"
    limit = len(sound) + 1000
    async with any_worker() as worker, serving(worker.url, max_payload_size=limit) as router:
        form = aiohttp.FormData()
        form.add_field("model", "whisper")
        form.add_field("file", sound, filename="a.wav", content_type="audio/wav")
        async with router.http.post(path, data=form) as answer:
            assert answer.status == 200
        [heard] = worker.heard
        assert heard.headers["Content-Type"].startswith("multipart/form-data; boundary=")
        boundary = heard.headers["Content-Type"].partition("boundary=")[2].encode()
        assert heard.body.count(boundary) == 3
        assert sound in heard.body
        form = aiohttp.FormData()
        form.add_field("file", sound + bytes(1000), filename="a.wav", content_type="audio/wav")
        async with router.http.post(path, data=form) as answer:
            assert answer.status == 413


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/realtime", 501),
        ("/v1/responses", 426),
        ("/v1/responses/", 426),
        ("/sessions/s/v1/responses", 426),
        ("/anything", 501),
    ],
)
@pytest.mark.parametrize("has_worker", [True, False])
async def test_a_websocket_is_refused_in_words(path, status, has_worker):
    """Codex, which tries one first, goes on over HTTP where that is a 426."""
    async with any_worker() as worker, serving(*[worker.url][:has_worker]) as router:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await router.http.ws_connect(path)
        assert refused.value.status == status
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
        async with router.http.get(path, headers=upgrade) as answer:
            error = (await answer.json())["error"]
            assert answer.headers["x-should-retry"] == "false"
        assert (set(error), error["code"]) == (FOUR_KEYS, "not_supported")
        assert "Websockets are not served" in error["message"]
        assert worker.heard == []


@pytest.mark.parametrize("path", ["/v1/responses/compact", "/sessions/s/v1/responses/compact"])
async def test_compaction_is_refused_in_words(path):
    async with any_worker() as worker, serving(worker.url) as router:
        status, reply = await router.post(path, {"model": "m", "input": "hi"})
        assert (status, reply["error"]["code"]) == (400, "not_supported")
        assert "Compaction is not served" in reply["error"]["message"]
        assert worker.heard == []


@pytest.mark.parametrize("has_worker", [True, False])
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("PUT", CHAT, "POST"),
        ("GET", f"/sessions/s{CHAT}", "POST"),
        ("GET", "/generate", "POST, PUT"),
        ("POST", "/health", "GET, HEAD"),
        ("POST", "/v1/responses/resp_1", "DELETE, GET, HEAD"),
        ("PATCH", "/sessions/s", "DELETE, GET, HEAD"),
    ],
)
async def test_a_path_of_our_own_says_which_methods_it_takes(has_worker, method, path, allowed):
    async with any_worker() as worker, serving(*[worker.url][:has_worker]) as router:
        async with router.http.request(method, path) as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, allowed)
            error = (await answer.json())["error"]
        assert (set(error), error["code"]) == (FOUR_KEYS, "method_not_supported")
        assert worker.heard == []


async def test_a_browsers_question_is_the_workers_to_answer():
    async with (
        any_worker() as worker,
        serving(worker.url) as router,
        router.http.options(CHAT) as answer,
    ):
        assert (answer.status, worker.heard[0].method) == (200, "OPTIONS")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/no/such/thing", 404, "unknown_url"),
        ("/sessions/s/no/such/thing", 404, "unknown_url"),
        ("/v1/embeddings", 503, "no_available_workers"),
        ("/sessions/s/v1/embeddings", 503, "no_available_workers"),
        ("/v1/audio/transcriptions", 503, "no_available_workers"),
    ],
)
async def test_without_a_worker_only_what_workers_serve_is_worth_another_try(path, status, code):
    async with serving() as router, router.http.post(path, data=b"x") as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"], set(error)) == (status, code, FOUR_KEYS)
        assert ("retry-after" in answer.headers) == (status == 503)


async def test_a_door_that_is_closed_is_a_path_like_any_other():
    async with any_worker() as worker:
        async with serving(worker.url, enable_openai_chat_completion=False) as router:
            assert (await router.post(CHAT, {"messages": []}))[0] == 200
        async with serving(enable_openai_chat_completion=False) as router:
            assert (await router.post(CHAT, {"messages": []}))[0] == 503


@pytest.mark.parametrize("path", ["/", "/health"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_router_says_that_it_runs(method, path):
    async with serving() as router, router.http.request(method, path) as answer:
        assert answer.status == 200
        assert bool(await answer.read()) == (method == "GET")


@pytest.mark.parametrize(
    "path", ["/get_model_info", "/model_info", "/get_server_info", "/server_info"]
)
async def test_a_worker_speaks_of_itself_and_without_one_the_router_does(path):
    said = b'{"max_total_num_tokens": 7}'
    async with any_worker(pieces=[said]) as worker, serving(worker.url) as router:
        for prefix in ("", "/sessions/s"):
            async with router.http.get(prefix + path) as answer:
                assert await answer.read() == said
        assert [heard.target for heard in worker.heard] == [path, path]
    async with serving(served_model_name="tiny") as router:
        status, own = await router.get(path)
    checkpoint = router.gateway.config.hf_checkpoint
    common = {"model_path": checkpoint, "tokenizer_path": checkpoint, "weight_version": None}
    if "model" in path:
        assert (status, own) == (200, {**common, "is_generation": True})
    else:
        assert own == {**common, "served_model_name": "tiny", "internal_states": []}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/chat%2Fcompletions", 200),
        ("POST", "/v1%2fcompletions", 400),  # without a prompt
        ("POST", "/%2Fgenerate", 400),
        ("POST", "/generate%2F", 400),
        ("POST", "/sessions/s/v1%2Fchat/completions", 200),
        ("GET", "/v1/chat%2Fcompletions", 405),
        ("PATCH", "/sessions/a%2Fb", 405),  # this one is part of a name
    ],
)
async def test_an_encoded_slash_leads_past_no_route_of_our_own(method, path, status):
    """Workers decode it: theirs would answer, with nothing captured."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    async with tiny_worker() as worker, serving(worker.url) as router:
        url = URL(f"{str(router.http._base_url).rstrip('/')}{path}", encoded=True)
        async with router.http.request(method, url, json=body) as answer:
            assert answer.status == status
            assert ("x-slime-receipt" in answer.headers) == (status == 200)
        assert not [heard.path for heard in worker.controls if "%" in heard.path]
