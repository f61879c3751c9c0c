"""Message identity: which differences between two conversations count."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_router.template.conversation_key import next_link, reply_links, root_key
from slime_router.template.messages import without_repairs
from slime_router.types import TemplateOptions

ABSENT = object()


def key(message: dict[str, Any], after: bytes = b"root", *, with_call_ids: bool = False) -> bytes:
    return next_link(after, b"", message, with_call_ids=with_call_ids)[0]


def reply_keys(reply: dict[str, Any]) -> tuple[bytes, ...]:
    return reply_links(b"root", b"", reply, with_call_ids=False)[0]


def says(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def calls(arguments: Any, **fields: Any) -> dict[str, Any]:
    function = {"name": "f"} if arguments is ABSENT else {"name": "f", "arguments": arguments}
    return says(None, tool_calls=[{"id": "c", "type": "function", "function": function, **fields}])


def several(*names: str) -> dict[str, Any]:
    return says("", tool_calls=[{"function": {"name": name, "arguments": "{}"}} for name in names])


DEEP = '{"a":' * 2000 + "1" + "}" * 2000
HUGE = "9" * 5000

EQUAL = [
    (says(None), says("")),
    (says(""), says([])),
    (says(None), {"role": "assistant"}),
    (says("text"), says([{"type": "text", "text": "text"}])),
    (says("a b"), says([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])),
    (says("text"), says("text", reasoning_content="hm", refusal=None, annotations=[])),
    (says("text"), says("text", tool_calls=None)),
    (says("text"), says("text", name="a")),
    (says("text"), says("\n text\t\n")),
    (says("a\nb"), says("a\r\nb\r\n")),
    (says("text"), says("text", tool_calls=[])),
    ({"role": "Assistant", "content": "x"}, {"content": "x", "role": "assistant"}),
    (calls("{}"), calls("{}", index=0)),
    (calls('{"b":2,"a":1}'), calls('{ "a": 1, "b": 2 }')),
    (calls('{"b":2,"a":1}'), calls({"a": 1, "b": 2})),
    (calls('{"a":1e0}'), calls({"a": 1.0})),
    (calls('{"a":1}'), calls('{"a":1.0}')),
    (calls('{"a":-0.0}'), calls('{"a":0}')),
    (calls('{"a":1e999}'), calls('{"a":10e998}')),
    (calls(f'{{"a":{HUGE}}}'), calls(f'{{"a":{HUGE}.0}}')),
    (calls('{"a":"\\u00e9"}'), calls('{"a":"é"}')),
    (calls(None), calls("")),
    (calls(""), calls({})),
    (calls({}), calls("{}")),
    (calls("{}"), calls("{ }")),
    (calls(" "), calls("{}")),
    (calls("{invalid}"), calls("{invalid}")),
    (calls("{}", id="call_a"), calls("{}", id="call_b")),
    (
        {"role": "tool", "content": "5", "name": "f", "tool_call_id": "a"},
        {"role": "tool", "content": "5", "tool_call_id": "b"},
    ),
]
DIFFERENT = [
    (says("Text"), says("text")),
    (says("a  b"), says("a b")),
    (says("a\nb"), says("a b")),
    ({"role": "user", "content": " text"}, {"role": "user", "content": "text"}),
    ({"role": "user", "content": "a\r\nb"}, {"role": "user", "content": "a\nb"}),
    (says("\u00e9"), says("e\u0301")),
    (says("x"), {"role": "user", "content": "x"}),
    ({"role": "user", "content": "x", "name": "a"}, {"role": "user", "content": "x"}),
    (says(""), calls("{}")),
    (calls('{"a":true}'), calls('{"a":1}')),
    (calls('{"a":false}'), calls({"a": 0})),
    (calls('{"a":"null"}'), calls('{"a":null}')),
    (calls('{"a":"1"}'), calls('{"a":1}')),
    (calls('{"a":[1,2]}'), calls('{"a":[2,1]}')),
    (calls('{"a":1}'), calls('{"a":2}')),
    (calls('{"a":1e999}'), calls('{"a":1e998}')),
    (calls(f'{{"a":{HUGE}}}'), calls(f'{{"a":{HUGE[:-1]}8}}')),
    (calls('{"a":0.1}'), calls('{"a":0.10000000000000000001}')),
    (calls('{"a":null}'), calls("{}")),
    (calls(ABSENT), calls("{}")),
    (calls("{invalid}"), calls("{ invalid }")),
    (calls('{"a":1,"a":1}'), calls('{"a":1}')),
    (calls('{"a":NaN}'), calls('{"a":null}')),
    (calls('{"a":Infinity}'), calls('{"a":1e999}')),
    (calls("[]"), calls("{}")),
    (calls("null"), calls("{}")),
    (calls("1"), calls("1.0")),
    (calls(DEEP), calls(DEEP.replace("1", "2"))),
    (several("a"), several("a", "a")),
    (several("a", "b"), several("b", "a")),
    (calls('{"a":{"":"1e0"}}'), calls('{"a":1}')),
    (calls('{"a":"1e0"}'), calls('{"a":1}')),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_these_are_the_same_message(one, other):
    assert key(one) == key(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_these_are_different_messages(one, other):
    assert key(one) != key(other)


@pytest.mark.parametrize("number", ["1e99999999999999999999", "0e-99999999999999999999"])
def test_a_number_that_no_machine_can_hold_is_compared_as_it_is_written(number):
    assert key(calls(f'{{"a":{number}}}')) == key(calls(f'{{"a":{number}}}'))
    assert key(calls(f'{{"a":{number}}}')) != key(calls(f'{{"a": {number}}}'))


def test_deep_arguments_do_not_exhaust_the_stack():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(500)
    try:
        assert key(calls(DEEP)) == key(calls(DEEP))
        assert key(calls(DEEP)) != key(calls(DEEP + " "))
    finally:
        sys.setrecursionlimit(limit)


def test_call_ids_count_where_the_template_prints_them():
    one, other = calls("{}", id="call_a"), calls("{}", id="call_b")
    assert key(one, with_call_ids=True) != key(other, with_call_ids=True)
    results = [{"role": "tool", "content": "5", "tool_call_id": name} for name in "ab"]
    assert key(results[0], with_call_ids=True) != key(results[1], with_call_ids=True)


@pytest.mark.parametrize(
    ("cut", "read"),
    [
        ('{"a": "Par', {"a": "Par"}),
        ('{"a": "Par', {}),
        ('{"a": "Paris", "b', {"a": "Paris"}),
        ('{"a": [1, 2', {"a": [1, 2]}),
        ("{", {}),
    ],
)
def test_a_call_that_was_cut_is_found_as_sdks_add_it_up(cut, read):
    found = reply_keys(calls(cut))
    assert key(calls(cut)) == found[0]
    assert key(calls(read)) in found
    assert key(calls({"a": "Rome"})) not in found
    assert len(reply_keys(calls('{"a": "Paris"}'))) == 1


def test_comparing_changes_no_message():
    for one, other in (*EQUAL, *DIFFERENT):
        before = copy.deepcopy((one, other))
        key(one), reply_links(b"", b"", other, with_call_ids=True)
        assert (one, other) == before


def test_a_key_names_the_whole_conversation_before_it():
    a, b = says("a"), says("b")
    root = root_key("", TemplateOptions())
    one, other = key(a, root), key(b, root)
    assert len({root, one, other, key(b, one), key(a, other)}) == 5


def test_tools_arguments_and_scope_begin_another_conversation():
    tool = {"type": "function", "function": {"name": "f", "strict": True}}
    roots = [
        root_key("", TemplateOptions()),
        root_key("lora", TemplateOptions()),
        root_key("", TemplateOptions(tools=(tool,))),
        root_key("", TemplateOptions(tools=({**tool, "type": 1},))),
        root_key("", TemplateOptions(kwargs={"enable_thinking": True})),
        root_key("", TemplateOptions(kwargs={"enable_thinking": 1})),
    ]
    assert len(set(roots)) == len(roots)
    turned = {"function": {"strict": True, "name": "f"}, "type": "function"}
    assert root_key("", TemplateOptions(tools=(turned,))) == roots[2]


def test_a_reply_is_found_with_and_without_its_thinking():
    thought = says("<think>\nhm\n</think>\n\nYes")
    assert reply_keys(thought) == (key(thought), key(says("Yes")))
    assert reply_keys(says("Yes")) == (key(says("Yes")),)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "1", "1e0", "null", "é"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["", "a", "b"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def same(one: Any, other: Any) -> bool:
    """Equal JSON values, where true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@given(one=st.dictionaries(st.just("a"), json_values), other=json_values)
def test_arguments_are_the_same_exactly_where_their_values_are(one, other):
    assert (key(calls(one)) == key(calls({"a": other}))) is same(one, {"a": other})


def test_what_agents_change_in_arguments_is_left_out():
    fields = {"path": {"type": "string"}, "all": {"default": False}, "lines": {"default": [1]}}
    edit = {"name": "edit", "parameters": {"type": "object", "properties": fields}}
    odd: tuple[Any, ...] = (
        {"name": "edit2"},
        {"name": "edit3", "parameters": {"properties": []}},
        {},
    )
    tools = [{"type": "function", "function": each} for each in (edit, *odd)]

    def told(arguments: Any, name: str = "edit") -> Any:
        call = {"id": "a:0", "type": "function", "function": {"name": name, "arguments": arguments}}
        reply = {"role": "assistant", "content": "", "tool_calls": [call]}
        found = without_repairs(reply, tools)
        [after] = found["tool_calls"]
        assert (found is reply) == (after is call)
        return after["function"]["arguments"]

    assert told('{"path": "a \\n b\\t\\n", "all": false}') == {"path": "a\n b\n"}
    assert told({"path": ["x ", {"y": "z "}], "lines": [1]}) == {"path": ["x", {"y": "z"}]}
    for same in ('{"path": "a", "all": 0}', "", "{", "[1]", None, {"lines": [1.0]}, "[" * 100_000):
        assert told(same) == same
    for name in ("edit2", "edit3", "none"):
        assert told('{"all": false}', name) == '{"all": false}'
