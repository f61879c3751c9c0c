"""Adapters, extra keys and salts: they part the caches, the turns and the workers' own caches."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.gateway import CHAT, assistant, served, user
from tests.stack import tiny_tokenizer

HELLO = tiny_tokenizer().encode("Hello").tolist()
DOORS: dict[str, Any] = {
    CHAT: {"messages": [user("Hi")]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/messages": {"messages": [user("Hi")], "max_tokens": 8},
    "/v1/responses": {"input": "Hi"},
}
PARTS: list[dict[str, Any]] = [
    {"model": "tiny:a"},
    {"lora_path": "a"},
    {"lora_path": "b"},
    {"cache_salt": "a"},
    {"extra_key": "a"},
    {},
]


@pytest.mark.parametrize("path", DOORS)
async def test_each_reaches_the_worker_through_every_door(path):
    async with served() as (router, worker):
        for said in (
            {"model": "tiny:sql"},
            {"model": "any/base:sql", "lora_path": "ignored"},
            {"lora_path": "sql"},
            {"cache_salt": "s", "extra_key": "k"},
        ):
            assert (await router.post(path, {**DOORS[path], **said}))[0] == 200
    by_model, by_other, by_path, parted = (request.body for request in worker.requests)
    assert [body["lora_path"] for body in (by_model, by_other, by_path)] == ["sql"] * 3
    assert "lora_path" not in parted
    assert (parted["cache_salt"], parted["extra_key"]) == ("s", "sk")


async def test_a_served_name_with_a_colon_is_no_adapter():
    async with served(openai_default_model="s3://models/tiny") as (router, worker):
        for model in ("s3://models/tiny", "s3://models/tiny:sql"):
            await router.post(CHAT, {"messages": [user("Hi")], "model": model})
    assert [request.body.get("lora_path") for request in worker.requests] == [None, "sql"]


@pytest.mark.parametrize("headers", [{}, {"x-session-id": "s"}], ids=["alone", "in a session"])
@pytest.mark.parametrize("history", ["held", "template"])
async def test_a_conversation_under_one_is_not_found_under_another(history, headers):
    """Tokens that one adapter sampled are not the history of another."""
    turns = [user("Hi"), assistant("Hello"), user("More")]
    async with served(history=history) as (router, worker):
        for said in PARTS[1:]:
            worker.script([*HELLO, max(tiny_tokenizer().eos_ids)])
            first = {"messages": turns[:1], **said}
            async with router.http.post(CHAT, json=first, headers=headers) as response:
                assert '"status":"fresh"' in response.headers["x-slime-receipt"], said
        for said in PARTS:
            worker.script(HELLO)
            again = {"messages": turns, **said}
            async with router.http.post(CHAT, json=again, headers=headers) as response:
                assert '"status":"extended"' in response.headers["x-slime-receipt"], said
        for said in ({"lora_path": "c"}, {"cache_salt": "b"}, {"extra_key": "b"}):
            worker.script(HELLO)
            other = {"messages": turns, **said}
            async with router.http.post(CHAT, json=other, headers=headers) as response:
                assert '"status":"fresh"' in response.headers["x-slime-receipt"], said


async def test_one_adapter_is_one_however_it_is_named():
    """`base:adapter` here and `lora_path` there continue each other, through every door."""
    turns = [user("Hi"), assistant("Hello"), user("More")]
    async with served() as (router, worker):
        worker.script([*HELLO, max(tiny_tokenizer().eos_ids)])
        await router.chat(turns[:1], model="tiny:sql")
        _, by_path = await router.chat(turns, lora_path="sql")
        assert by_path["status"] == "extended"
        body = {"model": "tiny:sql", "max_tokens": 8, "messages": turns}
        async with router.http.post("/v1/messages", json=body) as response:
            assert '"status":"extended"' in response.headers["x-slime-receipt"]


@pytest.mark.parametrize("path", [*DOORS, "/inference/v1/generate"])
async def test_what_one_sampled_is_in_a_scope_of_its_own_at_every_door(path):
    """Else a turn of the base model would continue one of the adapter's, in one row."""
    asked = {**DOORS, "/inference/v1/generate": {"token_ids": HELLO, "sampling_params": {}}}[path]
    async with served() as (router, _):
        for said in ({"model": "tiny:sql"}, {"lora_path": "sql"}, {"model": "tiny"}):
            assert (await router.post(path, {**asked, **said}))[0] == 200
        by_model, by_path, by_base = (turn.scope for turn in router.gateway.store._turns.values())
    assert by_model == by_path != by_base


async def test_an_adapter_s_name_must_be_a_text():
    async with served() as (router, worker):
        status, reply = await router.post(CHAT, {"messages": [user("Hi")], "lora_path": ["a"]})
    assert (status, reply["error"]["param"]) == (400, "lora_path")
    assert worker.requests == []
