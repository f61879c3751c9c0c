"""The wiring: every part is made here, once, and handed what it needs.

door -> [plug-ins] -> recording -> caching -> worker client -> SGLang /generate
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Any

import orjson
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

# A worker is often registered while it still loads its weights, which takes minutes.
GREETING_DELAYS_S = (0.0, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0)

CLIENT_LEFT = 499  # nginx's word in its logs; no client reads it

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """One running router. Plug-in classes are constructed with it.

    Each delay before which a new worker is asked for its tokens stands in `greeting_delays_s`.

    Raises:
        SetupError: what the configuration names cannot be had.
    """

    def __init__(
        self, config: Config, *, greeting_delays_s: Sequence[float] = GREETING_DELAYS_S
    ) -> None:
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
        self.pool = _pool(config.worker_urls)
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
        self._greeting_delays_s = tuple(greeting_delays_s)
        self._greetings: dict[Worker, asyncio.Task[None]] = {}

    def app(self) -> web.Application:
        """The HTTP application; it starts and stops what the gateway owns.

        Raises:
            SetupError: the chat path is no path, or has another use.
        """
        app = web.Application(
            client_max_size=self.config.max_payload_size,
            middlewares=[_boundary, *self.plugins.http],
        )
        table = self._routes()
        for method, path, handler in table:
            app.router.add_route(method, path, handler)
            if method == "GET":
                app.router.add_route("HEAD", path, handler)
        if self.config.enable_openai_chat_completion:
            self._add_chat(app, {path for _, path, _ in table})
        app.router.add_route("*", "/{path:(?s:.*)}", PassThrough(self.pool, self.client).handle)
        app.cleanup_ctx.append(self._lifespan)
        return app

    def _routes(self) -> list[tuple[str, str, Handler]]:
        generate = GenerateDoor(self.router, self.tokenizer)
        retrieve = RetrieveDoor(Retriever(self.maker, self.cache, self.store, self.tokenizer))
        workers = WorkerAdmin(self.pool, self._greet)
        model = ModelAdmin(
            self.tokenizer,
            self.template,
            self.pool,
            model_name=self.config.model_name,
            figures=self.figures,
        )
        return [
            ("POST", "/generate", generate.handle),
            ("PUT", "/generate", generate.handle),  # SGLang takes both
            ("POST", "/retrieve_from_text", retrieve.from_text),
            ("POST", "/retrieve_from_messages_template", retrieve.from_messages),
            *routes(workers, model),
        ]

    def _add_chat(self, app: web.Application, used: Collection[str]) -> None:
        path = self.config.openai_chat_completion_path
        if path in used:
            raise SetupError(f"chat cannot be served at {path!r}: it has another use")
        try:
            app.router.add_post(path, self.chat.handle)
        except ValueError as exc:  # aiohttp reads a pattern in it
            raise SetupError(f"chat cannot be served at {path!r}: {exc}") from exc

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
            greetings = tuple(self._greetings.values())
            for task in greetings:
                task.cancel()
            await asyncio.gather(*greetings, return_exceptions=True)
        self.tokenizer.close()

    @property
    def greetings_open(self) -> int:
        """How many workers are still to be asked for their tokens."""
        return len(self._greetings)

    def _greet(self, worker: Worker) -> None:
        """Compare tokenizers with a worker, beside everything else."""
        if worker in self._greetings:
            return
        task = asyncio.create_task(self._compare_tokens(worker), name=f"greeting {worker.url}")
        self._greetings[worker] = task
        task.add_done_callback(lambda _: self._greetings.pop(worker))

    async def _compare_tokens(self, worker: Worker) -> None:
        for delay_s in self._greeting_delays_s:
            await asyncio.sleep(delay_s)
            if worker not in self.pool.list():
                return
            reply = await self.client.tokenize(worker, PROBE_TEXT)
            if reply is not None:
                self._note_tokens(worker, *reply)
                return
        logger.warning("worker %s: its tokens were not compared with ours", worker.url)

    def _note_tokens(self, worker: Worker, ids: list[int], context_len: object) -> None:
        if type(context_len) is int and context_len > 0:
            worker.context_len = context_len
        was_known = worker.is_token_exact is False
        worker.is_token_exact = ids == self.tokenizer.encode(PROBE_TEXT).tolist()
        if worker.is_token_exact:
            logger.info("worker %s makes the same tokens", worker.url)
        elif not was_known:
            logger.warning(
                "worker %s tokenizes otherwise than %s: is it the same checkpoint?",
                worker.url,
                self.config.hf_checkpoint,
            )


def _pool(urls: Sequence[str]) -> WorkerPool:
    pool = WorkerPool()
    for url in urls:
        try:
            pool.add(url)
        except RouterError as exc:
            raise SetupError(f"worker {url!r}: {exc.message}") from exc
    return pool


@web.middleware
async def _boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The edge of every request: errors become replies, and one line is logged."""
    started = time.monotonic()
    status, outcome = CLIENT_LEFT, "the client left"
    try:
        response = await _answer(request, handler)
        status, outcome = response.status, _outcome(response)
        return response
    except web.HTTPException as exc:  # a reply that a plug-in raised
        status, outcome = exc.status, "-"
        raise
    finally:
        logger.log(
            logging.WARNING if status >= 500 else logging.INFO,
            "%s %s %d %.0f ms %s",
            request.method,
            request.rel_url.raw_path,  # as it was sent: a decoded one could hold line ends
            status,
            (time.monotonic() - started) * 1e3,
            outcome,
        )


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RouterError as exc:
        return openai_error(exc)
    except web.HTTPRequestEntityTooLarge as exc:
        return openai_error(PayloadTooLarge(exc.text or "the body is too large"))
    except web.HTTPException:
        raise
    except ConnectionError:  # the client's; a worker's was translated where it came up
        return web.Response(status=CLIENT_LEFT)
    except Exception:  # the edge of a request: a fault of ours must not end in silence
        logger.exception("%s %s failed", request.method, request.rel_url.raw_path)
        return openai_error(RouterError("internal error"))


def _outcome(response: web.StreamResponse) -> str:
    """What the log says of a reply: how the prompt was made, or which error it is. No texts."""
    try:
        if (receipt := response.headers.get("x-slime-receipt")) is not None:
            return "{status} reused={reused} encoded={encoded}".format(**orjson.loads(receipt))
        if response.status >= 400 and isinstance(response, web.Response):
            error = orjson.loads(response.text or "")["error"]
            return f"{error['code']} param={error['param']!r:.100}"
    except (KeyError, TypeError, ValueError):
        pass  # a reply of another shape: a worker's, or a plug-in's
    return "-"


def banner(gateway: Gateway) -> str:
    """What a person reads when the router is up."""
    config = gateway.config
    host = f"[{config.host}]" if ":" in config.host else config.host
    lines = (
        ("url", f"http://{host}:{config.port}"),
        ("model", config.model_name),
        ("workers", ", ".join(config.worker_urls) or "none yet (POST /add_worker?url=...)"),
        ("history", f"{config.history}; capture {config.capture}"),
        ("template", gateway.template.findings.summary()),
    )
    return "slime_router is up\n" + "".join(f"  {name:<9} {value}\n" for name, value in lines)
