"""Bare control characters in JSON's strings: escaped alike however the text is cut."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from slime_router.json_text import StringControls

CONTROLS = "\n\t\r\x00\x1f"
texts = st.text(st.sampled_from(f'{CONTROLS}"\\/aé{{}}:, '), max_size=12)
values = st.recursive(
    texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def bare(value: Any) -> str:
    """The JSON of a value, with its control characters as they are, and line ends between."""
    written = json.dumps(value, indent=1, ensure_ascii=False)
    for control in CONTROLS:
        escape = json.dumps(control)[1:-1]
        parts = written.split("\\\\")  # a backslash of the text's own begins no escape
        written = "\\\\".join(part.replace(escape, control) for part in parts)
    return written


@given(values, st.data())
def test_a_strict_reader_reads_what_a_lenient_one_does(value: Any, data: st.DataObject) -> None:
    text = bare(value)
    assert json.loads(text, strict=False) == value
    controls, escaped, rest = StringControls(), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        escaped, rest = escaped + controls.escaped(rest[:size]), rest[size:]
    assert escaped == StringControls().escaped(text)
    assert json.loads(escaped) == value


@given(values)
def test_what_is_json_stays_as_it_is(value: Any) -> None:
    written = json.dumps(value, indent=1)
    assert StringControls().escaped(written) == written
