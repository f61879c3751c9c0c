"""The kit's own workers: they sample what a case wants, and remember all of it.

Workers serve `/generate` with ids, and `/v1/chat/completions` for gateways that pass chats on:
there they render and encode the messages plainly, as SGLang does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import orjson
from aiohttp import web

from slime_router.errors import BadRequest
from slime_router.testing import FakeWorker, Script
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import TemplateOptions

CONTEXT_LEN = 32_768
MODEL = "conformance"
CUT_LEN = 2  # tokens of a reply that come before its worker dies


@dataclass(slots=True, eq=False)
class Exchange:
    """What one request had for a prompt, and what was sampled for it, token by token."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    was_cut: bool = False  # the worker died in the middle


@dataclass(slots=True)
class Plan:
    """The replies that the next requests get, in order, and all exchanges so far.

    A request that goes on with a reply that was cut gets the rest of it, and one that asks for it
    again gets it again, with other log-probabilities.
    """

    tokenizer: Tokenizer
    replies: deque[tuple[int, ...]] = field(default_factory=deque)
    exchanges: list[Exchange] = field(default_factory=list)
    marker: str = ""  # stands in every prompt of the case
    kills_next: bool = False  # the next worker that is asked dies in the middle
    _sampled: int = 0

    def begin(self, marker: str, *replies: Sequence[int], kills_first: bool = False) -> None:
        """Another case: what its prompts hold, and the replies."""
        self.marker = marker
        self.replies = deque(map(tuple, replies))
        self.exchanges = []
        self.kills_next = kills_first

    def is_about(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt belongs to the case; gateways also send others, to probe a worker."""
        return self.marker in self.tokenizer.decode(prompt, skip_special_tokens=False)

    def answer(self, prompt: Sequence[int]) -> Exchange:
        """What is sampled for this prompt; the end of a reply for one that is not of the case."""
        asked = tuple(prompt)
        if not self.marker or not self.is_about(asked):
            end = min(self.tokenizer.eos_ids)
            return Exchange(asked, (end,), (-1.0,))
        ids = self._rest_of_a_cut(asked)
        if ids is None:
            ids = self.replies.popleft() if self.replies else (min(self.tokenizer.eos_ids),)
        logprobs = []
        for _ in ids:
            self._sampled += 1
            logprobs.append(-0.001 * (self._sampled % 4096 + 1))
        made = Exchange(asked, ids, tuple(logprobs))
        self.exchanges.append(made)
        return made

    def _rest_of_a_cut(self, asked: tuple[int, ...]) -> tuple[int, ...] | None:
        for cut in reversed(self.exchanges):
            begin = asked[len(cut.prompt) :]
            is_rest = cut.prompt + begin == asked and begin == cut.ids[: len(begin)]
            if cut.was_cut and is_rest and len(begin) < len(cut.ids):
                return cut.ids[len(begin) :]
        return None


class ScriptedWorker(FakeWorker):
    """One worker of the kit; several can have one plan."""

    def __init__(self, tokenizer: Tokenizer, plan: Plan, *, port: int = 0) -> None:
        super().__init__(
            vocab_size=tokenizer.vocab_size,
            context_len=CONTEXT_LEN,
            eos_ids=sorted(tokenizer.eos_ids),
            tokenizer=_Words(tokenizer),
            reply=self._script,
            port=port,
        )
        self._words = tokenizer
        self._plan = plan
        self._is_dying = False
        self.is_dead = False

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leaves while its gateway still looks for it: it stops accepting before it closes."""
        await self.refuse_connections()
        await super().__aexit__(exc_type, exc, traceback)

    async def revive(self) -> None:
        """Listens again after its death."""
        if self.is_dead:
            self.is_dead = False
            await self.accept_connections()

    def _prompt_of(self, body: dict[str, Any]) -> list[int]:
        prompt = body.get("input_ids")
        if prompt is None:
            prompt = self._words.encode(str(body.get("text", ""))).tolist()
        return [int(token) for token in prompt]

    def _script(self, body: dict[str, Any]) -> Script:
        made = self._plan.answer(self._prompt_of(body))
        made.was_cut, self._is_dying = self._is_dying, False
        return Script(ids=made.ids, logprobs=made.logprobs)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        plan = self._plan
        if plan.kills_next and plan.is_about(self._prompt_of(body)):
            plan.kills_next = False
            self._is_dying = self.is_dead = True
            self.die_next(after_tokens=CUT_LEN)
        return await super()._generate(request)

    def add_doors(self, app: web.Application) -> None:
        """Chat, and what gateways ask before they send one."""
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)

    async def _models(self, _: web.Request) -> web.Response:
        return _json({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        tokenizer = self._words
        options = TemplateOptions(tools=tuple(body.get("tools") or ()))
        try:
            text = tokenizer.render(body["messages"], options)
        except BadRequest as exc:
            return _json({"error": {"message": exc.message}}, status=400)
        plan, prompt = self._plan, tokenizer.encode(text).tolist()
        dies = plan.kills_next and plan.is_about(prompt)
        made = plan.answer(prompt)
        if dies:
            plan.kills_next, made.was_cut, self.is_dead = False, True, True
            await self.refuse_connections()  # this request's own connection, too
        shown = tokenizer.decode(made.ids, skip_special_tokens=True)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": shown},
            "finish_reason": "stop",
        }
        if body.get("logprobs"):
            choice["logprobs"] = {
                "content": [
                    {
                        "token": tokenizer.decode([i], skip_special_tokens=False),
                        "logprob": p,
                        "bytes": [*tokenizer.token_bytes(i)],
                        "top_logprobs": [],
                    }
                    for i, p in zip(made.ids, made.logprobs, strict=True)
                ]
            }
        if body.get("return_token_ids"):
            choice |= {"token_ids": made.ids, "prompt_token_ids": made.prompt}
        return _json(
            {
                "id": "chat",
                "object": "chat.completion",
                "model": MODEL,
                "choices": [choice],
                "created": 0,
                "usage": _usage(made),
                # vLLM names the prompt here, SGLang in each choice
                **({"prompt_token_ids": made.prompt} if body.get("return_token_ids") else {}),
            }
        )


class _Words:
    """The tokenizer as a worker has it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> Sequence[int]:
        ids: list[int] = self._tokenizer.encode(text).tolist()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _usage(made: Exchange) -> dict[str, int]:
    prompt, sampled = len(made.prompt), len(made.ids)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": sampled,
        "total_tokens": prompt + sampled,
    }


def _json(body: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
