"""Conversations on real vocabularies: the stack of `stack.py`, one turn after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.choices import History
from slime_router.generation.prompts.made_prompt import MadePrompt
from slime_router.replies.parsers import ReplyParsers
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Finish, GenerateCall, Message, TemplateOptions
from tests.stack import Sample, Stack
from tests.vocabularies import vocabulary

NOON = datetime(2026, 1, 2, 12, 0)
LENGTH = Finish("length")
OPTIONS = ("tools", "add_generation_prompt", "continue_final_message", "kwargs")

# Vocabularies that are published without a template.
TEMPLATES = {
    "mistral_7b_sp": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ m.content + eos_token + ' ' }}{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% endif %}{% endfor %}"
    ),
    "gptoss": (
        "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content }}"
        "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}"
        "{{ '<|message|>' }}{% endif %}"
    ),
}


@lru_cache(maxsize=4)  # each takes up to 100 MB
def real_tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(str(vocabulary(name)), chat_template=TEMPLATES.get(name))


def stop(token_id: int) -> Finish:
    return Finish("stop", matched=token_id)


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


@dataclass
class Turn:
    """What one generation showed: `ids` as the worker got them, `reply` as a client gets it."""

    prompt: MadePrompt
    ids: list[int]
    output_ids: list[int]
    reply: Message
    call: GenerateCall

    @property
    def held(self) -> list[int]:
        return self.ids + self.output_ids


class Talk(Stack):
    """A stack whose clock stands still until it is set."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        history: History = "held",
        parsers: ReplyParsers | None = None,
    ) -> None:
        super().__init__(tokenizer=tokenizer, history=history, parsers=parsers)
        self.now = NOON
        self.maker._now = lambda: self.now
        self._prompts: list[MadePrompt] = []
        make = self.caching._noted

        def noted(call: GenerateCall, prompt: MadePrompt) -> MadePrompt:
            self._prompts.append(prompt := make(call, prompt))
            return prompt

        self.caching._noted = noted  # type: ignore[method-assign]  # to see what was made

    def ask(self, messages: Sequence[Message], **fields: Any) -> GenerateCall:
        options = {name: fields.pop(name) for name in OPTIONS if name in fields}
        call = self.call("", messages=tuple(messages), **fields)
        return replace(call, text=None, template=TemplateOptions(**options))

    def rendered(self, messages: Sequence[Message], call: GenerateCall) -> str:
        """What the template makes of `messages` on the day of the talk."""
        return self.template.render(messages, call.template, date=self.now)

    async def say(
        self,
        messages: Sequence[Message],
        ids: Sequence[int],
        finish: Finish = LENGTH,
        *,
        chunk_len: int = 3,
        **fields: Any,
    ) -> Turn:
        """One generation to its end."""
        call = self.ask(messages, **fields)
        text = await self.generate(call, Sample(ids, finish, chunk_len=chunk_len))
        prompt = self._prompts[-1]
        assert prompt.receipt.reused + prompt.receipt.encoded == len(self.sent[-1])
        reply = {"role": "assistant", "content": text}
        return Turn(prompt, self.sent[-1], list(ids), reply, call)
