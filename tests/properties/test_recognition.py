"""A turn is found for messages that came before as for the same messages in any other body."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_router.api.media.media_pass import is_free_of_media
from slime_router.template import heard
from slime_router.template.conversation_key import reply_links
from slime_router.template.heard import MessageTexts, Spoken
from slime_router.template.parts import Parts
from slime_router.trajectory.recognition import Conversation, Recogniser
from slime_router.types import GenerateCall, Message, TemplateOptions
from tests.examples import examples

TOOL = {"type": "function", "function": {"name": "f"}}
TEXTS = st.sampled_from(["", "a", " a", "<think>x</think> a", "b"])


PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


def call_of(name: str) -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}}


MESSAGES = st.one_of(
    st.just({"role": "user", "content": PARTS}),
    st.builds(lambda text: {"role": "user", "content": text}, TEXTS),
    st.builds(lambda text: {"role": "user", "content": text, "name": "Ann"}, TEXTS),
    st.builds(lambda text: {"role": "assistant", "content": text}, TEXTS),
    st.builds(
        lambda text, name: {"role": "assistant", "content": text, "tool_calls": [call_of(name)]},
        st.sampled_from([None, "", "a"]),
        st.sampled_from(["c1", "c2"]),
    ),
    st.builds(lambda text: {"role": "tool", "content": text, "tool_call_id": "c1"}, TEXTS),
)


class Store:
    """Recorded turns, which come and go."""

    def __init__(self) -> None:
        self.turns: dict[str, Any] = {}

    def find(self, key: bytes, session_id: str | None, **_: Any) -> Any:
        found = [turn for turn in self.turns.values() if key in turn.keys]
        return found[-1] if found else None

    def of_handle(self, handle: str, session_id: str | None, scope: str = "") -> Any:
        return next(
            (turn for turn in self.turns.values() if turn.calls[:1] == ((handle, "f"),)), None
        )

    def ids_of_handles(
        self, handles: Sequence[str], session_id: str | None, scope: str = ""
    ) -> list[str | None]:
        found = [self.of_handle(handle, session_id, scope) for handle in handles]
        return [turn and turn.id for turn in found]

    def record(self, number: int, talk: Conversation, reply: Message) -> None:
        keys, spelling = reply_links(talk.keys[-1], talk.spellings[-1], reply, with_call_ids=False)
        calls = tuple((each["id"], "f") for each in reply.get("tool_calls") or ())
        self.turns[f"t{number}"] = SimpleNamespace(
            id=f"t{number}", keys=keys, spelling=spelling, asked=talk.keys[-1], calls=calls
        )


HEADS: list[list[Message]] = [
    [],
    [],
    [{"role": "system", "content": "a"}],
    [{"role": "system", "content": PARTS}],
]
STEPS = st.tuples(
    st.integers(0, 9),  # which conversation goes on
    st.lists(MESSAGES, max_size=3),
    st.booleans(),  # with tools
    st.sampled_from(HEADS),
    st.sampled_from(["", "record", "record", "forget"]),
    st.sampled_from(
        [
            {"role": "assistant", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [call_of("c1")]},
        ]
    ),
)


@settings(deadline=None, max_examples=examples(150))
@given(st.lists(STEPS, min_size=2, max_size=14))
def test_a_turn_is_found_whether_or_not_its_messages_came_before(steps) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(heard, "LONG_LEN", 0)
        store, texts = Store(), MessageTexts()
        template = cast(
            "Any",
            SimpleNamespace(
                findings=SimpleNamespace(prints_call_ids=False, results_by="id"),
                parts=Parts(),
                prints_names=False,
            ),
        )
        ours, plain = (Recogniser(template, cast("Any", store)) for _ in range(2))
        talks: list[list[Message]] = [[{"role": "user", "content": "Hi"}]]
        for number, (which, new, has_tools, head, then, reply) in enumerate(steps):
            talk = [*talks[which % len(talks)], *new]
            options = TemplateOptions(tools=(TOOL,) if has_tools else ())
            found = texts.read(
                orjson.dumps({"messages": talk}), spoken=Spoken("messages", is_free_of_media)
            )
            assert found is not None
            written = found[0]["messages"]
            got = ours.recognise(_call(written.remade(head, written.new), options))
            wanted = plain.recognise(_call((*head, *talk), options))
            assert got == wanted
            if then == "record":
                store.record(number, wanted, reply)
                talks.append([*talk, reply])
            elif then == "forget" and store.turns:
                store.turns.pop(next(iter(store.turns)))


def _call(messages: tuple[Message, ...], options: TemplateOptions) -> GenerateCall:
    return GenerateCall(rid="r", turn_id="t", messages=messages, template=options)
