"""What the templates of families show of whose result one is."""

from __future__ import annotations

import pytest

from tests.families.catalogue import family
from tests.families.conversation import FamilyTalk
from tests.families.test_cases import ASK, kimi_call, results

pytestmark = [pytest.mark.tokenizers, pytest.mark.slow]  # a second for each family

SHOWN_BY = {
    "kimi_k2": "id",
    "built-in mistral_nemo": "id",
    "cohere2": "id",  # prints no result
    "gemma4_v5": "name",
    "kimi_k3": "name",
    "deepseek_v31": "order",
    "gptoss": "order",  # prints one call of several
    "minimax_m2": "order",
    "qwen3": "order",
    "built-in llama3_2": "order",  # refuses several calls
}


@pytest.mark.parametrize("name", SHOWN_BY)
def test_a_template_shows_whose_result_one_is_by_id_by_name_or_by_order(name):
    assert family(name).chat_template().findings.results_by == SHOWN_BY[name]


LLAMA_CALLS = "; ".join(
    f'{{"name": "get_weather", "parameters": {{"city": "{city}"}}}}' for city in ("Paris", "Rome")
)
QWEN_CALLS = "\n".join(
    f'<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
    for city in ("Paris", "Rome")
)
GEMMA_CALLS = "".join(
    f'<|tool_call>call:get_weather{{city:<|"|>{city}<|"|>}}<tool_call|>'
    for city in ("Paris", "Rome")
)
KIMI_CALLS = kimi_call("Paris").replace("<|tool_calls_section_end|>", "") + kimi_call(
    "Rome", 1
).replace("<|tool_calls_section_begin|>", "")
# Two calls of a tool, the token that ends them, and whether the order of results says it all.
CALLED = {
    "qwen3": (QWEN_CALLS, "<|im_end|>", True),
    "gemma4_v5": (GEMMA_CALLS, "<|tool_response>", True),
    "built-in llama3_2": ("<|python_tag|>" + LLAMA_CALLS, "<|eom_id|>", True),
    "kimi_k2": (KIMI_CALLS, "<|im_end|>", False),
}


@pytest.mark.parametrize("session_id", [None, "s1"])
@pytest.mark.parametrize("name", CALLED)
async def test_results_in_the_order_in_which_they_were_ready_are_sent_so(name, session_id):
    """They follow the held tokens as they came; the receipt says how the model reads them."""
    said, end, is_noted = CALLED[name]
    talk = FamilyTalk(family(name))
    before = await talk.hear([ASK], said, end, session_id=session_id)
    for step in (1, -1):
        asked = results(before.reply, "SECRET-77", "SECRET-88")[::step]
        after = await talk.hear([ASK, before.reply, *asked], "Fine.", end, session_id=session_id)
        text = talk.text(talk.suffix(before, after))
        places = [text.find(result["content"]) for result in asked]
        assert places == sorted(places)
        assert -1 not in places
        reason = after.prompt.receipt.reason
        assert ("do not answer the calls in order" in reason) == (is_noted and step < 0), reason
