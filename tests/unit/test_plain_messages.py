"""Messages of a role and a text each are looked at less, and nothing comes out differently."""

from __future__ import annotations

from typing import Any

import pytest

from slime_router.api.chat.messages import read_messages
from slime_router.errors import BadRequest
from slime_router.generation.router import Router
from slime_router.template.messages import Plain
from slime_router.types import GenerateCall, GenerateChunk, TemplateOptions
from tests.unit.test_template import (
    ALTERNATING,
    CHATML,
    DROPS_REPLIES,
    HEADERS,
    SYSTEM_LAST,
    TRIMMING,
    chat_template,
)

OPTIONS = TemplateOptions()
OF_PARTS = CHATML.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}")
ASK = {"role": "user", "content": " Hi\n"}
REPLY = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be short"}


@pytest.mark.parametrize(
    ("other", "is_plain"),
    [
        (REPLY, True),
        ({"content": "Hello", "role": "assistant"}, False),
        ({**REPLY, "name": "a"}, False),
        ({**REPLY, "content": None}, False),
        ({**REPLY, "content": [{"type": "text", "text": "Hello"}]}, False),
        ({**ASK, "role": "User"}, False),
        ({**ASK, "role": "developer"}, False),
        ({"role": "tool", "content": "4"}, False),
    ],
)
def test_a_role_that_all_have_and_a_text_are_plain(other: dict[str, Any], is_plain: bool) -> None:
    messages = read_messages({"messages": [ASK, other]})
    assert isinstance(messages, Plain) == is_plain
    assert messages[0] == ASK


@pytest.mark.parametrize("other", [7, {}, {"role": [], "content": "a"}])
def test_what_is_no_message_is_refused_as_before(other: Any) -> None:
    with pytest.raises(BadRequest) as refusal:
        read_messages({"messages": [ASK, other]})
    assert str(refusal.value.param).startswith("messages[1]")


@pytest.mark.parametrize(
    "source",
    [CHATML, HEADERS, SYSTEM_LAST, TRIMMING, DROPS_REPLIES, ALTERNATING, OF_PARTS],
    ids=["chatml", "headers", "system_last", "trimming", "drops_replies", "alternating", "parts"],
)
@pytest.mark.parametrize("talk", [[ASK], [SYSTEM, ASK], [ASK, REPLY, ASK], [ASK, SYSTEM, ASK]])
def test_a_plain_conversation_is_rendered_like_any_other(
    source: str, talk: list[dict[str, str]]
) -> None:
    template = chat_template(source)
    plain = Plain.of(talk)
    assert plain is not None
    for _ in range(4):  # the first of its kind, watched, and then by its form
        asked = [template.try_render(each, OPTIONS) for each in (plain, tuple(talk))]
        assert asked[0] == asked[1]
    text = asked[0] or ""
    out = [template.left_out(text, each, 0, 0, OPTIONS, None) for each in (plain, tuple(talk))]
    assert out[0] == out[1]


async def test_a_plug_in_may_write_to_messages_and_nobody_takes_them_for_plain_then() -> None:
    given = Plain.of([ASK])
    seen: list[tuple[Any, ...]] = []

    async def writes(call: GenerateCall, call_next: Any) -> Any:
        assert call.messages is not None
        call.messages[0]["name"] = "somebody"
        async for chunk in call_next(call):
            yield chunk

    async def dispatch(call: GenerateCall) -> Any:
        assert call.messages is not None
        seen.append(call.messages)
        yield GenerateChunk(output_ids=[1])

    call = GenerateCall(rid="r", turn_id="t", messages=given)
    async with Router([writes], dispatch).generate(call) as chunks:
        await anext(chunks)
    assert type(seen[0]) is tuple
    assert seen[0][0]["name"] == "somebody"
    assert "name" not in ASK
