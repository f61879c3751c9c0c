"""Which recorded turn the messages of a call continue, and what its own turn then goes with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from slime_router.auth.caller import name_of_root
from slime_router.template import heard
from slime_router.template.conversation_key import next_link, reply_links, root_key
from slime_router.template.heard import MessageTexts
from slime_router.template.parts import Parts
from slime_router.trajectory.recognition import Conversation, Recogniser
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn
from slime_router.types import GenerateCall, Message, TemplateOptions
from tests.effort import opcodes
from tests.turns import bare_turn


def user(content: Any, **fields: Any) -> Message:
    return {"role": "user", "content": content, **fields}


def said(content: Any, **fields: Any) -> Message:
    return {"role": "assistant", "content": content, **fields}


def calls(arguments: str, name: str = "f", call_id: str = "c") -> Message:
    function = {"name": name, "arguments": arguments}
    return said(None, tool_calls=[{"id": call_id, "type": "function", "function": function}])


def call(*messages: Message, **fields: Any) -> GenerateCall:
    return GenerateCall(rid="r", turn_id="new", messages=messages, **fields)


class Talks:
    """A store of turns, and a recogniser that looks for them."""

    def __init__(
        self,
        *,
        prints_names: bool = False,
        prints_call_ids: bool = False,
        results_by: str = "id",
    ) -> None:
        self.store = TrajectoryStore(10_000)
        self.texts = MessageTexts()
        self.with_call_ids = prints_call_ids
        findings = SimpleNamespace(prints_call_ids=prints_call_ids, results_by=results_by)
        template = SimpleNamespace(findings=findings, parts=Parts(), prints_names=prints_names)
        self.recogniser = Recogniser(cast("Any", template), self.store)

    def record(self, name: str, *messages: Message, **fields: Any) -> Turn:
        """A turn whose reply is the last of the messages."""
        key, spelling = root_key(fields.get("scope", ""), TemplateOptions()), b""
        for message in messages[:-1]:
            key, spelling = next_link(key, spelling, message, with_call_ids=self.with_call_ids)
        keys, spelled = reply_links(key, spelling, messages[-1], with_call_ids=self.with_call_ids)
        made = [
            (each["id"], each["function"]["name"]) for each in messages[-1].get("tool_calls", ())
        ]
        return self.store.add(
            bare_turn(
                name,
                keys=keys,
                spelling=spelled,
                asked=key,
                calls=tuple(made),
                handles=() if self.with_call_ids else tuple(handle for handle, _ in made),
                **fields,
            )
        )

    def heard(self, *messages: Message) -> GenerateCall:
        """A call whose messages were read from a body: what came before was not read again."""
        read = self.texts.read(orjson.dumps({"messages": messages}))
        assert read is not None
        written = read[0]["messages"]
        checked = written.checked(written.new)
        return GenerateCall(rid="r", turn_id="new", messages=checked)

    def found(self, *messages: Message, taken: str = "", **fields: Any) -> str:
        """The turn that a call continues, and which message is its reply."""
        talk = self.recogniser.recognise(call(*messages, **fields), taken=set(taken))
        return f"{talk.turn.id if talk.turn else None} {talk.reply_index}"


@pytest.mark.parametrize(
    ("turn", "name"),
    [
        (None, name_of_root("new")),
        (bare_turn("t"), name_of_root("t")),
        (bare_turn("t", conversation="first"), "first"),
        (bare_turn("t", conversation="first", session_id="s"), "s"),
    ],
    ids=["the first", "one of an older store", "one that goes on", "one of a session's"],
)
def test_a_turn_without_a_session_goes_with_the_conversation_that_it_continues(turn, name):
    talk = Conversation((), [], [], turn)
    assert talk.name_of(call()) == name
    assert talk.name_of(call(session_id="another")) == ""


def test_new_messages_are_those_after_the_reply_of_the_turn_that_the_prompt_builds_on():
    messages = (user("Hi"), said("a"), user("b"), user("c"))
    talk = Conversation(messages, [], [], bare_turn("t"), 1)
    assert talk.new_after(bare_turn("t")) == 2
    assert talk.new_after(bare_turn("other")) is None
    assert talk.new_after(None) is None
    assert Conversation(messages, [], []).new_after(bare_turn("t")) is None


def test_the_deepest_reply_that_was_recorded_is_found_and_the_newest_that_is_not_taken():
    talks = Talks()
    for name, messages in (
        ("a", [user("Hi"), said("1")]),
        ("b", [user("Hi"), said("1")]),
        ("c", [user("Hi"), said("1"), user("go on"), said("2")]),
    ):
        talks.record(name, *messages)
    first, second = [user("Hi"), said("1")], [user("go on"), said("2")]
    assert talks.found(*first, user("another way")) == "b 1"
    assert talks.found(*first, user("another way"), taken="b") == "a 1"
    assert talks.found(*first, *second) == "c 3", "the last message may be a reply itself"
    assert talks.found(*first, user("go on"), said("3"), user("more")) == "b 1"
    nothing = talks.recogniser.recognise(call(user("Hello"), said("1")))
    assert (nothing.turn, nothing.messages) == (None, (user("Hello"), said("1")))


@pytest.mark.parametrize("name", [{}, {"turn": "a"}], ids=["by its call", "by its turn's id"])
def test_a_reply_whose_arguments_were_repaired_is_the_turn_that_made_them(name):
    """Of two that read the same, the one that it names; what came before must be the same."""
    talks = Talks()
    talks.record("a", user("Hi"), calls("{}"))
    talks.record("b", user("Hi"), calls("{}", call_id="d"))
    repaired = {**calls('{"a": 1}'), **name}
    result = {"role": "tool", "content": "5", "tool_call_id": "c"}
    assert talks.found(user("Hi"), repaired, result) == "a 1"
    assert talks.found(user("Hello"), repaired, result) == "None -1"
    assert talks.found(user("Hi"), calls('{"a": 1}', name="g") | name, result) == "None -1"


def test_what_follows_a_reply_that_names_its_turn_is_found_as_after_the_reply_itself():
    talks = Talks()
    reply = said(" 1 ")
    talks.record("a", user("Hi"), reply)
    exact = talks.recogniser.recognise(call(user("Hi"), reply, user("go on")))
    edited = said("edited", turn="a")
    named = talks.recogniser.recognise(call(user("Hi"), edited, user("go on")))
    assert (named.keys, named.spellings) == (exact.keys, exact.spellings)
    talks.record("b", user("Hi"), reply)
    assert talks.found(user("Hi"), reply) == "b 1"
    assert talks.found(user("Hi"), edited) == "a 1"


@pytest.mark.parametrize("prints_names", [False, True])
def test_a_name_that_the_template_does_not_print_tells_no_conversations_apart(prints_names):
    talks = Talks(prints_names=prints_names)
    talks.record("a", user("Hi"), said("1"))
    expected = "None -1" if prints_names else "a 1"
    assert talks.found(user("Hi", name="Ann"), said("1")) == expected


def test_a_reply_in_parts_is_the_one_of_its_own_session_that_reads_so():
    """Whatever stands between its parts."""
    talks = Talks()
    first = talks.record("a", user("Hi"), said("1\n2"), session_id="s")
    other = talks.record("b", user("Hi"), said("12"), session_id="t")
    parts = said([{"type": "text", "text": "1"}, {"type": "text", "text": "2"}])
    for session_id, turn in (("s", first), ("t", other)):
        assert talks.found(user("Hi"), parts, session_id=session_id) == f"{turn.id} 1"
    talk = talks.recogniser.recognise(call(user("Hi"), parts))
    assert talk.messages[1]["content"] == "1 2"


def test_a_reply_of_two_messages_is_one_where_it_was_recorded_so():
    talks = Talks()
    parted = [said("thinks"), calls("{}")]
    none = talks.recogniser.recognise(call(user("Hi"), *parted))
    assert none.messages == (user("Hi"), *parted)
    talks.record("text", user("Hi"), said("thinks"))
    assert talks.found(user("Hi"), *parted) == "text 1"
    talks.record("whole", user("Hi"), {**calls("{}"), "content": "thinks"})
    assert talks.found(user("Hi"), *parted) == "whole 1"
    talks.record("before", user("Hi"), said("1"))
    longer = [user("Hi"), said("1"), user("go on")]
    talks.record("longer", *longer, said("thinks"))
    assert talks.found(*longer, *parted) == "longer 3", "not the one before"


def test_of_two_that_differ_in_white_space_the_one_that_is_spelled_so():
    talks = Talks()
    for name, text in (("a", "1"), ("b", " 1 "), ("c", "1 ")):
        talks.record(name, user("Hi"), said(text))
    for name, text in (("a", "1"), ("b", " 1 "), ("c", "1 "), ("a", "  1")):
        assert talks.found(user("Hi"), said(text)) == f"{name} 1"


def test_a_reply_names_no_turn_of_another_session_or_adapter():
    talks = Talks()
    talks.record("a", user("Hi"), calls("{}"), session_id="s", scope="lora")
    repaired = calls('{"a": 1}')
    for session_id, scope, found in (
        ("s", "lora", "a 1"),
        ("t", "lora", "None -1"),
        ("s", "", "None -1"),
    ):
        assert talks.found(user("Hi"), repaired, session_id=session_id, scope=scope) == found
    assert talks.found(user("Hi"), said("1", tool_calls=[])) == "None -1", "it names none at all"


def test_ids_of_calls_tell_conversations_apart_where_the_template_prints_them():
    for prints_call_ids in (False, True):
        talks = Talks(prints_call_ids=prints_call_ids)
        one, other = (
            talks.recogniser.recognise(
                call({"role": "tool", "content": "5", "tool_call_id": call_id})
            ).keys
            for call_id in "cd"
        )
        assert (one != other) is prints_call_ids


def test_what_came_before_names_a_turn_for_as_long_as_that_is_there(monkeypatch):
    monkeypatch.setattr(heard, "LONG_LEN", 0)
    talks = Talks()
    reply, edited = said(" 1 "), said("edited", turn="a")
    messages = [user("Hi"), edited]
    for number in range(4):
        if number == 1:
            talks.record("a", user("Hi"), reply)
            talks.record("b", user("Hi"), reply)
        elif number == 3:
            list(talks.store.drop_older(1))
        messages.append(user(f"more {number}"))
        talk = talks.recogniser.recognise(talks.heard(*messages))
        assert talk == talks.recogniser.recognise(call(*messages)), number
        assert (talk.turn and talk.turn.id) == ("a" if number in (1, 2) else None)


def test_results_of_calls_that_came_before_have_the_ids_of_the_turn(monkeypatch):
    """The agent has ids of its own; nothing else is changed in what it sent."""
    monkeypatch.setattr(heard, "LONG_LEN", 0)
    talks = Talks(prints_call_ids=True)
    talks.record("a", user("Hi"), calls("{}"))
    messages = [user("Hi"), calls("{}", call_id="mine")]
    held = [user("Hi"), calls("{}")]
    for call_id in ("mine", "another", "mine"):
        result = {"role": "tool", "content": "5"}
        messages.append({**result, "tool_call_id": call_id})
        held.append({**result, "tool_call_id": "c" if call_id == "mine" else call_id})
        talk = talks.recogniser.recognise(talks.heard(*messages))
        assert talk == talks.recogniser.recognise(call(*messages))
        assert (talk.turn and talk.turn.id, talk.messages) == ("a", tuple(held))
        assert talk.keys == talks.recogniser.recognise(call(*held)).keys
    assert messages[1]["tool_calls"][0]["id"] == "mine"


def test_an_id_of_the_agents_is_that_of_the_last_call_that_had_it():
    """Also where nobody recorded that call."""
    talks = Talks(prints_call_ids=True)
    talks.record("a", user("Hi"), calls("{}"))
    result = {"role": "tool", "content": "5", "tool_call_id": "mine"}
    others = [calls('{"n": 1}', call_id="mine"), result]
    messages = [user("Hi"), calls("{}", call_id="mine"), result, *others]
    talk = talks.recogniser.recognise(call(*messages))
    assert (talk.turn and talk.turn.id) == "a"
    assert talk.messages == (user("Hi"), calls("{}"), {**result, "tool_call_id": "c"}, *others)


# Tools that are called, the ids of the results, and by what a template must show whose one is for
# the model to read them rightly. An id is the number of its call.
ANSWERED: list[tuple[str, list[str | None], set[str]]] = [
    ("ff", ["0", "1"], {"id", "name", "order"}),
    ("ff", ["1", "0"], {"id"}),
    ("fg", ["1", "0"], {"id", "name"}),
    ("fgf", ["1", "0", "2"], {"id", "name"}),
    ("fgf", ["2", "1", "0"], {"id"}),
    ("fgf", ["0", "1"], {"id", "name", "order"}),  # the last one is still to come
    ("ff", ["1"], {"id"}),
    ("fg", ["1"], {"id", "name"}),
    ("ff", ["0", "0", "1"], {"id"}),
    ("ff", [None, None], {"id", "name", "order"}),  # another note names these
    ("ff", ["", "1"], {"id", "name", "order"}),
    ("ff", ["unknown", "0", "1"], {"id", "name", "order"}),
    ("f", ["0"], {"id", "name", "order"}),
]


@pytest.mark.parametrize("is_recorded", [False, True])
@pytest.mark.parametrize("results_by", ["id", "name", "order"])
@pytest.mark.parametrize(("names", "answered", "readable"), ANSWERED)
def test_results_that_are_read_as_those_of_other_calls_are_noted(
    names, answered, readable, results_by, is_recorded
):
    talks = Talks(results_by=results_by)
    made = [
        {"id": f"{number}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for number, name in enumerate(names)
    ]
    asked = [user("Hi"), said(None, tool_calls=made)]
    if is_recorded:
        talks.record("a", *asked)
    asked += [{"role": "tool", "content": "5", "tool_call_id": call_id} for call_id in answered]
    talk = talks.recogniser.recognise(call(*asked))
    assert (talk.turn is not None) == is_recorded
    note = "; results do not answer the calls in order, and the template prints no ids"
    assert talk.disorder_note == ("" if results_by in readable else note)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("call_id", [None, "", "mine0"])
def test_results_without_ids_are_noted_as_those_of_the_calls_in_order(call_id, count):
    talks = Talks(prints_call_ids=True)
    given, sent = (
        said(
            None,
            tool_calls=[
                each
                for number in range(count)
                for each in calls("{}", call_id=f"{name}{number}")["tool_calls"]
            ],
        )
        for name in ("c", "mine")
    )
    talks.record("a", user("Hi"), given)
    talk = talks.recogniser.recognise(
        call(user("Hi"), sent, {"role": "tool", "content": "5", "tool_call_id": call_id})
    )
    assert (talk.turn and talk.turn.id) == "a"
    assert talk.messages[-1]["tool_call_id"] == "c0"
    is_noted = not call_id and count > 1
    assert talk.order_note == is_noted * "; results without ids answer the calls in order"


def test_results_are_noted_with_the_request_that_brings_them():
    talks = Talks(results_by="order")
    made = [{**each, "id": each["id"] + "2"} for each in calls("{}")["tool_calls"]]
    reply = said(None, tool_calls=[*calls("{}")["tool_calls"], *made])
    results = [{"role": "tool", "content": "5", "tool_call_id": each} for each in ("c2", "c")]
    asked = [user("Hi"), reply, *results]
    talks.record("a", *asked[:2])
    assert talks.recogniser.recognise(call(*asked)).is_unordered
    asked += [said("It is 5.")]
    talks.record("b", *asked)
    assert not talks.recogniser.recognise(call(*asked, user("more"))).is_unordered


def test_what_came_before_is_not_recognised_again(monkeypatch):
    monkeypatch.setattr(heard, "LONG_LEN", 0)
    talks, costs = Talks(), []
    messages = [user("Hi")]
    for number in range(200):
        messages += [said(f"reply {number}"), user(f"more {number}")]
        talks.record(f"t{number}", *messages[:-1])
        asked = talks.heard(*messages)
        costs.append(opcodes(lambda: talks.recogniser.recognise(asked)))  # noqa: B023 - at once
    assert max(costs[-10:]) <= 1.1 * max(costs[10:20])


@pytest.mark.parametrize("before", [[], [user("Hi")]], ids=["first", "after another message"])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_reply_of_two_messages_may_have_come_in_part_before(before, is_known, monkeypatch):
    monkeypatch.setattr(heard, "LONG_LEN", 0)
    talks = Talks()
    talks.record("a", *before, {**calls("{}"), "content": "thinks"})
    parted = [*before, said("thinks"), calls("{}"), user("and")]
    if is_known:
        talks.recogniser.recognise(talks.heard(*parted[:-2]))
    talk = talks.recogniser.recognise(talks.heard(*parted))
    assert talk.turn is not None
    assert len(talk.messages) == len(parted) - 1
