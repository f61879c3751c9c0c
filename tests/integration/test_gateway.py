"""The whole router over real HTTP: what clients are served, turn after turn."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import anthropic
import numpy as np
import pytest
import tokenizers
from tokenizers.processors import TemplateProcessing

from slime_router.testing import FakeWorker
from tests.integration.gateway import (
    CHAT,
    FOUR_KEYS,
    Served,
    assistant,
    checkpoint,
    served,
    serving,
    tiny_worker,
    until,
    user,
)
from tests.stack import tiny_tokenizer

STOP_ID = 514  # <|im_end|>


def ids_of(text: str) -> list[int]:
    ids: list[int] = tiny_tokenizer().encode(text).tolist()
    return ids


# One token for each letter: ids that no tokenizer makes of this text.
UNUSUAL = [i for c in "Hello there" for i in ids_of(c)] + [STOP_ID]


def sent_ids(worker: FakeWorker) -> list[list[int]]:
    return [request.body["input_ids"] for request in worker.requests]


async def pins(router: Served) -> int:
    """How many nodes of the tree are kept from eviction."""
    return sum(node["pins"] for node in await router.gateway.cache.dump(1000))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_every_turn_begins_with_all_tokens_of_the_turn_before(stream):
    outputs = [UNUSUAL, [*ids_of(" fine"), *ids_of(" thank"), STOP_ID], [*ids_of("last"), STOP_ID]]
    assert [*ids_of("Hello there"), STOP_ID] != UNUSUAL, "the test proves something"
    async with served() as (router, worker):
        messages = [{"role": "system", "content": "You are helpful."}]
        for index, output in enumerate(outputs):
            worker.script(output)
            messages.append(user(f"Question number {index}?"))
            text, receipt = await router.chat(messages, stream=stream)
            messages.append(assistant(text))
            ids = sent_ids(worker)[-1]
            assert receipt["reused"] + receipt["encoded"] == len(ids)
            assert receipt["status"] == ("extended" if index else "fresh")
            if index:
                held = sent_ids(worker)[-2] + outputs[index - 1]
                assert ids[: len(held)] == held
                assert receipt["reused"] == len(held)


async def test_retrieval_gives_back_what_was_sent_and_sampled():
    async with served() as (router, worker):
        worker.script(UNUSUAL)
        messages = [user("Say hello.")]
        text, _ = await router.chat(messages)
        prompt = sent_ids(worker)[0]
        whole = "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
        assert ids_of(whole) == prompt
        before = router.footprint()
        talk = {"messages": [*messages, assistant(text)]}
        by_messages = await router.post("/retrieve_from_messages_template", talk)
        by_text = await router.post("/retrieve_from_text", {"text": f"{whole}{text}<|im_end|>"})
        assert router.footprint() == before, "a look-up writes nothing"
    n, m = len(prompt), len(UNUSUAL)
    expected = {
        "tokens": prompt + UNUSUAL,
        "response": f"{whole}{text}<|im_end|>",
        "loss_mask": [0] * n + [1] * m,
        "token_length": n + m,
        "loss_mask_length": n + m,
        "rollout_logp": [0.0] * n + [-0.5 * (step % 8 + 1) for step in range(m)],
        "generation_versions": [None] * n + ["default"] * m,
    }
    assert by_messages == (200, expected)
    assert by_text == (200, {**expected, "paths": 1})


async def test_retrieval_of_a_named_session_finds_the_turn_of_that_session():
    """Two samples of one text: each is found again by its own identity."""
    usual = [*ids_of("Hello there"), STOP_ID]
    async with served() as (router, worker):
        for session, output in (("a", UNUSUAL), ("b", usual)):
            worker.script(output)
            await router.chat([user("Say hello.")], metadata={"session_id": session})
        talk = {"messages": [user("Say hello."), assistant("Hello there")]}
        found = {}
        for session in ("a", "b"):
            headers = {"x-session-id": session}
            path = "/retrieve_from_messages_template"
            _, body = await router.post(path, talk, headers=headers)
            found[session] = [
                t for t, m in zip(body["tokens"], body["loss_mask"], strict=True) if m
            ]
    assert found == {"a": UNUSUAL, "b": usual}


@pytest.mark.parametrize("named_by", ["header", "path", "body"])
async def test_the_tokens_of_a_text_are_those_of_the_named_session(named_by):
    usual = [*ids_of("Hello there"), STOP_ID]
    text = "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\nHello there<|im_end|>"
    path = "/retrieve_from_text"

    async def retrieved(router: Served, session: str | None) -> dict[str, Any]:
        where, headers, more = path, {}, {}
        if session is not None:
            where = f"/sessions/{session}{path}" if named_by == "path" else path
            headers = {"x-session-id": session} if named_by == "header" else {}
            more = {"session_id": session} if named_by == "body" else {}
        status, body = await router.post(where, {"text": text, **more}, headers=headers)
        assert status == 200
        pairs = zip(body["tokens"], body["loss_mask"], strict=True)
        return {"sampled": [t for t, m in pairs if m], **body}

    async with served() as (router, worker):
        sampled = (("a", UNUSUAL, -0.25), ("b", usual, -0.5), ("c", UNUSUAL, -0.75))
        for session, output, logprob in sampled:
            worker.script(output, logprobs=[logprob] * len(output))
            await router.chat([user("Say hello.")], metadata={"session_id": session})
        for session, output, logprob in sampled:
            found = await retrieved(router, session)
            assert found["sampled"] == output
            assert found["rollout_logp"][-1] == logprob, "the tokens are c's too, the turn is not"
            assert found["paths"] == 1
        newest = await retrieved(router, None)
        assert (newest["sampled"], newest["paths"]) == (UNUSUAL, 2)
        assert newest["rollout_logp"][-1] == -0.75
        stranger = await retrieved(router, "d")
        assert (stranger["sampled"], stranger["paths"]) == ([], 0)


async def test_retrieval_of_what_nobody_sampled_is_plain_encoding():
    async with served() as (router, _):
        status, body = await router.post("/retrieve_from_text", {"text": "Hello world"})
    assert status == 200
    assert body["tokens"] == ids_of("Hello world")
    assert set(body["loss_mask"]) == {0}
    assert set(body["rollout_logp"]) == {0.0}


async def test_a_sampled_token_without_a_logprob_is_null_and_never_certain():
    async with served() as (router, worker):
        worker.script(UNUSUAL[:2], logprobs=[-0.25, None])
        text, _ = await router.chat([user("hi")])
        talk = {"messages": [user("hi"), assistant(text)]}
        _, body = await router.post("/retrieve_from_messages_template", talk)
    assert body["rollout_logp"][-2:] == [-0.25, None]


async def test_a_look_up_pins_nothing():
    """What stays pinned can never be evicted."""
    async with served() as (router, _):
        text, _ = await router.chat([user("hi")])
        talk = {"messages": [user("hi"), assistant(text), user("more")]}
        await router.post("/retrieve_from_messages_template", talk)
        await router.post("/retrieve_from_text", {"text": "<|im_start|>user\nhi<|im_end|>\nxyz"})
        assert await pins(router) == 0


async def test_two_clients_at_once_get_their_own_replies():
    async with served() as (router, worker):
        worker.hold()
        asked = [asyncio.create_task(router.chat([user(f"client {i}")])) for i in range(2)]
        await worker.wait_running(2)
        assert router.gateway.pool.total_in_flight == 2
        worker.release()
        replies = await asyncio.gather(*asked)
        again = await asyncio.gather(
            *(
                router.chat([user(f"client {i}"), assistant(replies[i][0]), user("more")])
                for i in range(2)
            )
        )
    assert [receipt["status"] for _, receipt in again] == ["extended", "extended"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_client_that_leaves_frees_its_slot_on_the_worker_it_had(stream):
    async with (
        tiny_worker() as worker,
        tiny_worker() as other,
        serving(worker.url, other.url) as router,
    ):
        worker.hold(after_tokens=2)
        asked = asyncio.create_task(router.chat([user("a long story")], stream=stream))
        await worker.wait_running(1)
        (rid,) = worker.running
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await until(lambda: worker.aborted == [rid])
        await until(lambda: router.gateway.pool.total_in_flight == 0)
        assert other.aborted == []
        _, figures = await router.get("/metrics")
        assert set(figures["router"]["worker_loads"].values()) == {0}
        assert figures["router"]["aborts_sent"] == 1


async def test_without_a_worker_the_answer_is_503_and_nothing_is_left_behind():
    async with serving() as router:
        before = router.footprint()
        status, body = await router.post(CHAT, {"messages": [user("hi")]})
        assert status == 503
        assert set(body["error"]) == FOUR_KEYS
        assert body["error"]["code"] == "no_available_workers"
        status, body = await router.post("/v1/embeddings", {})
        assert (status, set(body["error"])) == (503, FOUR_KEYS)
        assert router.footprint()[:2] == before[:2]


async def test_a_worker_that_refuses_connections_is_passed_over():
    async with (
        tiny_worker() as dead,
        tiny_worker() as alive,
        serving(dead.url, alive.url) as router,
    ):
        await until(lambda: bool(dead.controls and alive.controls))  # health has seen both
        await dead.refuse_connections()
        for index in range(3):
            await router.chat([user(f"question {index}")])
        assert len(alive.requests) == 3
        assert dead.requests == []


async def test_three_choices_are_three_samples_of_one_prompt():
    async with served() as (router, worker):
        status, body = await router.post(CHAT, {"messages": [user("hi")], "n": 3})
        assert status == 200
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        prompts = sent_ids(worker)
        assert len(prompts) == 3
        assert prompts[0] == prompts[1] == prompts[2]
        assert len(router.gateway.store) == 3


@pytest.mark.parametrize(("capture", "turns"), [("full", 1), ("tokens", 1), ("off", 0)])
async def test_capture_says_what_is_asked_for_and_kept(capture, turns):
    async with served(capture=capture) as (router, worker):
        await router.chat([user("hi")])
        assert bool(worker.requests[0].body.get("return_logprob")) == (capture == "full")
        assert len(router.gateway.store) == turns


async def test_history_template_renders_and_keeps_the_sampled_tokens_where_the_text_does():
    async with served(history="template") as (router, worker):
        worker.script(UNUSUAL)
        text, _ = await router.chat([user("Say hello.")])
        talk = [user("Say hello."), assistant(text), user("Again.")]
        _, kept = await router.chat(talk)
        held = sent_ids(worker)[0] + UNUSUAL
        assert sent_ids(worker)[1][: len(held)] == held
        assert kept["status"] == "extended"
        _, changed = await router.chat([user("Say hello."), assistant("Other"), user("Again.")])
        third = tiny_tokenizer().decode(sent_ids(worker)[2], skip_special_tokens=False)
        assert third.count("Other") == 1
        assert changed["status"] != "extended"


async def test_without_the_chat_door_chat_goes_through_byte_for_byte():
    async with tiny_worker() as worker:
        path = "/echo/chat"  # where the fake worker says what it was sent
        settings: dict[str, Any] = {
            "enable_openai_chat_completion": False,
            "openai_chat_completion_path": path,
        }
        raw = b'{ "messages" : [],\n "n": 1.0e0, "x": "\\u00e9" }'
        async with serving(worker.url, **settings) as router:
            async with router.http.post(path, data=raw) as response:
                heard = await response.json()
            async with router.http.post(CHAT, json={"messages": [user("hi")]}) as response:
                assert response.status == 404, "the worker's own answer"
    assert heard["body"] == raw.decode("latin-1")


async def test_the_chat_door_stands_where_it_is_put():
    async with served(openai_chat_completion_path="/api/chat") as (router, worker):
        text, _ = await router.chat([user("hi")], path="/api/chat")
        assert text
        async with router.http.post(CHAT, json={"messages": [user("hi")]}) as response:
            assert response.status == 404, "the worker's own answer"
    assert len(worker.requests) == 1


async def test_an_error_has_the_shape_of_its_route_whatever_the_path_is_called():
    path = "/chat/v1/messages"
    async with served(openai_chat_completion_path=path) as (router, _):
        for prefix in ("", "/sessions/s"):
            status, body = await router.post(prefix + path, {})
            assert (status, body["error"]["param"]) == (400, "messages")


async def test_the_model_is_listed_under_its_served_name():
    name = "team/my model"
    async with served(served_model_name=name) as (router, _):
        _, listed = await router.get("/v1/models")
        assert [card["id"] for card in listed["data"]] == [name]
        assert await router.get("/v1/models/team/my%20model") == (200, listed["data"][0])
        status, body = await router.get("/v1/models/other")
        assert (status, body["error"]["code"]) == (404, "model_not_found")
        assert set(body["error"]) == FOUR_KEYS
        _, reply = await router.post(CHAT, {"messages": [user("hi")]})
        assert reply["model"] == name


async def test_anthropics_client_reads_the_list_of_models_too():
    async with served(served_model_name="mine") as (router, _):
        url = str(router.http._base_url)
        async with anthropic.AsyncAnthropic(base_url=url, api_key="none") as client:
            page = await client.models.list()
            [card] = [each async for each in page]
            assert await client.models.retrieve("mine") == card
    assert (card.id, card.type, card.display_name, page.has_more) == (
        "mine",
        "model",
        "mine",
        False,
    )
    assert card.created_at is not None


async def test_any_other_path_is_passed_through_whatever_stands_in_it():
    async with served() as (router, worker):
        assert await router.get("/a%0Ab%20c") == (404, {"detail": "Not Found"})
    assert "/a\nb c" in [control.path for control in worker.controls]


@pytest.mark.parametrize("path", ["/", "/health"])
async def test_health_answers_get_and_head(path):
    async with serving() as router:
        assert await router.get(path) == (200, {"status": "ok", "workers": 0})
        async with router.http.head(path) as response:
            assert response.status == 200
            assert await response.read() == b""


async def test_tokens_and_text_make_a_round_trip():
    text = "Grüße 🙂 <|im_end|>\n"
    async with serving() as router:
        for path in ("/tokenize", "/v1/tokenize"):
            status, body = await router.post(path, {"prompt": text})
            assert (status, body["tokens"]) == (200, ids_of(text))
            assert body["count"] == len(body["tokens"])
            assert body["max_model_len"] == 2048
        asked = {"tokens": body["tokens"], "skip_special_tokens": False}
        assert await router.post("/detokenize", asked) == (200, {"text": text, "prompt": text})
        several = ["a", "bc", ""]
        _, body = await router.post("/tokenize", {"prompt": several})
        assert body["tokens"] == [ids_of(part) for part in several]
        assert body["count"] == [len(ids_of(part)) for part in several]
        runs = {"tokens": [ids_of("a"), ids_of("bc")]}
        assert (await router.post("/v1/detokenize", runs))[1]["text"] == ["a", "bc"]


async def test_tokenize_spells_the_tokens_where_asked():
    async with served() as (router, _):
        asked = {"prompt": "Hello world", "return_token_strs": True}
        _, one = await router.post("/tokenize", asked)
        _, two = await router.post("/tokenize", {**asked, "prompt": ["Hello", "Hello world"]})
        status, refused = await router.post("/tokenize", {**asked, "return_token_strs": "yes"})
    tokenizer = tiny_tokenizer()
    names = tokenizer.spelled(np.arange(tokenizer.vocab_size))
    assert len(one["token_strs"]) == one["count"]
    assert set(one["token_strs"]) <= set(names)
    assert "".join(one["token_strs"]).replace("Ġ", " ") == "Hello world"
    assert two["token_strs"][1] == one["token_strs"]
    assert (status, refused["error"]["param"]) == (400, "return_token_strs")


@pytest.mark.parametrize(
    ("body", "is_framed"),
    [
        ({"prompt": "Hi"}, True),
        ({"prompt": "Hi", "add_special_tokens": None}, True),
        ({"prompt": ["Hi", "a"]}, True),
        ({"prompt": "Hi", "add_special_tokens": False}, False),
        ({"messages": [user("Hi")]}, False),
        ({"messages": [user("Hi")], "add_special_tokens": True}, True),
    ],
    ids=str,
)
async def test_a_prompt_is_tokenized_with_what_begins_a_text(body, is_framed, tmp_path):
    directory = shutil.copytree(checkpoint(), tmp_path / "model")
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    begin = backend.token_to_id("<|endoftext|>")
    special = [("<|endoftext|>", begin)]
    backend.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=special)
    backend.save(str(directory / "tokenizer.json"))
    async with served(hf_checkpoint=str(directory)) as (router, _):
        _, reply = await router.post("/tokenize", body)
    runs = reply["tokens"] if isinstance(body.get("prompt"), list) else [reply["tokens"]]
    assert [run[0] == begin for run in runs] == [is_framed] * len(runs)
    assert all(begin not in run[1:] for run in runs)


async def test_messages_are_tokenized_as_chat_sends_them():
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    talk: dict[str, Any] = {"messages": [user("hi")], "tools": tools}
    async with served() as (router, worker):
        await router.post(CHAT, talk)
        _, body = await router.post("/tokenize", talk)
        assert body["tokens"] == sent_ids(worker)[0]
        _, bare = await router.post("/tokenize", {**talk, "add_generation_prompt": False})
        assert bare["tokens"] == body["tokens"][: bare["count"]]
        assert bare["count"] < body["count"]
        assert await router.post("/tokenize", {**talk, "prompt": None}) == (200, body)
        prompt = await router.post("/tokenize", {"prompt": "hi"})
        assert await router.post("/tokenize", {"prompt": "hi", "messages": None}) == prompt


async def test_the_template_says_what_was_found_out():
    async with serving() as router:
        status, body = await router.get("/template")
    assert status == 200
    assert body["closer"] == "<|im_end|>"
    assert body["appends_after_user"] is True
    assert body["source"] == tiny_tokenizer().chat_template


async def test_the_figures_agree_with_the_traffic():
    async with served() as (router, worker):
        text, first = await router.chat([user("hi")])
        _, second = await router.chat([user("hi"), assistant(text), user("more")], stream=True)
        await router.post(CHAT, {"messages": "no list"})
        await router.post("/generate", {"text": "Hello", "sampling_params": {"max_new_tokens": 3}})
        _, figures = await router.get("/metrics")
        size = router.gateway.cache.size
    assert figures["router"]["worker_loads"] == {worker.url: 0}
    assert figures["router"]["active_workers"] == 1
    assert figures["router"]["total_in_flight"] == 0
    cache, chat = figures["cache"], figures["chat_completion"]
    lookups = cache["cache_hits"] + cache["cache_misses"]
    assert cache["hit_rate"] == pytest.approx(cache["cache_hits"] / lookups)
    assert 0 < cache["hit_rate"] < 1
    assert (cache["total_entries"], cache["cur_cache_size"]) == (size.nodes, size.tokens)
    assert (chat["started"], chat["finished"], chat["failed"]) == (2, 2, 0)
    assert (chat["fresh"], chat["extended"], chat["branched"]) == (1, 1, 0)
    assert chat["reused_tokens"] == first["reused"] + second["reused"]
    assert chat["encoded_tokens"] == first["encoded"] + second["encoded"]
    assert figures["generate"]["output_tokens"] == 3
    assert figures["trajectories"]["turns"] == figures["trajectories"]["recorded_turns"] == 3


# Workers come and go


async def test_workers_are_registered_as_slime_does_it():
    async with serving() as router:
        a, b = "http://10.0.0.1:1", "http://10.0.0.2:2"
        reply = {"status": "success", "worker_urls": {a: 0}}
        assert await router.post(f"/add_worker?url={a}") == (200, reply)
        reply = {"status": "success", "worker_urls": {a: 0, b: 0}}
        assert await router.post("/add_worker", {"worker_url": b + "/"}) == (200, reply)
        assert await router.post("/add_worker", {"url": b}) == (200, reply), "again does no harm"
        assert await router.get("/list_workers") == (200, {"urls": [a, b]})
        reply = {"status": "success", "worker_urls": {b: 0}}
        assert await router.post(f"/remove_worker?url={a}") == (200, reply)
        assert (await router.post("/remove_worker", {"url": b}))[1]["worker_urls"] == {}
        status, body = await router.post("/remove_worker", {"url": b})
        assert (status, set(body["error"])) == (404, FOUR_KEYS)


@pytest.mark.parametrize("path", ["/add_worker", "/remove_worker"])
@pytest.mark.parametrize("body", [None, {}, {"url": None}, {"url": 7}, {"url": ""}])
async def test_a_missing_url_is_told_in_slimes_words(path, body):
    expected = "worker_url is required (use query ?url=... or JSON body)"
    async with serving() as router:
        assert await router.post(path, body) == (400, {"error": expected})


@pytest.mark.parametrize("url", ["localhost:30000", "ftp://x", "http://", "http://a b", "x" * 5000])
@pytest.mark.parametrize("path", ["/add_worker", "/workers"])
async def test_a_url_that_is_none_is_refused(path, url):
    async with serving() as router:
        status, body = await router.post(path, {"url": url})
        assert (status, body["error"]["param"]) == (400, "url")
        assert await router.get("/list_workers") == (200, {"urls": []})


async def test_a_removed_worker_finishes_what_it_has():
    async with served() as (router, worker):
        worker.hold(after_tokens=1)
        asked = asyncio.create_task(router.chat([user("hi")]))
        await worker.wait_running(1)
        await router.post("/remove_worker", {"url": worker.url})
        status, _ = await router.post(CHAT, {"messages": [user("hi")]})
        assert status == 503
        worker.release()
        text, _ = await asked
        assert text
