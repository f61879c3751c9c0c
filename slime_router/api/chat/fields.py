"""The scalar fields of an OpenAI chat request, with their types and ranges.

Types are strict: neither `true` nor `"1"` is a number. Unknown fields are ignored, because clients
of every vendor send their own. Messages, tools and grammars have modules of their own.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from slime_router.api.chat.stop_regex import regex_fault
from slime_router.api.token_ids import Vocabulary, check_bias_keys, checked_ids
from slime_router.choices import History
from slime_router.errors import BadRequest
from slime_router.types import Grammar, Sampling

MAX_STOPS = 32
WORKER_FIELDS = (  # handed on at the top level, under the worker's own names
    "lora_path",
    "extra_key",
    "cache_salt",
    "priority",
    "session_params",
    "custom_logit_processor",
    "custom_labels",
    "routed_dp_rank",
    "disagg_prefill_dp_rank",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "max_thinking_tokens",
    "routing_key",
)
REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _no_empty(values: list[str]) -> list[str]:
    if "" in values:
        raise PydanticCustomError("empty_stop", "an empty string would match at once")
    return values


def _good_regex(values: list[str]) -> list[str]:
    if (fault := regex_fault(values)) is not None:
        raise PydanticCustomError("bad_regex", "{fault}", {"fault": fault})
    return values


def _effort(value: Any) -> Any:
    is_number = type(value) in (int, float) and 0 <= value < 1
    if value is not None and not is_number and value not in REASONING_EFFORTS:
        raise PydanticCustomError("effort", f"must be one of {', '.join(REASONING_EFFORTS)}")
    return value


def _no_audio(values: list[str]) -> list[str]:
    if "audio" in values:
        raise PydanticCustomError("audio", "audio output is not supported for this model")
    return values


def _unset(value: Any) -> Any:
    if value is not None and value is not False:
        raise PydanticCustomError(
            "unserved", "is not served; completions with 'echo' and 'logprobs' give those"
        )
    return value


def _no_template(value: Any) -> Any:
    if value is not None:
        raise PydanticCustomError("template", "a request cannot bring its own chat template")
    return value


_Count: TypeAlias = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Int32: TypeAlias = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
_Penalty: TypeAlias = Annotated[float, Field(ge=-2, le=2)]
_Strings: TypeAlias = Annotated[
    list[str], BeforeValidator(_listed), Field(max_length=MAX_STOPS), AfterValidator(_no_empty)
]


class StreamOptions(BaseModel):
    """What a stream includes besides the text."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ChatFields(BaseModel):
    """One request's scalar fields. None means that the client did not set it."""

    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    max_completion_tokens: _Count | None = None
    max_tokens: _Count | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: _Strings | None = None
    stop_regex: Annotated[_Strings, AfterValidator(_good_regex)] | None = None
    stop_token_ids: list[int] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    include_stop_str_in_output: bool | None = None
    regex: str | None = None
    ebnf: str | None = None
    custom_params: dict[str, Any] | None = None

    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    prompt_logprobs: Annotated[Any, BeforeValidator(_unset)] = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_prompt_token_ids: bool | None = None
    return_meta_info: bool | None = None
    return_input_ids_in_sglext: bool | None = None
    return_output_ids_in_sglext: bool | None = None

    parallel_tool_calls: bool | None = None
    separate_reasoning: bool | None = None
    include_reasoning: bool | None = None
    stream_reasoning: bool | None = None

    history: History | None = None
    chat_template: Annotated[Any, BeforeValidator(_no_template)] = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    cache_salt: str | None = None
    extra_key: str | None = None
    lora_path: str | None = None
    rid: Annotated[str, Field(min_length=1, max_length=128)] | None = None

    priority: _Int32 | None = None
    session_params: dict[str, Any] | None = None
    custom_logit_processor: str | None = None
    custom_labels: dict[str, str] | None = None
    routed_dp_rank: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    disagg_prefill_dp_rank: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    bootstrap_host: str | None = None
    bootstrap_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    bootstrap_room: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    routing_key: str | None = None
    max_thinking_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    return_hidden_states: bool | None = None
    return_routed_experts: bool | None = None
    routed_experts_start_len: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    return_indexer_topk: bool | None = None
    return_sampling_mask: bool | None = None
    sampling_logprobs_mode: Literal["selected", "support"] | None = None

    reasoning_effort: Annotated[Any, BeforeValidator(_effort)] = None
    modalities: Annotated[list[str], AfterValidator(_no_audio)] | None = None


SAMPLING_FIELDS = {
    **{
        field.name: field.name
        for field in fields(Sampling)
        if field.name in ChatFields.model_fields
    },
    "max_completion_tokens": "max_tokens",
    "include_stop_str_in_output": "keep_stop",
    "no_stop_trim": "keep_stop",
    **dict.fromkeys(("response_format", "regex", "ebnf"), "grammar"),
}
"""How to sample, by the names of a chat: the field of Sampling that each sets."""


def read_fields(body: dict[str, Any], vocabulary: Vocabulary) -> ChatFields:
    """The scalar fields of `body`, each in its range and in agreement with the others.

    Raises:
        BadRequest: with the dotted path of the field at fault.
    """
    try:
        fields = ChatFields.model_validate(body)
    except ValidationError as exc:
        raise _bad_request(exc.errors(include_url=False, include_input=False)[0]) from exc
    _check_agreement(fields)
    _check_vocabulary(fields, vocabulary.vocab_size)
    return fields


def worker_fields(fields: ChatFields, *more: str) -> dict[str, Any]:
    """What the client set of the fields that are the worker's own, and of those named `more`."""
    names = (*WORKER_FIELDS, *more)
    given = fields.model_fields_set
    values = {n: value for n in names if n in given and (value := getattr(fields, n)) is not None}
    if fields.cache_salt:  # older workers have no other way to separate their caches
        values["extra_key"] = fields.cache_salt + (fields.extra_key or "")
    return values


def sampling(fields: ChatFields, grammar: Grammar | None) -> Sampling:
    """How to sample, in the router's terms."""
    return Sampling(
        max_tokens=_max_tokens(fields),
        min_tokens=fields.min_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=-1 if fields.top_k == 0 else fields.top_k,  # vLLM's clients say 0 for "all"
        min_p=fields.min_p,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        repetition_penalty=fields.repetition_penalty,
        stop=tuple(fields.stop or ()),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        stop_regex=tuple(fields.stop_regex or ()),
        ignore_eos=fields.ignore_eos,
        seed=fields.seed,
        logit_bias=fields.logit_bias or None,
        skip_special_tokens=fields.skip_special_tokens is not False,
        spaces_between_special_tokens=fields.spaces_between_special_tokens,
        keep_stop=bool(fields.no_stop_trim or fields.include_stop_str_in_output),
        grammar=grammar,
        custom_params=fields.custom_params,
    )


def _max_tokens(fields: ChatFields) -> int | None:
    """The name that OpenAI deprecated counts only where the new one is absent."""
    if fields.max_completion_tokens is not None:
        return fields.max_completion_tokens
    return fields.max_tokens


def _check_agreement(fields: ChatFields) -> None:
    if fields.top_logprobs and not fields.logprobs:
        raise BadRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
    limit = _max_tokens(fields)
    if limit is not None and (fields.min_tokens or 0) > limit:
        raise BadRequest("'min_tokens' cannot be above the maximum.", param="min_tokens")
    if "chat_template" in (fields.chat_template_kwargs or {}):
        raise BadRequest(
            "A request cannot bring its own chat template.",
            param="chat_template_kwargs.chat_template",
        )


def _check_vocabulary(fields: ChatFields, vocab_size: int) -> None:
    if (fields.top_logprobs or 0) > vocab_size:
        raise BadRequest(
            f"'top_logprobs' cannot be above the vocabulary's size, {vocab_size}.",
            param="top_logprobs",
        )
    if fields.stop_token_ids:
        checked_ids(fields.stop_token_ids, vocab_size, "stop_token_ids")
    if fields.logit_bias:
        check_bias_keys(fields.logit_bias, vocab_size, "logit_bias")


def _bad_request(error: ErrorDetails) -> BadRequest:
    """Pydantic's first complaint in OpenAI's wording."""
    param = _path(error["loc"])
    return BadRequest(
        f"Invalid value for '{param}': {error['msg']}.", param=param, code=_code(error)
    )


def _path(loc: tuple[int | str, ...]) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)
    return "".join(steps).removeprefix(".")


def _code(error: ErrorDetails) -> str:
    kind = error["type"]
    if kind.endswith("_type"):
        return "invalid_type"
    for prefix, side in (("greater_than", "below_min"), ("less_than", "above_max")):
        if kind.startswith(prefix):
            limit = next(iter(error["ctx"].values()))
            return f"{'integer' if isinstance(limit, int) else 'decimal'}_{side}_value"
    return "invalid_value"
