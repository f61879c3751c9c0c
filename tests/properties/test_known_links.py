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


def test_as_much_is_remembered_as_there_is_room_for_and_the_longest_unused_goes_first():
    asked = []

    def work_out(link: Link, message: dict[str, Any]) -> Link:
        asked.append(message["content"])
        return link

    size = 700 + 4 * len("user" + "0")
    one, other = Link(b"a" * 16, b""), Link(b"b" * 16, b"")
    known = KnownLinks(work_out, max_kept_len=2 * size)
    known(one, {"role": "user", "content": "0"})
    for number in "123451":  # each takes the place of the one before it
        known(other, {"role": "user", "content": number})
    known(one, {"role": "user", "content": "0"})
    assert asked == [*"0123451"]
    known(Link(b"c" * 16, b""), {"role": "user", "content": "6"})  # in the place of `other`'s
    known(one, {"role": "user", "content": "0"})
    assert asked == [*"01234516"]
    known(other, {"role": "user", "content": "1"})
    assert asked == [*"012345161"]
    small = KnownLinks(work_out, max_kept_len=size)
    for _ in range(2):
        small(one, {"role": "user", "content": "7"})
        small(other, {"role": "user", "content": "long"})  # more than there is room for
    assert asked == [*"0123451617", "long", "long"]
