"""Fields that clients name differently, brought to the names that the doors read.

Workers are asked through `/generate`, which reads no header, and knows neither `base:adapter` nor
vLLM's names: what SGLang's own chat route makes of those is made here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import orjson

from slime_router.api.model_names import adapter_in
from slime_router.api.request import named_as, require
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
_KINDS = ("json", "regex", "choice", "grammar", "structural_tag")  # of constraints
CONSTRAINED = frozenset(("structured_outputs", *(f"guided_{kind}" for kind in _KINDS)))
_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")


def normalize_aliases(
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
    if (adapter := adapter_in(said.get("model"), served_model)) is not None:
        said["lora_path"] = adapter
    _modernise_functions(said)
    _hoist_effort(said)
    for name, _, value in _constraints(body):
        if said.get(name) is not None:
            raise BadRequest("Only one constraint can be set.", param=name)
        said[name] = value
    return said


def errors_in_their_names(body: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Complaints about `normalize_aliases(body)` have the names that `body` has for the fields."""
    return named_as(_renamed(body))


def _renamed(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for ours, theirs in _RENAMED:
        if body.get(ours) is None:
            yield ours, theirs
    if isinstance(body.get("reasoning"), dict) and body.get("reasoning_effort") is None:
        yield "reasoning_effort", "reasoning.effort"
    if body.get("tools") is None and (functions := body.get("functions")):
        yield "tool_choice", "function_call"
        yield from ((f"tools[{k}].function", f"functions[{k}]") for k in range(len(functions)))
    yield from ((ours, theirs) for ours, theirs, _ in _constraints(body))


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


def _modernise_functions(said: dict[str, Any]) -> None:
    """The deprecated `functions` and `function_call` as tools and their choice."""
    functions, choice = said.get("functions"), said.get("function_call")
    require(isinstance(functions, list | None), "functions", "a list of functions")
    is_choice = isinstance(choice, str | dict | None)
    require(is_choice, "function_call", "'none', 'auto' or a named function")
    if functions and said.get("tools") is None:
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


def thinking_switch(*, is_on: bool) -> dict[str, bool]:
    """The arguments of a template that turn its thinking on or off: each knows one of the names."""
    return {"thinking": is_on, "enable_thinking": is_on}


def _hoist_effort(said: dict[str, Any]) -> None:
    """OpenRouter's `reasoning` object as `reasoning_effort`, or as the switch that it is."""
    reasoning = said.get("reasoning")
    require(isinstance(reasoning, dict | None), "reasoning", "an object")
    if reasoning is None or said.get("reasoning_effort") is not None:
        return
    enabled = reasoning.get("enabled")
    require(isinstance(enabled, bool | None), "reasoning.enabled", "true or false")
    if reasoning.get("effort") is not None:
        said["reasoning_effort"] = reasoning["effort"]
    elif enabled is False:
        said["reasoning_effort"] = "none"
    elif enabled and isinstance(kwargs := said.get("chat_template_kwargs") or {}, dict):
        said["chat_template_kwargs"] = {**thinking_switch(is_on=True), **kwargs}


def _constraints(body: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """vLLM's `structured_outputs` and `guided_*`: our field, theirs, and the value of ours."""
    if CONSTRAINED.isdisjoint(body):
        return
    given = body.get("structured_outputs")
    require(isinstance(given, dict | None), "structured_outputs", "an object")
    within, name = given or {}, "structured_outputs.{}".format
    any_json = within.get("json_object")
    require(isinstance(any_json, bool | None), name("json_object"), "true or false")
    if any_json:
        yield "response_format", name("json_object"), {"type": "json_object"}
    for kind in _KINDS:
        guided = f"guided_{kind}"
        for theirs, value in ((name(kind), within.get(kind)), (guided, body.get(guided))):
            if value is not None:
                yield _constraint(kind, value, theirs)


def _constraint(kind: str, value: Any, name: str) -> tuple[str, str, Any]:
    match kind:
        case "json":
            wanted = {"type": "json_schema", "schema": _object(value, name)}
            return "response_format", name, wanted
        case "structural_tag":
            return "response_format", name, {**_object(value, name), "type": "structural_tag"}
        case "choice":
            texts = isinstance(value, list) and value and all(isinstance(v, str) for v in value)
            require(bool(texts), name, "a list of strings")
            return "regex", name, "|".join(f"({_SPECIAL.sub(_escaped, each)})" for each in value)
    require(isinstance(value, str), name, "a string")
    return ("ebnf" if kind == "grammar" else kind), name, value


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
