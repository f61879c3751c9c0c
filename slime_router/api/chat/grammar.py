"""The constraint on the output that a request asks for: one grammar, or none.

A JSON schema that no value can fit, since it refers to itself without end, is refused: SGLang
compiles `{"$ref": "#"}` to a grammar without any first token, and answers with a 500. A reference
that comes back through a property or an item is a tree, and good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from slime_router.api.request import missing, wrong_type
from slime_router.errors import BadRequest
from slime_router.types import Grammar

_ANY_OBJECT = '{"type": "object"}'
_FORMAT = "response_format"
_MAX_PATTERN_LEN = 16 * 2**10  # bytes; compiling 160 kB took all of a worker's memory


def grammar(response_format: Any, *, regex: str | None, ebnf: str | None) -> Grammar | None:
    """The grammar, whichever field holds it.

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


def check_schema(schema: Any, param: str) -> None:
    """Raises BadRequest if every path through the schema's references leads back to itself."""
    ahead, seen = [schema], set[int]()
    while ahead:
        node = ahead.pop()
        steps = _steps(node, schema)
        if steps is None:
            return
        if id(node) not in seen:
            seen.add(id(node))
            ahead += steps
    raise BadRequest(f"'{param}' refers to itself without end.", param=param)


def check_tag(tag: Any, param: str) -> None:
    """The same for each schema in a structural tag."""
    for schema in _schemas_within(tag):
        check_schema(schema, param)


def check_text(text: Any, param: str) -> None:
    """The same for a grammar's JSON as text. Invalid JSON is left for the worker to refuse."""
    try:
        value = orjson.loads(text) if isinstance(text, str) else None
    except orjson.JSONDecodeError:
        return
    (check_tag if param.endswith("structural_tag") else check_schema)(value, param)


def _steps(node: Any, root: Any) -> list[Any] | None:
    """The schemas of which one must fit where `node` must; None where it asks for a value itself.

    It is what SGLang's grammars are made of: a reference hides all beside it, a value the choices.
    """
    if not isinstance(node, dict):
        return None
    if "$ref" in node:
        return _target(node["$ref"], root)
    if "const" in node or "enum" in node:
        return None
    for name in ("anyOf", "oneOf", "allOf"):
        if name in node:
            schemas = node[name]
            is_choice = isinstance(schemas, list) and (name != "allOf" or len(schemas) == 1)
            return schemas or None if is_choice else None
    return None


def _target(ref: Any, root: Any) -> list[Any] | None:
    """What a local reference leads to; None where it leads elsewhere or nowhere."""
    if ref == "#":
        return [root]
    if not isinstance(ref, str) or not ref.startswith("#/"):
        return None
    node = root
    for key in ref[2:].split("/"):
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return [node]


def _schemas_within(tag: Any) -> Iterator[Any]:
    ahead = [tag]
    while ahead:
        node = ahead.pop()
        if isinstance(node, list):
            ahead += node
        elif isinstance(node, dict):
            yield from (node[name] for name in ("json_schema", "schema") if name in node)
            ahead += [each for name, each in node.items() if name not in ("json_schema", "schema")]
