"""The formats of a model's replies: which are parsed, and how that was decided.

Each flag names one of SGLang's formats, or is `auto` (detected from the template, as SGLang does
it) or `none`. Everything after this knows only names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from slime_router.errors import SetupError
from slime_router.replies.sglang_detection import Detected

logger = logging.getLogger(__name__)

AUTO, NONE = "auto", "none"
TOOLS_FLAG, REASONING_FLAG = "--tool-call-parser", "--reasoning-parser"

# SGLang's last resort, for any template that says <think>. A reply of DeepSeek-R1 itself is thought
# until </think>; one of a model that is only taken for it, where the prompt or the model opens it.
_LAST_RESORT = "deepseek-r1"


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
        return not (self.reasoning.is_detected and self.reasoning.name == _LAST_RESORT)


def choose_formats(
    tools: str,
    reasoning: str,
    *,
    detect: Callable[[], Detected],
    try_out: Callable[[str | None, str | None], object],
) -> Formats:
    """What the two flags come to.

    `detect` is called only where one of them is `auto`. `try_out` is called with what it found,
    tool calls first, one at a time; it raises a SetupError on what cannot be used here.
    """
    found, missing = Detected(None, None), None
    if AUTO in (tools, reasoning):
        try:
            found = detect()
        except SetupError as exc:
            missing = exc.message
    if missing is not None:
        logger.warning("replies are not taken apart: %s", missing)
    return Formats(
        tools=_choice(TOOLS_FLAG, tools, found.tools, missing, lambda name: try_out(name, None)),
        reasoning=_choice(
            REASONING_FLAG, reasoning, found.reasoning, missing, lambda name: try_out(None, name)
        ),
        missing=missing,
    )


def _choice(
    flag: str,
    said: str,
    found: str | None,
    missing: str | None,
    try_out: Callable[[str], object],
) -> Choice:
    if said != AUTO:
        return Choice(None, f"{flag} {NONE}") if said == NONE else Choice(said, "set")
    if missing is not None:
        return Choice(None, missing)
    if found is None:
        return Choice(None, f"no format detected; set {flag}")
    try:
        try_out(found)
    except SetupError as exc:
        return Choice(None, f"{found} is detected, but {exc.message}; set {flag}")
    return Choice(found, "detected", is_detected=True)
