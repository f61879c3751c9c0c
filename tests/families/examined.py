"""A family examined: what the check-up says of it, and the prompts that it was sent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from slime_router.checkup.examination import Examination
from slime_router.checkup.scenarios import Said, Scenario, ScriptedExchange, scenarios
from slime_router.checkup.stand import ObservedTurn, Stand
from slime_router.checkup.verdict import Report, Verdict
from tests.families.catalogue import family

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


@dataclass(frozen=True, slots=True)
class Examined:
    """The verdicts of all scenarios, that of `ODD` by itself; and the prompts, token by token."""

    report: Report
    odd: Verdict
    prompts: Mapping[str, Sequence[str]]  # by the scenario's name


@cache
def examined(name: str, *, backwards: bool = False) -> Examined:
    """A family in every scenario, one after the other with one template; `ODD` is the last one.

    Done once in a process.
    """
    order = (*scenarios(), ODD)
    return asyncio.run(_examined(name, order[::-1] if backwards else order))


async def _examined(name: str, order: Sequence[Scenario]) -> Examined:
    chosen = family(name)
    tokenizer, template, parsers = chosen.tokenizer(), chosen.chat_template(), chosen.parsers()
    examination = Examination(tokenizer, template, parsers)
    verdicts, prompts = dict[str, Verdict](), dict[str, Sequence[str]]()
    for scenario in order:
        stand = _Listening(tokenizer, template, parsers)
        verdicts[scenario.capability] = await examination.held_on(stand, scenario)
        prompts[scenario.capability] = _prompts(stand.turns, examination)
    odd = verdicts.pop(ODD.capability)
    report = Report(name, tuple(verdicts.values()), parsers.tools, parsers.reasoning)
    return Examined(report, odd, prompts)


class _Listening(Stand):
    """A stand that keeps the turns that were held on it."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.turns: list[ObservedTurn] = []

    async def say(self, *asked: Any, **how: Any) -> ObservedTurn:
        turn = await super().say(*asked, **how)
        self.turns.append(turn)
        return turn


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
