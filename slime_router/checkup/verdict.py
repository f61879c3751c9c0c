"""What a check-up finds: one verdict for each thing that a model family can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["exact", "not exact", "not supported"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one capability did. `reasons` says why it is not exact or not supported."""

    capability: str
    kind: Kind
    reasons: tuple[str, ...] = ()
    turns: int = 0  # that were judged


@dataclass(frozen=True, slots=True)
class Report:
    """All verdicts about one checkpoint, in the order in which the scenarios stand."""

    name: str
    verdicts: tuple[Verdict, ...]
    tool_parser: str | None = None
    reasoning_parser: str | None = None

    @property
    def is_exact(self) -> bool:
        """Whether nothing is inexact; what a template does not support is no fault."""
        return all(verdict.kind != "not exact" for verdict in self.verdicts)

    @property
    def turns(self) -> int:
        """How many turns were judged."""
        return sum(verdict.turns for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "checkpoint": self.name,
            "is_exact": self.is_exact,
            "turns": self.turns,
            "tool_call_parser": self.tool_parser,
            "reasoning_parser": self.reasoning_parser,
            "capabilities": [
                {
                    "name": verdict.capability,
                    "verdict": verdict.kind,
                    "reasons": list(verdict.reasons),
                    "turns": verdict.turns,
                }
                for verdict in self.verdicts
            ],
        }


def report_text(report: Report) -> str:
    """The report as a person reads it: a line for each capability, and why not where it is so."""
    flags = f"tool calls: {report.tool_parser or 'not parsed'}, "
    flags += f"reasoning: {report.reasoning_parser or 'not parsed'}"
    width = max((len(verdict.capability) for verdict in report.verdicts), default=0)
    lines = [f"{report.name}  ({flags})"]
    for verdict in report.verdicts:
        lines.append(f"  {verdict.capability:<{width}}  {verdict.kind}".rstrip())
        lines += [f"  {'':<{width}}    {reason}" for reason in verdict.reasons]
    return "\n".join([*lines, f"  {report.turns} turns were judged"])
