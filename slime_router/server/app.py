"""The wiring: every part is made here, once, and handed what it needs.

door -> [plug-ins] -> recording -> caching -> worker client -> SGLang /generate
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from slime_router.cache.prefix_cache import PrefixCache
from slime_router.chat.template import ChatTemplate
from slime_router.chat.tokenizer import Tokenizer
from slime_router.config import Config
from slime_router.doors.body import PayloadTooLarge
from slime_router.doors.chat import ChatDoor
from slime_router.doors.generate import GenerateDoor
from slime_router.doors.replies import openai_error
from slime_router.doors.retrieve import RetrieveDoor
from slime_router.errors import RouterError, SetupError
from slime_router.metrics import CountingMiddleware, figures
from slime_router.middleware.caching import RadixTreeMiddleware
from slime_router.middleware.loading import load_plugins
from slime_router.middleware.recording import RecordingMiddleware
from slime_router.prompt import PromptMaker
from slime_router.retrieval import Retriever
from slime_router.router import Router
from slime_router.server.admin import ModelAdmin, WorkerAdmin, routes
from slime_router.server.passthrough import PassThrough
from slime_router.trajectory.store import TrajectoryStore
from slime_router.workers.client import WorkerClient
from slime_router.workers.pool import Worker, WorkerPool

logger = logging.getLogger(__name__)

# Digits, spaces, capitals, quotes, accents, an emoji: where tokenizers that differ do differ.
PROBE_TEXT = 'Héllo  WORLD 12345,\n\n{"name": "x"}\t🙂 e\u0301 ' + "don't"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """One running router. Plug-in classes are constructed with it.

    Raises:
        SetupError: what the configuration names cannot be had.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.tokenizer = Tokenizer.load(
            config.hf_checkpoint,
            trust_remote_code=config.trust_remote_code,
            chat_template=config.chat_template,
        )
        self.template = ChatTemplate(self.tokenizer)
        self.cache = PrefixCache(
            config.radix_tree_max_size,
            is_anchor=self.tokenizer.is_anchor,
            is_control=self.tokenizer.is_control,
        )
        self.store = TrajectoryStore(config.radix_tree_max_size)
        self.pool = WorkerPool(config.worker_urls)
        self.client = WorkerClient(
            self.pool, capture=config.capture, request_timeout_s=config.request_timeout_s
        )
        self.maker = PromptMaker(
            self.tokenizer, self.template, self.cache, self.store, history=config.history
        )
        self.recording = RecordingMiddleware(
            self.store,
            capture=config.capture,
            prints_call_ids=self.template.findings.prints_call_ids,
        )
        caching = RadixTreeMiddleware(
            self.maker, self.cache, self.tokenizer, capture=config.capture
        )
        self.counting = CountingMiddleware()
        self.plugins = load_plugins(config.middleware_paths, self)
        self.router = Router(
            [self.counting, *self.plugins.generation, self.recording, caching],
            self.client.generate,
        )
        self.chat = ChatDoor(
            self.router,
            self.tokenizer,
            model_name=config.model_name,
            default_model=config.openai_default_model,
            max_concurrent=config.openai_max_concurrent_requests,
        )
        self._greetings: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        """The HTTP application; it starts and stops what the gateway owns."""
        app = web.Application(
            client_max_size=self.config.max_payload_size,
            middlewares=[_boundary, *self.plugins.http],
        )
        for method, path, handler in self._routes():
            app.router.add_route(method, path, handler)
            if method == "GET":
                app.router.add_route("HEAD", path, handler)
        app.router.add_route("*", "/{path:.*}", PassThrough(self.pool, self.client).handle)
        app.cleanup_ctx.append(self._lifespan)
        return app

    def _routes(self) -> list[tuple[str, str, Handler]]:
        config = self.config
        generate = GenerateDoor(self.router, self.tokenizer)
        retrieve = RetrieveDoor(Retriever(self.maker, self.cache, self.store, self.tokenizer))
        workers = WorkerAdmin(self.pool, self._greet)
        model = ModelAdmin(
            self.tokenizer,
            self.template,
            self.pool,
            model_name=config.model_name,
            figures=self.figures,
        )
        table: list[tuple[str, str, Handler]] = [
            ("POST", "/generate", generate.handle),
            ("PUT", "/generate", generate.handle),  # SGLang takes both
            ("POST", "/retrieve_from_text", retrieve.from_text),
            ("POST", "/retrieve_from_messages_template", retrieve.from_messages),
            *routes(workers, model),
        ]
        if config.enable_openai_chat_completion:
            table.append(("POST", config.openai_chat_completion_path, self.chat.handle))
        return table

    def figures(self) -> dict[str, Any]:
        """What `GET /metrics` shows."""
        return figures(
            self.pool, self.client, self.cache, self.store, self.recording.counts, self.counting
        )

    async def _lifespan(self, _: web.Application) -> AsyncIterator[None]:
        async with self.client:
            for worker in self.pool.list():
                self._greet(worker)
            yield
            for task in self._greetings:
                task.cancel()
            await asyncio.gather(*self._greetings, return_exceptions=True)
        self.tokenizer.close()

    def _greet(self, worker: Worker) -> None:
        """Compare tokenizers with a new worker, beside everything else."""
        task = asyncio.create_task(self._compare_tokens(worker))
        self._greetings.add(task)
        task.add_done_callback(self._greetings.discard)

    async def _compare_tokens(self, worker: Worker) -> None:
        reply = await self.client.tokenize(worker, PROBE_TEXT)
        if reply is None:
            logger.info("worker %s cannot be asked for its tokens (yet)", worker.url)
            return
        ids, worker.context_len = reply
        worker.is_token_exact = ids == self.tokenizer.encode(PROBE_TEXT).tolist()
        if not worker.is_token_exact:
            logger.warning(
                "worker %s tokenizes otherwise than %s: is it the same checkpoint?",
                worker.url,
                self.config.hf_checkpoint,
            )


@web.middleware
async def _boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The edge of every request: errors become replies, and one line is logged."""
    started = time.monotonic()
    try:
        response = await handler(request)
    except RouterError as exc:
        response = openai_error(exc)
    except web.HTTPRequestEntityTooLarge as exc:
        response = openai_error(PayloadTooLarge(exc.text or "the body is too large"))
    except web.HTTPException:
        raise  # aiohttp's own replies, such as a refused websocket
    except Exception:  # the edge of a request: a fault of ours must not end in silence
        logger.exception("%s %s failed", request.method, request.path)
        response = openai_error(RouterError("internal error"))
    logger.info(
        "%s %s %d %.0f ms %s",
        request.method,
        request.path,
        response.status,
        (time.monotonic() - started) * 1e3,
        response.headers.get("x-slime-receipt", "-"),
    )
    return response


def banner(gateway: Gateway) -> str:
    """What a person reads when the router is up."""
    config = gateway.config
    lines = (
        ("url", f"http://{config.host}:{config.port}"),
        ("model", config.model_name),
        ("workers", ", ".join(config.worker_urls) or "none yet (POST /add_worker?url=...)"),
        ("history", f"{config.history}; capture {config.capture}"),
        ("template", gateway.template.findings.summary()),
    )
    return "slime_router is up\n" + "".join(f"  {name:<9} {value}\n" for name, value in lines)


def build(config: Config) -> Gateway:
    """A gateway for this configuration.

    Raises:
        SetupError: one line that names what is missing.
    """
    try:
        return Gateway(config)
    except RouterError as exc:
        raise SetupError(exc.message) from exc
