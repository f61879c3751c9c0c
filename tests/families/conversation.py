"""Conversations of one family, word by word: for cases that no scenario holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slime_router.checkup.scenarios import TOOLS
from slime_router.checkup.split import odd_split
from slime_router.choices import History
from slime_router.replies.reply import Reply
from slime_router.tokens.encoder import After
from slime_router.types import Finish, Message, Prompt, ReplyFormat
from tests.families.checkpoints import Family
from tests.stack import Sample
from tests.talk import Talk


@dataclass(frozen=True, slots=True)
class Heard:
    """One turn: the prompt as sent, what was sampled, and the reply as a client sends it back."""

    prompt: Prompt
    ids: list[int]
    output_ids: list[int]
    reply: Message
    reasoning: str

    @property
    def held(self) -> list[int]:
        return self.ids + self.output_ids

    @property
    def status(self) -> str:
        return self.prompt.receipt.status

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Name and arguments of the calls in the reply."""
        made = [call["function"] for call in self.reply.get("tool_calls") or ()]
        return [(function["name"], function["arguments"]) for function in made]


class FamilyTalk(Talk):
    """What is said with a model of the family; in a split that its tokenizer would not choose."""

    def __init__(self, family: Family, *, history: History = "held") -> None:
        super().__init__(family.tokenizer(), history=history, parsers=family.parsers())

    async def hear(
        self,
        messages: Sequence[Message],
        text: str,
        end: str | None = None,
        finish: Finish | None = None,
        *,
        tools: Sequence[dict[str, Any]] = TOOLS,
        **fields: Any,
    ) -> Heard:
        """One turn, in which the model samples `text` and then the token `end`."""
        ids = odd_split(self.tokenizer, text, After.TEXT)
        if end is not None:
            ids.append(self.id_of(end))
            finish = finish or Finish("stop", matched=ids[-1])
        form = ReplyFormat(tools=tuple(tools))
        call = self.ask(messages, tools=tuple(tools), reply=form, **fields)
        self.samples.append(Sample(ids, finish or Finish("length")))
        reply = Reply()
        async with self.router.generate(call) as chunks:
            async for chunk in chunks:
                reply.add(chunk)
        return Heard(self._prompts[-1], self.sent[-1], ids, reply.message(), reply.reasoning)

    def id_of(self, literal: str) -> int:
        """The id of a control token."""
        [token_id] = self.tokenizer.encode(literal).tolist()
        return int(token_id)

    def text(self, ids: Sequence[int]) -> str:
        """What ids spell, control tokens written out."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def suffix(self, before: Heard, after: Heard) -> list[int]:
        """What follows the held tokens; fails where the next prompt does not begin with them."""
        assert self.text(after.ids).startswith(self.text(before.held)), after.prompt.receipt
        assert after.ids[: len(before.held)] == before.held, after.prompt.receipt
        assert after.status == "extended", after.prompt.receipt
        return after.ids[len(before.held) :]
