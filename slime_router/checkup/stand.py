"""The test stand: the router's own path of a generation, with a worker that plays a script.

Prompts are made, replies are read and turns are recorded by the parts that serve requests; only
the worker is played. What is said on one stand is one store: nothing of it is seen on another.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from dataclasses import dataclass
from itertools import count

from slime_router.cache.prefix_cache import PrefixCache
from slime_router.chat.parse import ReplyParsers
from slime_router.chat.template import ChatTemplate
from slime_router.chat.tokenizer import Tokenizer
from slime_router.middleware.caching import RadixTreeMiddleware
from slime_router.middleware.recording import RecordingMiddleware
from slime_router.prompt import PromptMaker
from slime_router.router import Router
from slime_router.trajectory.store import TrajectoryStore
from slime_router.types import (
    Finish,
    GenerateCall,
    GenerateChunk,
    History,
    Message,
    Prompt,
    ReplyFormat,
    TemplateOptions,
)
from slime_router.weights import WeightVersions

MAX_TOKENS = 1_000_000  # in the tree and in the store: a check-up fills neither


@dataclass(frozen=True, slots=True)
class Sample:
    """What the worker samples next, and why it ends."""

    ids: tuple[int, ...]
    finish: Finish


@dataclass(frozen=True, slots=True)
class Turn:
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
    """Everything between a door and a worker, without either."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        parsers: ReplyParsers,
        *,
        history: History = "held",
    ) -> None:
        cache = PrefixCache(
            MAX_TOKENS, is_anchor=tokenizer.is_anchor, is_control=tokenizer.is_control
        )
        store, weights = TrajectoryStore(MAX_TOKENS), WeightVersions()
        recording = RecordingMiddleware(
            store,
            capture="tokens",
            prints_call_ids=template.findings.prints_call_ids,
            epoch_of=weights.epoch_of,
        )
        caching = RadixTreeMiddleware(
            PromptMaker(tokenizer, template, cache, store, history=history),
            cache,
            tokenizer,
            capture="tokens",
            weights=weights,
            parsers=parsers,
        )
        self._router = Router([recording, caching], self._play)
        self._sampler: Callable[[Prompt], Sample] | None = None
        self._played: tuple[Prompt, Sample] | None = None
        self._numbers = count()

    async def say(
        self,
        messages: Sequence[Message],
        options: TemplateOptions,
        sampler: Callable[[Prompt], Sample],
    ) -> Turn:
        """One generation to its end, in which `sampler` plays the model.

        Raises:
            BadRequest: the template refuses the messages.
        """
        self._sampler = sampler
        call = self._call(messages, options)
        async with self._router.generate(call) as chunks:
            reply, reasoning = await heard(chunks)
        assert self._played is not None
        prompt, sample = self._played
        return Turn(prompt, tuple(prompt.ids.tolist()), sample.ids, reply, reasoning)

    def _call(self, messages: Sequence[Message], options: TemplateOptions) -> GenerateCall:
        number = next(self._numbers)
        return GenerateCall(
            rid=f"checkup-{number}",
            turn_id=f"turn_checkup_{number}",
            messages=tuple(messages),
            template=options,
            reply=ReplyFormat(tools=options.tools),
        )

    async def _play(self, call: GenerateCall) -> AsyncGenerator[GenerateChunk, None]:
        assert call.prompt is not None
        assert self._sampler is not None
        sample = self._sampler(call.prompt)
        self._played = call.prompt, sample
        last = len(sample.ids) - 1
        for index, token_id in enumerate(sample.ids):
            yield GenerateChunk(
                output_ids=[token_id], finish=sample.finish if index == last else None
            )


async def heard(chunks: AsyncIterable[GenerateChunk]) -> tuple[Message, str]:
    """The reply as clients send it back, without its reasoning; and the reasoning."""
    text, reasoning, calls = "", "", dict[int, Message]()
    async for chunk in chunks:
        text += chunk.text
        reasoning += chunk.reasoning
        for delta in chunk.tool_calls:
            made = calls.setdefault(delta.index, _call())
            made["id"] += delta.id or ""
            made["function"]["name"] += delta.name or ""
            made["function"]["arguments"] += delta.arguments
    return _reply(text, list(calls.values())), reasoning


def _call() -> Message:
    return {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}


def _reply(text: str, calls: list[Message]) -> Message:
    if not calls:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": text or None, "tool_calls": calls}
