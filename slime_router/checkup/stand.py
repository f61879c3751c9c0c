"""The test stand: the router's own path of a generation, with a worker that plays a script.

Prompts are made, replies are parsed and turns are recorded by the parts that serve requests; only
the worker is simulated. Each stand has its own store: nothing said on one is seen on another.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from itertools import count

from slime_router.generation.middleware import Dispatch
from slime_router.generation.token_path import TokenPath
from slime_router.replies.parsers import ReplyParsers
from slime_router.replies.reply import Reply
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import (
    Finish,
    GenerateCall,
    GenerateChunk,
    Message,
    Prompt,
    ReplyFormat,
    Sampling,
    TemplateOptions,
)

MAX_TOKENS = 1_000_000  # in the tree and in the store: a check-up fills neither


@dataclass(frozen=True, slots=True)
class Sample:
    """What the worker samples next, and why it ends."""

    ids: tuple[int, ...]
    finish: Finish


@dataclass(frozen=True, slots=True)
class ObservedTurn:
    """What one generation showed: the prompt as sent, and the reply as a client gets it."""

    prompt: Prompt
    ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    reply: Message
    reasoning: str

    @property
    def held(self) -> tuple[int, ...]:
        """What the next prompt must begin with."""
        return self.ids + self.output_ids


class Stand:
    """Everything between an API and a worker, without either."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        parsers: ReplyParsers,
        *,
        dispatch: Dispatch | None = None,
    ) -> None:
        path = TokenPath(
            tokenizer,
            template,
            parsers,
            history="held",
            capture="tokens",
            max_cached_tokens=MAX_TOKENS,
            max_stored_tokens=MAX_TOKENS,
        )
        self._dispatch = dispatch or self._play
        self._router = path.router(self._noted)
        self._sampler: Callable[[Prompt], Sample] | None = None
        self._prompt: Prompt | None = None
        self._output_ids: list[int] = []
        self._numbers = count()

    async def say(
        self,
        messages: Sequence[Message],
        options: TemplateOptions,
        sampler: Callable[[Prompt], Sample] | None = None,
        *,
        sampling: Sampling | None = None,
    ) -> ObservedTurn:
        """One generation to its end, in which `sampler` plays the model, or `dispatch` asks one.

        Raises:
            BadRequest: the template refuses the messages.
        """
        self._sampler, self._prompt, self._output_ids = sampler, None, []
        call = self._call(messages, options, sampling or Sampling())
        async with self._router.generate(call) as chunks:
            reply = Reply()
            async for chunk in chunks:
                reply.add(chunk)
        assert self._prompt is not None
        ids, output_ids = tuple(self._prompt.ids.tolist()), tuple(self._output_ids)
        return ObservedTurn(self._prompt, ids, output_ids, reply.message(), reply.reasoning)

    def _call(
        self, messages: Sequence[Message], options: TemplateOptions, sampling: Sampling
    ) -> GenerateCall:
        number = next(self._numbers)
        return GenerateCall(
            rid=f"checkup-{number}",
            turn_id=f"turn_checkup_{number}",
            messages=tuple(messages),
            template=options,
            reply=ReplyFormat(tools=options.tools),
            sampling=sampling,
        )

    async def _noted(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        self._prompt = call.prompt
        async for chunk in self._dispatch(call):
            self._output_ids += chunk.output_ids
            yield chunk

    async def _play(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        assert call.prompt is not None
        assert self._sampler is not None
        sample = self._sampler(call.prompt)
        last = len(sample.ids) - 1
        for index, token_id in enumerate(sample.ids):
            yield GenerateChunk(
                output_ids=[token_id], finish=sample.finish if index == last else None
            )
