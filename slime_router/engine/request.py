"""What is sent to a worker, and the errors that it returns, in SGLang's spelling. Pure.

`chunks.py` reads what a generation returns.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import numpy as np
import orjson

from slime_router.errors import BadRequest, RouterError, WorkerFailed, WorkerRefused
from slime_router.types import Capture, GenerateCall, Sampling, TokenIds

Item: TypeAlias = dict[str, Any]  # one JSON object from a worker

_SPELLING = {  # a field of Sampling: SGLang's name for it; sent only if it was set
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "stop": "stop",
    "stop_token_ids": "stop_token_ids",
    "stop_regex": "stop_regex",
    "ignore_eos": "ignore_eos",
    "spaces_between_special_tokens": "spaces_between_special_tokens",
    "seed": "sampling_seed",
    "logit_bias": "logit_bias",
    "custom_params": "custom_params",
}
_GRAMMARS = {"json_schema", "regex", "ebnf", "structural_tag"}  # a worker takes at most one
_DEFAULT_LEN = 128  # tokens: where a worker stops if it is given no limit
_CONTEXT_LEN = re.compile(
    r"(?:longer than the model's context length \("
    r"|model's maximum context length of "
    r"|exceeds the maximum allowed length \("
    r"|max_completion_tokens is too large)(\d+)?"
)
_TOO_MUCH = "Requested token count exceeds the model's maximum context length"


def wants_logprobs(call: GenerateCall, capture: Capture) -> bool:
    """Whether the worker is asked for logprobs: the trainer or the client needs them."""
    return capture == "full" or call.top_logprobs > 0 or bool(_asked(call).get("return_logprob"))


def experts_start(call: GenerateCall) -> int:
    """The position of the first token whose routed experts the worker is asked for.

    A client gets what it asks for. The trainer needs only what the store lacks; that includes the
    last held token, which was never a model's input.
    """
    asked = _asked(call)
    if asked.get("return_routed_experts"):
        start = asked.get("routed_experts_start_len")
        return start if type(start) is int else 0
    return max(call.prompt.base_len - 1, 0) if call.prompt is not None else 0


def generate_body(call: GenerateCall, *, capture: Capture = "full") -> bytes:
    """The JSON body of `POST /generate`. `call.prompt` has been made.

    Raises:
        BadRequest: a field of the client cannot be written as JSON.
    """
    assert call.prompt is not None, "the caching middleware makes the prompt"
    body: Item = {name: value for name, value in _asked(call).items() if name != "text"}
    body |= {
        "input_ids": _input_ids(call.prompt.ids, call.sampled),
        "rid": call.rid,
        "return_logprob": wants_logprobs(call, capture),
        "stream": call.stream,
    }
    params = _params(call)
    if params or call.native is None:
        body["sampling_params"] = params
    if call.native is None and call.top_logprobs:
        body["top_logprobs_num"] = call.top_logprobs
    if call.wants_routed_experts and not body.get("return_routed_experts"):
        body |= {"return_routed_experts": True, "routed_experts_start_len": experts_start(call)}
    try:
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as exc:
        raise BadRequest(f"The request cannot be written as JSON: {exc}") from exc


def is_constrained(call: GenerateCall) -> bool:
    """Whether a grammar constrains the output: it has to see it from the first token on."""
    params = _params(call)
    return any(params.get(key) for key in (*_GRAMMARS, "stop_regex"))


def text_rules(call: GenerateCall) -> Sampling:
    """The part of the sampling that decides which text a worker shows for the output ids."""
    params = _params(call)
    stop = params.get("stop") or ()
    return Sampling(
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        keep_stop=bool(params.get("no_stop_trim")),
        skip_special_tokens=params.get("skip_special_tokens") is not False,
    )


def stop_ids(call: GenerateCall, eos_ids: Collection[int]) -> frozenset[int]:
    """The tokens that end the output; `eos_ids` are the model's own."""
    params = _params(call)
    own = () if params.get("ignore_eos") else eos_ids
    return frozenset(own).union(params.get("stop_token_ids") or ())


def length_limit(call: GenerateCall) -> int | None:
    """The most output tokens allowed; None for up to the end of the context."""
    limit = _params(call).get("max_new_tokens", _DEFAULT_LEN)
    return limit if limit is None else int(limit)


def _input_ids(prompt: TokenIds, sampled: TokenIds) -> TokenIds:
    whole = np.concatenate((prompt, sampled)) if len(sampled) else prompt
    return np.ascontiguousarray(whole)


def _asked(call: GenerateCall) -> Mapping[str, Any]:
    """What the client asked for in the worker's own fields, at top level."""
    return call.worker_fields if call.native is None else call.native


def _params(call: GenerateCall) -> Item:
    if call.native is None:
        params = _sampling_params(call.sampling)
    else:
        params = call.native.get("sampling_params") or {}
        if call.defaults is not None:
            params = _over(_spelled(call.defaults), params)
    if call.token_limit is not None:
        params = _limited(params, call.token_limit)
    return _rest(params, len(call.sampled)) if len(call.sampled) else params


def _sampling_params(sampling: Sampling) -> Item:
    # Always sent, even null (to the end of the context): without it a worker stops at 128.
    return {"max_new_tokens": None, "skip_special_tokens": True, **_spelled(sampling)}


def _over(defaults: Item, params: Item) -> Item:
    """The client's own `params` over `defaults`."""
    if not _GRAMMARS.isdisjoint(params):
        defaults = {key: value for key, value in defaults.items() if key not in _GRAMMARS}
    return {**defaults, **params}


def _limited(params: Item, limit: int) -> Item:
    """`params` with at most `limit` output tokens."""
    wanted = params.get("max_new_tokens", _DEFAULT_LEN)
    if wanted is not None and wanted <= limit:
        return params
    least = params.get("min_new_tokens")
    capped = {} if least is None else {"min_new_tokens": min(least, limit)}
    return {**params, "max_new_tokens": limit, **capped}


def _rest(params: Item, sampled_len: int) -> Item:
    """`params` for the rest of an output whose first tokens were sampled already."""
    rest = dict(params)
    longest, least = params.get("max_new_tokens", _DEFAULT_LEN), params.get("min_new_tokens")
    rest["max_new_tokens"] = None if longest is None else max(longest - sampled_len, 0)
    if least is not None:
        rest["min_new_tokens"] = max(least - sampled_len, 0)
    return rest


def _spelled(sampling: Sampling) -> Item:
    """Only the fields that were set."""
    params: Item = {}
    for name, spelling in _SPELLING.items():
        value = getattr(sampling, name)
        if value is not None and value != ():
            params[spelling] = value
    if not sampling.skip_special_tokens:
        params["skip_special_tokens"] = False
    if sampling.keep_stop:
        params["no_stop_trim"] = True
    if sampling.grammar is not None:
        params[sampling.grammar.kind] = sampling.grammar.value
    return params


def read_error(status: int, body: bytes) -> RouterError:
    """The error that an answer with `status` means; reads every shape that workers use."""
    if status >= 500 and status != 503:
        return WorkerFailed(f"The worker failed with status {status}.")
    if status < 400:
        return WorkerFailed(f"The worker answered with an unexpected status, {status}.")
    words = _words(body) or f"The worker refused the request with status {status}."
    if status == 503:
        busy = WorkerRefused(words, status=status, body=body)
        busy.type, busy.code = "service_unavailable_error", "queue_full"
        return busy
    found = _CONTEXT_LEN.search(words)
    if found is None:
        return WorkerRefused(words, status=status, body=body)
    if found[1]:
        words = f"This model's maximum context length is {found[1]} tokens. {words}"
    too_long = WorkerRefused(words, status=status, body=body)
    too_long.code = "context_length_exceeded"
    return too_long


def is_too_much(refusal: WorkerRefused) -> bool:
    """Whether a prompt that fits was refused for the number of tokens requested after it."""
    return _TOO_MUCH in refusal.message


def _words(body: bytes) -> str:
    try:
        answer = orjson.loads(body)
    except ValueError:
        return body[:500].decode("utf-8", "replace").strip()
    if not isinstance(answer, dict):
        return ""
    error = answer.get("error", answer)
    if isinstance(error, dict):
        error = error.get("message", error.get("detail", ""))
    words = error if isinstance(error, str) else orjson.dumps(error).decode()
    return words.partition('\n  File "')[0].strip()  # the worker's own paths are nobody's business
