"""Remembered links of conversations are those that would be worked out."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from slime_router.template.conversation_key import next_link
from slime_router.trajectory.known_links import KnownLinks, Link
from tests.examples import examples

ROOTS = st.sampled_from([Link(b"a" * 16, b""), Link(b"b" * 16, b""), Link(b"a" * 16, b"x")])
TEXTS = st.sampled_from(["", "a", " a", "a ", "a\r\n", "1", "<think>x</think> a", "é"])
ROLES = st.sampled_from(["user", "assistant", "tool", "Assistant"])
ARGUMENTS = st.sampled_from([{"n": 1}, {"n": True}, {"n": 1.0}, '{"n": 1}', "", None])


@st.composite
def messages(draw) -> dict[str, Any]:
    message: dict[str, Any] = {"role": draw(ROLES), "content": draw(TEXTS)}
    if draw(st.booleans()):
        message["tool_call_id"] = draw(st.sampled_from(["1", "2", None, True]))
    if draw(st.booleans()):
        call = {"id": "1", "function": {"name": "f", "arguments": draw(ARGUMENTS)}}
        message["tool_calls"] = [call]
    return message


def plain(link: Link, message: dict[str, Any]) -> Link:
    return Link(*next_link(link.key, link.spelling, message, with_call_ids=True))


@settings(deadline=None, max_examples=examples(300))
@given(st.lists(st.tuples(ROOTS, st.lists(messages(), max_size=5)), max_size=8), st.integers(0, 9))
def test_each_link_is_the_one_that_would_be_worked_out(talks, room):
    """Whatever was asked before, whatever was forgotten."""
    known = KnownLinks(plain, max_kept_len=room * 1000)
    for root, talk in [*talks, *talks]:
        link = wanted = root
        for message in talk:
            link, wanted = known(link, message), plain(wanted, message)
            assert link == wanted
        assert known._kept_len == sum(size for _, _, size in known._kept.values())
        assert known._kept_len <= room * 1000


def test_what_came_before_is_not_worked_out_again():
    asked = []

    def work_out(link: Link, message: dict[str, Any]) -> Link:
        asked.append(message["content"])
        return plain(link, message)

    known = KnownLinks(work_out)
    for count in (3, 4, 5):
        link = Link(b"a" * 16, b"")
        for number in range(count):
            link = known(link, {"role": "user", "content": str(number)})
    assert asked == ["0", "1", "2", "3", "4"]
