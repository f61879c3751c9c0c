"""What is remembered of the requests before changes neither a call nor an error."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.api.chat.fields import ChatFields
from slime_router.api.chat.request import ChatRequest, read_chat_request
from slime_router.api.chat.settings import SettingsReader
from slime_router.auth.caller import Caller, introduce
from slime_router.errors import BadRequest
from tests.integration.scripted import Bytes, asked
from tests.stack import NO_PARSERS

USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "I"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
NUMBERS = st.sampled_from([0, 0.0, 1, 1.0, -1, 2, 2**31, True, False, None, "1", [1], {"a": 1}])
FIELDS = {
    **dict.fromkeys(
        (
            *("temperature", "top_p", "max_tokens", "max_completion_tokens", "min_tokens", "n"),
            *("logprobs", "top_logprobs", "stream", "seed", "top_k", "ignore_eos", "priority"),
            *("routed_dp_rank", "data_parallel_rank", "continue_final_message", "regex"),
            *("add_generation_prompt", "return_token_ids", "rid", "routing_key", "user"),
        ),
        NUMBERS,
    ),
    "stop": st.sampled_from([None, "a", ["a", "b"], [], [""], 1]),
    "tools": st.sampled_from([None, [], [TOOL], [{**TOOL, "type": "x"}], 1]),
    "tool_choice": st.sampled_from(["auto", "none", "required", {"type": "function"}, 1]),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}, {}, 1]),
    "model": st.sampled_from(["tiny", "tiny:adapter", "other", 1]),
    "logit_bias": st.sampled_from([{}, {"1": 1}, {"1": True}, {"999999": 1}, 1]),
    "chat_template_kwargs": st.sampled_from(
        [{}, {"a": 1}, {"a": 1.0}, {"a": True}, {"a": "\ud800"}, 1]  # the last but one has no key
    ),
    "cache_salt": st.sampled_from(["", "salt", 1]),
    "metadata": st.sampled_from([{"user_id": "u"}, {"session_id": "s"}, 1]),
    "prompt_cache_key": st.sampled_from(["k", "\ud800", 1]),
    "extra_key": st.sampled_from(["k", ""]),  # half a surrogate pair is refused with the body
    "input_ids": st.sampled_from([[1, 2], [], [True], [-1]]),
}
VALUES = (0, 1, 1.0, 0.5, True, False, "a", "low", ["a"], [1], {"1": 1}, {"a": "b"}, [{"a": "b"}])
MORE_VALUES: dict[str, tuple[Any, ...]] = {
    "history": ("held", "template"),
    "response_format": ({"type": "text"}, {"type": "json_object"}),
    "tool_choice": ("none", "auto"),
    "tools": ([TOOL], [{**TOOL, "function": {"name": "g"}}]),
}
MESSAGES = st.sampled_from([[USER], [USER, REPLY], [], None, [{"role": "x"}], [1]])
BODIES = st.fixed_dictionaries({"messages": MESSAGES}, optional=FIELDS)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "x-data-parallel-rank": st.sampled_from(["0", "3", "-1", "x"]),
        "x-smg-routing-key": st.sampled_from(["", "a", "b"]),
        "x-session-id": st.sampled_from(["s", ".."]),
    },
)
CALLERS = st.sampled_from([Caller(), Caller("alice", tag="a."), Caller("bob", tag="b.")])


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[dict[str, Any], dict[str, str], Caller]]:
    """Requests that repeat each other, or differ in a field or two, by several callers."""
    made: list[dict[str, Any]] = [{"messages": [USER]}, draw(BODIES)]
    for _ in range(draw(st.integers(1, 8))):
        made.append({**draw(st.sampled_from(made)), **_few(draw)})
    return [(body, draw(HEADERS), draw(CALLERS)) for body in made]


def _few(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=2))
    return {name: draw(FIELDS[name]) for name in names}


def outcome(
    reader: SettingsReader, body: dict[str, Any], headers: dict[str, str], who: Caller
) -> Any:
    """All that a request asks for, but for names that are made for it; or its error."""
    request = asked(**headers)
    introduce(request, who)
    try:
        made = read_chat_request(deepcopy(body), request, reader)
    except BadRequest as exc:
        return exc.param, exc.code, exc.message
    return _plain(made, body.get("rid"))


def _plain(made: ChatRequest, rid: Any) -> Any:
    calls = [
        {
            name: getattr(call, name)
            for name in type(call).__dataclass_fields__
            if name not in ("turn_id", "request_id", "headers", "input_ids", "shortcut")
            and (name != "rid" or rid is not None)
        }
        for call in made.calls
    ]
    ids = [None if call.input_ids is None else call.input_ids.tolist() for call in made.calls]
    ways = [call.shortcut is not None for call in made.calls]
    return repr((calls, ids, ways, made.style, made.stream))  # 1, 1.0 and True differ


@pytest.mark.slow
@given(requests(), st.sampled_from([10**5, 2 * 10**5, 2**23]))
def test_a_request_reads_the_same_whatever_came_before(given, max_kept_len):
    remembering = SettingsReader(Bytes(), "tiny", NO_PARSERS, max_kept_len=max_kept_len)
    for body, headers, who in given:
        forgetful = SettingsReader(Bytes(), "tiny", NO_PARSERS, max_kept_len=0)
        assert outcome(remembering, body, headers, who) == outcome(forgetful, body, headers, who)
        assert len(forgetful) == 0


@pytest.mark.parametrize("name", sorted({*ChatFields.model_fields, *FIELDS}))
def test_requests_that_differ_in_one_field_are_told_apart(name):
    remembering = SettingsReader(Bytes(), "tiny", NO_PARSERS)
    forgetful = SettingsReader(Bytes(), "tiny", NO_PARSERS, max_kept_len=0)
    bodies = [{"messages": [USER], name: value} for value in (*VALUES, *MORE_VALUES.get(name, ()))]
    alone = [outcome(forgetful, body, {}, Caller()) for body in bodies]
    for _ in range(2):
        assert [outcome(remembering, body, {}, Caller()) for body in bodies] == alone


def test_equal_fields_are_read_once():
    reader = SettingsReader(Bytes(), "tiny", NO_PARSERS)
    own = ("rid", "session_id", "user", "prompt_cache_key", "safety_identifier", "routing_key")
    bodies = [
        {
            "messages": [{**USER, "content": i}],
            **{name: f"{name}{i}" for name in own},
            "metadata": {"of": i},
            "seed": 1,
        }
        for i in "abc"
    ]
    calls = [read_chat_request(body, asked(), reader).calls[0] for body in bodies]
    assert len(reader) == 1
    assert all(call.sampling is calls[0].sampling for call in calls)
    assert [call.rid for call in calls] == ["rida", "ridb", "ridc"]
    assert [call.session_id for call in calls] == ["session_ida", "session_idb", "session_idc"]
    assert [call.worker_fields["routing_key"][-1] for call in calls] == ["a", "b", "c"]


def test_no_more_is_remembered_than_there_is_room_for():
    reader = SettingsReader(Bytes(), "tiny", NO_PARSERS, max_kept_len=2**17)
    for seed in range(100):
        reader.read({"seed": seed})
    assert 20 < len(reader) < 100
    many = len(reader)
    reader.read({"stop": ["x" * 2**12]})
    assert len(reader) == many, "it is too long"
    assert orjson.dumps({"seed": 99}) in reader._kept
