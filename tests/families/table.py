"""The table of families in `docs/models.md`, from what the check-up says of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from slime_router.checkup.verdict import Report, Verdict
from tests.families.catalogue import families
from tests.families.examined import examined

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families: python -m tests.families -->\n", "<!-- end -->\n"
COLUMNS = {
    "chat": ("chat", "cut in content", "end token as the last"),
    "system prompt": ("system",),
    "thinking": ("thinking", "thinking returned", "thinking off", "cut in thinking"),
    "tools": (
        "tool loop",
        "user after tools",
        "result and user",
        "call without arguments",
        "cut in a call",
        "thinking with tools",
    ),
    "parallel calls": ("parallel calls",),
}
EXACT, UNSUPPORTED, INEXACT = "exact", "–", "**not exact**"


def page(text: str) -> str:
    """The text of the page, with its table as it must be now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table([examined(each.name).report for each in families()]) + END + after


def table(reports: Sequence[Report]) -> str:
    """The table, and notes on what templates do not support."""
    notes: dict[str, int] = {}
    head = ["family", "`--tool-call-parser`", "`--reasoning-parser`", *COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for report in reports:
        parsers = [report.tool_parser or "", report.reasoning_parser or ""]
        cells = [_cell(_of(report, names), notes) for names in COLUMNS.values()]
        lines.append("| " + " | ".join([report.name, *parsers, *cells]) + " |")
    lines += ["", *(f"{number}. {note}" for note, number in notes.items())]
    return "\n".join(lines) + "\n"


def _of(report: Report, names: Iterable[str]) -> list[Verdict]:
    found = {verdict.capability: verdict for verdict in report.verdicts}
    return [found[name] for name in names]


def _cell(verdicts: Sequence[Verdict], notes: dict[str, int]) -> str:
    """One verdict of several; where the first is not supported, the others say little."""
    if verdicts[0].kind == "not supported":
        verdicts = verdicts[:1]
    kinds = {verdict.kind for verdict in verdicts}
    word = INEXACT if "not exact" in kinds else EXACT if "exact" in kinds else UNSUPPORTED
    numbers = {
        _number(reason if len(verdicts) == 1 else f"{verdict.capability}: {reason}", notes)
        for verdict in verdicts
        if verdict.kind == "not supported"
        for reason in verdict.reasons
    }
    marks = ", ".join(map(str, sorted(numbers)))
    return f"{word} ({marks})" if marks else word


def _number(note: str, notes: dict[str, int]) -> int:
    return notes.setdefault(note, len(notes) + 1)
