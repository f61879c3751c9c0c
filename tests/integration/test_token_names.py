"""How tokens are named beside their log-probabilities, and what is counted of them, where."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.gateway import CHAT, Served, served, user
from tests.integration.scripted import events
from tests.stack import tiny_tokenizer

COMPLETIONS = "/v1/completions"
HELLO = tiny_tokenizer().encode("Hello there").tolist()
NAMED = [f"token_id:{token}" for token in HELLO]


def halves() -> list[int]:
    """The tokens of a character that takes several, in the tiny vocabulary."""
    ids: list[int] = tiny_tokenizer().encode("\N{EURO SIGN}").tolist()
    assert len(ids) > 1
    return ids


async def chat(router: Served, **fields: Any) -> Any:
    asked = {"messages": [user("Hi")], "logprobs": True, "top_logprobs": 2, **fields}
    status, reply = await router.post(CHAT, asked)
    assert status == 200, reply
    return reply["choices"][0]["logprobs"]["content"]


async def complete(router: Served, **fields: Any) -> Any:
    status, reply = await router.post(COMPLETIONS, {"prompt": "Hi", "logprobs": 2, **fields})
    assert status == 200, reply
    return reply["choices"][0]["logprobs"]


async def respond(router: Served, **fields: Any) -> Any:
    asked = {"input": "Hi", "include": ["message.output_text.logprobs"], **fields}
    status, reply = await router.post("/v1/responses", asked)
    assert status == 200, reply
    return reply["output"][0]["content"][0]["logprobs"]


@pytest.mark.parametrize(
    ("server", "fields", "by_id"),
    [
        (False, {}, False),
        (False, {"return_tokens_as_token_ids": True}, True),
        (True, {}, True),
        (True, {"return_tokens_as_token_ids": False}, False),
        (True, {"return_tokens_as_token_ids": None}, True),
    ],
)
async def test_tokens_are_named_by_id_where_that_is_asked_for(
    server: bool, fields: dict[str, Any], by_id: bool
) -> None:
    async with served(return_tokens_as_token_ids=server) as (router, worker):
        worker.script(HELLO)
        entries = await chat(router, **fields)
        assert ([entry["token"] for entry in entries] == NAMED) is by_id
        tops = [top["token"] for entry in entries for top in entry["top_logprobs"]]
        assert len(tops) == 2 * len(HELLO)
        assert all(name.startswith("token_id:") is by_id for name in tops)
        assert b"".join(bytes(entry["bytes"]) for entry in entries) == b"Hello there"
        worker.script(HELLO)
        legacy = await complete(router, **fields)
        assert (legacy["tokens"] == NAMED) is by_id
        names = [name for top in legacy["top_logprobs"] for name in top]
        assert all(name.startswith("token_id:") is by_id for name in names)
        worker.script(HELLO)
        entries = await respond(router, **fields)
        assert ([entry["token"] for entry in entries] == NAMED) is by_id


async def test_the_same_in_streams() -> None:
    async with served() as (router, worker):
        worker.script(HELLO)
        asked = {"messages": [user("Hi")], "logprobs": True, "stream": True}
        asked |= {"return_tokens_as_token_ids": True}
        async with router.http.post(CHAT, json=asked) as response:
            read = events(await response.read())[:-1]
        logprobs = [e["choices"][0]["logprobs"] for e in read if e["choices"][0].get("logprobs")]
        assert [entry["token"] for each in logprobs for entry in each["content"]] == NAMED
        worker.script(HELLO)
        asked = {"prompt": "Hi", "logprobs": 0, "stream": True, "return_tokens_as_token_ids": True}
        async with router.http.post(COMPLETIONS, json=asked) as response:
            read = events(await response.read())[:-1]
        assert [name for e in read for name in e["choices"][0]["logprobs"]["tokens"]] == NAMED


async def test_parts_of_a_character_keep_apart() -> None:
    """As OpenAI's completions write them: text alone would be the same for all of them."""
    async with served() as (router, worker):
        ids = halves()
        worker.script(ids)
        legacy = await complete(router, logprobs=1)
        names = legacy["tokens"]
        raw = [tiny_tokenizer().token_bytes(token) for token in ids]
        assert names == ["bytes:" + "".join(f"\\x{b:02x}" for b in part) for part in raw]
        assert len(set(names)) == len(names)


async def test_a_sampled_token_is_among_the_likely_ones_however_unlikely() -> None:
    async with served() as (router, worker):
        worker.script(HELLO, logprobs=[-9.0] * len(HELLO), output_top_logprobs=others(HELLO))
        legacy = await complete(router, logprobs=2)
        for name, logprob, top in zip(
            legacy["tokens"], legacy["token_logprobs"], legacy["top_logprobs"], strict=True
        ):
            assert top[name] == logprob == -9.0
            assert len(top) == 3


def others(ids: list[int]) -> list[list[list[Any]]]:
    """Two other tokens, likelier than each of `ids`."""
    return [[[-0.1, 20, None], [-0.2, 21, None]] for _ in ids]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_number_of_logprobs_is_read_in_chat(count: int) -> None:
    async with served() as (router, worker):
        worker.script(HELLO)
        asked = {"messages": [user("Hi")], "logprobs": count}
        status, reply = await router.post(CHAT, asked)
        assert status == 200, reply
        entries = reply["choices"][0]["logprobs"]["content"]
        assert [len(entry["top_logprobs"]) for entry in entries] == [count] * len(HELLO)


async def test_no_logprobs_is_a_number_too() -> None:
    async with served() as (router, worker):
        worker.script(HELLO)
        status, reply = await router.post(CHAT, {"messages": [user("Hi")], "logprobs": 0})
        assert (status, reply["choices"][0]["logprobs"]) == (200, None)
        for bad in (-1, 21, "yes", 1.5):
            status, reply = await router.post(CHAT, {"messages": [user("Hi")], "logprobs": bad})
            assert (status, reply["error"]["param"]) == (400, "logprobs"), bad


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("value", [0, 1, True, "x"])
async def test_logprobs_of_the_prompt_are_not_promised_in_silence(path: str, value: Any) -> None:
    async with served() as (router, worker):
        asked = {"messages": [user("Hi")], "prompt": "Hi", "prompt_logprobs": value}
        status, reply = await router.post(path, asked)
        assert (status, reply["error"]["param"]) == (400, "prompt_logprobs")
        assert not worker.requests


@pytest.mark.parametrize("incremental", [False, True])
async def test_a_running_usage_only_rises_with_its_tokens(incremental: bool) -> None:
    async with served({"incremental": incremental}) as (router, worker):
        worker.script(HELLO)
        asked = {
            "messages": [user("Hi")],
            "stream": True,
            "return_token_ids": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        async with router.http.post(CHAT, json=asked) as response:
            read = events(await response.read())[:-1]
        count = 0
        for event in read:
            for choice in event["choices"]:
                count += len(choice.get("token_ids") or ())
            assert event["usage"]["completion_tokens"] == count, event
            assert event["usage"]["prompt_tokens"] > 0
        assert count == len(HELLO)


@pytest.mark.parametrize("name", ["input_ids", "prompt_token_ids"])
@pytest.mark.parametrize("messages", [[], None])
async def test_ids_need_no_messages(name: str, messages: Any) -> None:
    async with served() as (router, worker):
        worker.script(HELLO)
        status, reply = await router.post(CHAT, {"messages": messages, name: [5, 6, 7]})
        assert status == 200, reply
        assert worker.requests[0].body["input_ids"] == [5, 6, 7]
        status, reply = await router.post(CHAT, {"messages": messages})
        assert (status, reply["error"]["param"]) == (400, "messages")
