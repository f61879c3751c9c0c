"""The formats of replies that were chosen at start, and the parser that each reply gets."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import orjson

from slime_router.engine.structural_tag import (
    Json,
    any_of,
    calls_format,
    either,
    ending_with_first,
    framed,
    grammar_of,
    json_of,
    matching,
    tagged,
)
from slime_router.errors import BadRequest, SetupError, one_line
from slime_router.replies import harmony
from slime_router.replies.call_ids import NewCallId, call_ids
from slime_router.replies.calls.nothing_lost import NothingLost
from slime_router.replies.calls.plain_text import PlainText, plain_text
from slime_router.replies.calls.readers import reader_of
from slime_router.replies.detectors import CallDetector, ReasoningDetector
from slime_router.replies.harmony import HarmonyReader
from slime_router.replies.parser import ReplyParser
from slime_router.replies.pieces import Marks
from slime_router.replies.sglang_detection import Thinking
from slime_router.replies.sglang_parsers import NamedTokens, SGLangParsers
from slime_router.replies.tool_calls import CallReader
from slime_router.template.spelling import random_call_id
from slime_router.types import Grammar, Message, ReplyFormat
from slime_router.values import replace

logger = logging.getLogger(__name__)

# Tokens that may end a generation, and that a format reads.
_ENDS = {
    harmony.NAME: harmony.ENDS,
    "beam": harmony.ENDS,
    "inkling": ("<|end_message|>",),
    "muse": ("<|eom|>", "<|eot|>"),
}


def _arguments(form: ReplyFormat) -> dict[str, Any]:
    """A schema for the arguments of each tool; any object where it need not be kept to."""
    functions = [tool["function"] for tool in form.tools]
    return {
        each["name"]: (each.get("strict") and each.get("parameters")) or {"type": "object"}
        for each in functions
    }


def _object_calls(form: ReplyFormat) -> Json:
    """GigaChat 3's: one object after a mark, to the end of the reply."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": wanted},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, wanted in _arguments(form).items()
    ]
    return tagged("<|function_call|>", any_of(*map(json_of, calls)))


def _python_calls(form: ReplyFormat) -> Json:
    """A list of Python's calls. What stands between the first name and the end is not looked at."""
    names = "|".join(map(re.escape, _arguments(form)))
    return matching(rf"\[({names})\((.|\n)*\)\]")


# Calls without marks at both ends, which SGLang has no grammar for.
_BARE: Mapping[str, Callable[[ReplyFormat], Json]] = MappingProxyType(
    {"gigachat3": _object_calls, "pythonic": _python_calls}
)

# Formats whose reasoning a grammar waits for only where the prompt has opened it.
_SHOWN = ("iquest_q1", "k2_horizon", "minimax-m3")
_BY_EFFORT = {"hunyuan": Thinking(by_effort=True)}


class ReplyParsers:
    """Makes the parser of each reply; knows the formats that were chosen at start.

    `presumes_thinking`: a reply begins as reasoning where the format has it so, even if the prompt
    does not show it.

    `strips_newlines`: content does not begin with the line breaks that follow reasoning.

    `new_call_id` makes the ids of calls to which the model gives none.

    `added_tokens` are those of the vocabulary: Hunyuan's marks have other names in each.

    `thinking` is what the template says of it; None: what the format's parser does.

    Raises:
        SetupError: SGLang is not installed, or has no such format.
    """

    def __init__(
        self,
        load: Callable[[], SGLangParsers],
        *,
        tools: str | None,
        reasoning: str | None,
        presumes_thinking: bool = True,
        strips_newlines: bool = False,
        new_call_id: NewCallId = random_call_id,
        added_tokens: Iterable[str] = (),
        thinking: Thinking | None = None,
    ) -> None:
        names = tuple(added_tokens)
        self._vocabulary = NamedTokens(names) if names else None  # None: marks without a suffix
        self._new_call_id = new_call_id
        self.tools = tools
        self.reasoning = reasoning
        self._presumes_thinking = presumes_thinking
        self._thinking = thinking
        self._strips_newlines = strips_newlines
        self._ends = (*_ENDS.get(tools or "", ()), *_ENDS.get(reasoning or "", ()))
        self._marks: Marks | None = None  # of its reasoning
        self._plain: PlainText | None = None  # of its calls
        self._tried: ReasoningDetector | None = None  # of no reply: the others are like it
        self._sglang = load() if tools or reasoning else None
        if self._sglang is not None:
            _check_name("--tool-call-parser", tools, self._sglang.tool_formats)
            _check_name("--reasoning-parser", reasoning, self._sglang.reasoning_formats)
            self._try_out()
            if self.tools is not None:
                self._array_detector()

    def __repr__(self) -> str:
        return f"<ReplyParsers tools={self.tools} reasoning={self.reasoning}>"

    def _try_out(self) -> None:
        """Fails now where every reply would: some formats need something that is missing here."""
        form = ReplyFormat(tools=({"type": "function", "function": {"name": "any"}},))
        try:
            self.parser(form, prompt_tail="", history=())
            if self.tools is not None and self.tools != harmony.NAME:
                self._plain = plain_text(partial(self._detector, form), self._tools(form))
        except SetupError:
            raise
        except Exception as exc:  # SGLang may raise anything
            raise SetupError(f"{self!r} cannot be used here: {one_line(exc)}") from exc

    def constraint(self, form: ReplyFormat) -> Grammar | None:
        """The grammar that makes the model call a tool where the request forces it to.

        Raises:
            BadRequest: the schemas of the tools contradict one another.
        """
        if not form.is_forced or self._sglang is None or self.tools is None:
            return None
        kind, value = self._written(form)
        return Grammar(kind, value if isinstance(value, str) else orjson.dumps(value).decode())

    def either(self, form: ReplyFormat, asked: Grammar) -> Grammar:
        """A grammar for the JSON that the client asked for, or for calls in its place.

        By itself, a schema would forbid every call. Patterns and tags of the client's own are left:
        they spell the whole reply, calls too.

        Raises:
            BadRequest: the format of the calls has no grammar that can stand beside another.
        """
        may_call = form.tools and not form.is_forced and self.tools is not None
        if not may_call or asked.kind != "json_schema":
            return asked
        if self.tools == harmony.NAME:
            return grammar_of(harmony.answers(orjson.loads(asked.value), _arguments(form)))
        if (bare := _BARE.get(self.tools or "")) is not None:
            return either(asked, bare(form))
        kind, value = self._written(replace(form, is_forced=True))
        calls = None
        frame = self._detector(form).frame
        if kind == "structural_tag":
            calls = calls_format(value, is_parallel=form.is_parallel)
        elif frame is not None:
            calls = framed(*frame, is_parallel=form.is_parallel)
        if calls is None:
            raise BadRequest(
                f"With calls in the format '{self.tools}', a grammar forbids every call:"
                " set 'tool_choice' to 'none' or 'required', or leave the grammar out.",
                param="response_format",
            )
        return either(asked, calls)

    def _written(self, form: ReplyFormat) -> tuple[Any, Any]:
        """The kind and the value of the grammar that forces a call, the value as JSON."""
        kind, value = self._constraint(form)
        if value is None:
            raise BadRequest("No call can be forced of these tools.", param="tools")
        if hasattr(value, "model_dump"):
            value = value.model_dump(mode="json", by_alias=True)
            if not form.is_parallel and "structures" in value:
                value = ending_with_first(value)
        return kind, value

    def _constraint(self, form: ReplyFormat) -> tuple[Any, Any]:
        """The kind of a grammar, and the grammar in one of the shapes that SGLang has for it."""
        assert self._sglang is not None
        choice = self._choice(form)
        try:
            found = self._calls_parser(form).get_structure_constraint(
                choice, parallel_tool_calls=form.is_parallel
            )
            if found is None or found[0] == "json_schema":  # IQuest's named ones lack the name
                return "json_schema", self._sglang.json_schema(self._tools(form), choice, form)
        except Exception as exc:  # SGLang may raise anything on a tool's description
            logger.warning("no call can be forced with %s: %r", self.tools, exc)
            raise BadRequest("No call can be forced of these tools.", param="tool_choice") from exc
        kind, value = found
        return "ebnf" if kind == "full_assistant_ebnf" else kind, value

    def thinks_first(self, kwargs: Mapping[str, Any], *, prompt_tail: str, written: str) -> bool:
        """Whether a reply begins with reasoning, which a grammar must wait for.

        As SGLang's chat route decides it, but for what the prompt shows. `kwargs` are the
        template's; the rest is as in `parser`. gpt-oss's grammars have its reasoning in them.
        """
        detector = self._tried
        if detector is None:
            return False
        is_open = _is_thinking(detector, prompt_tail.rstrip(), written)
        if is_open is not None or not self._presumes_thinking:
            return bool(is_open)
        if self.reasoning in _SHOWN:
            return False
        known = self._thinking or _BY_EFFORT.get(self.reasoning or "")
        return (known or Thinking.of_mode(detector.mode)).holds(kwargs)

    def has_marks(self, text: str) -> bool:
        """Whether a mark at which reasoning begins or ends is in a text."""
        known = self._tried
        return known is not None and (known.begin in text or known.end in text)

    def are_needed(self, form: ReplyFormat) -> bool:
        """Whether a reply of this form is taken apart at all."""
        thinks = self.reasoning is not None and form.separates_reasoning
        return thinks or (self.tools is not None and bool(form.tools))

    def parser(
        self,
        form: ReplyFormat,
        *,
        prompt_tail: str,
        history: Sequence[Message],
        written: str = "",
    ) -> ReplyParser | None:
        """The parser of one reply; None where there is nothing to take apart.

        `prompt_tail` is the end of the prompt's text: it may have opened the reasoning already, as
        may `written`, which the client wrote of the reply.
        """
        reasoning = self._reasoning_parser(form, prompt_tail, written)
        harmony_reader = self._harmony_reader(form, prompt_tail, history)
        calls = self._call_reader(form, history)
        if not (reasoning or harmony_reader or calls):
            return None
        marks = thoughts = None if reasoning is None else self._marks
        if calls is not None:
            is_known = reasoning is None or marks is not None
            marks = self._plain.beside(marks) if is_known and self._plain is not None else None
        return ReplyParser(
            reasoning,
            harmony_reader,
            calls,
            is_parallel=form.is_parallel,
            ends=self._ends,
            marks=marks,
            thoughts=thoughts,
            strips_newlines=self._strips_newlines,
        )

    def _reads_calls(self, form: ReplyFormat) -> bool:
        return self._sglang is not None and self.tools is not None and bool(form.tools)

    def _is_array(self, form: ReplyFormat) -> bool:
        """Whether calls come as a JSON array: they are forced, and their own format cannot be."""
        constraint = self.constraint(form)
        return constraint is not None and constraint.kind == "json_schema"

    def _harmony_reader(
        self, form: ReplyFormat, prompt_tail: str, history: Sequence[Message]
    ) -> HarmonyReader | None:
        if harmony.NAME not in (self.tools, self.reasoning) or not self.are_needed(form):
            return None
        has_calls = self.tools == harmony.NAME and self._reads_calls(form)
        reader = HarmonyReader(
            {tool["function"]["name"] for tool in form.tools} if has_calls else (),
            call_ids(harmony.NAME, self._new_call_id, history),
            is_separate=self.reasoning == harmony.NAME and form.separates_reasoning,
            streams_reasoning=form.streams_reasoning,
        )
        reader.enter(prompt_tail)
        return reader

    def _call_reader(self, form: ReplyFormat, history: Sequence[Message]) -> NothingLost | None:
        if not self._reads_calls(form):
            return None
        assert self._sglang is not None
        assert self.tools is not None
        is_array = self._is_array(form)
        if self.tools == harmony.NAME and not is_array:
            return None
        reader = CallReader(
            self._array_detector if is_array else partial(self._detector, form),
            self._tools(form),
            call_ids(self.tools, self._new_call_id, history),
        )
        return NothingLost(reader) if is_array else reader_of(self.tools, reader)

    def _array_detector(self) -> CallDetector:
        """Reads the calls that a grammar forces a model to write."""
        assert self._sglang is not None
        return CallDetector(self._sglang.JsonArrayParser())

    def _detector(self, form: ReplyFormat) -> CallDetector:
        untouched = None if self._plain is None else self._plain.untouched
        return CallDetector(self._calls_parser(form).detector, untouched)

    def _calls_parser(self, form: ReplyFormat) -> Any:
        assert self._sglang is not None
        return self._sglang.FunctionCallParser(
            self._tools(form), self.tools, tokenizer=self._vocabulary
        )

    def _tools(self, form: ReplyFormat) -> list[Any]:
        assert self._sglang is not None
        return [self._sglang.Tool.model_validate(_without_nulls(tool)) for tool in form.tools]

    def _choice(self, form: ReplyFormat) -> Any:
        assert self._sglang is not None
        if form.named is None:
            return "required"
        return self._sglang.ToolChoice(function={"name": form.named})

    def _reasoning_parser(
        self, form: ReplyFormat, prompt_tail: str, written: str
    ) -> ReasoningDetector | None:
        if self._sglang is None or self.reasoning is None or not form.separates_reasoning:
            return None
        if self.reasoning == harmony.NAME:
            return None
        make = partial(
            self._sglang.ReasoningParser,
            self.reasoning,
            form.streams_reasoning,
            tokenizer=self._vocabulary,
            tool_call_parser_active=self.tools is not None and bool(form.tools),
        )
        if self._tried is None:
            self._tried = ReasoningDetector(make)
            self._marks = self._tried.marks()
        detector = self._tried.for_reply(make)
        is_open = _is_thinking(detector, prompt_tail.rstrip(), written)
        if is_open is None and not self._presumes_thinking:
            is_open = False
        if is_open is not None:
            detector.start(is_open=is_open)
        return detector


def _is_thinking(detector: ReasoningDetector, prompt_tail: str, written: str) -> bool | None:
    """Whether the reply begins inside reasoning; None where the format's own default holds."""
    begin, end = detector.begin, detector.end
    if written:
        return bool(written.rfind(begin) > written.rfind(end))
    if prompt_tail.endswith(end):
        return False
    return True if prompt_tail.endswith((begin, begin + detector.label.rstrip())) else None


def _without_nulls(tool: dict[str, Any]) -> dict[str, Any]:
    """The tool without what is null: SGLang has defaults for it, but takes no null."""
    function = {name: value for name, value in tool["function"].items() if value is not None}
    return {**tool, "function": function}


def _check_name(flag: str, name: str | None, known: Sequence[str]) -> None:
    if name is not None and name not in known:
        raise SetupError(f"{flag} {name}: SGLang knows {', '.join(known)}")
