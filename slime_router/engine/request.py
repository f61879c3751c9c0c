"""What is sent to a worker, and the errors that it returns, in SGLang's spelling. Pure.

`chunks.py` reads what a generation returns.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Collection, Mapping
from itertools import compress
from operator import attrgetter, ne
from typing import Any, TypeAlias

import numpy as np
import orjson

from slime_router.choices import Capture
from slime_router.engine.answer import Item
from slime_router.errors import (
    BadRequest,
    MasksRefused,
    RouterError,
    WorkerFailed,
    WorkerRefused,
)
from slime_router.tokens.written.prompt_text import PromptTexts
from slime_router.types import GenerateCall, NativeCall, Pins, Prompt, Sampling, TokenIds

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
_said = attrgetter(*_SPELLING)  # of a Sampling, all of these at once
_UNSAID = _said(Sampling())
_CUTTING = frozenset(("temperature", "top_k", "top_p", "min_p"))  # what may
_GREEDY = 1e-6  # SGLang samples below this temperature as with a top_k of 1
_NUMBERS = (int, float)
_ALL = 2**30  # a top_k that leaves every token
_ABOUT_MASKS = re.compile(r"sampling[_-]mask|sampling_logprobs_mode|sampling support")
_GRAMMARS = {"json_schema", "regex", "ebnf", "structural_tag"}  # a worker takes at most one
LONG_BODY_LEN = 2**16  # bytes; a longer one is freed once it is sent
NOT_SERVED = (404, 405)  # with 501: what answers is not an SGLang worker
# No client's key reaches a worker, so none of them is refused there; 407 is a proxy's.
NO_KEY = (401, 403, 407)
# What a proxy on the way says: it waited too long for the request, has no such server, or takes no
# early data. The client's own connection is none of these.
ON_THE_WAY = (408, 421, 425)
_MAX_WORDS_LEN = 4096  # characters of a refusal, as clients get it
_DEFAULT_LEN = 128  # tokens: where a worker stops if it is given no limit
_CONTEXT_LEN = re.compile(
    r"(?:longer than the model's context length \("
    r"|model's maximum context length of "
    r"|exceeds the maximum allowed length \("
    r"|max_completion_tokens is too large)(\d+)?"
)


class LongBody:
    """A body in pieces that are sent as they are, one after the other.

    Whoever sends it takes them: it is kept by nobody then, however long the answer takes.
    """

    __slots__ = ("_len", "_pieces")

    def __init__(self, *pieces: bytes | memoryview) -> None:
        self._pieces = list(pieces)
        self._len = sum(map(len, pieces))

    def __len__(self) -> int:
        return self._len

    def take(self) -> list[bytes | memoryview]:
        """Hand over all pieces; nothing is left afterwards."""
        pieces, self._pieces = self._pieces, []
        return pieces


# Of a request: whole, or in pieces that are sent as they come.
Body: TypeAlias = bytes | LongBody | AsyncIterable[bytes | memoryview]


def wants_logprobs(call: GenerateCall, capture: Capture) -> bool:
    """Whether the worker is asked for logprobs: the trainer or the client needs them."""
    return (
        capture in ("full", "distribution")
        or call.top_logprobs > 0
        or (call.kept_tops > 0 and capture != "off")
        or bool(call.asked.get("return_logprob"))
    )


def experts_start(call: GenerateCall) -> int:
    """The position of the first token whose routed experts the worker is asked for.

    A client gets what it asks for. The trainer needs only what the store lacks; that includes the
    last held token, which was never a model's input.
    """
    asked = call.asked
    if asked.get("return_routed_experts"):
        start = asked.get("routed_experts_start_len")
        return start if type(start) is int else 0
    return max(call.prompt.base_len - 1, 0) if call.prompt is not None else 0


def generate_body(
    call: GenerateCall,
    params: Item,
    more: Mapping[str, Any],
    *,
    rid: str,
    with_logprobs: bool,
    texts: PromptTexts | None = None,
) -> bytes | LongBody:
    """The JSON body of `POST /generate`, with `more` fields. `call.prompt` has been made.

    `params` are the call's `sampling_params`, `rid` is its name there. The client's own text
    of the ids stays as it is, where nothing was made of them. `texts` has those of earlier prompts.

    Raises:
        BadRequest: a field of the client cannot be written as JSON.
    """
    assert call.prompt is not None, "the caching middleware makes the prompt"
    body: Item = {**call.asked}
    body.pop("text", None)
    body.pop("input_ids", None)
    ids_text = _ids_text(call, call.prompt, texts)
    if ids_text is None:
        body["input_ids"] = _input_ids(call, call.prompt.ids)
    body |= {
        "rid": rid,
        "return_logprob": with_logprobs,
        "stream": call.stream,
    }
    if call.kv_session and not body.get("session_params"):  # SGLang takes one of the two
        body["session_id"] = call.kv_session
    if params or not call.is_passed_on:
        body["sampling_params"] = params
    if call.wants_routed_experts and not body.get("return_routed_experts"):
        body |= {"return_routed_experts": True, "routed_experts_start_len": experts_start(call)}
    if call.wants_indexer_topk:
        body["return_indexer_topk"] = True
    if call.thinks_first:
        body["require_reasoning"] = True
    body |= more
    try:
        written = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as exc:
        raise BadRequest(f"The request cannot be written as JSON: {exc}") from exc
    pieces: tuple[bytes | memoryview, ...] = (written,)
    if ids_text is not None:
        pieces = (b'{"input_ids":', *ids_text, b",", memoryview(written)[1:])
    return LongBody(*pieces) if sum(map(len, pieces)) > LONG_BODY_LEN else b"".join(pieces)


def _ids_text(
    call: GenerateCall, prompt: Prompt, texts: PromptTexts | None
) -> tuple[bytes | memoryview, ...] | None:
    """The JSON list of the prompt's ids in pieces, as far as it was written before; else None."""
    if len(call.sampled):
        return None
    if call.ids_text and prompt.ids is call.input_ids:
        return (call.ids_text,)
    return None if texts is None else texts.pieces(call.turn_id, prompt)


def is_constrained(call: GenerateCall) -> bool:
    """Whether a grammar constrains the output: it has to see it from the first token on."""
    params = sampling_params(call)
    return any(params.get(key) for key in (*_GRAMMARS, "stop_regex"))


def text_rules(call: GenerateCall) -> Sampling:
    """The part of the sampling that decides which text a worker shows for the output ids."""
    params = sampling_params(call)
    stop = params.get("stop") or ()
    return Sampling(
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        keep_stop=bool(params.get("no_stop_trim")),
        skip_special_tokens=params.get("skip_special_tokens") is not False,
    )


def stop_ids(call: GenerateCall, eos_ids: Collection[int]) -> frozenset[int]:
    """The tokens that end the output; `eos_ids` are the model's own."""
    params = sampling_params(call)
    own = () if params.get("ignore_eos") else eos_ids
    return frozenset(own).union(params.get("stop_token_ids") or ())


def length_limit(call: GenerateCall) -> int | None:
    """The most output tokens allowed; None for up to the end of the context."""
    limit = sampling_params(call).get("max_new_tokens", _DEFAULT_LEN)
    return limit if limit is None else int(limit)


def _input_ids(call: GenerateCall, prompt: TokenIds) -> TokenIds:
    if len(call.sampled):
        return np.concatenate((prompt, call.sampled))
    return np.ascontiguousarray(prompt)


def sampling_params(call: GenerateCall) -> Item:
    """How the worker is to sample: the one place where `sampling_params` are made."""
    if isinstance(call, NativeCall):
        params = call.body.get("sampling_params") or {}
        if call.defaults is not None:
            params = _over(_spelled(call.defaults), params)
        if call.pins is not None:
            params = pinned(params, call.pins)
    else:
        params = _sampling_params(call.sampling)
    if call.mask_top_k and truncates(params) and not has_finite_top_k(params):
        params = {**params, "top_k": call.mask_top_k}
    if call.token_limit is not None:
        params = _limited(params, call.token_limit)
    return _rest(params, len(call.sampled)) if len(call.sampled) else params


def fitted(params: Item, call: GenerateCall, context_len: int | None) -> Item:
    """`params` with no more tokens than a context has left; a native body is left as it is."""
    if context_len is None or call.is_passed_on or call.prompt is None:
        return params
    room = context_len - len(call.prompt.ids) - len(call.sampled)
    return _limited(params, room) if room > 0 and params["max_new_tokens"] is not None else params


def asked_for(params: Mapping[str, Any]) -> dict[str, Any]:
    """What these parameters say, by the fields of `Sampling`."""
    said = {
        name: params[spelling]
        for name, spelling in _SPELLING.items()
        if params.get(spelling) is not None
    }
    if params.get("no_stop_trim"):
        said["keep_stop"] = True
    if params.get("skip_special_tokens") is False:
        said["skip_special_tokens"] = False
    grammars = [params[name] for name in sorted(_GRAMMARS) if params.get(name)]
    return {**said, "grammar": grammars[0]} if grammars else said


def truncates(params: Mapping[str, Any]) -> bool:
    """Whether these parameters leave only a part of the vocabulary to sample from."""
    return not _CUTTING.isdisjoint(params) and (
        has_finite_top_k(params)
        or ("top_p" in params and _number(params, "top_p", 1.0) < 1.0)
        or ("min_p" in params and _number(params, "min_p", 0.0) > 0.0)
    )


def has_finite_top_k(params: Mapping[str, Any]) -> bool:
    """Whether so many tokens at most are sampled from; it is one where sampling is greedy."""
    if "temperature" in params and 0.0 <= _number(params, "temperature", 1.0) < _GREEDY:
        return True
    return "top_k" in params and 0 < _number(params, "top_k", -1) < _ALL


def _number(params: Mapping[str, Any], name: str, otherwise: float) -> float:
    value = params.get(name)
    return value if isinstance(value, _NUMBERS) else otherwise


def pinned(params: Item, pins: Pins) -> Item:
    """`params` with what is pinned in place of its own."""
    spelled = _spelled(pins.sampling)
    names = {_SPELLING[name] for name in pins.names if name in _SPELLING}
    if "keep_stop" in pins.names:
        names.add("no_stop_trim")
    if "skip_special_tokens" in pins.names:
        names.add("skip_special_tokens")
    if "grammar" in pins.names:
        names |= _GRAMMARS
    rest = {name: value for name, value in params.items() if name not in names}
    result = {**rest, **{name: spelled[name] for name in names if name in spelled}}
    if "max_tokens" in pins.names:
        result.setdefault("max_new_tokens", None)  # to the end of the context
        longest, least = result["max_new_tokens"], result.get("min_new_tokens")
        if longest is not None and least is not None and least > longest:
            result["min_new_tokens"] = longest
    return result


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
    said = _said(sampling)
    params: Item = dict(
        compress(zip(_SPELLING.values(), said, strict=True), map(ne, said, _UNSAID))
    )
    if not sampling.skip_special_tokens:
        params["skip_special_tokens"] = False
    if sampling.keep_stop:
        params["no_stop_trim"] = True
    if sampling.grammar is not None:
        params[sampling.grammar.kind] = sampling.grammar.value
    return params


def _misfit(words: str) -> WorkerFailed:
    failed = WorkerFailed(words)
    failed.is_misfit = True
    return failed


def read_error(status: int, body: bytes) -> RouterError:
    """The error that an answer with `status` means; reads every shape that workers use."""
    if status >= 400 and _ABOUT_MASKS.search(words := _words(body)):
        return MasksRefused(words, status=status, body=body)
    if status >= 500 and status != 503:
        return WorkerFailed(f"The worker failed with status {status}.")
    if status in NOT_SERVED:
        return _misfit(f"The worker does not serve this route: it answers {status}.")
    if status in NO_KEY:
        return _misfit(f"The worker refuses the router's key: it answers {status}.")
    if status in ON_THE_WAY:
        return WorkerFailed(f"The worker was not reached: it answers {status}.")
    if status < 400:
        return _misfit(f"The worker answered with an unexpected status, {status}.")
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
    words = error if isinstance(error, str) else orjson.dumps(error).decode() if error else ""
    words = words.partition('\n  File "')[0].strip()  # the worker's own paths are nobody's business
    return words if len(words) <= _MAX_WORDS_LEN else f"{words[:_MAX_WORDS_LEN]}..."
