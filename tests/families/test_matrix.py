"""Every family in every scenario: no turn is inexact, and the page says so."""

from __future__ import annotations

import pytest

from slime_router.checkup.verdict import report_text
from tests.chat_templates import NAMES as TRL_NAMES
from tests.families.catalogue import families
from tests.families.examined import examined
from tests.families.table import PAGE, page
from tests.needs import skip_without

skip_without("tokenizers", "parsers")
pytestmark = [pytest.mark.tokenizers, pytest.mark.parsers]

NAMES = tuple(each.name for each in families())


@pytest.mark.parametrize("name", NAMES)
def test_no_turn_is_inexact(name):
    report = examined(name).report
    assert report.is_exact, report_text(report)
    assert examined(name).odd.kind != "not exact", examined(name).odd


@pytest.mark.timeout(900)  # in a random order it may be the first: all families are examined
def test_every_template_is_examined():
    assert set(TRL_NAMES) <= set(NAMES)
    assert sum(examined(name).report.turns for name in NAMES) > 1700


@pytest.mark.timeout(900)
def test_the_page_is_up_to_date():
    """`python -m tests.families` writes it."""
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text


@pytest.mark.parametrize("name", NAMES)
def test_no_conversation_changes_what_another_gets(name):
    """Each is held before each other once, and after it once."""
    assert examined(name).prompts == examined(name, backwards=True).prompts
