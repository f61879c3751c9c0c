"""Conversations that are read only where they are new say what they say when all is read."""

from __future__ import annotations

import gc
from itertools import product
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slime_router.api.anthropic.messages import BILLING, read_conversation
from slime_router.api.chat.messages import checked
from slime_router.api.media.media_pass import is_free_of_media
from slime_router.api.responses.dialect import SPOKEN
from slime_router.api.responses.items import is_reference, read_input
from slime_router.api.responses.request import conversation_of
from slime_router.errors import BadRequest
from slime_router.json_text import signs
from slime_router.template import heard
from slime_router.template.heard import (
    MAX_CHAINS,
    Chain,
    Heard,
    MessageTexts,
    Past,
    Spoken,
    Written,
)
from slime_router.types import Message

TEXTS = st.text(
    st.sampled_from('ab]["\\{},: \n\u00fc\u2028\U0001f600') | st.characters(codec="utf-8"),
    max_size=8,
)
VALUES = st.none() | st.booleans() | st.integers(-3, 3) | TEXTS | st.lists(TEXTS, max_size=2)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": TEXTS},
    optional={"name": TEXTS, "tool_calls": st.lists(st.dictionaries(TEXTS, VALUES, max_size=2))},
)
OTHERS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(["model", "stop", "a", "messages2"]), VALUES | st.just({"messages": []})
)


@st.composite
def bodies(draw: st.DrawFn) -> list[bytes]:
    """Bodies of conversations that go on, part, begin again, or are broken."""
    made: list[bytes] = []
    talks: list[list[dict[str, Any]]] = [[]]
    for _ in range(draw(st.integers(2, 10))):
        talk = draw(st.sampled_from(talks))
        talk = [
            *talk[: draw(st.sampled_from([len(talk), len(talk), 1]))],
            *draw(st.lists(MESSAGES, max_size=3)),
        ]
        talks.append(talk)
        before, after = draw(OTHERS), draw(OTHERS)
        body = {**before, "messages": talk, **{k: v for k, v in after.items() if k not in before}}
        raw = orjson.dumps(body) if draw(st.booleans()) else _spaced(body)
        made.append(_damaged(draw, raw))
    return made


def _spaced(body: dict[str, Any]) -> bytes:
    """As another client may write it: with spaces, and with escapes."""
    import json

    return json.dumps(body).encode()


def _damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    """Mostly as it is; else with another byte, one less, one more, or a field twice."""
    how = draw(st.sampled_from(["", "", "", "", "change", "drop", "add", "twice", "cut"]))
    at = draw(st.integers(0, len(raw) - 1))
    if how == "change":
        return (
            raw[:at]
            + draw(st.sampled_from([b"x", b'"', b",", b"]", b"\x0b", b"\xff", b"1"]))
            + raw[at + 1 :]
        )
    if how == "drop":
        return raw[:at] + raw[at + 1 :]
    if how == "add":
        return raw[:at] + draw(st.sampled_from([b" ", b",", b"\x0b", b"\n", b"]", b"{"])) + raw[at:]
    if how == "twice":
        return raw[:-1] + draw(st.sampled_from([b',"messages":[]}', b',"mess\\u0061ges":[{}]}']))
    return raw[:at] if how == "cut" else raw


@pytest.fixture(autouse=True)
def _all_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heard, "LONG_LEN", 0)


def read(texts: MessageTexts, raw: bytes, owner: str = "") -> dict[str, Any] | None:
    """The body with all of its messages, which count as checked then."""
    found = texts.read(raw, ("", owner))
    if found is None:
        return None
    body = found[0]
    written = body["messages"]
    assert isinstance(written, Written)
    messages = written.checked(written.new)
    assert messages[: len(written.known)] == written.known
    assert isinstance(messages, Heard)
    assert messages.whole.messages == messages
    return {**body, "messages": list(messages)}


@given(bodies(), st.sampled_from([2**26, 4_000]))
@example([b'{"messages":[{"content":"a"}]}', b'{"messages":[{"content":"a"}\x0b]}'], 2**26)
@example([b'{"messages":[{"content":"a"}]}', b'{"messages":[{"content":"a"},]}'], 2**26)
@example([b'{"messages":[{"content":"a"}]}', b'{"x":{"messages":[{"content":"a"}]}}'], 2**26)
@example([b'{"messages":[{"content":"a"}]}', b'{"x":"\\"messages":[{"content":"a"}]}'], 2**26)
@example([b'{"messages":[{"content":"a"}]}', b'{"messages":[{"content":"a"}'], 2**26)
def test_a_body_reads_as_it_does_without_a_memory(raws: list[bytes], max_kept_len: int) -> None:
    texts = MessageTexts(max_kept_len)
    for raw in raws:
        body = read(texts, raw)
        assert texts._kept_len <= max_kept_len
        assert texts._kept_len == sum(past.size for past in texts._kept)
        try:
            expected = orjson.loads(raw)
        except orjson.JSONDecodeError:
            assert body is None
            continue
        if body is not None:
            assert orjson.dumps(body) == orjson.dumps(expected)  # also in its order
    for index in texts._indexes.values():
        index.check_integrity()


@given(st.lists(MESSAGES, min_size=1, max_size=6), st.integers(0, 400), st.integers(1, 255))
def test_no_byte_of_what_came_before_may_differ(
    talk: list[dict[str, Any]], place: int, flip: int
) -> None:
    texts = MessageTexts()
    raw = orjson.dumps({"messages": talk})
    assert read(texts, raw) == {"messages": talk}
    place %= len(raw)
    other = raw[:place] + bytes([raw[place] ^ flip]) + raw[place + 1 :]
    try:
        expected = orjson.loads(other)
    except orjson.JSONDecodeError:
        expected = None
    found = read(texts, other)
    assert found is None or found == expected


def test_a_conversation_that_goes_on_is_read_from_where_it_was_left():
    texts = MessageTexts()
    talk: list[dict[str, Any]] = []
    for number in range(20):
        talk = [*talk, {"role": "user", "content": str(number)}, {"role": "tool", "content": "x"}]
        found = texts.read(orjson.dumps({"model": "m", "messages": talk, "n": number}))
        assert found is not None
        written = found[0]["messages"]
        assert written.new == talk[-2:]
        assert list(written.checked(written.new)) == talk
        assert len(texts) == min(number + 1, 2)
    last = next(reversed(texts._kept))
    assert last.size > 3 * len(orjson.dumps(talk)), "all of it counts, not what was new"
    assert last.before is not None
    assert last.before.before is None, "what was forgotten is not held by what came after it"


def test_a_conversation_that_parts_keeps_where_it_parted():
    texts, talk = MessageTexts(), [{"role": "user", "content": "Hi"}]
    read(texts, orjson.dumps({"messages": talk}))
    for number in range(5):
        body = {"messages": [*talk, {"role": "assistant", "content": str(number)}]}
        found = texts.read(orjson.dumps(body))
        assert found is not None
        assert found[0]["messages"].known == tuple(talk)
        found[0]["messages"].checked(found[0]["messages"].new)
        if number:  # one of them goes on
            body["messages"].append({"role": "user", "content": "more"})
            read(texts, orjson.dumps(body))


def test_the_same_request_again_has_nothing_new():
    texts, raw = MessageTexts(), orjson.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    for _ in range(3):
        assert read(texts, raw) == orjson.loads(raw)
    assert len(texts) == 1


def test_their_end_is_found_whatever_they_hold():
    for letters in product('\\"]a', repeat=4):
        first = {"role": "user", "content": "".join(letters)}
        texts = MessageTexts()
        raw = orjson.dumps({"messages": [first], "stop": "]"})
        assert read(texts, raw) == orjson.loads(raw)
        found = texts.read(orjson.dumps({"messages": [first, first], "stop": ""}))
        assert found is not None
        assert found[0]["messages"].known == (first,), letters


def test_of_many_chains_the_newest_are_kept():
    past = Past((), 0, 0)
    for number in range(MAX_CHAINS + 1):
        past.note(b"%d" % number, Chain.of(b""))
    assert list(past.chains) == [b"%d" % number for number in range(1, MAX_CHAINS + 1)]


def test_what_was_used_least_recently_goes_first():
    raws = [orjson.dumps({"messages": [{"content": letter * 100}]}) for letter in "abc"]
    one = MessageTexts()
    read(one, raws[0])
    texts = MessageTexts(2 * one._kept_len)
    for number in (0, 1, 0, 2):
        read(texts, raws[number])
    known = [texts.read(raw) for raw in raws]
    assert [len(found[0]["messages"].known) for found in known if found] == [1, 0, 1]


def test_two_requests_at_once_with_the_same_messages_are_kept_once():
    texts, raw = MessageTexts(), orjson.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    found = [texts.read(raw), texts.read(raw)]
    for each in found:
        assert each is not None
        each[0]["messages"].checked(each[0]["messages"].new)
    assert len(texts) == 1
    assert texts._kept_len == sum(past.size for past in texts._kept)
    assert read(texts, raw) == orjson.loads(raw)


def test_the_text_of_a_body_is_not_kept_with_it():
    """A stream lasts as long as it lasts, and has the body."""
    texts, raw = MessageTexts(0x1000), orjson.dumps({"messages": [{"content": "x" * 0x4000}]})
    found = texts.read(raw)
    assert found is not None
    written = found[0]["messages"]
    written.checked(written.new)
    assert len(texts) == 0
    assert not texts._indexes, "nor is its owner"
    assert not [each for each in gc.get_referents(written) if type(each) is bytes]


def test_what_is_too_long_to_be_kept_drives_nothing_out():
    texts, raw = MessageTexts(0x1000), orjson.dumps({"messages": [{"content": "Hi"}]})
    read(texts, raw)
    read(texts, orjson.dumps({"messages": [{"content": "x" * 0x4000}]}), "another")
    assert len(texts) == 1
    found = texts.read(raw)
    assert found is not None
    assert len(found[0]["messages"].known) == 1


def test_who_continues_what_was_forgotten_meanwhile_leaves_nothing():
    first, more = [{"content": "a" * 100}], [{"content": "a" * 100}, {"content": "b"}]
    texts = MessageTexts(1_000)
    read(texts, orjson.dumps({"messages": first}), "one")
    found = texts.read(orjson.dumps({"messages": more}), ("", "one"))
    assert found is not None
    read(texts, orjson.dumps({"messages": [{"content": "c" * 200}]}), "two")
    written = found[0]["messages"]
    assert written.checked(written.new) == tuple(more)
    assert texts._indexes.keys() == {("", "two")}
    assert len(texts) == 1


def test_nor_is_it_where_nothing_is_remembered():
    found = MessageTexts().read(orjson.dumps({"messages": [{"content": "x" * 0x4000}]}))
    assert found is not None
    written = found[0]["messages"]
    written.let_go()
    assert not [each for each in gc.get_referents(written) if type(each) is bytes]


def test_what_another_owner_sent_is_not_known():
    texts, raw = MessageTexts(), orjson.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    assert read(texts, raw, "one") is not None
    found = texts.read(raw, ("", "two"))
    assert found is not None
    assert found[0]["messages"].known == ()


@given(bodies(), st.integers(0, 12))
def test_signs_that_came_before_count(raws: list[bytes], most: int) -> None:
    texts = MessageTexts()
    for raw in raws:
        found = texts.read(raw, max_signs=most)
        if found is not None:
            written = found[0]["messages"]
            written.checked(written.new)
        if signs(raw) > most:
            assert found is None
        elif found is None:
            assert texts.read(raw) is None


def test_so_do_messages() -> None:
    texts, talk = MessageTexts(), list[dict[str, Any]]()
    for number in range(1, 6):
        talk.append({"role": "user", "content": f"{number}"})
        found = texts.read(orjson.dumps({"messages": talk}), max_messages=4)
        assert (found is not None) is (number <= 4)
        if found is not None:
            found[0]["messages"].checked(found[0]["messages"].new)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"messages":[]}',
        b'{"messages":["Hi"]}',
        b'{"messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}]}',
        b'{"messages":[{"content":"a"}],"messages":[{"content":"b"}]}',
        b'{"messages":{"content":"a"}}',
        b'[{"messages":[{"content":"a"}]}]',
        b'{"tools":{"messages":[{"content":"a"}]}}',
        b"{}",
    ],
)
def test_what_is_unusual_is_left_to_the_usual_way(raw):
    assert MessageTexts().read(raw) is None


BLOCKED = Spoken("messages", is_free_of_media)
BLOCKS = st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}) | st.sampled_from(
    [
        {"type": "thinking", "thinking": "Hm.", "signature": "turn_" + "0" * 24},
        {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": ["a", 1]}},
        {"type": "server_tool_use", "id": "c2", "name": "find", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "c2", "content": "found"},
        {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "b"}]},
        {"type": "fallback"},
        {"type": "image", "source": {"type": "base64", "data": ""}},
        {"type": "text"},
        {"no": "type"},
    ]
)
ANTHROPIC_MESSAGES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "user", "assistant", "system", "tool"]),
        "content": TEXTS | st.lists(BLOCKS, max_size=4),
    }
)


def said(body: dict[str, Any]) -> list[Message] | tuple[str, str | None]:
    """The messages of a chat, or what is wrong with Anthropic's, and where."""
    try:
        return checked(read_conversation(body), 0)
    except BadRequest as exc:
        return str(exc), exc.param


SYSTEMS = st.none() | TEXTS | st.just([{"type": "text", "text": f"{BILLING} 1"}])


def test_a_reply_that_came_before_is_joined_with_one_that_follows_it() -> None:
    texts, talk = MessageTexts(), [{"role": "user", "content": "Hi"}]
    for word in ("Well.", "And?", "Yes."):
        talk = [*talk, {"role": "assistant", "content": word}]
        body = {"messages": talk}
        found = texts.read(orjson.dumps(body), ("/v1/messages", ""), BLOCKED)
        assert found is not None
        assert said(found[0]) == said(body)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.lists(ANTHROPIC_MESSAGES, max_size=3)), max_size=10),
    st.data(),
)
def test_blocks_say_in_a_chat_what_they_say_when_all_are_read(steps, data) -> None:
    texts = MessageTexts()
    talks: list[list[dict[str, Any]]] = [[{"role": "user", "content": "Hi"}]]
    for which, new in steps:
        talk = [*talks[which % len(talks)], *new]
        body = {"system": data.draw(SYSTEMS), "messages": talk}
        wanted = said(body)
        if type(wanted) is list:
            talks.append(talk)
        found = texts.read(orjson.dumps(body), ("/v1/messages", ""), BLOCKED)
        if found is None:
            assert not all(map(is_free_of_media, talk))
            continue
        assert len(found[0]["messages"]) == len(talk)
        assert said(found[0]) == wanted


ITEMS = st.sampled_from(
    [
        {"role": "user", "content": "Hi"},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
        {"role": "assistant", "content": " "},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "turn_" + "0" * 24},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "d"},
        {"type": "web_search_call", "id": "w", "action": {"type": "search", "query": "e"}},
        {"type": "custom_tool_call", "call_id": "c2", "name": "run", "input": "f"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "g"},
        {"type": "function_call", "name": "look"},
        {"type": "unheard_of"},
        {"type": "item_reference", "id": "i1"},
    ]
)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.lists(ITEMS, max_size=3)), max_size=10),
    st.data(),
)
def test_items_say_in_a_chat_what_they_say_when_all_are_read(steps, data) -> None:
    def asked(body: dict[str, Any]) -> tuple[Any, ...]:
        """The items and the messages, or what is wrong with them, and where."""
        try:
            items = read_input(body["input"], lambda name, path: {"type": "reasoning", "id": name})
            return items, tuple(checked(list(conversation_of(body, items, None)), 0))
        except BadRequest as exc:
            return str(exc), exc.param

    texts = MessageTexts()
    talks: list[list[dict[str, Any]]] = [[{"role": "user", "content": "Hi"}]]
    for which, new in steps:
        talk = [*talks[which % len(talks)], *new]
        body = {"instructions": data.draw(st.none() | TEXTS), "input": talk}
        wanted = asked(body)
        if type(wanted[0]) is tuple:
            talks.append(talk)
        found = texts.read(orjson.dumps(body), ("/v1/responses", ""), SPOKEN)
        if found is None:
            assert any(map(is_reference, talk))
            continue
        assert asked(found[0]) == wanted


def test_of_blocks_too_only_what_is_new_is_read():
    texts, talk = MessageTexts(), [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    result = {"type": "tool_result", "tool_use_id": "c", "content": "x"}
    for number in range(6):
        found = texts.read(orjson.dumps({"messages": talk}), spoken=BLOCKED)
        assert found is not None
        assert found[0]["messages"].new == talk[-1:]
        assert len(read_conversation(found[0])) == 2 * len(talk) - 1
        talk = [*talk, {"role": "user", "content": [result, {"type": "text", "text": "so"}]}]
        assert len(texts) == min(number + 1, 2)


def test_what_stands_before_all_messages_counts():
    def kept_len(system: str) -> int:
        texts = MessageTexts()
        found = texts.read(orjson.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
        assert found is not None
        written = found[0]["messages"]
        written.remade([{"role": "system", "content": system}], written.new)
        return texts._kept_len

    assert kept_len("a" * 1_000) - kept_len("") == 3 * 1_000, "as for the messages' text"


def test_what_another_api_was_sent_is_not_known():
    texts, raw = MessageTexts(), orjson.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    assert read(texts, raw) is not None
    found = texts.read(raw, ("/v1/messages", ""))
    assert found is not None
    assert found[0]["messages"].known == ()


def test_short_bodies_are_not_looked_at(monkeypatch):
    monkeypatch.undo()
    assert MessageTexts().read(b'{"messages":[{"role":"user","content":"Hi"}]}') is None
