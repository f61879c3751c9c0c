"""Quick looks at what is plain and short say what a look at everything says."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from slime_router.edge import allowances
from slime_router.edge.allowances import Allowances
from slime_router.errors import BadRequest
from slime_router.json_text import size_of
from slime_router.waiting.fair_queue import Party
from slime_router.waiting.turnstile import LONG_TALK, Turnstile

TEXTS = st.sampled_from(["", "a", "text", "\u00fc" * 9, "\U0001f600" * 20, "/etc/passwd", "x" * 70])
NAMES = st.sampled_from(
    [
        *("role", "content", "type", "image_url", "url", "tools", "arguments", "input", "messages"),
        *("custom_logit_processor", "session_params", "source", "audio"),
    ]
)
TYPES = st.sampled_from(["text", "image_url", "tool_use", "document", "file"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS | TYPES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


def refusal(body: Any, allowed: Allowances) -> Any:
    try:
        allowed.check(body)
    except BadRequest as exc:
        return exc.param, exc.message
    return None


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.booleans(), st.booleans())
def test_what_is_plain_has_nothing_to_refuse(body, local_media, logit_processors):
    allowed = Allowances(local_media, logit_processors)
    try:
        for where, holder in allowances._objects(body, "", 0):
            allowed._check_object(holder, where)
        whole = None
    except BadRequest as exc:
        whole = exc.param, exc.message
    assert refusal(body, allowed) == whole


@given(st.lists(VALUES, max_size=4), st.integers(1, 1500))
def test_what_is_long_is_found_however_it_is_looked_at(values, long_len):
    turnstile = Turnstile(1, long_len)
    is_long = sum(map(size_of, values)) >= long_len and bool(values)
    assert (turnstile.passing(values, Party("", "")) is not turnstile._passage) == is_long


CONTENTS = st.one_of(st.none(), st.text(max_size=30), st.lists(VALUES, max_size=3))


@given(
    st.lists(CONTENTS, min_size=1, max_size=4),
    st.lists(st.one_of(st.just({}), VALUES), max_size=2),
    st.integers(1, 4000),
)
def test_so_is_a_long_conversation(contents, others, long_len):
    messages = [{"role": "user", "content": content} for content in contents] * LONG_TALK
    values = [*messages, *others]
    turnstile = Turnstile(1, long_len)
    is_long = sum(map(size_of, values)) >= long_len
    assert (turnstile.passing(values, Party("", "")) is not turnstile._passage) == is_long
