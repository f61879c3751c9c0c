"""The formats of a model's replies: which are parsed, and how that was decided.

Each flag names one of SGLang's formats, or is `auto` (detected from the template, as SGLang does
it) or `none`. Everything after this knows only names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from slime_router.errors import SetupError
from slime_router.replies.sglang_detection import Detected

logger = logging.getLogger(__name__)

AUTO, NONE = "auto", "none"
TOOLS_FLAG, REASONING_FLAG = "--tool-call-parser", "--reasoning-parser"

# SGLang's last resort, for any template that says <think>. A reply of DeepSeek-R1 itself is thought
# until </think>; one of a model that is only taken for it, where the prompt or the model opens it.
_LAST_RESORT = "deepseek-r1"


def presumes_thinking(detected: str | None) -> bool:
    """Whether a reply in a format that was detected begins as reasoning where the format has it."""
    return detected != _LAST_RESORT


@dataclass(frozen=True, slots=True)
class Choice:
    """One format: SGLang's name, or None where nothing is read; and why."""

    name: str | None
    why: str
    is_detected: bool = False

    def __str__(self) -> str:
        return f"{self.name or 'off'} ({self.why})"


@dataclass(frozen=True, slots=True)
class Formats:
    """Both formats. `missing` says why nothing could be detected, where that was asked for."""

    tools: Choice
    reasoning: Choice
    missing: str | None = None

    @property
    def presumes_thinking(self) -> bool:
        """Whether a reply begins as reasoning wherever its format has it so."""
        return not self.reasoning.is_detected or presumes_thinking(self.reasoning.name)


class Proof(Protocol):
    """Tries a detected format on what the chat template prints; see `slime_router.checkup`."""

    def tools(self, found: str | None, reasoning: str | None) -> Choice | None:
        """Another choice than the format `found`, where it does not read the template's calls."""

    def reasoning(self, found: str | None) -> Choice | None:
        """Another choice than the format `found`, where it does not read its thoughts."""


def choose_formats(
    tools: str,
    reasoning: str,
    *,
    detect: Callable[[], Detected],
    try_out: Callable[[str | None, str | None], object],
    proof: Proof | None = None,
) -> Formats:
    """What the two flags come to.

    `detect` is called only where one of them is `auto`. `try_out` is called with what it found, one
    at a time; it raises a SetupError on what cannot be used here. `proof` then has the last word.
    """
    found, missing = Detected(None, None), None
    if AUTO in (tools, reasoning):
        try:
            found = detect()
        except SetupError as exc:
            missing = exc.message
    if missing is not None:
        logger.warning("replies are not taken apart: %s", missing)
    thoughts = _choice(
        REASONING_FLAG,
        reasoning,
        found.reasoning,
        missing,
        lambda name: try_out(None, name),
        lambda name: None if proof is None else proof.reasoning(name),
    )
    before = thoughts.name or found.reasoning
    calls = _choice(
        TOOLS_FLAG,
        tools,
        found.tools,
        missing,
        lambda name: try_out(name, None),
        lambda name: None if proof is None else proof.tools(name, before),
    )
    return Formats(tools=calls, reasoning=thoughts, missing=missing)


def _choice(
    flag: str,
    said: str,
    found: str | None,
    missing: str | None,
    try_out: Callable[[str], object],
    prove: Callable[[str | None], Choice | None],
) -> Choice:
    if said != AUTO:
        return Choice(None, f"{flag} {NONE}") if said == NONE else Choice(said, "set")
    if missing is not None:
        return Choice(None, missing)
    if found is not None:
        try:
            try_out(found)
        except SetupError as exc:
            return Choice(None, f"{found} is detected, but {exc.message}; set {flag}")
    if (other := prove(found)) is not None:
        if found is not None or other.name is None:  # else the banner says it
            logger.warning("%s: %s", flag, other)
        return other
    if found is None:
        return Choice(None, f"no format detected; set {flag}")
    return Choice(found, "detected", is_detected=True)
