"""From the body of a token request to the call it asks for.

`sampling_params` are vLLM's: their names are those of the chat fields, but for `logprobs`, which
is a number, and for lengths, which may be absent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from slime_router.api import request as http
from slime_router.api.chat.aliases import CONSTRAINED, errors_in_their_names, normalize_aliases
from slime_router.api.chat.fields import (
    SAMPLING_FIELDS,
    ChatFields,
    read_fields,
    sampling,
    worker_fields,
)
from slime_router.api.chat.grammar import grammar
from slime_router.api.chat.request import choices
from slime_router.api.request import fresh_hex, missing, require
from slime_router.api.token_ids import Vocabulary, checked_ids, written
from slime_router.engine.top_logprobs import MAX_KEPT
from slime_router.errors import BadRequest
from slime_router.shortcut.shortcut import Shortcut
from slime_router.types import GenerateCall, Grammar, ReplyFormat, Sampling
from slime_router.values import replace

DEFAULT_MAX_TOKENS = 16  # vLLM's
_INT32 = 2**31

_WITHIN = "sampling_params."
_OUTSIDE = ("model", "cache_salt", "priority", "lora_path", "extra_key")  # of the sampling
_EXPERTS = ("return_routed_experts", "routed_experts_start_len")
_UNSERVED = ("features", "content_parts", "kv_transfer_params", "ec_transfer_params")
_IDLE = frozenset(  # parameters of vLLM that change neither ids nor log-probabilities
    (
        *("detokenize", "include_stop_str_in_output", "flat_logprobs", "output_kind"),
        *("output_text_buffer_length", "skip_clone", "skip_reading_prefix_cache"),
    )
)
_PARAMETERS = SAMPLING_FIELDS.keys() | CONSTRAINED | _IDLE
_PARAMETERS |= {"logprobs", "prompt_logprobs", "n", "thinking_token_budget"}
_NOTHING: tuple[object, ...] = ("", [], {})


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a client asks for: one call for each sample.

    `top_logprobs` and `prompt_logprobs` say how many likely tokens come beside each token of the
    reply and of the prompt; None: not even its own logprob.
    """

    calls: tuple[GenerateCall, ...]
    stream: bool
    request_id: str
    top_logprobs: int | None
    prompt_logprobs: int | None
    has_experts: bool
    has_usage: bool


def read_token_request(
    body: dict[str, Any], request: web.Request, vocabulary: Vocabulary, default_model: str
) -> TokenRequest:
    """Checks every field and makes the call.

    Raises:
        BadRequest: with the path of the field at fault.
    """
    if body.get("token_ids") is None:
        raise missing("token_ids")
    ids = checked_ids(body["token_ids"], vocabulary.vocab_size, "token_ids")
    _check_outside(body)
    given = body.get("sampling_params")
    require(given is None or isinstance(given, dict), "sampling_params", "an object")
    given = dict(given or {})
    _refuse(given, given.keys() - _PARAMETERS, _WITHIN)
    top = _count(given, "logprobs", vocabulary)
    of_prompt = _count(given, "prompt_logprobs", vocabulary)
    stream = body.get("stream")
    require(stream is None or type(stream) is bool, "stream", "true or false")
    require(not stream or of_prompt is None, f"{_WITHIN}prompt_logprobs", "null in a stream")
    outside = {name: body[name] for name in (*_OUTSIDE, *_EXPERTS) if name in body}
    priority = outside.get("priority")
    if type(priority) is int and -_INT32 <= priority < _INT32:  # others are refused as they are
        # vLLM serves the lowest first, SGLang the highest.
        outside["priority"] = min(-priority, _INT32 - 1)
    fields, constraint = _read(given, outside, request, vocabulary, default_model)
    request_id, samples = _request_id(body), fields.n or 1
    call = GenerateCall(
        rid=request_id,
        turn_id=http.new_turn_id(),
        input_ids=ids,
        ids_text=written(body["token_ids"]),
        session_id=http.session_id(request, body),
        scope=http.scope(request, vars(fields)),  # `model` may name an adapter
        sampling=_sampling(given, fields, constraint),
        reply=ReplyFormat(separates_reasoning=False),
        worker_fields={
            **worker_fields(fields, *_EXPERTS),
            **({} if top is None else {"return_logprob": True}),
        },
        headers=http.forwarded_headers(request),
        stream=bool(stream),
        top_logprobs=top or 0,
        request_id=f"gen-{fresh_hex(32)}",  # the client's own may be used again
        samples=samples,
        shortcut=Shortcut() if stream and samples == 1 else None,
    )
    calls = choices(call)
    if of_prompt is not None:  # the first sample's worker reads the prompt for all
        calls = (_with_prompt(call, of_prompt), *calls[1:])
    return TokenRequest(
        calls,
        stream=bool(stream),
        request_id=request_id,
        top_logprobs=top,
        prompt_logprobs=of_prompt,
        has_experts=bool(fields.return_routed_experts),
        has_usage=_wants_usage(body),
    )


def _read(
    given: dict[str, Any],
    outside: dict[str, Any],
    request: web.Request,
    vocabulary: Vocabulary,
    default_model: str,
) -> tuple[ChatFields, Grammar | None]:
    """The sampling fields and the grammar; complaints name them where the client wrote them."""
    inside = {name: value for name, value in given.items() if name not in outside}
    asked = {**inside, **outside}
    try:
        said = normalize_aliases(asked, request.headers, default_model)
        with errors_in_their_names(asked):
            fields = read_fields(said, vocabulary)
            wanted = said.get("response_format")
            return fields, grammar(wanted, regex=fields.regex, ebnf=fields.ebnf)
    except BadRequest as exc:
        name = exc.param or ""
        if name.partition(".")[0].partition("[")[0] in inside:
            exc.param = f"{_WITHIN}{name}"
        raise


def _sampling(given: dict[str, Any], fields: ChatFields, constraint: Grammar | None) -> Sampling:
    """vLLM stops after 16 tokens where no length is given, and runs to the end for null."""
    usual = None if "max_tokens" in given else DEFAULT_MAX_TOKENS
    return replace(sampling(fields, constraint), usual_max_tokens=usual)


def _count(given: dict[str, Any], name: str, vocabulary: Vocabulary) -> int | None:
    """How many likely tokens are asked for; taken out of what is given."""
    count = given.pop(name, None)
    is_count = count is None or (type(count) is int and 0 <= count <= MAX_KEPT)
    require(is_count, f"{_WITHIN}{name}", f"an integer in [0, {MAX_KEPT}]")
    return None if count is None else min(count, vocabulary.vocab_size)


def _with_prompt(call: GenerateCall, likely: int) -> GenerateCall:
    """The call, with logprobs of its prompt and `likely` tokens at each place."""
    asked = {**call.worker_fields, "return_logprob": True, "logprob_start_len": 0}
    return replace(call, worker_fields=asked, top_logprobs=max(call.top_logprobs, likely))


def _check_outside(body: dict[str, Any]) -> None:
    """What is not served beside the sampling parameters."""
    _refuse(body, _UNSERVED, "")
    n = body.get("n")
    require(n is None or (type(n) is int and n == 1), "n", f"1: '{_WITHIN}n' asks for more")


def _refuse(values: dict[str, Any], names: Iterable[str], within: str) -> None:
    """What would change the output is not dropped silently."""
    for name in sorted(names):
        value = values.get(name)
        if value is not None and value is not False and value not in _NOTHING:
            path = f"{within}{name}"
            raise BadRequest(f"'{path}' is not served.", param=path, code="unsupported_parameter")


def _request_id(body: dict[str, Any]) -> str:
    given = body.get("request_id")
    if given is None or given == "":
        return fresh_hex(32)
    require(isinstance(given, str) and len(given) <= 128, "request_id", "a short string")
    return str(given)


def _wants_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    require(isinstance(options, dict | None), "stream_options", "an object")
    return options is not None and options.get("include_usage") is True
