"""How a model of a family writes: derived from its own chat template.

The template prints the replies of the past in the form that the model was trained to write. So the
text of a reply is whatever is between the generation prompt and the token that ends the turn, in a
rendering of the conversation with that reply in it. Nothing here knows any family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slime_router.cache.text_index import common_prefix_len
from slime_router.checkup.scenarios import Said
from slime_router.errors import BadRequest
from slime_router.replies.call_ids import KIMI_IDS
from slime_router.template.messages import whole_arguments
from slime_router.template.self_test import Findings
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Message, TemplateOptions
from slime_router.values import replace

# In the order in which they are tried; a template that prints none of them may still open one.
THINK_FIELDS = ("reasoning_content", "thinking")
# How it is written around the thoughts, for the templates that print none of the past.
THINK_MARKS = (
    ("<think>\n", "\n</think>\n\n"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel>thought\n", "<channel|>"),
)
# SGLang's parsers read some formats in another spelling than the template prints the past in.
PARSED_SPELLINGS = {"mistral": (("[TOOL_CALLS][{", "[TOOL_CALLS] [{"),)}
PLAIN_ASK: Message = {"role": "user", "content": "Hello"}
SHORT_ID = "call{number:05d}"  # some templates insist on nine letters and digits


class Unsupported(Exception):
    """The template has no form for such a reply: its own error, or what it leaves out."""


@dataclass(frozen=True, slots=True)
class Written:
    """A reply as the model writes it.

    `text` follows the generation prompt, without its end; `end_id` is the token that ends it, None
    where the model has none. The last word of the reply's text ends at `cut_at`.
    """

    text: str
    end_id: int | None
    cut_at: int


class Speech:
    """What replies look like in one template."""

    def __init__(self, tokenizer: Tokenizer, findings: Findings, tool_parser: str | None) -> None:
        self._tokenizer = tokenizer
        spell = KIMI_IDS.get(tool_parser or "", SHORT_ID)
        self._spellings = PARSED_SPELLINGS.get(tool_parser or "", ())
        self.forms = tuple(
            CallForm(has_parts=parts, has_text_arguments=text, empty=empty, call_id=spell)
            for parts in (False, True)
            for text in (False, True)
            for empty in ("", None)
        )
        self._ends = {
            literal: token_id
            for token_id in tokenizer.eos_ids
            if (literal := tokenizer.token_bytes(token_id).decode(errors="replace"))
        }  # without those that the vocabulary lacks
        if not self._ends:
            closer = findings.closer or ""
            self._ends = {closer[a:b]: each for a, b, each in tokenizer.find_added(closer)}
        source = tokenizer.chat_template or ""
        ends = [end.lstrip() for _, end in THINK_MARKS if end.strip() in source]
        self.thought_end = ends[0] if ends else ""  # ends a thought that the prompt has begun
        self.end_ids = frozenset(self._ends.values())  # the tokens that end a reply

    def write(self, before: Sequence[Message], said: Said, options: TemplateOptions) -> Written:
        """The reply `said`, as it is written after the messages `before`.

        Raises:
            Unsupported: the template prints no such reply.
        """
        if not said.thinking:
            written = self._read_off(before, said, options, _mark(said))
            return self._with_closed_thinking(before, written, options)
        for field in THINK_FIELDS:
            try:
                written = self._read_off(before, said, options, _mark(said), think_field=field)
            except Unsupported:
                continue
            if written.end_id is None:  # only the last turn shows its thinking, and shows no end
                plain = replace(said, content=said.content or "Hello", thinking="")
                end_id = self._read_off(before, plain, options, _mark(plain)).end_id
                written = replace(written, end_id=end_id)
            return written
        return self._with_markers(before, said, options)

    def _with_closed_thinking(
        self, before: Sequence[Message], written: Written, options: TemplateOptions
    ) -> Written:
        """A reply without a thought, where the generation prompt has begun one."""
        prompt = self.prompt(before, options)
        for begin, end in THINK_MARKS:
            if prompt.rstrip().endswith(begin.rstrip()) and end.strip() not in written.text:
                text = written.text.lstrip()
                moved = len(end.lstrip()) + len(text) - len(written.text)
                return replace(written, text=end.lstrip() + text, cut_at=written.cut_at + moved)
        return written

    def _with_markers(
        self, before: Sequence[Message], said: Said, options: TemplateOptions
    ) -> Written:
        """Thinking as most models write it, where the template knows its marks but prints none."""
        source = self._tokenizer.chat_template or ""
        prompt = self.prompt(before, options).rstrip()
        for begin, end in sorted(THINK_MARKS, key=lambda marks: self._distance(marks[0], prompt)):
            is_open = prompt.endswith(begin.strip())
            if end.strip() not in source and not is_open:
                continue
            head = ("" if is_open else begin) + said.thinking
            if not (said.content or said.calls):
                return Written(head, None, len(head))
            rest = self._read_off(before, replace(said, thinking=""), options, _mark(said))
            text = rest.text.rpartition(end.strip())[2].lstrip()
            cut_at = rest.cut_at - (len(rest.text) - len(text))
            return Written(head + end + text, rest.end_id, len(head + end) + cut_at)
        raise Unsupported("the template prints no reasoning")

    def _distance(self, begin: str, prompt: str) -> tuple[bool, bool]:
        """How far a mark is from the model's own: a template may know those of others, too."""
        is_token = any(self._tokenizer.find_added(begin))
        return not prompt.endswith(begin.strip()), not is_token

    def prompt(self, before: Sequence[Message], options: TemplateOptions) -> str:
        """The prompt that the reply follows, in the first form that the template takes."""
        refused: BadRequest | None = None
        for form in self.forms:
            try:
                return self._render(form(before), options, generates=True)
            except BadRequest as refusal:
                refused = refused or refusal
        assert refused is not None
        raise Unsupported(_reason(refused))

    def _read_off(
        self,
        before: Sequence[Message],
        said: Said,
        options: TemplateOptions,
        mark: str,
        think_field: str = "",
    ) -> Written:
        reply = ideal(replace(said, ending="stop"), think_field)
        refused: BadRequest | None = None
        is_printed = False
        for asked in (before, [PLAIN_ASK]):  # some print late calls unlike the first
            for form in self.forms:
                try:
                    found = self._found(form, asked, reply, said, options, mark)
                except BadRequest as refusal:
                    refused = refused or refusal
                    continue
                if found is not None:
                    return self._as_parsed(found)
                is_printed = True
        raise Unsupported(
            _unprinted(said, think_field) if is_printed or refused is None else _reason(refused)
        )

    def _as_parsed(self, written: Written) -> Written:
        text, moved = written.text, 0
        for printed, parsed in self._spellings:
            moved += text.count(printed) * (len(parsed) - len(printed))
            text = text.replace(printed, parsed)
        return replace(written, text=text, cut_at=written.cut_at + moved)

    def _found(
        self,
        form: CallForm,
        before: Sequence[Message],
        reply: Message,
        said: Said,
        options: TemplateOptions,
        mark: str,
    ) -> Written | None:
        """The reply in a rendering that ends with it, or in one that continues."""
        prompt = self._render(form(before), options, generates=True)
        head = self._render(form(before), options, generates=False)
        written: Written | None = None
        for after in ((), _after(said)):
            rendered = self._render(form([*before, reply, *after]), options, generates=False)
            start = _start(prompt, head, rendered)
            if start is None:
                return None
            at = rendered.find(mark, start)
            names = [rendered.find(name, start) for name, _ in said.calls]
            if at < 0 or -1 in names or said.thinking not in rendered[start:]:
                return written
            cut_at = at + len(mark)
            start += self._header_len(form, rendered[start:], options)
            end, end_id = self._end(rendered, cut_at)
            if end_id is not None:
                return Written(rendered[start:end], end_id, cut_at - start)
            written = written or Written(rendered[start:], None, cut_at - start)
        return written

    def _header_len(self, form: CallForm, text: str, options: TemplateOptions) -> int:
        """How much of a reply's text is the header of its turn, which no model writes.

        After a tool's result some templates print it, and have no generation prompt.
        """
        asked = form([PLAIN_ASK])
        prompt, head = (self._render(asked, options, generates=each) for each in (True, False))
        header = prompt[len(head) :] if prompt.startswith(head) else ""
        return len(header) if header and text.startswith(header) else 0

    def _end(self, rendered: str, start: int) -> tuple[int, int | None]:
        """Where the first end token is, and its id."""
        found = [
            (at, token_id)
            for literal, token_id in self._ends.items()
            if (at := rendered.find(literal, start)) >= 0
        ]
        return min(found, default=(-1, None))

    def _render(
        self, messages: Sequence[Message], options: TemplateOptions, *, generates: bool
    ) -> str:
        return self._tokenizer.render(messages, replace(options, add_generation_prompt=generates))


def refusal(
    tokenizer: Tokenizer,
    forms: Sequence[CallForm],
    messages: Sequence[Message],
    options: TemplateOptions,
) -> str | None:
    """Why the template does not take such a conversation, or which of its text it drops."""
    reason: str | None = None
    for form in forms:
        try:
            rendered = tokenizer.render(form(messages), options)
        except BadRequest as refused:
            reason = reason or _reason(refused)
            continue
        dropped = [
            m["role"]
            for m in messages
            if m["role"] != "assistant" and str(m["content"]) not in rendered
        ]
        if not dropped:
            return None
        reason = f"the template drops {dropped[0]} messages"
    return reason


def _mark(said: Said) -> str:
    """The last word of the reply's text: the reply ends after it."""
    if said.calls:
        name, arguments = said.calls[-1]
        return list(arguments.values())[-1] if arguments else name
    return (said.content or said.thinking).split()[-1]


def ideal(said: Said, think_field: str = "") -> Message:
    """The reply as a client gets it if parsed well; one that was cut is a plain one in full."""
    reply: Message = {"role": "assistant", "content": said.content}
    if think_field:
        reply[think_field] = said.thinking
    elif said.ending == "length" or not (said.content or said.calls):
        return {**reply, "content": said.content or "Hello"}
    if said.calls:
        reply["tool_calls"] = [
            {"id": f"said{index}", "type": "function", "function": _function(name, arguments)}
            for index, (name, arguments) in enumerate(said.calls)
        ]
    return reply


def _function(name: str, arguments: Mapping[str, str]) -> dict[str, Any]:
    return {"name": name, "arguments": json.dumps(dict(arguments))}


def _after(said: Said) -> list[Message]:
    """What follows such a reply."""
    if not said.calls:
        return [PLAIN_ASK]
    return [
        {"role": "tool", "content": "Hello", "tool_call_id": f"said{index}", "name": name}
        for index, (name, _) in enumerate(said.calls)
    ]


def _unprinted(said: Said, think_field: str) -> str:
    """What a template leaves out when the reply is not found in its text."""
    if think_field:
        return "the template prints no reasoning"
    if len(said.calls) > 1:
        return "the template prints one call of several"
    return "the template prints no tool calls" if said.calls else "the template drops replies"


def _reason(refusal: BadRequest) -> str:
    """The template's own words."""
    return refusal.message.partition(": ")[2] or refusal.message


@dataclass(frozen=True, slots=True)
class CallForm:
    """One of the forms in which templates want past calls."""

    has_parts: bool  # contents are lists of parts
    has_text_arguments: bool
    empty: str | None  # the content of a reply that only calls
    call_id: str  # a pattern for the name and the number of a call

    def __call__(self, messages: Sequence[Message]) -> list[Message]:
        """The messages in this form."""
        ids: dict[str, str] = {}
        return [self._formed(message, ids) for message in messages]

    def _formed(self, message: Message, ids: dict[str, str]) -> Message:
        formed = dict(message)
        if "tool_call_id" in message:
            formed["tool_call_id"] = ids.get(message["tool_call_id"], "callunknw")
        if message.get("tool_calls"):
            formed["content"] = message.get("content") or self.empty
            formed["tool_calls"] = [self._call(call, ids) for call in message["tool_calls"]]
        if self.has_parts and formed["content"] is not None:
            formed["content"] = [{"type": "text", "text": formed["content"]}]
        return formed

    def _call(self, call: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
        function = call["function"]
        spelled_id = self.call_id.format(name=function["name"], number=len(ids))
        known_id = ids.setdefault(call["id"], spelled_id)
        value = whole_arguments(function["arguments"])
        spelled = json.dumps(value) if self.has_text_arguments else value
        return {**call, "id": known_id, "function": {**function, "arguments": spelled}}


def _start(prompt: str, head: str, rendered: str) -> int | None:
    """Where the reply begins in a rendering that has it; None where the past is printed again."""
    if rendered.startswith(prompt):
        return len(prompt)
    if not rendered.startswith(head):
        return None
    # The generation prompt has more than the header of a reply.
    common = len(head) + common_prefix_len(prompt[len(head) :], rendered, len(head))
    return _outside_marks(rendered, len(head), common)


def _outside_marks(text: str, start: int, end: int) -> int:
    """The last place up to `end` that is not inside a mark such as `<think>`."""
    opened = max(text.rfind(bracket, start, end) for bracket in "<[")
    closed = max(text.rfind(bracket, start, end) for bracket in ">]")
    return opened if opened > closed else end
