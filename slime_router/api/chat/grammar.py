"""The constraint on the output that a request asks for: one grammar, or none."""

from __future__ import annotations

from typing import Any

import orjson

from slime_router.api.chat.endless import check_schema, check_tag
from slime_router.api.faults import missing, wrong_type
from slime_router.errors import BadRequest
from slime_router.types import Grammar

_ANY_OBJECT = '{"type": "object"}'
_FORMAT = "response_format"
_MAX_PATTERN_LEN = 16 * 2**10  # bytes; compiling 160 kB took all of a worker's memory


def grammar(response_format: Any, *, regex: str | None, ebnf: str | None) -> Grammar | None:
    """The grammar in whichever field it stands.

    Raises:
        BadRequest: there are two, one is too long, or `response_format` is not one of its forms.
    """
    found = [
        Grammar("regex", regex) if regex is not None else None,
        Grammar("ebnf", ebnf) if ebnf is not None else None,
        _from_format(response_format) if response_format is not None else None,
    ]
    for name, pattern in (("regex", regex), ("ebnf", ebnf)):
        if pattern is not None and len(pattern.encode()) > _MAX_PATTERN_LEN:
            raise BadRequest(f"'{name}' has more than {_MAX_PATTERN_LEN} bytes.", param=name)
    grammars = [each for each in found if each is not None]
    if len(grammars) > 1:
        raise BadRequest(
            "Only one of json_schema, regex, ebnf, or structural_tag can be set.", param=_FORMAT
        )
    return grammars[0] if grammars else None


def _from_format(wanted: Any) -> Grammar | None:
    if not isinstance(wanted, dict):
        raise wrong_type(_FORMAT, "an object")
    match wanted.get("type"):
        case "text":
            return None
        case "json_object":
            return Grammar("json_schema", _ANY_OBJECT)
        case "json_schema":
            return Grammar("json_schema", _text(_schema(wanted)))
        case "structural_tag":
            check_tag(wanted, _FORMAT)
            return Grammar("structural_tag", _text(wanted))
        case _:
            raise BadRequest(
                f"'{_FORMAT}.type' must be one of text, json_object, json_schema, structural_tag.",
                param=f"{_FORMAT}.type",
            )


def _schema(wanted: dict[str, Any]) -> dict[str, Any]:
    """The schema in OpenAI's place, or directly in the format as some clients write it."""
    named = wanted.get("json_schema", wanted)
    if not isinstance(named, dict):
        raise wrong_type(f"{_FORMAT}.json_schema", "an object")
    strict = named.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise wrong_type(f"{_FORMAT}.json_schema.strict", "true or false")
    schema = named.get("schema")
    if schema is None:
        raise missing(f"{_FORMAT}.json_schema.schema")
    if not isinstance(schema, dict):
        raise wrong_type(f"{_FORMAT}.json_schema.schema", "an object")
    check_schema(schema, f"{_FORMAT}.json_schema.schema")
    return schema


def _text(value: dict[str, Any]) -> str:
    return orjson.dumps(value).decode()
