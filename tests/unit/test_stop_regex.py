"""Stop patterns: which are refused, and what compiling the others can cost."""

from __future__ import annotations

import re

import pytest

from slime_router.api.chat.stop_regex import BUDGET, _price, regex_fault

WIDE = [
    "[Ā-￾]",
    "[\\u0100-\\ufffe]",
    "[\\U00000000-\\U0010ffff]",
    "[\\x00-\U0010ffff]",
    "[\\0-\\uffff]",
    "[\\N{NUL}-\\N{LATIN SMALL LETTER A}]",
    "[^Ā-￾]",
    "[]Ā-￾]",
    "[^]Ā-￾]",
    "[[Ā-￾]",
    "[a\\]Ā-￾]",
    "(?#[)[Ā-￾]",
    "(?#\\)[Ā-￾]",
    "(?x:# [\n[Ā-￾])",
    "\\\\[Ā-￾]",
]


@pytest.mark.filterwarnings("ignore:Possible nested set")
@pytest.mark.parametrize("pattern", WIDE)
@pytest.mark.parametrize("flag", ["", "(?i)"])
def test_a_class_of_all_characters_is_taken_now_and_then_but_not_many_times(pattern, flag):
    once = flag + pattern
    assert regex_fault([once]) in (None, "not a regular expression")
    assert _price(once) > 2**15
    many = [f"{flag}{number}{pattern}" for number in range(9)]
    assert "too long to compile" in (regex_fault(many) or "")


@pytest.mark.parametrize(
    "pattern",
    [
        "(?i)foo - bar - baz",
        r"\[Ā-￾\]",
        "[-a]|[a-]|[+-]",
        r"(?:\d{3}-){2}[0-9]+",
        r"```\w*\n.*?\n```",
        "(?i)(yes|no)[.!]?$",
    ],
)
def test_what_people_write_costs_little(pattern):
    re.compile(pattern)
    assert _price(pattern) < BUDGET / 20
    assert regex_fault([f"{pattern}{number}" for number in range(16)]) is None


def test_equal_patterns_are_paid_for_once():
    assert regex_fault(["(?i)[Ā-￾][Ā-￾]"] * 10_000) is None


def test_nothing_is_compiled_of_a_request_that_is_over_its_budget(monkeypatch):
    monkeypatch.setattr(re, "compile", lambda _: pytest.fail("compiled"))
    assert regex_fault([f"a{number}" for number in range(100_000)]) is not None


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(" * 200 + ")" * 56, "\\N{no}", "["])
def test_what_does_not_compile_is_named(pattern):
    assert regex_fault([pattern]) in (None, "not a regular expression")
