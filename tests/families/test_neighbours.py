"""Neighbours of the cases in `test_cases.py`: other inputs of the same kinds."""

from __future__ import annotations

import pytest

from slime_router.types import Message
from tests.families.catalogue import family
from tests.families.conversation import FamilyTalk
from tests.families.test_cases import ASK, deepseek_call, results
from tests.talk import user

pytestmark = pytest.mark.tokenizers

MINIMAX_CALL = (
    "</think>\n\n<minimax:tool_call>\n"
    '<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n</invoke>\n'
    "</minimax:tool_call>"
)
LATE_SYSTEM: Message = {"role": "system", "content": "SECRET-99"}


async def test_what_the_template_drops_is_no_reason_to_leave_held_tokens():
    """Its own rendering has no late system message either; the receipt says so."""
    talk = FamilyTalk(family("minimax_m2"))
    before = await talk.hear([ASK], MINIMAX_CALL, "[e~[")
    asked = [*results(before.reply, "SECRET-77"), LATE_SYSTEM, user("And then?")]
    after = await talk.hear([ASK, before.reply, *asked], "Fine.", "[e~[")
    text = talk.text(talk.suffix(before, after))
    assert 0 <= text.find("SECRET-77") < text.find("And then?")
    assert "the template leaves out messages[3]" in after.prompt.receipt.reason


async def test_what_the_template_moves_is_sent_where_it_moves_it():
    talk = FamilyTalk(family("deepseekv3"))
    before = await talk.hear([user("Hi")], "</think>\n\nHello", "<｜end▁of▁sentence｜>", tools=())
    messages = [user("Hi"), before.reply, LATE_SYSTEM, user("More")]
    after = await talk.hear(messages, "Yes", "<｜end▁of▁sentence｜>", tools=())
    assert after.status == "branched"
    assert talk.text(after.ids) == talk.rendered(messages, talk.ask(messages))
    assert "SECRET-99" in talk.text(after.ids)


SPELLED_END = "a <｜end▁of▁sentence｜> b"


@pytest.mark.parametrize("text", [SPELLED_END, "<｜end▁of▁sentence｜> b"])
@pytest.mark.parametrize("role", ["tool", "user"])
async def test_an_end_token_that_a_client_spells_ends_no_turn(role, text):
    """DeepSeek's template prints none before the results of calls."""
    talk = FamilyTalk(family("built-in deepseek_v3"))
    before = await talk.hear([ASK], deepseek_call("Paris"), "<｜end▁of▁sentence｜>")
    asked = results(before.reply, text) if role == "tool" else [user(text)]
    messages = [ASK, before.reply, *asked]
    after = await talk.hear(messages, "Fine.", "<｜end▁of▁sentence｜>")
    suffix = talk.text(talk.suffix(before, after))
    assert text in suffix
    assert talk.rendered(messages, talk.ask(messages)).endswith(suffix)
