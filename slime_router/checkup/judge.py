"""The judge: is a prompt what it must be, after the turn that it continues?

A prompt begins with all tokens that the turn before holds. What follows is the template's own text
after that reply, in the tokens that the tokenizer makes of the whole: it has every later message,
in order, and the end of the turn exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from slime_router.checkup.scenarios import Said
from slime_router.checkup.stand import ObservedTurn
from slime_router.errors import BadRequest
from slime_router.template.chat_template import ChatTemplate
from slime_router.template.messages import arguments_value
from slime_router.tokens.encoder import After
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Message, TemplateOptions
from slime_router.values import replace

MOVED = "the template prints the system prompt or the tools elsewhere in later turns"
NEAR_LEN = 6  # tokens before a seam among which the end of the turn is looked for
SHOWN_LEN = 60  # characters of a text that are shown in a reason


class OfTemplate(Exception):
    """No prompt can be exact in this conversation, for a reason that lies in the template."""


class Judge:
    """Judges the turns of one tokenizer and template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        closer_ids = {each for *_, each in tokenizer.find_added(template.findings.closer or "")}
        self._end_ids = closer_ids | tokenizer.eos_ids

    def first_prompt(
        self, turn: ObservedTurn, messages: Sequence[Message], options: TemplateOptions
    ) -> list[str]:
        """What is wrong with the prompt of a conversation's first turn."""
        faults = self._missing(list(turn.ids), messages)
        text = self._template.render(messages, options, date=_date(turn))
        if list(turn.ids) != self._tokenizer.encode(text).tolist():
            faults.append("the prompt is not the tokenization of what the template prints")
        return faults

    def next_prompt(
        self,
        before: ObservedTurn,
        turn: ObservedTurn,
        messages: Sequence[Message],
        asks: Sequence[Message],
        options: TemplateOptions,
    ) -> list[str]:
        """What is wrong with a prompt that continues `before` with `asks`, the last messages.

        Raises:
            OfTemplate: the template drops a message, or moves what it printed before.
        """
        for message in asks:
            if self._drops(message, messages, options):
                raise OfTemplate(f"the template drops {message['role']} messages")
        held = before.held
        if turn.ids[: len(held)] != held:
            asked = messages[: len(messages) - len(asks) - 1]
            if self._moves(before, turn, asked, messages, options):
                raise OfTemplate(MOVED)
            return [self._parting(held, turn)]
        faults = []
        if turn.prompt.receipt.status != "extended":
            faults.append(f"the receipt says {turn.prompt.receipt.status!r}")
        suffix = list(turn.ids[len(held) :])
        faults += self._missing(suffix, asks)
        faults += self._seam(held, suffix, asks)
        return faults + self._differing(held, suffix, turn, messages, asks, options)

    def reply(self, turn: ObservedTurn, said: Said, *, reads_thinking: bool) -> list[str]:
        """What is wrong with a reply as a client gets it; one that was cut need not be whole."""
        faults = []
        content = turn.reply["content"] or ""
        if any(literal in content for literal in self._end_literals()):
            faults.append(f"an end token is in the content: {_shown(content)}")
        if said.ending == "length":
            return faults
        if said.calls:
            faults += _call_faults(turn.reply, said)
        if reads_thinking and said.thinking and turn.reasoning.strip() != said.thinking:
            faults.append(f"the reasoning was read as {_shown(turn.reasoning)}")
        if (reads_thinking or not said.thinking) and content.strip() != said.content:
            faults.append(f"the content was read as {_shown(content)}")
        return faults

    def _drops(
        self, message: Message, messages: Sequence[Message], options: TemplateOptions
    ) -> bool:
        """Whether the template prints the conversation without this message."""
        text = self._template.try_render(messages, options)
        return text is not None and message["content"] not in text

    def _moves(
        self,
        before: ObservedTurn,
        turn: ObservedTurn,
        asked: Sequence[Message],
        messages: Sequence[Message],
        options: TemplateOptions,
    ) -> bool:
        """Whether the template now prints unsampled text differently than before.

        Then no prompt can begin with what is held and be what the template prints.
        """
        whole = self._printed(turn, messages, options)
        first = self._printed(before, asked, replace(options, add_generation_prompt=False))
        if whole is None or first is None or whole[: len(first)] == first:
            return False
        sent, printed = (
            self._tokenizer.decode(ids, skip_special_tokens=False) for ids in (turn.ids, whole)
        )
        return sent == printed

    def _parting(self, held: tuple[int, ...], turn: ObservedTurn) -> str:
        pairs = zip(held, turn.ids, strict=False)
        index = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(held), len(turn.ids)))
        receipt = turn.prompt.receipt
        return (
            f"held tokens are left at {index} of {len(held)}: held "
            f"{self._text(held[index : index + 8])}, sent {self._text(turn.ids[index : index + 8])}"
            f" ({receipt.status}: {receipt.reason})"
        )

    def _missing(self, suffix: list[int], asks: Sequence[Message]) -> list[str]:
        text, at, faults = self._tokenizer.decode(suffix, skip_special_tokens=False), 0, []
        for message in asks:
            found = text.find(message["content"], at)
            if found < 0:
                faults.append(f"a {message['role']} message is missing: {_shown(text)}")
            else:
                at = found + len(message["content"])
        return faults

    def _seam(self, held: tuple[int, ...], suffix: list[int], asks: Sequence[Message]) -> list[str]:
        """Whether the turn ends once."""
        until = self._tokenizer.encode(asks[0]["content"], After.TEXT).tolist()
        first = suffix.index(until[-1]) if until[-1] in suffix else len(suffix)
        if held[-1] in self._end_ids:
            if suffix[:1] and (suffix[0] in self._end_ids or held[-1] in suffix[:first]):
                return [f"the end of the turn stands twice: {self._text([held[-1], *suffix[:8]])}"]
            return []
        if self._end_ids and not self._end_ids & set(suffix[:first]):
            return [f"the turn was cut, and is not closed: {self._text(suffix)}"]
        return []

    def _differing(
        self,
        held: tuple[int, ...],
        suffix: list[int],
        turn: ObservedTurn,
        messages: Sequence[Message],
        asks: Sequence[Message],
        options: TemplateOptions,
    ) -> list[str]:
        """Whether the suffix differs from what the template prints after the reply."""
        at = len(messages) - len(asks) - 1
        silent = {**messages[at], "content": ""}  # some print it after what the calls gave
        found: list[list[str]] = []
        for reply in (messages[at], silent) if messages[at].get("tool_calls") else (messages[at],):
            printed = self._printed(turn, [*messages[:at], reply, *asks], options)
            if printed is not None:
                found.append(self._unprinted(held, suffix, printed))
        return min(found, key=len) if found else self._foreign(held, suffix)

    def _printed(
        self, turn: ObservedTurn, messages: Sequence[Message], options: TemplateOptions
    ) -> list[int] | None:
        """The tokens of what the template prints; None where it refuses these messages."""
        try:
            text = self._template.render(messages, options, date=_date(turn))
        except BadRequest:
            return None  # it refuses a reply, which is not a reason to refuse the request
        return [int(token_id) for token_id in self._tokenizer.encode(text)]

    def _foreign(self, held: tuple[int, ...], suffix: list[int]) -> list[str]:
        """Whether the suffix has other tokens than the tokenizer makes of it in that place."""
        encode, decode = self._tokenizer.encode, self._tokenizer.decode
        if decode(encode("foo").tolist(), skip_special_tokens=False) != "foo":
            return []  # SentencePiece: what text the tokens stand for depends on what is before
        text = decode(suffix, skip_special_tokens=False)
        whole = encode(self._tokenizer.token_bytes(held[-1]).decode(errors="replace") + text)
        is_marked = held[-1] in self._end_ids or self._tokenizer.is_control(held[-1])
        expected = whole[1:] if is_marked and whole[0] == held[-1] else encode(text, After.TEXT)
        if suffix == expected.tolist():
            return []
        made = expected[:8].tolist()
        return [f"what follows is not canonical: {suffix[:8]}, the tokenizer makes {made}"]

    def _unprinted(self, held: tuple[int, ...], suffix: list[int], printed: list[int]) -> list[str]:
        """Whether the suffix differs from the end of what the template prints for all of it."""
        has_ended = held[-1] in self._end_ids
        body = suffix
        if not has_ended and suffix and suffix[0] in self._end_ids:
            body = suffix[1:]  # it was closed; the template may close it with another token
        place = len(printed) - len(body)
        if printed[max(place, 0) :] != body:
            common = _common_end(printed, body)
            sent = body[max(len(body) - common - 4, 0) :][:8]
            there = printed[max(len(printed) - common - 4, 0) :][:8]
            return [
                f"what follows is not what the template prints: sent {self._text(sent)}, "
                f"printed {self._text(there)}"
            ]
        near = printed[max(place - NEAR_LEN, 0) : place]
        if has_ended and self._end_ids & set(near[:-1]) and near[-1] not in self._end_ids:
            there = printed[max(place - 4, 0) :][:8]
            return [
                f"something is missing at the seam: printed {self._text(there)}, "
                f"sent {self._text([*held[-4:], *suffix[:4]])}"
            ]
        return []

    def _end_literals(self) -> list[str]:
        return [
            self._tokenizer.token_bytes(each).decode(errors="replace") for each in self._end_ids
        ]

    def _text(self, ids: Sequence[int]) -> str:
        return _shown(self._tokenizer.decode(ids, skip_special_tokens=False))


def _call_faults(reply: Message, said: Said) -> list[str]:
    made = [
        (call["function"]["name"], call["function"]["arguments"])
        for call in reply.get("tool_calls") or ()
    ]
    faults = [
        f"a call has the arguments {arguments!r}, which are not a JSON object"
        for _, arguments in made
        if not arguments.strip() or not isinstance(arguments_value(arguments), dict)
    ]
    read = [(name, arguments_value(arguments)) for name, arguments in made]
    if read != [(name, dict(arguments)) for name, arguments in said.calls]:
        faults.append(f"the calls were read as {made}, content {_shown(reply['content'] or '')}")
    return faults


def _common_end(first: Sequence[int], second: Sequence[int]) -> int:
    count = 0
    while count < min(len(first), len(second)) and first[-count - 1] == second[-count - 1]:
        count += 1
    return count


def _date(turn: ObservedTurn) -> datetime | None:
    return datetime.fromisoformat(turn.prompt.date) if turn.prompt.date else None


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_LEN else f"{text[:SHOWN_LEN]}…")
