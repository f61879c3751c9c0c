"""The text of a request's line in the log."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from slime_router.telemetry.request_line import RequestLine

BEGIN = {"method": "POST", "path": "/generate", "status": 200, "ms": 12.4}
VALUES = st.text(st.sampled_from("ab =\n\x7f'\"é\u2028"), max_size=4) | st.integers() | st.none()


@given(st.dictionaries(st.sampled_from(["request", "door", "worker"]), VALUES, min_size=1))
@example({"request": "", "door": "a"})
@example({"request": "a", "door": ""})
@example({"request": " ", "door": ""})
@example({"request": "=", "door": ""})
@example({"request": "a b=", "door": "c"})
def test_each_field_is_quoted_where_it_could_be_taken_for_several(fields: dict[str, Any]) -> None:
    expected = "POST /generate 200 12 ms"
    for name, value in fields.items():
        text = str(value)
        is_plain = text and " " not in text and "=" not in text and text.isprintable()
        expected += f" {name}={text if is_plain else repr(text)}"
    assert str(RequestLine({**BEGIN, **fields})) == expected
