"""Schemas that refer to themselves: a 400 where no value can fit, and nothing else is refused."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from slime_router.api.chat.grammar import check_schema, check_tag, check_text
from slime_router.errors import BadRequest

SELF: dict[str, Any] = {"$ref": "#"}
RING = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
INTEGER = {"type": "integer"}

# Each was shown to SGLang 0.5.23: it answers these with a 500,
ENDLESS: list[Any] = [
    SELF,
    RING,
    {**SELF, "type": "integer"},
    {**SELF, "properties": {"a": INTEGER}},
    {**SELF, "const": 1},
    {"anyOf": [SELF]},
    {"anyOf": [SELF], "oneOf": [INTEGER]},
    {"oneOf": [SELF], "type": "integer"},
    {"allOf": [SELF]},
    {"anyOf": [SELF, SELF, {"allOf": [SELF]}]},
]
# and takes these, or refuses them in its own words.
GOOD: list[Any] = [
    {},
    True,
    INTEGER,
    {"anyOf": [SELF, INTEGER]},
    {"oneOf": [{"anyOf": [SELF]}, {"type": "null"}]},
    {"type": "object", "properties": {"a": SELF}},
    {"type": "object", "properties": {"a": SELF}, "required": ["a"]},
    {"type": "array", "items": SELF},
    {"allOf": [SELF, INTEGER]},
    {"const": 1, "allOf": [SELF]},
    {**INTEGER, "$defs": RING["$defs"]},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": INTEGER}},
    {"$ref": "#/$defs/nosuch"},
    {"$ref": "https://example.com/x"},
    {"$ref": 5},
    {"anyOf": []},
    {"anyOf": 5},
    {"$ref": "#/a/b", "a": [1]},
]


@pytest.mark.parametrize("schema", ENDLESS, ids=str)
def test_what_no_value_can_fit_is_refused_wherever_it_stands(schema):
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": schema}}
    for check in (
        lambda: check_schema(schema, "x"),
        lambda: check_tag(tag, "x"),
        lambda: check_tag({"structures": [{"begin": "<", "schema": schema}]}, "x"),
        lambda: check_text(orjson.dumps(schema).decode(), "x"),
        lambda: check_text(orjson.dumps(tag).decode(), "structural_tag"),
    ):
        with pytest.raises(BadRequest, match="refers to itself"):
            check()


@pytest.mark.parametrize("schema", GOOD, ids=str)
def test_what_a_value_can_fit_is_taken(schema):
    check_schema(schema, "x")
    check_tag({"format": {"elements": [{"json_schema": schema}]}}, "x")


@pytest.mark.parametrize("text", [None, 5, "{", ""])
def test_text_that_is_no_schema_is_the_workers_to_refuse(text):
    check_text(text, "json_schema")


def test_a_schema_of_many_references_is_read_once():
    """Each step branches: a walk without memory would take 2 ** 1000 steps."""
    steps = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(1000)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**steps, "d1000": {"$ref": "#/$defs/d0"}}}
    with pytest.raises(BadRequest):
        check_schema(schema, "x")
