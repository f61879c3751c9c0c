"""Bad requests of every kind: the answer has four keys, names the field, and nothing changes."""

from __future__ import annotations

from typing import Any

import pytest

from slime_router.testing import FakeWorker
from tests.integration.gateway import CHAT, FOUR_KEYS, Served, assistant, served, serving, user

RETRIEVE = "/retrieve_from_messages_template"
FOUR_KEY_DOORS = (
    CHAT,
    "/retrieve_from_text",
    RETRIEVE,
    "/tokenize",
    "/detokenize",
    "/workers",
    "/add_worker",
    "/remove_worker",
)
HI = [user("hi")]


async def refused(router: Served, worker: FakeWorker, path: str, **sent: Any) -> Any:
    """The error object of a request that must be a 400 without a trace."""
    before, asked = router.footprint(), len(worker.requests)
    status, body = await router.post(path, **sent)
    assert status == 400, body
    assert set(body["error"]) == FOUR_KEYS
    assert body["error"]["type"] == "invalid_request_error"
    assert router.footprint() == before, "it changed something"
    assert len(worker.requests) == asked, "it reached the worker"
    _, listed = await router.get("/list_workers")
    assert listed == {"urls": [worker.url]}
    return body["error"]


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize("path", FOUR_KEY_DOORS)
async def test_a_body_that_is_no_json_object_is_a_400(path):
    bodies = (
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"NaN",
        b"\xff\xfe",
        b'{"a":"\\ud800"}',
        b"[" * 9999,
    )
    async with served() as (router, worker):
        for body in bodies:
            if not body and path in ("/add_worker", "/remove_worker"):
                continue  # without a body they have an answer of their own
            error = await refused(router, worker, path, data=body)
            assert error["code"] == "invalid_json", body


CHAT_FAULTS = [
    ({}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": 7, "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [user(None)]}, "messages[0].content"),
    ({"messages": [user(7)]}, "messages[0].content"),
    ({"messages": [*HI, user([{"type": "image_url"}])]}, "messages[1].content[0].type"),
    ({"messages": [user([{"type": "text", "text": 7}])]}, "messages[0].content[0].text"),
    ({"messages": HI, "tools": {}}, "tools"),
    ({"messages": HI, "tools": [{"type": "function"}]}, "tools[0].function"),
    ({"messages": HI, "chat_template_kwargs": 7}, "chat_template_kwargs"),
    ({"messages": HI, "chat_template_kwargs": False}, "chat_template_kwargs"),
    ({"messages": HI, "chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"messages": HI, "add_generation_prompt": "yes"}, "add_generation_prompt"),
    (
        {"messages": HI, "chat_template_kwargs": {"tokenize": True}},
        "chat_template_kwargs.tokenize",
    ),
]


@pytest.mark.parametrize(("body", "param"), CHAT_FAULTS, ids=lambda v: v if type(v) is str else "")
@pytest.mark.parametrize("path", [CHAT, RETRIEVE])
@pytest.mark.asyncio(loop_scope="module")
async def test_a_fault_in_a_conversation_is_named(path, body, param, unchanged):
    router, worker = unchanged
    assert (await refused(router, worker, path, json=body))["param"] == param


@pytest.mark.parametrize(
    ("body", "param"), CHAT_FAULTS[1:], ids=lambda v: v if type(v) is str else ""
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_fault_in_messages_to_tokenize_is_named(body, param, unchanged):
    router, worker = unchanged
    assert (await refused(router, worker, "/tokenize", json=body))["param"] == param


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": HI, "temperature": "warm"}, "temperature"),
        (CHAT, {"messages": HI, "stream": 1}, "stream"),
        (CHAT, {"messages": HI, "n": 0}, "n"),
        (CHAT, {"messages": HI, "input_ids": [10**6]}, "input_ids"),
        (CHAT, {"messages": HI, "history": "none"}, "history"),
        ("/retrieve_from_text", {}, "text"),
        ("/retrieve_from_text", {"text": ""}, "text"),
        ("/retrieve_from_text", {"text": ["a"]}, "text"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HI}, "prompt"),
        ("/tokenize", {"prompt": None}, "prompt"),
        ("/tokenize", {"prompt": ["a", 7]}, "prompt"),
        ("/tokenize", {"prompt": []}, "prompt"),
        (
            "/tokenize",
            {"messages": HI, "continue_final_message": True},
            "continue_final_message",
        ),
        (
            "/tokenize",
            {"messages": HI, "continue_final_message": "yes"},
            "continue_final_message",
        ),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "1"}, "tokens"),
        ("/detokenize", {"tokens": [1, True]}, "tokens"),
        ("/detokenize", {"tokens": [544]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [[1], 2]}, "tokens"),
        ("/detokenize", {"tokens": [1], "skip_special_tokens": 1}, "skip_special_tokens"),
        ("/workers", {}, "url"),
        ("/workers", {"url": 7}, "url"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_fault_in_any_other_field_is_named(path, body, param, unchanged):
    router, worker = unchanged
    assert (await refused(router, worker, path, json=body))["param"] == param


@pytest.mark.parametrize("path", FOUR_KEY_DOORS)
async def test_a_body_over_the_limit_is_a_413(path):
    async with serving(max_payload_size=1000) as router:
        before = router.footprint()
        status, body = await router.post(path, {"text": "x" * 2000})
        assert (status, set(body["error"])) == (413, FOUR_KEYS)
        assert body["error"]["code"] == "request_too_large"
        assert router.footprint() == before
        status, body = await router.post("/generate", {"text": "x" * 2000})
        assert (status, list(body)) == (413, ["error"])


@pytest.mark.parametrize("path", [CHAT, RETRIEVE, "/tokenize"])
@pytest.mark.parametrize("where", ["message", "tool", "kwargs", "arguments"])
@pytest.mark.parametrize("depth", [100, 250, 900])
async def test_deep_nesting_is_served_or_refused(path, where, depth):
    """The recursion limits of Jinja and JSON are met at other depths: never a 500."""
    deep = nested(depth)
    call = f'{{"id":"c","type":"function","function":{{"name":"f","arguments":{deep}}}}}'
    tool = f'{{"type":"function","function":{{"name":"f","parameters":{deep}}}}}'
    hi = '{"role":"user","content":"hi"}'
    body = {
        "message": f'{{"messages":[{{"role":"user","content":"hi","x":{deep}}}]}}',
        "tool": f'{{"messages":[{hi}],"tools":[{tool}]}}',
        "kwargs": f'{{"messages":[{hi}],"chat_template_kwargs":{deep}}}',
        "arguments": (
            '{"messages":[{"role":"user","content":"hi"},'
            f'{{"role":"assistant","content":"","tool_calls":[{call}]}},'
            '{"role":"user","content":"hi"}]}'
        ),
    }[where]
    async with served() as (router, _):
        status, reply = await router.post(path, data=body.encode())
        assert status in (200, 400), reply
        if status == 400:
            assert set(reply["error"]) == FOUR_KEYS
        assert (await router.post(CHAT, {"messages": HI}))[0] == 200, "the router goes on"


@pytest.mark.parametrize("path", [CHAT, RETRIEVE, "/tokenize"])
async def test_ten_thousand_messages_are_served_or_refused(path):
    talk = [message for _ in range(5000) for message in (user("a"), assistant("b"))]
    async with served() as (router, _):
        status, body = await router.post(path, {"messages": [*talk, user("c")]})
        assert status in (200, 400), body
        assert (status, path) != (200, CHAT), "it cannot fit the context"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_does_not_fit_is_the_clients_mistake(stream):
    async with served() as (router, worker):
        body = {"messages": [user("word " * 4000)], "stream": stream}
        status, reply = await router.post(CHAT, body)
        assert (status, set(reply["error"])) == (400, FOUR_KEYS)
        assert reply["error"]["code"] == "context_length_exceeded"
        assert len(worker.requests) <= 1
        assert len(router.gateway.store) == 0


async def test_unknown_template_arguments_reach_the_template_and_harm_nobody():
    odd = {"enable_thinking": None, "x": {"y": [1, 2.5, "z"]}, "messages2": 1e300}
    async with served() as (router, _):
        text, _ = await router.chat(HI, chat_template_kwargs=odd)
        assert text
