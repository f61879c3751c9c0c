"""The blocking client is the awaiting one, word for word."""

from __future__ import annotations

import pytest

from tests.twins import MADE, WRITTEN, made_from

SOURCE = WRITTEN.read_text(encoding="utf-8")


def test_the_blocking_client_is_up_to_date():
    made = MADE.read_text(encoding="utf-8")
    assert made == made_from(SOURCE), "write it again with `make sync-client`"


def test_a_change_of_one_is_a_change_of_the_other():
    changed = SOURCE.replace("def set_reward", "def give_reward")
    assert changed != SOURCE
    assert "    def give_reward(self" in made_from(changed)


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("for export in reader", "for each in reader", "should hold this once"),
        ("import annotations", "import annotations\nimport asyncio", "asyncio"),
    ],
)
def test_what_it_cannot_translate_is_an_error(before, after, complaint):
    with pytest.raises(ValueError, match=complaint):
        made_from(SOURCE.replace(before, after))
