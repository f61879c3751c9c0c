"""The operator's routes: health, metrics, models, the tokenizer and the template."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import orjson
from aiohttp import web

from slime_router.api.chat.messages import is_continued, read_messages
from slime_router.api.request import read_object, require
from slime_router.api.retrieve import read_template_options
from slime_router.api.token_ids import checked_ids
from slime_router.aside import Aside
from slime_router.edge.lengths import MAX_GENERATIONS
from slime_router.errors import BadRequest, NotFound
from slime_router.generation.weight_versions import WeightVersions
from slime_router.pool.pool import WorkerPool
from slime_router.server.boundary import Handler
from slime_router.server.together.merging import silence
from slime_router.siblings.siblings import GONE, Siblings
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import NO_TOKENS, TokenIds

logger = logging.getLogger(__name__)

READY = "readiness"
READY_TIMEOUT_S = 1.0


class ModelAdmin:
    """What the router reports about itself and the model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        pool: WorkerPool,
        *,
        model_name: str,
        checkpoint: str,
        weights: WeightVersions,
        hand_on: Callable[[web.Request, str], Awaitable[web.StreamResponse]],
        siblings: Siblings,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._pool = pool
        self._model_name = model_name
        self._checkpoint = checkpoint
        self._weights = weights
        self._hand_on = hand_on
        self._aside = Aside()
        self._siblings = siblings
        siblings.answer(READY, self._ready)

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path and handler of every route."""
        return [
            ("GET", "/", self.health),
            ("GET", "/health", self.health),
            ("GET", "/liveness", self.health),
            ("GET", "/readiness", self.readiness),
            ("GET", "/health_generate", self.readiness),
            *(
                ("GET", path, partial(answer, path))
                for answer, paths in (
                    (self.model_info, ("/get_model_info", "/model_info")),
                    (self.server_info, ("/get_server_info", "/server_info")),
                )
                for path in paths
            ),
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{model:.+}", self.model),
            ("GET", "/template", self.template),
            ("POST", "/tokenize", self.tokenize),
            ("POST", "/v1/tokenize", self.tokenize),
            ("POST", "/detokenize", self.detokenize),
            ("POST", "/v1/detokenize", self.detokenize),
        ]

    async def health(self, _: web.Request) -> web.Response:
        """The router is running. (For the workers, see `GET /workers`.)"""
        reply: dict[str, Any] = {"status": "ok", "workers": len(self._pool)}
        if self._siblings.others:
            heard = await self._siblings.ask(READY, timeout_s=READY_TIMEOUT_S)
            answering = {"count": self._siblings.count, "answering": 1 + len(heard.answers)}
            reply |= {"processes": answering, **silence(heard)}
        return web.json_response(reply)

    async def readiness(self, _: web.Request) -> web.Response:
        """Whether a request would find a worker now, even a paused one, wherever it arrives.

        A process that is dead gets no request; one that is there and does not answer may get some.
        """
        heard = await self._siblings.ask(READY, timeout_s=READY_TIMEOUT_S)
        each = [await self._ready(), *heard.answers.values()]
        counts = {
            key: min(seen[key] for seen in each) for key in ("healthy_workers", "total_workers")
        }
        unready = next((seen for seen in each if not seen["is_ready"]), None)
        if unready is not None:
            told = {"reason": "insufficient healthy workers", **counts}
            reply = {"status": "not ready", **told, "workers": unready["workers"]}
            return web.json_response({**reply, **silence(heard)}, status=503)
        if any(why != GONE for why in heard.silent.values()):
            reply = {"status": "not ready", "reason": "a process does not answer", **counts}
            return web.json_response({**reply, **silence(heard)}, status=503)
        return web.json_response({"status": "ready", **counts, **silence(heard)})

    async def _ready(self, _: object = None) -> dict[str, Any]:
        workers = self._pool.list()
        return {
            "is_ready": self._pool.can_serve(),
            "healthy_workers": sum(map(self._pool.is_healthy, workers)),
            "total_workers": len(workers),
            "workers": [{"id": w.id, "reason": w.reason} for w in workers if w.reason is not None],
        }

    async def model_info(self, path: str, request: web.Request) -> web.StreamResponse:
        """A worker's own answer; with no workers, what the router knows about the model."""
        if len(self._pool):
            return await self._hand_on(request, path)
        return web.json_response({**self._paths(), "is_generation": True})

    async def server_info(self, path: str, request: web.Request) -> web.StreamResponse:
        """A worker's own answer; with no workers, what the router knows about itself."""
        if len(self._pool):
            return await self._hand_on(request, path)
        named = {"served_model_name": self._model_name, "internal_states": []}
        return web.json_response({**self._paths(), **named})

    def _paths(self) -> dict[str, Any]:
        return {
            "model_path": self._checkpoint,
            "tokenizer_path": self._checkpoint,
            "weight_version": self._weights.current,
        }

    async def models(self, _: web.Request) -> web.Response:
        """The model, then its adapters, as OpenAI's and Anthropic's clients read lists of them."""
        cards = [self._card(), *map(self._adapter_card, self._adapters())]
        page = {"has_more": False, "first_id": cards[0]["id"], "last_id": cards[-1]["id"]}
        return web.json_response({"object": "list", "data": cards, **page})

    async def model(self, request: web.Request) -> web.Response:
        """The card of the model or of an adapter, by its name."""
        name = request.match_info["model"].rstrip("/")
        if name != self._model_name and name in self._adapters():
            return web.json_response(self._adapter_card(name))
        if name != self._model_name:
            raise NotFound(
                f"The model '{name}' does not exist.", param="model", code="model_not_found"
            )
        return web.json_response(self._card())

    def _adapters(self) -> list[str]:
        return self._pool.adapters.at(self._pool.list())

    def _adapter_card(self, name: str) -> dict[str, Any]:
        named = dict.fromkeys(("id", "root", "display_name"), name)
        return {**self._card(), **named, "parent": self._model_name}

    def _card(self) -> dict[str, Any]:
        known = (worker.context_len for worker in self._pool.list())
        context_len = min((n for n in known if n is not None), default=self._tokenizer.context_len)
        return {
            "id": self._model_name,
            "object": "model",
            "created": 0,
            "owned_by": "slime_router",
            "root": self._model_name,
            "parent": None,
            "max_model_len": context_len,
            "type": "model",  # from here on for Anthropic's
            "display_name": self._model_name,
            "created_at": "1970-01-01T00:00:00Z",
            "max_input_tokens": context_len,
        }

    async def template(self, _: web.Request) -> web.Response:
        """The template's source, and what the self-test found out about it."""
        findings = self._template.findings
        fields = {name: getattr(findings, name) for name in findings.__slots__}
        return web.json_response({**fields, "source": self._tokenizer.chat_template})

    async def tokenize(self, request: web.Request) -> web.Response:
        """`{"prompt"}` or `{"messages", "tools", ...}` to tokens, with the router's tokenizer.

        As at workers, a prompt gets the special tokens that begin a text; templates write theirs.
        """
        body = await read_object(request)
        if (body.get("prompt") is None) == (body.get("messages") is None):
            name = "prompt" if "prompt" in body or "messages" not in body else "messages"
            raise BadRequest("Exactly one of 'prompt' and 'messages' is needed.", param=name)
        wants_spelling = _flag(body, "return_token_strs", False)
        is_framed = _flag(body, "add_special_tokens", body.get("prompt") is not None)
        texts = self._texts(body)
        ids = []
        for text in texts:
            encoded = await self._encoded(text)
            ids.append(self._tokenizer.framed(encoded) if is_framed else encoded)
            await asyncio.sleep(0)
        is_list = isinstance(body.get("prompt"), list)
        reply = {
            "tokens": ids if is_list else ids[0],
            "count": [len(run) for run in ids] if is_list else len(ids[0]),
            "max_model_len": self._card()["max_model_len"],
        }
        if wants_spelling:  # vLLM's
            spelled = [await self._aside.run(len(run), self._tokenizer.spelled, run) for run in ids]
            reply["token_strs"] = spelled if is_list else spelled[0]
        return await self._written(sum(map(len, ids)), reply)

    async def _encoded(self, text: str) -> TokenIds:
        pieces = await self._tokenizer.encode_pieces_async(text)
        return np.concatenate([piece.ids for piece in pieces]) if pieces else NO_TOKENS

    async def _written(self, size: int, reply: Mapping[str, Any]) -> web.Response:
        """A reply of so many tokens."""
        numbers = orjson.OPT_SERIALIZE_NUMPY
        body = await self._aside.run(size, orjson.dumps, reply, option=numbers)
        return web.Response(body=body, content_type="application/json")

    def _texts(self, body: Mapping[str, Any]) -> list[str]:
        if body.get("messages") is not None:
            messages = read_messages(body)
            continues = is_continued(messages, _flag(body, "continue_final_message", False))
            options = read_template_options(body, messages, continues=continues)
            return [self._template.render(messages, options)]
        prompt = body["prompt"]
        texts = prompt if isinstance(prompt, list) else [prompt]
        is_text = all(isinstance(text, str) for text in texts)
        require(is_text and bool(texts), "prompt", "a string or a list of strings")
        _check_count(texts, "prompt")
        return [str(text) for text in texts]

    async def detokenize(self, request: web.Request) -> web.Response:
        """`{"tokens"}` to text, under both names that clients read."""
        body = await read_object(request)
        tokens = body.get("tokens")
        is_list = isinstance(tokens, list) and bool(tokens) and isinstance(tokens[0], list)
        runs = tokens if is_list and isinstance(tokens, list) else [tokens]
        _check_count(runs, "tokens")
        skip = _flag(body, "skip_special_tokens", True)
        texts = []
        for run in runs:
            size = len(run) if isinstance(run, list) else 0
            texts.append(await self._aside.run(size, self._decoded, run, skip))
            await asyncio.sleep(0)
        text = texts if is_list else texts[0]
        return await self._written(sum(map(len, texts)), {"text": text, "prompt": text})

    def _decoded(self, run: Any, skip_special_tokens: bool) -> str:
        ids = checked_ids(run, self._tokenizer.vocab_size, "tokens").tolist()
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def _check_count(items: Sequence[Any], param: str) -> None:
    if len(items) > MAX_GENERATIONS:
        raise BadRequest(f"'{param}' can have {MAX_GENERATIONS} entries, not more.", param=param)


def _flag(body: Mapping[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    require(value is None or type(value) is bool, name, "true or false")
    return default if value is None else bool(value)
