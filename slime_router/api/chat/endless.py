"""JSON schemas that no value can fit, since they refer to themselves without end.

SGLang compiles `{"$ref": "#"}` to a grammar without any first token, and answers with a 500. A
reference that comes back through a property or an item is a tree, and good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from slime_router.errors import BadRequest


def check_schema(schema: Any, param: str) -> None:
    """Raises BadRequest where every way through the schema's references comes back to itself."""
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
    for schema in _schemas(tag):
        check_schema(schema, param)


def check_text(text: Any, param: str) -> None:
    """The same for a grammar's JSON as text. What is no JSON is the worker's to refuse."""
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


def _schemas(tag: Any) -> Iterator[Any]:
    ahead = [tag]
    while ahead:
        node = ahead.pop()
        if isinstance(node, list):
            ahead += node
        elif isinstance(node, dict):
            yield from (node[name] for name in ("json_schema", "schema") if name in node)
            ahead += [each for name, each in node.items() if name not in ("json_schema", "schema")]
