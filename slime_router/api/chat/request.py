"""From the body of a chat request to the call it asks for."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from slime_router.api import request as http
from slime_router.api.chat.aliases import count_logprobs, in_our_words
from slime_router.api.chat.fields import ChatFields, read_fields, sampling, worker_fields
from slime_router.api.chat.grammar import grammar
from slime_router.api.chat.messages import is_continued, read_messages
from slime_router.api.chat.reply import ChatStyle
from slime_router.api.chat.tools import ToolChoice, read_tools, tool_choice
from slime_router.api.token_ids import Vocabulary, checked_ids
from slime_router.errors import BadRequest
from slime_router.fresh_ids import fresh_hex
from slime_router.replies.parsers import ReplyParsers
from slime_router.types import (
    GenerateCall,
    Grammar,
    Message,
    ReplyFormat,
    TemplateOptions,
    TokenIds,
)
from slime_router.values import replace, value

_ID_FIELDS = ("input_ids", "prompt_token_ids")  # SGLang's name and vLLM's
_EXPERT_FIELDS = ("return_hidden_states", "return_routed_experts", "routed_experts_start_len")


@value(frozen=True, slots=True)
class ChatRequest:
    """What a client asks for: `calls`, one for each choice, and how it wants the reply."""

    calls: tuple[GenerateCall, ...]
    style: ChatStyle
    stream: bool


def read_chat_request(
    body: dict[str, Any],
    request: web.Request,
    vocabulary: Vocabulary,
    default_model: str,
    parsers: ReplyParsers,
) -> ChatRequest:
    """Checks every field and makes the calls.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    body = in_our_words(body, request.headers, default_model)
    count_logprobs(body)
    fields = read_fields(body, vocabulary)
    ids = _input_ids(body, vocabulary.vocab_size)
    messages = None
    if ids is None or body.get("messages") not in (None, []):  # SDKs insist on the field
        messages = read_messages(body)
    choice = tool_choice(
        read_tools(body), body.get("tool_choice"), can_force=parsers.tools is not None
    )
    form = _reply_format(fields, choice)
    style = _style(fields, default_model)
    call = GenerateCall(
        rid=style.id,
        turn_id=http.new_turn_id(),
        messages=messages if ids is None else None,
        input_ids=ids,
        template=_template(fields, messages or (), choice.shown),
        reply=form,
        history=fields.history,
        session_id=http.session_id(request, body),
        scope=http.scope(request, body),
        sampling=sampling(fields, _grammar(body, fields, parsers, form)),
        worker_fields=_worker_fields(fields),
        headers=http.forwarded_headers(request),
        stream=bool(fields.stream),
        top_logprobs=fields.top_logprobs or 0,
        request_id=f"chatcmpl-{fresh_hex(32)}",
        samples=fields.n or 1,
    )
    return ChatRequest(_choices(call), style, bool(fields.stream))


def _input_ids(body: dict[str, Any], vocab_size: int) -> TokenIds | None:
    given = [name for name in _ID_FIELDS if body.get(name) is not None]
    return checked_ids(body[given[0]], vocab_size, given[0]) if given else None


def _reply_format(fields: ChatFields, choice: ToolChoice) -> ReplyFormat:
    unwanted = False in (fields.separate_reasoning, fields.include_reasoning)
    return ReplyFormat(
        tools=choice.callable,
        is_forced=choice.is_forced,
        named=choice.named,
        is_parallel=fields.parallel_tool_calls is not False,
        separates_reasoning=not unwanted,
        streams_reasoning=fields.stream_reasoning is not False,
    )


def _grammar(
    body: dict[str, Any], fields: ChatFields, parsers: ReplyParsers, form: ReplyFormat
) -> Grammar | None:
    """The client's own constraint, which leaves room for calls, or the one that forces a call."""
    asked = grammar(body.get("response_format"), regex=fields.regex, ebnf=fields.ebnf)
    forced = parsers.constraint(form)
    if asked is None:
        return forced
    if forced is not None:
        raise BadRequest(
            "A forced tool call leaves no room for another constraint.", param="tool_choice"
        )
    return parsers.either(form, asked)


def _template(
    fields: ChatFields, messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...]
) -> TemplateOptions:
    asked = bool(fields.continue_final_message)
    continues = bool(messages) and is_continued(messages, asked)
    if continues and fields.add_generation_prompt:
        raise BadRequest(
            "Cannot both continue the final message and set 'add_generation_prompt'.",
            param="continue_final_message" if asked else "add_generation_prompt",
        )
    return TemplateOptions(
        tools=tools,
        add_generation_prompt=not continues and fields.add_generation_prompt is not False,
        continue_final_message=continues,
        kwargs=_template_kwargs(fields),
    )


def _template_kwargs(fields: ChatFields) -> dict[str, Any]:
    """What the client gives the template; an effort is spelled as the templates know it."""
    effort, documents = fields.reasoning_effort, fields.documents
    given: dict[str, Any] = {}
    if effort is not None:  # the two names of one switch, as SGLang sets them
        thinks = effort != "none"
        given = {"thinking": thinks, "enable_thinking": thinks, "reasoning_effort": effort}
    if documents is not None:
        given["documents"] = documents
    return {**given, **(fields.chat_template_kwargs or {})}


def _worker_fields(fields: ChatFields) -> dict[str, Any]:
    given = worker_fields(fields, *_EXPERT_FIELDS)
    if fields.logprobs:
        given["return_logprob"] = True  # also where nothing is captured for a trainer
    return given


def _style(fields: ChatFields, default_model: str) -> ChatStyle:
    options = fields.stream_options
    return ChatStyle(
        id=fields.rid or f"chatcmpl-{fresh_hex(32)}",
        created=int(time.time()),
        model=default_model if fields.model is None else fields.model,
        logprobs=bool(fields.logprobs),
        tokens_as_ids=fields.return_tokens_as_token_ids,
        token_ids=bool(fields.return_token_ids),
        prompt_token_ids=bool(fields.return_token_ids or fields.return_prompt_token_ids),
        meta_info=bool(fields.return_meta_info),
        routed_experts=bool(fields.return_routed_experts),
        usage=options is not None and bool(options.include_usage),
        running_usage=options is not None and bool(options.continuous_usage_stats),
    )


def _choices(call: GenerateCall) -> tuple[GenerateCall, ...]:
    """One call for each choice; the first carries the reply's own id, which a client may name."""
    others = (
        replace(
            call,
            rid=f"{call.rid}-{index}",
            turn_id=http.new_turn_id(),
            sampling=http.of_sample(call.sampling, index),
        )
        for index in range(1, call.samples)
    )
    return (call, *others)
