"""Fields that clients name differently, brought to the names that the doors read.

Workers are asked through `/generate`, which reads no header, and knows neither `base:adapter` nor
vLLM's names: what SGLang's own chat route makes of those is made here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from slime_router.api.request import require
from slime_router.errors import BadRequest

RANK_HEADER = "x-data-parallel-rank"
KEY_HEADER = "x-smg-routing-key"
_IDS_HEADERS = {  # and the fields that they stand for, where they are 1
    "x-sglext-return-input-ids": "return_input_ids_in_sglext",
    "x-sglext-return-output-ids": "return_output_ids_in_sglext",
}
MAX_TOP_LOGPROBS = 20

_RENAMED = (  # the name that wins comes first
    ("routed_dp_rank", "data_parallel_rank"),
    ("max_thinking_tokens", "thinking_token_budget"),
)
_CONSTRAINTS = tuple(  # each kind, and its two names
    (kind, f"structured_outputs.{kind}", f"guided_{kind}")
    for kind in ("json", "regex", "choice", "grammar", "structural_tag")
)
_CONSTRAINED = frozenset(("structured_outputs", *(guided for _, _, guided in _CONSTRAINTS)))
_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")


def in_our_words(
    body: Mapping[str, Any], headers: Mapping[str, str], served_model: str
) -> dict[str, Any]:
    """A copy of `body` in which each thing stands under one name; what is new there wins.

    Raises:
        BadRequest: with the name that the client used.
    """
    said = dict(body)
    for name, other in _RENAMED:
        if said.get(name) is None and said.get(other) is not None:
            said[name] = said[other]
    said |= said_in_headers(headers)
    _hoist_spaces(said)
    if (adapter := _adapter(said.get("model"), served_model)) is not None:
        said["lora_path"] = adapter
    _modernise_functions(said)
    _hoist_effort(said)
    for name, value in _constraints(body):
        if said.get(name) is not None:
            raise BadRequest("Only one constraint can be set.", param=name)
        said[name] = value
    return said


def said_in_headers(headers: Mapping[str, str]) -> dict[str, Any]:
    """The fields that stand in headers; they win over the body's own.

    Raises:
        BadRequest: a header has no such value.
    """
    said: dict[str, Any] = {}
    if (rank := headers.get(RANK_HEADER)) is not None:
        require(rank.isascii() and rank.isdecimal(), RANK_HEADER, "an integer")
        said["routed_dp_rank"] = int(rank[:10])
    if (key := headers.get(KEY_HEADER)) is not None:
        said["routing_key"] = key
    said |= {field: True for name, field in _IDS_HEADERS.items() if headers.get(name) == "1"}
    return said


def _adapter(model: Any, served_model: str) -> str | None:
    """The adapter in `base:adapter`; the served model's own name may have colons."""
    if not isinstance(model, str) or model == served_model:
        return None
    behind_name = model.removeprefix(f"{served_model}:")
    adapter = behind_name if behind_name != model else model.partition(":")[2]
    return adapter.strip() or None


def _modernise_functions(said: dict[str, Any]) -> None:
    """The deprecated `functions` and `function_call` as tools and their choice."""
    functions, choice = said.get("functions"), said.get("function_call")
    if functions and said.get("tools") is None:
        require(isinstance(functions, list), "functions", "a list of functions")
        said["tools"] = [{"type": "function", "function": each} for each in functions]
        if choice is not None and said.get("tool_choice") is None:
            named = isinstance(choice, dict)
            said["tool_choice"] = {"type": "function", "function": choice} if named else choice


def _hoist_spaces(said: dict[str, Any]) -> None:
    """SGLang's chat route looks for this among what the template is given."""
    kwargs, name = said.get("chat_template_kwargs"), "spaces_between_special_tokens"
    if said.get(name) is None and isinstance(kwargs, dict) and kwargs.get(name) is not None:
        require(type(kwargs[name]) is bool, f"chat_template_kwargs.{name}", "true or false")
        said[name] = kwargs[name]


def count_logprobs(said: dict[str, Any]) -> None:
    """In chat, a number of logprobs, as completions have it, is read as SGLang reads it.

    Raises:
        BadRequest: it is not a number of them.
    """
    count = said.get("logprobs")
    if type(count) is not int:
        return
    require(0 <= count <= MAX_TOP_LOGPROBS, "logprobs", "true, false or the number of top logprobs")
    said["logprobs"] = count > 0
    if count and said.get("top_logprobs") is None:
        said["top_logprobs"] = count


def _hoist_effort(said: dict[str, Any]) -> None:
    """OpenRouter's `reasoning` object as `reasoning_effort`."""
    reasoning = said.get("reasoning")
    if not isinstance(reasoning, dict) or said.get("reasoning_effort") is not None:
        return
    if reasoning.get("effort") is not None:
        said["reasoning_effort"] = reasoning["effort"]
    elif reasoning.get("enabled") is False:
        said["reasoning_effort"] = "none"


def _constraints(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """vLLM's `structured_outputs` and `guided_*`, as fields of ours."""
    if _CONSTRAINED.isdisjoint(body):
        return
    given = body.get("structured_outputs")
    within = given if isinstance(given, dict) else {}
    for kind, name, guided in _CONSTRAINTS:
        if (value := within.get(kind)) is not None:
            yield _constraint(kind, value, name)
        if (value := body.get(guided)) is not None:
            yield _constraint(kind, value, guided)


def _constraint(kind: str, value: Any, name: str) -> tuple[str, Any]:
    match kind:
        case "json":
            return "response_format", {"type": "json_schema", "schema": _object(value, name)}
        case "structural_tag":
            return "response_format", {**_object(value, name), "type": "structural_tag"}
        case "choice":
            texts = isinstance(value, list) and value and all(isinstance(v, str) for v in value)
            require(bool(texts), name, "a list of strings")
            return "regex", "|".join(f"({_SPECIAL.sub(_escaped, each)})" for each in value)
    require(isinstance(value, str), name, "a string")
    return ("ebnf" if kind == "grammar" else kind), value


def _escaped(found: re.Match[str]) -> str:
    return f"\\{found[0]}"


def _object(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            value = None
    require(isinstance(value, dict), name, "a JSON object")
    return dict(value)
