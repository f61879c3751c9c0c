"""Every reply is what the SDKs' own types say, strictly, and has the keys that OpenAI requires.

The SDKs build their objects without any check, so reading a reply proves nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import orjson
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.integration.gateway import FOUR_KEYS, served, user
from tests.integration.random_replies import COUNT, PATHS, Answer, ask, replies, staged
from tests.integration.test_tool_calls import CALL, TOOLS, say

pytestmark = pytest.mark.parsers

TOP = {"id", "object", "created", "model", "choices"}
USAGE = {"prompt_tokens", "completion_tokens", "total_tokens"}
RESPONSE = {  # the fields that the specification requires of a response
    *("id", "object", "created_at", "error", "incomplete_details", "instructions", "model"),
    *("tools", "output", "parallel_tool_calls", "metadata", "tool_choice", "temperature", "top_p"),
    *("status", "usage"),
}
MESSAGE = {"id", "type", "role", "content", "model", "stop_reason", "stop_sequence", "usage"}


def strict(of: Any) -> Callable[[Any], Any]:
    """Checks JSON by a type: nothing is converted, what is required must be there."""
    adapter: TypeAdapter[Any] = TypeAdapter(of)
    return lambda value: adapter.validate_json(orjson.dumps(value), strict=True)


IS_CHAT, IS_CHUNK = strict(ChatCompletion), strict(ChatCompletionChunk)
IS_COMPLETION, IS_USAGE = strict(Completion), strict(CompletionUsage)
IS_RESPONSE = strict(Response)
IS_RESPONSE_EVENT = {  # each event by its own type: a union would try them all
    member.model_fields["type"].annotation.__args__[0]: strict(member)
    for member in get_args(get_args(ResponseStreamEvent)[0])
}
IS_MESSAGE, IS_MESSAGE_EVENT = strict(Message), strict(RawMessageStreamEvent)


def chat_whole(answer: Answer) -> None:
    body = answer.body
    IS_CHAT(body)
    assert body.keys() >= TOP | {"usage"}
    _check_usage(body["usage"])
    for choice in body["choices"]:
        assert choice.keys() >= {"finish_reason", "index", "message", "logprobs"}
        message = choice["message"]
        assert message.keys() >= {"role", "content", "refusal"}
        assert message.get("tool_calls") != []
        _check_logprobs(choice["logprobs"])


def chat_streamed(answer: Answer) -> None:
    *chunks, done = answer.events
    assert done == "[DONE]"
    for chunk in chunks:
        IS_CHUNK(chunk)
        assert chunk.keys() >= TOP
        for choice in chunk["choices"]:
            assert choice.keys() >= {"delta", "finish_reason", "index"}
            _check_logprobs(choice.get("logprobs"))
    _check_usage(chunks[-1]["usage"])


def _check_logprobs(logprobs: Any) -> None:
    if logprobs is not None:
        assert logprobs.keys() == {"content", "refusal"}
        keys = {"token", "bytes", "logprob", "top_logprobs"}
        assert all(entry.keys() == keys for entry in logprobs["content"])


def _check_usage(usage: Any) -> None:
    IS_USAGE(usage)
    assert usage.keys() >= USAGE
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0
    assert usage["completion_tokens_details"]["reasoning_tokens"] >= 0


def completions_whole(answer: Answer) -> None:
    body = answer.body
    IS_COMPLETION(body)
    assert body.keys() >= TOP | {"usage"}
    _check_usage(body["usage"])
    for choice in body["choices"]:
        assert choice.keys() >= {"finish_reason", "index", "logprobs", "text"}


def completions_streamed(answer: Answer) -> None:
    *chunks, done = answer.events
    assert done == "[DONE]"
    for chunk in chunks:
        assert chunk.keys() >= TOP
        for choice in chunk["choices"]:
            assert choice.keys() >= {"finish_reason", "index", "logprobs", "text"}
            # The type has no null here, though it is also that of a stream, where all send one.
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        IS_COMPLETION(chunk)
    _check_usage(chunks[-1]["usage"])


def messages_whole(answer: Answer) -> None:
    IS_MESSAGE(answer.body)
    assert answer.body.keys() >= MESSAGE
    assert answer.body["stop_reason"] is not None


def messages_streamed(answer: Answer) -> None:
    given = answer.named_events
    for event in given:
        IS_MESSAGE_EVENT(event)
    assert given[0]["message"].keys() >= MESSAGE
    assert given[-2]["delta"].keys() >= {"stop_reason", "stop_sequence"}


def responses_whole(answer: Answer) -> None:
    IS_RESPONSE(answer.body)
    assert answer.body.keys() >= RESPONSE


def responses_streamed(answer: Answer) -> None:
    for event in answer.named_events:
        IS_RESPONSE_EVENT[event["type"]](event)
        if "response" in event:
            IS_RESPONSE(event["response"])
            assert event["response"].keys() >= RESPONSE


CHECKS: Mapping[str, tuple[Callable[[Answer], None], Callable[[Answer], None]]] = {
    "chat": (chat_whole, chat_streamed),
    "completions": (completions_whole, completions_streamed),
    "messages": (messages_whole, messages_streamed),
    "responses": (responses_whole, responses_streamed),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("door", CHECKS)
async def test_every_reply_is_what_the_types_say(door, stream):
    async with staged() as stage:
        for reply in replies(f"{door} typed", COUNT // 2):
            answer = await ask(stage, door, reply, stream=stream)
            try:
                CHECKS[door][stream](answer)
            except Exception as exc:
                raise AssertionError(f"{reply}: {answer.raw!r}") from exc


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("version", [None, 7, "v7"])
@pytest.mark.parametrize("door", CHECKS)
async def test_any_weight_version_fits_the_types(door, version, stream):
    """Workers count them, name them, or say nothing; OpenAI's metadata are strings."""
    async with staged() as stage:
        stage.worker._engine.weight_version = version
        [reply] = replies(f"{door} versioned", 1)
        CHECKS[door][stream](await ask(stage, door, reply, stream=stream))


FINE: dict[str, dict[str, Any]] = {
    "chat": {"messages": [user("a")]},
    "completions": {"prompt": "a"},
    "responses": {"input": "a"},
}
BAD = ({"temperature": "x"}, {"top_p": 9}, {"stop": 5})


@pytest.mark.parametrize("door", FINE)
async def test_an_error_has_the_four_keys(door):
    async with served(retry_max_retries=0) as (router, worker):
        for body in ({}, *({**FINE[door], **bad} for bad in BAD)):
            status, error = await router.post(PATHS[door], body)
            assert status == 400
            _check_error(error)
        worker.answer_next(500, b"dead")
        status, error = await router.post(PATHS[door], FINE[door])
        assert status >= 500
        _check_error(error)


def _check_error(body: Any) -> None:
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == FOUR_KEYS
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)


async def test_what_is_not_asked_for_fits_the_types_too():
    """No usage, no details, and a call: the shortest stream."""
    async with served(tool_call_parser="qwen25") as (router, worker):
        say(worker, CALL)
        body = {"model": "m", "messages": [user("a")], "tools": TOOLS, "stream": True}
        async with router.http.post(PATHS["chat"], json=body) as response:
            raw = await response.read()
    for line in raw.removesuffix(b"data: [DONE]\n\n").split(b"\n\n")[:-1]:
        IS_CHUNK(orjson.loads(line.removeprefix(b"data: ")))
