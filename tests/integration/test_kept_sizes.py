"""What a client makes long: refused by name, or none of it is kept."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from io import BytesIO
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, FunctionType, ModuleType
from typing import Any

import orjson
import pytest

from slime_router.edge.lengths import MAX_LENGTHS, MAX_MESSAGES, check_lengths, check_messages
from slime_router.errors import BadRequest
from slime_router.server.app import Gateway
from slime_router.testing.script import Script
from tests.integration.gateway import CHAT, served, user

LONG = "x" * (max(MAX_LENGTHS.values()) + 1)
SETTLED = 64 * 2**10  # bytes: what a request may leave behind, its turn and its receipt included

BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [user("Hi")], "max_tokens": 3},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 3},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 16},
    "/v1/messages": {"messages": [user("Hi")], "max_tokens": 3, "model": "tiny"},
    "/generate": {"text": "Hi", "sampling_params": {"max_new_tokens": 3}},
    "/inference/v1/generate": {"token_ids": [72, 105], "sampling_params": {"max_tokens": 3}},
    "/retrieve_from_text": {"text": "Hi"},
    "/retrieve_from_messages_template": {"messages": [user("Hi")]},
    "/sessions": {},
}
FIELDS: dict[str, Any] = {
    **dict.fromkeys(
        (
            "cache_salt", "custom_logit_processor", "extra_key", "lora_path", "model",
            "previous_response_id", "prompt_cache_key", "rid", "routing_key", "safety_identifier",
            "service_tier", "session_id", "group_id", "rollout_id", "user", "unknown", "stop",
        ),
        LONG,
    ),
    **{
        name: {"name": LONG}
        for name in (
            "chat_template_kwargs", "custom_labels", "custom_params", "metadata", "session_params",
            "reasoning", "tool_choice", "thinking", "stream_options",
        )
    },
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {"description": LONG}}},
    "response_format": {"type": "json_schema", "json_schema": {"name": LONG, "schema": {}}},
}  # fmt: skip


SCHEMAS = {"/v1/responses": "text.format"}  # its name for `response_format`
OURS = ("builtins", "collections", "slime_router")
OPAQUE = (ModuleType, FunctionType, CodeType, FrameType, CoroutineType, AsyncGeneratorType)


def big_strings(root: object) -> Iterator[str]:
    """The long texts that can be reached from `root`, through containers and our own objects."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type):
            continue
        seen.add(id(each))
        if isinstance(each, str | bytes):
            if sys.getsizeof(each) > SETTLED:
                yield str(each[:40])
        elif type(each) not in OPAQUE and type(each).__module__.startswith(OURS):
            waiting += gc.get_referents(each)


def kept(gateway: Gateway) -> list[str]:
    parts = (
        gateway.store, gateway.cache, gateway.responses, gateway.sessions, gateway.joiner,
        gateway.admission, gateway.relay, gateway.pool, gateway.recording, gateway.counting,
        gateway.maker, gateway.weights, gateway.upkeep,
    )  # fmt: skip
    return [text for part in parts for text in big_strings(part)]


@pytest.mark.parametrize("path", BODIES)
async def test_a_long_field_is_refused_by_its_name_or_nothing_of_it_is_kept(path):
    worker = {"reply": lambda _: Script(ids=[72, 105, 33], finish="length")}
    async with served(worker, retry_grace_s=0) as (router, _):
        before = kept(router.gateway)
        for name, value in FIELDS.items():
            if name == "text" and path in ("/generate", "/retrieve_from_text"):
                continue  # the prompt
            body = {**BODIES[path], name: value}
            async with router.http.post(path, data=BytesIO(orjson.dumps(body))) as answer:
                status, reply = answer.status, await answer.json()
            assert status in (200, 201, 400), (name, reply)
            if status == 400 and path != "/generate":  # SGLang's errors have no param
                param = str(reply["error"].get("param") or reply["error"]["message"])
                assert name.replace("response_format", SCHEMAS.get(path, name)) in param, reply
            if name in MAX_LENGTHS:
                assert status == 400, name
            assert kept(router.gateway) == before, name


@pytest.mark.parametrize(
    "item",
    [
        {"type": "message", "role": "user", "content": "Hi", "unknown": LONG},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": LONG},
    ],
    ids=["unknown", "encrypted_content"],
)
async def test_long_items_count_toward_the_bytes_of_stored_responses(item):
    worker = {"reply": lambda _: Script(ids=[72, 105, 33], finish="length")}
    async with served(worker) as (router, _):
        router.gateway.responses._max_bytes = 3 * len(LONG)
        body = {"input": [item, {"role": "user", "content": "Hi"}], "max_output_tokens": 16}
        for _ in range(4):
            async with router.http.post(
                "/v1/responses", data=BytesIO(orjson.dumps(body))
            ) as answer:
                assert answer.status == 200, await answer.text()
        kept = router.gateway.responses
        assert (len(kept), kept.forgotten) == (2, 2)
        assert 2 * len(LONG) < kept.size < 3 * len(LONG)


@pytest.mark.parametrize("name", MAX_LENGTHS)
def test_a_field_may_be_as_long_as_its_limit(name):
    outer, _, inner = name.partition(".")
    for length, is_fit in ((MAX_LENGTHS[name], True), (MAX_LENGTHS[name] + 1, False)):
        text = "x" * (length if not inner and outer != "text" else length - 20 * is_fit)
        value = {inner: text} if inner else {"v": text[: length - 20]} if outer == "text" else text
        if is_fit:
            check_lengths({outer: value})
        elif inner or outer != "text":
            with pytest.raises(BadRequest) as caught:
                check_lengths({outer: value})
            assert caught.value.param == name


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": ["x" * 2**16]},
        {"x" * 2**16: 1},
        {str(n): n for n in range(2**14)},
        {"a": "é" * 2**15},
    ],
    ids=["nested", "key", "many", "not ASCII"],
)
def test_an_object_is_measured_with_all_that_is_in_it(value):
    with pytest.raises(BadRequest):
        check_lengths({"metadata": value})


@pytest.mark.parametrize(
    ("path", "field", "start"),
    [
        (CHAT, "messages", 0),
        (CHAT, "messages", MAX_MESSAGES),
        ("/v1/messages", "messages", 0),
        ("/v1/messages/count_tokens", "messages", 0),
        ("/v1/responses", "input", 0),
    ],
)
async def test_messages_have_a_limit(path, field, start):
    """Each is looked at by itself; where the first ones came before, they count anyway."""
    messages = [user("x")] * (MAX_MESSAGES + 1)
    body = {"model": "tiny", "max_tokens": 3, field: messages}
    async with served() as (router, worker):
        if start:
            texts = router.gateway.context.message_texts
            found = texts.read(orjson.dumps({**body, field: messages[:start]}), (path, ""))
            assert found is not None
            found[0][field].checked(found[0][field].new)
        status, answer = await router.post(path, body)
        assert (status, worker.requests) == (400, [])
        assert field in orjson.dumps(answer["error"]).decode()
    with pytest.raises(BadRequest):
        check_messages(messages, field)
    check_messages(messages[1:], field)
