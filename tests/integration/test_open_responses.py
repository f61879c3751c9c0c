"""Every response, and each snapshot of it in a stream, has what the Open Responses specification
requires (version 2026-04-24, `ResponseResource` and its events), which is more than SDKs read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from slime_router.errors import WorkerFailed
from tests.integration.scripted import first, hello, said
from tests.integration.test_responses_door import (
    TOOL,
    cut,
    door,
    silent,
    streamed,
    thoughtful,
    whole,
)

SCHEMA = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}}
ASKED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5, "top_p": 0.25, "presence_penalty": 1, "frequency_penalty": -1.5},
    {"tools": [TOOL], "tool_choice": "none"},
    {"text": {"format": SCHEMA}},
    {"reasoning": {"effort": "low"}, "service_tier": "auto", "metadata": {"a": "b"}},
]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None
Status = Literal["in_progress", "completed", "incomplete"]


class Text(Strict):
    type: Literal["output_text", "reasoning_text"]
    text: str


class Message(Strict):
    type: Literal["message"]
    id: str
    status: Status
    role: Literal["assistant"]
    content: list[Text]


class Call(Strict):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class Reasoning(Strict):
    type: Literal["reasoning"]
    id: str
    content: list[Text]
    summary: list[Text]
    encrypted_content: str = ""  # may lack, but is not null


Item = Annotated[Message | Call | Reasoning, Field(discriminator="type")]


class Function(Strict):
    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class Choice(Strict):
    type: Literal["function"]
    name: str


class Plain(Strict):
    type: Literal["text", "json_object"]


class Schema(Strict):
    type: Literal["json_schema"]
    name: str
    description: str | None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool


class Format(Strict):
    format: Plain | Schema


class Effortful(Strict):
    effort: Effort
    summary: Literal["concise", "detailed", "auto"] | None


class Fault(Strict):
    code: str
    message: str


class Why(Strict):
    reason: str


class Cached(Strict):
    cached_tokens: int


class Thought(Strict):
    reasoning_tokens: int


class Usage(Strict):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: Cached
    output_tokens_details: Thought


class Response(Strict):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    incomplete_details: Why | None
    model: str
    previous_response_id: str | None
    instructions: str | None
    output: list[Item]
    error: Fault | None
    tools: list[Function]
    tool_choice: Choice | Literal["auto", "none", "required"]
    truncation: Literal["auto", "disabled"]
    parallel_tool_calls: bool
    text: Format
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    temperature: float
    reasoning: Effortful | None
    usage: Usage | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    store: bool
    background: bool
    service_tier: str
    metadata: dict[str, str]
    safety_identifier: str | None
    prompt_cache_key: str | None


ITEM: TypeAdapter[Any] = TypeAdapter(Item)


@pytest.mark.parametrize("asked", ASKED, ids=[" ".join(each) for each in ASKED])
@pytest.mark.parametrize("script", [hello, thoughtful, silent, cut])
async def test_a_response_has_what_the_specification_requires(script, asked):
    async with door(script) as (client, _):
        Response.model_validate(reply := await whole(client, **asked))
        events = await streamed(client, **asked)
    for event in events:
        if "response" in event:
            Response.model_validate(event["response"])
        if "item" in event:
            ITEM.validate_python(event["item"])
    is_done = reply["status"] == "completed"
    assert (reply["completed_at"] is not None) == is_done
    assert not is_done or reply["completed_at"] >= reply["created_at"]
    assert events[0]["response"]["completed_at"] is None


async def test_it_says_how_was_sampled():
    """As the worker does it where nothing is asked: SGLang's `/generate` has these defaults."""
    async with door(hello) as (client, _):
        plain, asked = await whole(client), await whole(client, **ASKED[1])
    names = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
    assert [plain[name] for name in names] == [1, 1, 0, 0]
    assert [asked[name] for name in names] == [0.5, 0.25, 1, -1.5]


async def test_a_response_that_failed_late_has_it_too():
    """The `error` event after it is OpenAI's: its SDKs raise where the payload is in `error`, as
    Open Responses has it, and nobody would read how the response ended.
    """
    async with door(lambda *_: [first("a"), said("b"), WorkerFailed("gone")]) as (client, _):
        *_, failed, error = await streamed(client)
    response = Response.model_validate(failed["response"])
    assert (response.status, response.completed_at) == ("failed", None)
    assert response.error is not None
    assert response.error.message == error["message"] == "gone"
    assert "error" not in error
