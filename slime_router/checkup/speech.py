"""How a model of a family writes: read off its own chat template.

The template prints the replies of the past in the form that the model was trained to write. So the
text of a reply is what stands between the generation prompt and the token that ends the turn, in a
rendering of the conversation with that reply in it. Nothing about a family is known here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slime_router.chat.findings import Findings
from slime_router.chat.tokenizer import Tokenizer
from slime_router.checkup.scenarios import Said
from slime_router.errors import BadRequest
from slime_router.types import Message, TemplateOptions

# In the order in which they are tried; a template that prints none of them may still open one.
THINK_FIELDS = ("reasoning_content", "thinking")
THINK_MARKERS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)
SHORT_ID = "call{number:05d}"  # some templates insist on nine letters and digits
KIMI_IDS = {"kimi_k2": "functions.{name}:{number}", "kimi_k3": "{name}:{number}"}


class Unsupported(Exception):
    """The template has no form for such a reply; its own reason, or what it leaves out."""


@dataclass(frozen=True, slots=True)
class Written:
    """A reply as the model writes it.

    `text` stands behind the generation prompt, without its end; `end_id` is the token that ends
    it, None where the model has none. The last word of what is said ends at `cut_at`.
    """

    text: str
    end_id: int | None
    cut_at: int


class Speech:
    """What replies look like in one template."""

    def __init__(
        self, tokenizer: Tokenizer, findings: Findings, tool_parser: str | None
    ) -> None:
        self._tokenizer = tokenizer
        spell = KIMI_IDS.get(tool_parser or "", SHORT_ID)
        self.forms = tuple(
            Form(as_text, empty, spell) for as_text in (False, True) for empty in ("", None)
        )
        ends = {
            tokenizer.token_bytes(token_id).decode(errors="replace"): token_id
            for token_id in tokenizer.eos_ids
        }
        closer = tokenizer.control_id_at(findings.closer or "", 0)
        self._ends = {closer[1]: closer[0], **ends} if closer is not None else ends
        self._ends.pop("", None)

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a reply."""
        return frozenset(self._ends.values())

    def write(self, before: Sequence[Message], said: Said, options: TemplateOptions) -> Written:
        """The reply `said`, as it is written after the messages `before`.

        Raises:
            Unsupported: the template prints no such reply.
        """
        if not said.thinking:
            return self._read_off(before, said, options, _mark(said))
        for field in THINK_FIELDS:
            try:
                return self._read_off(before, said, options, _mark(said), think_field=field)
            except Unsupported:
                continue
        return self._with_markers(before, said, options)

    def _with_markers(
        self, before: Sequence[Message], said: Said, options: TemplateOptions
    ) -> Written:
        """Thinking as most models write it, where the template knows its marks but prints none."""
        source = self._tokenizer.chat_template or ""
        prompt = self._render(self.forms[0](before), options, generates=True).rstrip()
        for begin, end in THINK_MARKERS:
            if end not in source and not prompt.endswith(begin):
                continue
            head = ("" if prompt.endswith(begin) else f"{begin}\n") + said.thinking
            if not (said.content or said.calls):
                return Written(head, None, len(head))
            rest = self.write(before, replace(said, thinking=""), options)
            head += f"\n{end}\n\n"
            return Written(head + rest.text.lstrip(), rest.end_id, len(head) + rest.cut_at)
        raise Unsupported("the template prints no reasoning")

    def _read_off(
        self,
        before: Sequence[Message],
        said: Said,
        options: TemplateOptions,
        mark: str,
        think_field: str = "",
    ) -> Written:
        reply = ideal(replace(said, ending="stop"), think_field)
        reason = "the template prints no tool calls" if said.calls else "the template drops replies"
        for form in self.forms if said.calls or _has_calls(before) else self.forms[:1]:
            try:
                found = self._found(form, before, reply, said, options, mark)
            except BadRequest as refusal:
                reason = _reason(refusal)
                continue
            if found is not None:
                return found
            if think_field:
                reason = "the template prints no reasoning"
        raise Unsupported(reason)

    def _found(
        self,
        form: Form,
        before: Sequence[Message],
        reply: Message,
        said: Said,
        options: TemplateOptions,
        mark: str,
    ) -> Written | None:
        """The reply in a rendering that ends with it, or in one that goes on."""
        prompt = self._render(form(before), options, generates=True)
        head = self._render(form(before), options, generates=False)
        written: Written | None = None
        for after in ((), _after(said)):
            rendered = self._render(form([*before, reply, *after]), options, generates=False)
            start = _start(prompt, head, rendered, mark)
            at = rendered.find(mark, start)
            names = [rendered.find(name, start) for name, _ in said.calls]
            if at < 0 or -1 in names or said.thinking not in rendered[start:]:
                return written
            cut_at = at + len(mark)
            end, end_id = self._end(rendered, cut_at)
            text = rendered[start : len(rendered) if end_id is None else end]
            written = Written(text, end_id, cut_at - start)
            if end_id is not None:
                return written
        return written

    def _end(self, rendered: str, start: int) -> tuple[int, int | None]:
        """Where the first end token stands, and its id."""
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
    forms: Sequence[Form],
    messages: Sequence[Message],
    options: TemplateOptions,
) -> str | None:
    """Why the template takes no such conversation, or which text of it it drops."""
    reason: str | None = None
    for form in forms if _has_calls(messages) else forms[:1]:
        try:
            rendered = tokenizer.render(form(messages), options)
        except BadRequest as refused:
            reason = reason or _reason(refused)
            continue
        dropped = [m["role"] for m in messages if m["role"] != "assistant" and not _stands(m, rendered)]
        if not dropped:
            return None
        reason = f"the template drops {dropped[0]} messages"
    return reason


def _stands(message: Message, rendered: str) -> bool:
    return str(message["content"]) in rendered


def _mark(said: Said) -> str:
    """The last word of what is said: behind it the reply ends."""
    if said.calls:
        name, arguments = said.calls[-1]
        return list(arguments.values())[-1] if arguments else name
    return (said.content or said.thinking).split()[-1]


def ideal(said: Said, think_field: str = "") -> Message:
    """The reply as a client has it that reads it well; one that was cut is a whole plain one."""
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
        return [{"role": "user", "content": "Hello"}]
    return [
        {"role": "tool", "content": "Hello", "tool_call_id": f"said{index}", "name": name}
        for index, (name, _) in enumerate(said.calls)
    ]


def _has_calls(messages: Sequence[Message]) -> bool:
    return any(message.get("tool_calls") for message in messages)


def _reason(refusal: BadRequest) -> str:
    """The template's own words."""
    return refusal.message.partition(": ")[2] or refusal.message


@dataclass(frozen=True, slots=True)
class Form:
    """One of the ways in which templates want the calls of the past."""

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
        return formed

    def _call(self, call: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
        function = call["function"]
        spelled_id = self.call_id.format(name=function["name"], number=len(ids))
        known_id = ids.setdefault(call["id"], spelled_id)
        value = _value(function["arguments"])
        spelled = json.dumps(value) if self.has_text_arguments else value
        return {**call, "id": known_id, "function": {**function, "arguments": spelled}}


def _value(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}")
    except ValueError:  # a call that was cut
        return {}


def _start(prompt: str, head: str, rendered: str, mark: str) -> int:
    """Where the reply begins in a rendering of the conversation that holds it."""
    if rendered.startswith(prompt):
        return len(prompt)
    if rendered.startswith(head):  # the generation prompt has more than the header of a reply
        common = len(head)
        while rendered[common : common + 1] == prompt[common : common + 1] != "":
            common += 1
        return common
    until = rendered.find(mark)  # the template prints the past in another way
    for length in range(min(len(prompt), len(rendered)), 0, -1):
        at = rendered.rfind(prompt[-length:], 0, max(until, 0))
        if at >= 0:
            return at + length
    return 0
