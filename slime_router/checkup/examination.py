"""The examination: every scenario runs on its own stand, and each of its turns is judged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from typing import TypeAlias

from slime_router.checkup.judge import Judge, OfTemplate
from slime_router.checkup.scenarios import CALL_ERROR, TOOLS, Said, Scenario, scenarios
from slime_router.checkup.speech import Speech, Unsupported, Written, ideal, refusal
from slime_router.checkup.split import odd_split
from slime_router.checkup.stand import ObservedTurn, Sample, Stand
from slime_router.checkup.verdict import Report, Verdict
from slime_router.errors import RouterError
from slime_router.replies.parsers import ReplyParsers
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.encoder import After
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Finish, Message, Prompt, ReplyFormat, TemplateOptions

TAIL_LEN = 32  # tokens of a prompt that may have begun the reasoning
Tracked: TypeAlias = Callable[[Sequence[Scenario]], Iterable[Scenario]]
CUT_LEN = 3  # characters of the last word that a cut reply lacks


class Examination:
    """One model family: its tokenizer, its template, and the parsers of its replies."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, parsers: ReplyParsers) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._parsers = parsers
        self._speech = Speech(tokenizer, template.findings, parsers.tools)
        self._judge = Judge(tokenizer, template)

    async def report(self, name: str, tracked: Tracked = iter) -> Report:
        """The verdicts of all scenarios; `tracked` is given them, and sees how far it has come."""
        verdicts = [await self.verdict(scenario) for scenario in tracked(scenarios())]
        return Report(name, tuple(verdicts), self._parsers.tools, self._parsers.reasoning)

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, with control tokens written out."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    async def turns(
        self, stand: Stand, scenario: Scenario
    ) -> AsyncIterator[tuple[ObservedTurn, list[Message]]]:
        """The turns of one conversation, unjudged, each with the messages that it was asked with.

        None where the template does not take such a conversation.
        """
        with suppress(Unsupported, OfTemplate):
            async for turn, asks, _ in self._hold(stand, scenario, self._script(scenario)):
                yield turn, asks

    def stand(self) -> Stand:
        """A fresh store and cache; the template is the one that all share."""
        return Stand(self._tokenizer, self._template, self._parsers)

    async def verdict(self, scenario: Scenario) -> Verdict:
        """Runs one conversation, on its own stand."""
        return await self.held_on(self.stand(), scenario)

    async def held_on(self, stand: Stand, scenario: Scenario) -> Verdict:
        """Runs one conversation on a stand, on which others may have run before."""
        try:
            script = self._script(scenario)
        except Unsupported as unsupported:
            return Verdict(scenario.capability, "not supported", (str(unsupported),))
        faults: list[str] = []
        turns: list[ObservedTurn] = []
        try:
            async for turn, _, found in self._hold(stand, scenario, script):
                turns.append(turn)
                faults += [f"turn {len(turns)}: {fault}" for fault in found]
        except OfTemplate as reason:
            if not faults:
                return Verdict(scenario.capability, "not supported", (str(reason),), len(turns))
        except RouterError as error:
            faults.append(f"turn {len(turns) + 1}: {error.message}")
        return Verdict(
            scenario.capability, "not exact" if faults else "exact", tuple(faults), len(turns)
        )

    def _script(self, scenario: Scenario) -> list[Written]:
        """What the model writes in each exchange.

        Raises:
            Unsupported: the template does not take such a conversation.
        """
        if self._parsers.tools is None and any(each.said.calls for each in scenario.exchanges):
            raise Unsupported("no parser reads tool calls")
        options, script = _options(scenario), list[Written]()
        messages: list[Message] = []
        for exchange in scenario.exchanges:
            messages += answered(exchange.asks, messages)
            script.append(self._speech.write(messages, exchange.said, options))
            messages.append(ideal(exchange.said))
        asked = messages[:-1]
        if (reason := refusal(self._tokenizer, self._speech.forms, asked, options)) is not None:
            raise Unsupported(reason)
        return script

    async def _hold(
        self, stand: Stand, scenario: Scenario, script: Sequence[Written]
    ) -> AsyncIterator[tuple[ObservedTurn, list[Message], list[str]]]:
        """Each turn with what it was asked with, and what is wrong with it."""
        options = _options(scenario)
        messages: list[Message] = []
        before: ObservedTurn | None = None
        for exchange, written in zip(scenario.exchanges, script, strict=True):
            asks = answered(exchange.asks, messages)
            messages += asks
            turn = await stand.say(
                messages, options, self._sampler(written, exchange.said, options)
            )
            if before is None:
                faults = self._judge.first_prompt(turn, messages, options)
            else:
                faults = self._judge.next_prompt(before, turn, messages, asks, options)
            faults += self._judge.reply(
                turn, exchange.said, reads_thinking=self._parsers.reasoning is not None
            )
            yield turn, asks, faults
            if len(turn.reply.get("tool_calls") or ()) < _least_calls(exchange.said):
                return  # nothing that can be answered
            before = turn
            thinking = {"reasoning_content": turn.reasoning} if exchange.returns_thinking else {}
            messages.append({**turn.reply, **thinking})

    def _is_thought(self, prompt: Prompt, text: str, options: TemplateOptions) -> bool:
        """Whether the parser takes a plain reply for reasoning: its models always think."""
        tail = self._tokenizer.decode(prompt.ids[-TAIL_LEN:].tolist(), skip_special_tokens=False)
        form = ReplyFormat(tools=options.tools)
        parser = self._parsers.parser(form, prompt_tail=tail, history=())
        return parser is not None and bool(parser.push(text, is_last=True).reasoning.strip())

    def _sampler(
        self, written: Written, said: Said, options: TemplateOptions
    ) -> Callable[[Prompt], Sample]:
        """What the model samples after a prompt: in another split than the tokenizer's."""

        def sample(prompt: Prompt) -> Sample:
            is_control = self._tokenizer.is_control(int(prompt.ids[-1]))
            after = After.CONTROL if is_control else After.TEXT
            if said.ending == "length":
                ids = odd_split(self._tokenizer, written.text[: written.cut_at - CUT_LEN], after)
                return Sample(tuple(ids), Finish("length"))
            end_id = written.end_id
            if end_id is None:  # the template prints no end: any that the model has
                end_id = min(self._speech.end_ids, default=None)
            text = written.text
            if not said.thinking and self._is_thought(prompt, text, options):
                text = self._speech.thought_end + text.lstrip()
            ids = odd_split(self._tokenizer, text, after)
            if end_id is None:
                return Sample(tuple(ids), Finish("stop"))
            is_last = said.ending == "last"
            finish = Finish("length") if is_last else Finish("stop", matched=end_id)
            return Sample((*ids, end_id), finish)

        return sample


def answered(asks: Sequence[Message], messages: Sequence[Message]) -> list[Message]:
    """The messages `asks`, with the calls before them answered one after the other.

    A call that was cut is answered with an error, whatever else was to be asked.
    """
    calls = (messages[-1].get("tool_calls") or []) if messages else []
    if calls and not any(message["role"] == "tool" for message in asks):
        asks = (CALL_ERROR,) * len(calls)
    waiting = iter(calls)
    return [
        {**message, **_answer(next(waiting, None))} if message["role"] == "tool" else message
        for message in asks
    ]


def _answer(call: Message | None) -> Message:
    if call is None:
        return {}
    return {"tool_call_id": call["id"], "name": call["function"]["name"]}


def _least_calls(said: Said) -> int:
    return 0 if said.ending == "length" else len(said.calls)


def _options(scenario: Scenario) -> TemplateOptions:
    return TemplateOptions(tools=TOOLS if scenario.has_tools else (), kwargs=scenario.kwargs)
