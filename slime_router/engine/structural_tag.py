"""Structural tags: grammars of text with calls in it, as SGLang's grammar back end (xgrammar) reads
them. Pure: JSON values in, JSON values out.
"""

from __future__ import annotations

from typing import Any

import orjson

from slime_router.types import Grammar

Json = dict[str, Any]

ANY_TEXT: Json = {"type": "any_text"}


def calls_format(tag: Any, *, is_parallel: bool) -> Json | None:
    """The part of a tag that is calls; None for what is not a structural tag."""
    if not isinstance(tag, dict):
        return None
    if isinstance(tag.get("format"), dict):
        return dict(tag["format"])
    if "structures" not in tag:
        return None
    return some_of(_tags(tag), between="\n", ends_with_first=not is_parallel)


def framed(begin: str, end: str, *, is_parallel: bool) -> Json:
    """Calls of any content between two marks."""
    calls = [tagged(begin, ANY_TEXT, end)]
    return some_of(calls, between="\n", ends_with_first=not is_parallel)


def some_of(tags: list[Json], *, between: str, ends_with_first: bool = False) -> Json:
    """At least one of the tags, in any order, and a text between each two."""
    return {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": between,
        "at_least_one": True,
        "stop_after_first": ends_with_first,
    }


def tagged(begin: str, content: Json, end: str = "") -> Json:
    """What begins and ends so."""
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def json_of(schema: Any) -> Json:
    """JSON that a schema describes."""
    return {"type": "json_schema", "json_schema": schema}


def any_of(*elements: Json) -> Json:
    """One of them; the only one, where there is no other."""
    return {"type": "or", "elements": [*elements]} if len(elements) > 1 else elements[0]


def matching(pattern: str) -> Json:
    """What a regular expression matches."""
    return {"type": "regex", "pattern": pattern}


def grammar_of(form: Json) -> Grammar:
    """The grammar of a whole reply."""
    tag = {"type": "structural_tag", "format": form}
    return Grammar("structural_tag", orjson.dumps(tag).decode())


def ending_with_first(tag: Json) -> Json:
    """A tag of the older form as one of the newer, which ends with the first call."""
    return {
        "type": "structural_tag",
        "format": {
            "type": "triggered_tags",
            "triggers": tag["triggers"],
            "tags": _tags(tag),
            "at_least_one": tag["at_least_one"],
            "stop_after_first": True,
        },
    }


def either(schema: Grammar, calls: Json) -> Grammar:
    """JSON that a schema describes, or calls in its place."""
    return grammar_of(any_of(json_of(orjson.loads(schema.value)), calls))


def _tags(tag: Json) -> list[Json]:
    return [
        tagged(each["begin"], json_of(each["schema"] or {}), each["end"])
        for each in tag["structures"]
    ]
