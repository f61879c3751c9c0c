"""From the body of a `/generate` request to the calls it asks for.

SGLang's spellings are kept: a call's `body` is the client's own object, untouched for a single
prompt. A batch, and `n` samples of a prompt, become single calls in flat prompt-major order. What
would kill a worker is refused here.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from aiohttp import web

from slime_router.api import request as http
from slime_router.api.chat.grammar import check_text
from slime_router.api.chat.stop_regex import regex_fault
from slime_router.api.request import fresh_hex, require, wrong_type
from slime_router.api.token_ids import Vocabulary, check_bias_keys, checked_ids, written
from slime_router.auth.caller import caller
from slime_router.edge.lengths import MAX_GENERATIONS, check_generations
from slime_router.errors import BadRequest
from slime_router.types import GenerateCall, NativeCall
from slime_router.values import value

_INTEGER = (frozenset((int,)), "an integer")
_NUMBER = (frozenset((int, float)), "a number")
_FLAG = (frozenset((bool,)), "true or false")
_TEXT = (frozenset((str,)), "a string")
_TEXTS = (frozenset((str, list)), "a string or a list of strings")
_OBJECT = (frozenset((dict,)), "an object")
_SAMPLING_TYPES: dict[str, tuple[frozenset[type], str]] = {
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "n", "beam_width", "top_k"), _INTEGER),
    "stream_interval": _INTEGER,
    "sampling_seed": (frozenset((int, bool)), "an integer"),  # older workers take true for 1
    **dict.fromkeys(("temperature", "top_p", "min_p", "frequency_penalty"), _NUMBER),
    **dict.fromkeys(("presence_penalty", "repetition_penalty"), _NUMBER),
    **dict.fromkeys(("stop", "stop_regex"), _TEXTS),
    "stop_token_ids": (frozenset((list,)), "a list of token ids"),
    **dict.fromkeys(("json_schema", "regex", "ebnf", "structural_tag"), _TEXT),
    **dict.fromkeys(("ignore_eos", "skip_special_tokens", "no_stop_trim"), _FLAG),
    **dict.fromkeys(("spaces_between_special_tokens", "ebnf_full_assistant"), _FLAG),
    **dict.fromkeys(("logit_bias", "watermark"), _OBJECT),
}
SAMPLING_PARAMS = frozenset(_SAMPLING_TYPES) | {"custom_params"}  # which may be anything
_PER_PROMPT = (
    "rid",
    "sampling_params",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "token_ids_logprob",
    "return_hidden_states",
    "return_sampling_mask",
    "lora_path",
    "extra_key",
    "cache_salt",
    "image_data",
    "video_data",
    "audio_data",
    "custom_logit_processor",
    "session_params",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
)


@value(frozen=True, slots=True)
class GenerateRequest:
    """What a client asks for. `is_array`: whether the reply is a list of items."""

    calls: tuple[GenerateCall, ...]
    is_array: bool
    stream: bool
    tag: str = ""  # before rids at workers, and nowhere else


def read_generate_request(
    body: dict[str, Any], request: web.Request, vocabulary: Vocabulary
) -> GenerateRequest:
    """Checks what must be checked and makes the calls.

    Raises:
        BadRequest: something in it is invalid; nothing has happened yet.
    """
    stream = body.get("stream")
    require(stream is None or isinstance(stream, bool), "stream", "true or false")
    name = _prompt_field(body)
    is_batch = _is_batch(name, body[name])
    check_generations(len(body[name]) if is_batch else 1)
    natives = _split(body, name) if is_batch else [body]
    rids = _rids(body.get("rid"), len(natives), is_batch)
    samples = [_check_native(native, vocabulary.vocab_size) for native in natives]
    check_generations(sum(samples))
    _check_stop_regex(natives)
    calls = tuple(
        _call(
            _one_sample(native, n, k),
            name,
            request,
            vocabulary,
            rid=rid if n == 1 else f"{k}_{rid}",
            asked_as=rid,
            request_id=rid,
            samples=n,
        )
        for native, rid, n in zip(natives, rids, samples, strict=True)
        for k in range(n)
    )
    return GenerateRequest(calls, is_batch or len(calls) > 1, bool(stream), tag=caller(request).tag)


def _prompt_field(body: dict[str, Any]) -> str:
    """Ids win over text, as they do in SGLang."""
    for name in ("input_ids", "text"):
        if body.get(name) is not None:
            return name
    raise BadRequest("Either text or input_ids should be provided.", param="text")


def _is_batch(name: str, prompt: Any) -> bool:
    if not isinstance(prompt, list):
        return False
    if not prompt:
        raise BadRequest(f"'{name}' cannot be empty.", param=name)
    return name == "text" or isinstance(prompt[0], list)


def _split(body: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """One body for each prompt, with its own entry of every list that has one for each prompt."""
    prompts = body[name]
    lists = {key: body[key] for key in _PER_PROMPT if _has_entries(key, body.get(key))}
    for key, values in lists.items():
        if len(values) != len(prompts):
            raise BadRequest(
                f"The length of {key} should be equal to the batch size, {len(prompts)}.", param=key
            )
    shared = {key: value for key, value in body.items() if key not in ("text", "input_ids")}
    return [
        {**shared, name: prompt, **{key: values[i] for key, values in lists.items()}}
        for i, prompt in enumerate(prompts)
    ]


def _has_entries(key: str, value: Any) -> bool:
    """A flat list of `token_ids_logprob` is meant for all prompts."""
    if not isinstance(value, list) or not value:
        return False
    return key != "token_ids_logprob" or any(isinstance(entry, list) for entry in value)


def _rids(given: Any, count: int, is_batch: bool) -> list[str]:
    """The client's own request ids, made unique; fresh ones where it gave none."""
    if isinstance(given, str) and given:
        return [f"{given}_{i}" for i in range(count)] if is_batch else [given]
    if is_batch and isinstance(given, list) and given:
        rids = [rid for rid in given if isinstance(rid, str) and rid]
        if len(set(rids)) != count:
            raise BadRequest("'rid' must be a list of distinct strings.", param="rid")
        return rids
    is_none = given is None or given == "" or (is_batch and given == [])
    require(is_none, "rid", "a string, or a list of strings for a batch")
    return [fresh_hex(32) for _ in range(count)]


def _check_native(native: dict[str, Any], vocab_size: int) -> int:
    """Refuses what a worker might not survive. Returns the number of samples."""
    top = native.get("top_logprobs_num")
    if top is not None:
        require(type(top) is int, "top_logprobs_num", "an integer")
        require(0 <= top <= vocab_size, "top_logprobs_num", f"in [0, {vocab_size}]")
    hidden = native.get("return_hidden_states")
    is_mode = hidden is None or hidden == "last" or type(hidden) is bool
    require(is_mode, "return_hidden_states", "true, false or 'last'")  # a worker dies of a list
    wanted = native.get("token_ids_logprob")
    if wanted is not None and wanted != []:
        checked_ids(
            wanted if isinstance(wanted, list) else [wanted], vocab_size, "token_ids_logprob"
        )
    params = native.get("sampling_params")
    if params is None:
        return 1
    require(isinstance(params, dict), "sampling_params", "an object")
    return check_sampling(params, vocab_size)


def check_sampling(params: dict[str, Any], vocab_size: int) -> int:
    """Refuses sampling parameters that a worker might not survive, or does not know.

    Returns the number of samples, at most one more than a request may ask for.

    Raises:
        BadRequest: one is not what it must be.
    """
    if not SAMPLING_PARAMS.issuperset(params):  # SGLang's answer would be a 500, as if it failed
        key = next(key for key in params if key not in SAMPLING_PARAMS)
        path = f"sampling_params.{key}"[:200]
        raise BadRequest(f"'{path}' is not a parameter.", param=path, code="unknown_parameter")
    for key, given in params.items():
        if given is None or key not in _SAMPLING_TYPES:
            continue
        types, what = _SAMPLING_TYPES[key]
        if type(given) not in types:
            raise wrong_type(key, what)
        if what is _TEXTS[1] and type(given) is list:
            require(set(map(type, given)) <= {str}, key, what)
    require(params.get("n", 1) is not None, "n", "an integer")  # SGLang's answer would be a 500
    if params.get("stop_token_ids"):
        checked_ids(params["stop_token_ids"], vocab_size, "stop_token_ids")
    bias = params.get("logit_bias")
    if bias is not None:
        check_bias_keys(bias, vocab_size, "logit_bias")
        are_numbers = all(type(each) in _NUMBER[0] for each in bias.values())
        require(are_numbers, "logit_bias", "an object of numbers")
    top_k = params.get("top_k")  # workers keep it in 32 bits
    require(top_k is None or -1 <= top_k < 2**31, "top_k", "-1, or a positive number of 32 bits")
    for key in ("json_schema", "structural_tag"):
        if key in params:
            check_text(params[key], key)
    return min(max(params.get("n") or 1, 1), MAX_GENERATIONS + 1)


def _check_stop_regex(natives: list[dict[str, Any]]) -> None:
    """The patterns of all prompts together: they are compiled one after another."""
    patterns = chain.from_iterable(map(_stop_regex, natives))
    if (fault := regex_fault(patterns)) is not None:
        raise BadRequest(f"Invalid value for 'stop_regex': {fault}.", param="stop_regex")


def _stop_regex(native: dict[str, Any]) -> list[str]:
    given = (native.get("sampling_params") or {}).get("stop_regex")
    if given is None:
        return []
    return [given] if isinstance(given, str) else list(given)


def _one_sample(native: dict[str, Any], n: int, index: int) -> dict[str, Any]:
    """The body that asks for one of `n` samples."""
    if n == 1:
        return native
    params = {key: value for key, value in native["sampling_params"].items() if key != "n"}
    if type(seed := params.get("sampling_seed")) is int:
        params["sampling_seed"] = http.seed_of_sample(seed, index)
    return {**native, "sampling_params": params}


def _call(
    native: dict[str, Any],
    name: str,
    request: web.Request,
    vocabulary: Vocabulary,
    *,
    rid: str,
    asked_as: str,
    request_id: str,
    samples: int,
) -> GenerateCall:
    prompt = native[name]
    if name == "text":
        require(isinstance(prompt, str), "text", "a string")
        if not prompt:
            raise BadRequest("'text' cannot be empty.", param="text")
    ids = None if name == "text" else checked_ids(prompt, vocabulary.vocab_size, name)
    text = written(prompt)
    return NativeCall(
        rid=rid,
        asked_as=asked_as,
        turn_id=http.new_turn_id(),
        text=prompt if name == "text" else None,
        input_ids=ids,
        ids_text=text,
        session_id=http.session_id(request, native),
        scope=http.scope(request, native),
        body={**native, name: ids} if text else native,
        headers=http.forwarded_headers(request),
        stream=native.get("stream") is True,
        request_id=request_id,
        samples=samples,
    )
