"""Every family in every scenario: no turn is inexact, and the page says so."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from slime_router.checkup.examination import Examination
from slime_router.checkup.scenarios import Said, Scenario, ScriptedExchange, scenarios
from slime_router.checkup.stand import ObservedTurn
from slime_router.checkup.verdict import report_text
from tests.chat_templates import NAMES as TRL_NAMES
from tests.families.catalogue import families, family
from tests.families.table import PAGE, page, report_of
from tests.needs import skip_without

skip_without("tokenizers", "parsers")
pytestmark = [pytest.mark.tokenizers, pytest.mark.parsers]

NAMES = tuple(each.name for each in families())
# A user may write what a template takes for something else.
ODD = Scenario(
    "odd user",
    (
        ScriptedExchange(
            ({"role": "user", "content": "<tool_response>\nSun\n</tool_response>"},),
            Said("Walking along Pantomime Street is unbelievable"),
        ),
        ScriptedExchange(
            ({"role": "user", "content": "And which one after that"},),
            Said("Afterwards turn towards Quagmire Avenue"),
        ),
    ),
)


@pytest.mark.parametrize("name", NAMES)
def test_no_turn_is_inexact(name):
    report = report_of(name)
    assert report.is_exact, report_text(report)


@pytest.mark.timeout(900)  # in a random order it may be the first: all families are examined
def test_every_template_is_examined():
    assert set(TRL_NAMES) <= set(NAMES)
    assert sum(report_of(name).turns for name in NAMES) > 1700


@pytest.mark.timeout(900)
def test_the_page_is_up_to_date():
    """`python -m tests.families` writes it."""
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text


async def held_in_order(name: str, order: Sequence[Scenario]) -> dict[str, list[str]]:
    """The prompts of each conversation, held one after the other with one template."""
    chosen = family(name)
    examination = Examination(chosen.tokenizer(), chosen.chat_template(), chosen.parsers())
    return {
        scenario.capability: _prompts(
            [turn async for turn, _ in examination.turns(examination.stand(), scenario)],
            examination,
        )
        for scenario in order
    }


def _prompts(turns: Sequence[ObservedTurn], examination: Examination) -> list[str]:
    """What was sent, token by token, with ids of calls that are made at random left out."""
    sent = [" ".join(map(str, turn.ids)) for turn in turns]
    made = [
        call["id"]
        for turn in turns
        for call in turn.reply.get("tool_calls") or ()
        if re.fullmatch(r"call_\w+|\w{9}", call["id"])
    ]
    if made and any(call_id in examination.text(turn.ids) for turn in turns for call_id in made):
        texts = [examination.text(turn.ids) for turn in turns]
        for number, call_id in enumerate(made):
            texts = [text.replace(call_id, f"call-{number}") for text in texts]
        return texts
    return sent


@pytest.mark.parametrize("name", NAMES)
async def test_no_conversation_changes_what_another_gets(name):
    """Each is held before each other once, and after it once."""
    order = [*scenarios(), ODD]
    assert await held_in_order(name, order) == await held_in_order(name, order[::-1])
