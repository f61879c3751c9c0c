"""The log's line of a request, beside a plain way to write it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from slime_router.telemetry.request_line import RequestLine

BEGIN = {"method": "POST", "path": "/generate", "status": 200, "ms": 1.5}
VALUES = st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["a b", "a=b", ""])


def written(value: object) -> str:
    text = str(value)
    return repr(text) if not text or set(" =") & set(text) or not text.isprintable() else text


@given(st.dictionaries(st.sampled_from(["request", "door", "session", "turn"]), VALUES))
def test_values_that_could_be_taken_for_several_are_in_quotes(fields: dict[str, Any]) -> None:
    said = [f"{name}={written(value)}" for name, value in fields.items()]
    assert str(RequestLine(BEGIN | fields)) == " ".join(["POST /generate 200 2 ms", *said])
