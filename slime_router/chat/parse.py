"""Replies taken apart: reasoning, content and tool calls, piece by piece as the text comes.

The formats are SGLang's (`sglang_parsers.py`). Its parsers are fed one token's text at a time: from
longer pieces some of them lose text. What is held back is given at the end; what no parser can read
stays content. The held tokens are what was sampled, whatever is read out of them here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from slime_router.chat import harmony
from slime_router.chat.call_ids import NewCallId, call_ids, random_call_id
from slime_router.chat.calls import CallReader
from slime_router.chat.harmony import HarmonyReader
from slime_router.chat.leftovers import without_control_tokens
from slime_router.chat.pieces import Pieces
from slime_router.chat.sglang_parsers import SGLangParsers, mended
from slime_router.errors import BadRequest, SetupError
from slime_router.types import Grammar, Message, ReplyFormat, ToolDelta

logger = logging.getLogger(__name__)

# Tokens that may end a generation, and that a format reads.
_ENDS = {
    harmony.NAME: harmony.ENDS,
    "beam": harmony.ENDS,
    "inkling": ("<|end_message|>",),
    "muse": ("<|eom|>", "<|eot|>"),
}


@dataclass(frozen=True, slots=True)
class ReplyDelta:
    """What a piece of text added to a reply."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolDelta, ...] = ()
    is_thinking: bool = False  # the piece was reasoning, tags included
    hidden_calls: int = 0  # calls behind the first, where one was asked for


class ReplyParsers:
    """Makes the parser of each reply; knows the formats that the router was told.

    `presumes_thinking`: a reply begins as reasoning where the format has it so, even if the prompt
    does not show it.

    `new_call_id` makes the ids of calls to which the model gives none.

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
        new_call_id: NewCallId = random_call_id,
    ) -> None:
        self._new_call_id = new_call_id
        self.tools = tools
        self.reasoning = reasoning
        self._presumes_thinking = presumes_thinking
        self._sglang = load() if tools or reasoning else None
        if self._sglang is not None:
            _check_name("--tool-call-parser", tools, self._sglang.tool_formats)
            _check_name("--reasoning-parser", reasoning, self._sglang.reasoning_formats)
            self._try_out()

    def __repr__(self) -> str:
        return f"<ReplyParsers tools={self.tools} reasoning={self.reasoning}>"

    def _try_out(self) -> None:
        """Fails now where every reply would: some formats need what is not given here."""
        tool = {"type": "function", "function": {"name": "any"}}
        try:
            self.parser(ReplyFormat(tools=(tool,)), prompt_tail="", history=())
        except Exception as exc:  # SGLang raises what it likes
            raise SetupError(f"{self!r} cannot be used here: {exc}") from exc

    def constraint(self, form: ReplyFormat) -> Grammar | None:
        """The grammar that makes the model call a tool where the request forces it to.

        Raises:
            BadRequest: the schemas of the tools contradict one another.
        """
        if not form.is_forced or self._sglang is None or self.tools is None:
            return None
        kind, value = self._constraint(form)
        if value is None:
            raise BadRequest("No call can be forced of these tools.", param="tools")
        if hasattr(value, "model_dump"):
            value = value.model_dump(mode="json", by_alias=True)
            if not form.is_parallel and "structures" in value:
                value = _once(value)
        return Grammar(kind, value if isinstance(value, str) else orjson.dumps(value).decode())

    def _constraint(self, form: ReplyFormat) -> tuple[Any, Any]:
        """The kind of a grammar, and the grammar in one of the shapes that SGLang has for it."""
        assert self._sglang is not None
        choice = self._choice(form)
        try:
            found = self._calls_parser(form).get_structure_constraint(
                choice, parallel_tool_calls=form.is_parallel
            )
            if found is None:
                return "json_schema", self._sglang.json_schema(self._tools(form), choice, form)
        except Exception as exc:  # SGLang raises what it likes on what tools describe
            logger.warning("no call can be forced with %s: %r", self.tools, exc)
            raise BadRequest("No call can be forced of these tools.", param="tool_choice") from exc
        kind, value = found
        return "ebnf" if kind == "full_assistant_ebnf" else kind, value

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
        stages = (
            self._reasoning_parser(form, prompt_tail, written),
            self._harmony_reader(form, prompt_tail, history),
            self._call_reader(form, history),
        )
        if stages == (None, None, None):
            return None
        return ReplyParser(
            *stages, ends=(*_ENDS.get(self.tools or "", ()), *_ENDS.get(self.reasoning or "", ()))
        )

    def _reads_calls(self, form: ReplyFormat) -> bool:
        return self._sglang is not None and self.tools is not None and bool(form.tools)

    def _is_array(self, form: ReplyFormat) -> bool:
        """Whether calls come as a JSON array: they are forced, and their format cannot be."""
        constraint = self.constraint(form)
        return constraint is not None and constraint.kind == "json_schema"

    def _harmony_reader(
        self, form: ReplyFormat, prompt_tail: str, history: Sequence[Message]
    ) -> HarmonyReader | None:
        if not self.are_needed(form) or harmony.NAME not in (self.tools, self.reasoning):
            return None
        has_calls = self.tools == harmony.NAME and self._reads_calls(form)
        reader = HarmonyReader(
            {tool["function"]["name"] for tool in form.tools} if has_calls else (),
            call_ids(harmony.NAME, self._new_call_id, history),
            is_separate=self.reasoning == harmony.NAME and form.separates_reasoning,
            is_parallel=form.is_parallel,
            streams_reasoning=form.streams_reasoning,
        )
        reader.enter(prompt_tail)
        return reader

    def _call_reader(self, form: ReplyFormat, history: Sequence[Message]) -> CallReader | None:
        if not self._reads_calls(form):
            return None
        assert self._sglang is not None
        assert self.tools is not None
        is_array = self._is_array(form)
        if self.tools == harmony.NAME and not is_array:
            return None
        return CallReader(
            self._sglang.JsonArrayParser
            if is_array
            else lambda: mended(self._calls_parser(form).detector),
            self._tools(form),
            call_ids(self.tools, self._new_call_id, history),
            is_parallel=form.is_parallel,
        )

    def _calls_parser(self, form: ReplyFormat) -> Any:
        assert self._sglang is not None
        return self._sglang.FunctionCallParser(self._tools(form), self.tools)

    def _tools(self, form: ReplyFormat) -> list[Any]:
        assert self._sglang is not None
        return [self._sglang.Tool.model_validate(_told(tool)) for tool in form.tools]

    def _choice(self, form: ReplyFormat) -> Any:
        assert self._sglang is not None
        if form.named is None:
            return "required"
        return self._sglang.ToolChoice(function={"name": form.named})

    def _reasoning_parser(self, form: ReplyFormat, prompt_tail: str, written: str) -> Any:
        if self._sglang is None or self.reasoning is None or not form.separates_reasoning:
            return None
        if self.reasoning == harmony.NAME:
            return None
        parser = self._sglang.ReasoningParser(
            self.reasoning,
            form.streams_reasoning,
            tool_call_parser_active=self.tools is not None and bool(form.tools),
        )
        is_open = _is_thinking(parser.detector, prompt_tail.rstrip(), written)
        if is_open is None and not self._presumes_thinking:
            is_open = False
        if is_open is not None and hasattr(parser.detector, "_in_reasoning"):
            parser.detector._in_reasoning = is_open  # some take no argument that says so
        return parser


class ReplyParser:
    """Takes one reply apart.

    `ends` are control tokens that it must see although a generation may end with them.
    """

    def __init__(
        self,
        reasoning: Any,
        messages: HarmonyReader | None,
        calls: CallReader | None,
        *,
        ends: Collection[str] = (),
    ) -> None:
        self.ends = ends
        self._reasoning = reasoning
        self._messages = messages
        self._calls = calls
        self._is_broken = False
        # All text, until something is made of it; of messages something always is.
        self._silent: str | None = "" if messages is None else None
        self._pieces = Pieces(calls.marks if calls is not None else ())

    @property
    def is_thinking(self) -> bool:
        """Whether reasoning goes on where the reply stands now."""
        if self._messages is not None and self._messages.is_thinking:
            return True
        return bool(getattr(self._reasoning and self._reasoning.detector, "_in_reasoning", False))

    def push(self, text: str, *, is_last: bool) -> ReplyDelta:
        """What a piece of text adds; at the end also what was held back."""
        pieces = self._pieces.cut(text, is_last=is_last) or ([""] if is_last else [])
        whole = ReplyDelta()
        for index, piece in enumerate(pieces):
            delta = self._push_piece(piece, is_last=is_last and index == len(pieces) - 1)
            whole = delta if index == 0 else _joined(whole, delta)
        return whole if pieces else ReplyDelta(is_thinking=self.is_thinking)

    def _push_piece(self, text: str, *, is_last: bool) -> ReplyDelta:
        if self._is_broken:
            return ReplyDelta(text)
        try:
            delta = self._push(text, is_last=is_last)
        except Exception:  # SGLang's parsers raise what they like on what models write
            logger.exception("a reply could not be taken apart: the rest of it stays text")
            self._is_broken = True
            return ReplyDelta(self._unread(text))
        if self._silent is not None:
            is_silent = not (delta.content or delta.reasoning or delta.tool_calls)
            self._silent = self._silent + text if is_silent else None
            if self._silent and is_last:
                return replace(delta, content=self._without_marks(self._silent))
        return delta

    def _without_marks(self, text: str) -> str:
        """What is left to show of a text of which its format made nothing."""
        detector = self._reasoning and self._reasoning.detector
        for mark in (detector.think_start_token, detector.think_end_token) if detector else ():
            text = text.replace(mark, "")
        return without_control_tokens(text) if text.strip() else ""

    def _unread(self, text: str) -> str:
        """What was not given yet, `text` last."""
        held = self._calls.unread() if self._calls is not None else ""
        return held if held.endswith(text) else held + text

    def _push(self, text: str, *, is_last: bool) -> ReplyDelta:
        reasoning, was_thinking = "", self.is_thinking
        if self._reasoning is not None:
            reasoning, text = _both(self._reasoning.parse_stream_chunk(text))
            if is_last:
                more = _both(self._reasoning.parse_stream_end())
                reasoning, text = reasoning + more[0], text + more[1]
        calls: tuple[ToolDelta, ...] = ()
        hidden = self._hidden()
        if self._messages is not None:
            read = self._messages.push(text, is_last=is_last)
            text, reasoning, calls = read.content, reasoning + read.reasoning, read.tool_calls
        is_thinking = was_thinking or self.is_thinking or bool(reasoning)
        if self._calls is not None:
            text, more_calls = self._calls.read(text, is_last=is_last)
            calls += more_calls
        return ReplyDelta(text, reasoning, calls, is_thinking, self._hidden() - hidden)

    def _hidden(self) -> int:
        readers = (self._messages, self._calls)
        return sum(reader.hidden for reader in readers if reader is not None)


def _is_thinking(detector: Any, prompt_tail: str, written: str) -> bool | None:
    """Whether the reply begins inside reasoning; None where the format's own default holds."""
    begin, end = detector.think_start_token, detector.think_end_token
    if begin in written or end in written:
        return bool(written.rfind(begin) > written.rfind(end))
    if prompt_tail.endswith(end):
        return False
    label = str(getattr(detector, "think_start_self_label", "")).rstrip()  # Gemma's `thought`
    return True if prompt_tail.endswith((begin, begin + label)) else None


def _once(tag: dict[str, Any]) -> dict[str, Any]:
    """A structural tag of the older form as one of the newer, which ends with the first call."""
    tags = [
        {
            "type": "tag",
            "begin": each["begin"],
            "content": {"type": "json_schema", "json_schema": each["schema"]},
            "end": each["end"],
        }
        for each in tag["structures"]
    ]
    return {
        "type": "structural_tag",
        "format": {
            "type": "triggered_tags",
            "triggers": tag["triggers"],
            "tags": tags,
            "at_least_one": tag["at_least_one"],
            "stop_after_first": True,
        },
    }


def _told(tool: dict[str, Any]) -> dict[str, Any]:
    """The tool without what is null: SGLang has defaults for it, but takes no null."""
    function = {name: value for name, value in tool["function"].items() if value is not None}
    return {**tool, "function": function}


def _joined(first: ReplyDelta, then: ReplyDelta) -> ReplyDelta:
    return ReplyDelta(
        first.content + then.content,
        first.reasoning + then.reasoning,
        first.tool_calls + then.tool_calls,
        first.is_thinking or then.is_thinking,
        first.hidden_calls + then.hidden_calls,
    )


def _both(parts: tuple[str | None, str | None]) -> tuple[str, str]:
    return parts[0] or "", parts[1] or ""


def _check_name(flag: str, name: str | None, known: Sequence[str]) -> None:
    if name is not None and name not in known:
        raise SetupError(f"{flag} {name}: SGLang knows {', '.join(known)}")
