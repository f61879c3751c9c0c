"""From the body of a completions request to the calls it asks for.

A prompt is a text, its ids, or a list of either; choice `i * n + k` is sample `k` of prompt `i`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from slime_router.api import request as http
from slime_router.api.chat.aliases import errors_in_their_names, normalize_aliases
from slime_router.api.chat.fields import ChatFields, read_fields, sampling, worker_fields
from slime_router.api.chat.grammar import check_text, grammar
from slime_router.api.request import fresh_hex, missing, require, wrong_type
from slime_router.api.token_ids import Vocabulary, checked_ids
from slime_router.edge.lengths import check_generations
from slime_router.errors import BadRequest
from slime_router.shortcut.shortcut import Shortcut
from slime_router.types import GenerateCall, Grammar, ReplyFormat, Sampling, TokenIds
from slime_router.values import replace

DEFAULT_MAX_TOKENS = 16  # OpenAI's


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionStyle:
    """What the reply contains besides the texts."""

    id: str
    created: int
    model: str
    echo: bool = False
    logprobs: int | None = None  # how many of the most likely tokens beside the sampled one
    tokens_as_ids: bool | None = None  # None: as the server is set
    token_ids: bool = False
    usage: bool = False
    running_usage: bool = False

    @property
    def shows_prompt_logprobs(self) -> bool:
        """Whether the logprobs are those of the echoed prompt too."""
        return self.echo and self.logprobs is not None


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What a client asks for: one call for each choice."""

    calls: tuple[GenerateCall, ...]
    style: CompletionStyle
    stream: bool


def read_completion_request(
    body: dict[str, Any], request: web.Request, vocabulary: Vocabulary, default_model: str
) -> CompletionRequest:
    """Checks every field and makes the calls.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    asked, body = body, normalize_aliases(body, request.headers, default_model)
    top = body.get("logprobs")
    if type(top) is bool:  # chat's spelling; vLLM and SGLang read it so
        top = 1 if top else None
    require(top is None or type(top) is int, "logprobs", "an integer")
    limit = min(20, vocabulary.vocab_size)
    require(top is None or 0 <= top <= limit, "logprobs", f"in [0, {limit}]")
    echo = body.get("echo")
    require(echo is None or type(echo) is bool, "echo", "true or false")
    if body.get("suffix"):
        raise BadRequest(
            "suffix is not currently supported: put the model's own tokens for it in the prompt.",
            param="suffix",
            code="unsupported_value",
        )
    # Nothing but the echo is how harnesses score a text.
    unread = {"logprobs": None, "top_logprobs": None}
    is_echo_alone = bool(echo) and type(body.get("max_tokens")) is int and not body["max_tokens"]
    if is_echo_alone:
        unread["max_tokens"] = None
    with errors_in_their_names(asked):
        fields = read_fields({**body, **unread}, vocabulary)
        constraint = _grammar(body, fields)
    prompts = _prompts(body.get("prompt"), vocabulary.vocab_size)
    n = fields.n or 1
    check_generations(len(prompts) * n)
    style = _style(fields, default_model, echo=bool(echo), logprobs=top)
    given = worker_fields(fields)
    if top is not None:
        given["return_logprob"] = True
    if style.shows_prompt_logprobs:
        given["logprob_start_len"] = 0
    call = GenerateCall(
        rid="",
        turn_id="",
        session_id=http.session_id(request, body),
        scope=http.scope(request, body),
        sampling=_sampling(fields, constraint, is_echo_alone=is_echo_alone),
        reply=ReplyFormat(separates_reasoning=False),
        worker_fields=given,
        headers=http.forwarded_headers(request),
        # A stream would repeat the prompt's logprobs with each token: those come in one piece.
        stream=bool(fields.stream) and not style.shows_prompt_logprobs,
        top_logprobs=top or 0,
        samples=n,
    )
    calls = tuple(_calls(call, prompts, style.id))
    return CompletionRequest(calls, style, bool(fields.stream))


def _calls(
    call: GenerateCall, prompts: Sequence[str | TokenIds], reply_id: str
) -> Iterator[GenerateCall]:
    """One call for each choice, those of a prompt in a row."""
    asked = f"cmpl-{fresh_hex(32)}"  # the reply's id may be the client's, and used again
    is_alone = len(prompts) * call.samples == 1
    for i, prompt in enumerate(prompts):
        for k in range(call.samples):
            index = i * call.samples + k
            yield replace(
                call,
                text=prompt if isinstance(prompt, str) else None,
                input_ids=None if isinstance(prompt, str) else prompt,
                rid=f"{index}-{reply_id}" if index else reply_id,
                asked_as=reply_id,
                turn_id=http.new_turn_id(),
                sampling=http.of_sample(call.sampling, k),
                request_id=f"{asked}-{i}",
                shortcut=Shortcut() if call.stream and is_alone else None,
            )


def _prompts(prompt: Any, vocab_size: int) -> list[str | TokenIds]:
    if prompt is None:
        raise missing("prompt")
    if isinstance(prompt, str):
        return [_text(prompt, "prompt")]
    if not isinstance(prompt, list):
        raise wrong_type("prompt", "a text, a list of token ids, or a list of either")
    if not prompt:
        raise BadRequest("'prompt' cannot be empty.", param="prompt")
    if type(prompt[0]) is int:
        return [checked_ids(prompt, vocab_size, "prompt")]
    return [
        _text(each, f"prompt[{i}]")
        if isinstance(each, str)
        else checked_ids(each, vocab_size, f"prompt[{i}]")
        for i, each in enumerate(prompt)
    ]


def _text(text: str, param: str) -> str:
    if not text:
        raise BadRequest(f"'{param}' cannot be empty.", param=param)
    return text


def _sampling(fields: ChatFields, constraint: Grammar | None, *, is_echo_alone: bool) -> Sampling:
    asked = replace(sampling(fields, constraint), usual_max_tokens=DEFAULT_MAX_TOKENS)
    return replace(asked, max_tokens=0) if is_echo_alone else asked


def _grammar(body: dict[str, Any], fields: ChatFields) -> Grammar | None:
    """SGLang's completions take a schema as text."""
    schema = body.get("json_schema")
    require(schema is None or isinstance(schema, str), "json_schema", "a string")
    check_text(schema, "json_schema")
    asked = grammar(body.get("response_format"), regex=fields.regex, ebnf=fields.ebnf)
    if schema is not None and asked is not None:
        raise BadRequest("Only one constraint can be set.", param="json_schema")
    return Grammar("json_schema", schema) if schema is not None else asked


def _style(
    fields: ChatFields, default_model: str, *, echo: bool, logprobs: int | None
) -> CompletionStyle:
    options = fields.stream_options
    return CompletionStyle(
        id=fields.rid or f"cmpl-{fresh_hex(32)}",
        created=int(time.time()),
        model=default_model if fields.model is None else fields.model,
        echo=echo,
        logprobs=logprobs,
        tokens_as_ids=fields.return_tokens_as_token_ids,
        token_ids=bool(fields.return_token_ids),
        usage=options is not None and bool(options.include_usage),
        running_usage=options is not None and bool(options.continuous_usage_stats),
    )
