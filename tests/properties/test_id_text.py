"""Long lists of ids are read as the JSON parser reads them, or left to it."""

from __future__ import annotations

import json
import re

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_router import beginnings
from slime_router.tokens.written import id_digits, id_text
from slime_router.tokens.written.id_digits import read_ids
from slime_router.tokens.written.id_text import IdTexts
from tests.examples import examples

SPACES = st.sampled_from(["", " ", "  ", "\n", "\t", "\r", "\f", "\v", "\u00a0"])
IDS = st.lists(st.integers(0, 10**8), min_size=1, max_size=60)
ODD = st.sampled_from(
    [
        "007",
        "-1",
        "1.0",
        "1e3",
        "true",
        "null",
        "",
        "[1]",
        "1 2",
        '"5"',
        "99999999999999999999",
        "x",
    ]
)
NAMES = st.sampled_from(["rid", "text", "ids", "ids\\u0020", "i\\u0064s", "nested", "note"])
VALUES = st.one_of(
    st.integers(0, 9).map(str),
    st.sampled_from(
        ['"ids"', '"\\"ids\\": [1]"', '{"ids": [1, 2]}', "[]", '{"ids": []}', '"\\u0041"']
    ),
)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Everything is long enough, and few ids are read, or looked for, at a time."""
    monkeypatch.setattr(id_text, "LONG_LEN", 0)
    monkeypatch.setattr(id_text, "STRETCH_LEN", 8)
    monkeypatch.setattr(id_digits, "STRETCH_LEN", 8)
    monkeypatch.setattr(beginnings, "ENDS", tuple(4 * 2**number for number in range(20)))
    monkeypatch.setattr(beginnings, "WINDOW_LEN", 2)


def read(texts: IdTexts, raw: bytes, field: str = "ids") -> object:
    """What a door makes of the object, as plain values."""
    lifted = texts.lifted(raw, field)
    if lifted is not None:
        rest, ids = lifted
        try:
            body = orjson.loads(rest)
        except orjson.JSONDecodeError:
            body = None
        if type(body) is dict and body.get(field) == []:
            assert orjson.loads(ids.text) == ids.ids.tolist()
            assert not ids.ids.flags.writeable
            return {**body, field: ids.ids.tolist()}
    return plain(raw)


def plain(raw: bytes) -> object:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return "not JSON"


@st.composite
def bodies(draw) -> bytes:
    items = [str(each) for each in draw(IDS)]
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), draw(ODD))
    comma = draw(st.sampled_from([",", ", ", " ,", ",\n", ",,"]))
    array = f"[{draw(SPACES)}{comma.join(items)}{draw(SPACES)}]"
    fields = [f'"{name}": {value}' for name, value in draw(st.lists(st.tuples(NAMES, VALUES)))]
    fields.insert(draw(st.integers(0, len(fields))), f'"ids"{draw(SPACES)}:{draw(SPACES)}{array}')
    raw = "{" + ", ".join(fields) + "}"
    cut = draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))
    return raw[:cut].encode()


@settings(deadline=None, max_examples=examples(400))
@given(st.lists(bodies(), min_size=1, max_size=4))
def test_any_body_is_read_as_the_parser_reads_it(raws):
    texts = IdTexts()
    for raw in [*raws, *raws]:
        assert read(texts, raw) == plain(raw)


@settings(deadline=None)
@given(IDS, st.lists(st.tuples(st.integers(0, 200), IDS), max_size=12), st.booleans())
def test_conversations_that_grow_and_branch(first, changes, is_spaced):
    """Each prompt keeps some ids of the one before, and goes on otherwise."""
    texts = IdTexts()
    ids = first
    for keep, new in changes:
        ids = [each % 10**7 for each in ids[:keep] + new]
        raw = json.dumps({"ids": ids}, separators=None if is_spaced else (",", ":")).encode()
        lifted = texts.lifted(raw, "ids")
        assert lifted is not None, "nothing about it is unusual"
        assert lifted[1].ids.tolist() == ids
        assert lifted[1].text == re.sub(rb'^{"ids": ?|}$', b"", raw)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), IDS), max_size=30), st.integers(0, 2000))
def test_what_is_remembered_has_a_limit(prompts, limit):
    texts = IdTexts(max_kept_len=limit)
    for conversation, ids in prompts:
        texts.lifted(json.dumps({"ids": ids}).encode(), "ids", conversation)
        texts._kept.check_integrity()
        assert texts._kept.size <= limit


def test_what_was_sent_before_is_not_read_again(monkeypatch):
    texts = IdTexts()
    ids = list(range(1000, 1400))
    texts.lifted(json.dumps({"ids": ids}).encode(), "ids")
    read_lens = []

    def noted(text):
        read_lens.append(len(text))
        return read_ids(text)

    monkeypatch.setattr(id_text, "read_ids", noted)
    lifted = texts.lifted(json.dumps({"ids": [*ids, 7]}).encode(), "ids")
    assert lifted is not None
    assert lifted[1].ids.tolist() == [*ids, 7]
    assert sum(read_lens) < 30


def test_conversations_of_one_party_do_not_push_each_other_out(monkeypatch):
    """They begin alike, with the same system prompt, and take turns."""
    texts = IdTexts()
    system = list(range(1000, 1200))
    talks = [[*system, *range(start, start + 200)] for start in (2000, 3000, 4000)]
    for ids in talks:
        texts.lifted(json.dumps({"ids": ids}).encode(), "ids")
    read_lens = []

    def noted(text):
        read_lens.append(len(text))
        return read_ids(text)

    monkeypatch.setattr(id_text, "read_ids", noted)
    for ids in talks:
        lifted = texts.lifted(json.dumps({"ids": [*ids, 7]}).encode(), "ids")
        assert lifted is not None
        assert lifted[1].ids.tolist() == [*ids, 7]
    assert max(read_lens) < 30


@settings(deadline=None, max_examples=examples(200))
@given(st.lists(st.one_of(IDS.map(lambda ids: ",".join(map(str, ids))), ODD), max_size=20))
def test_digits_are_read_as_the_parser_reads_them(parts):
    """And they are left to it only where something is unusual."""
    text = ",".join(parts)
    found = plain(f"[{text}]".encode())
    ids = read_ids(text.encode())
    if ids is not None:
        assert ids.tolist() == found
    elif isinstance(found, list) and found:
        assert not all(type(each) is int and 0 <= each < 10**7 for each in found)


def test_a_body_is_not_copied():
    """The text that goes on to a worker is the client's own, and nobody can change the ids."""
    raw = json.dumps({"ids": list(range(1000))}).encode()
    lifted = IdTexts().lifted(raw, "ids")
    assert lifted is not None
    assert lifted[1].text.obj is raw
