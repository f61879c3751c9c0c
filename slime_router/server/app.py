"""The wiring: every part is made here, once, and handed what it needs.

door -> [plug-ins] -> admission -> sessions -> recording -> caching -> fitting -> relay -> SGLang
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any

from aiohttp import web

from slime_router.chat.formats import choose_formats
from slime_router.chat.parse import ReplyParsers
from slime_router.chat.sglang_detection import Model, detect
from slime_router.chat.sglang_parsers import load_parsers
from slime_router.chat.template import ChatTemplate
from slime_router.chat.tokenizer import Tokenizer
from slime_router.config import Config
from slime_router.diagnosis import Doctor
from slime_router.doors.chat import ChatDoor
from slime_router.doors.completions import CompletionsDoor
from slime_router.doors.delivery import Admission
from slime_router.doors.diagnose import DiagnoseDoor
from slime_router.doors.frame import Frame
from slime_router.doors.generate import GenerateDoor
from slime_router.doors.joining import Joiner
from slime_router.doors.media import MediaPass
from slime_router.doors.messages import MessagesDoor
from slime_router.doors.models import ModelNames
from slime_router.doors.responses import ResponsesDoor
from slime_router.doors.retrieve import RetrieveDoor
from slime_router.doors.rows import RowsDoor
from slime_router.doors.sessions import SessionDoor
from slime_router.errors import SetupError
from slime_router.metrics import CountingMiddleware, figures
from slime_router.middleware.admission import AdmissionMiddleware
from slime_router.middleware.fitting import FittingMiddleware
from slime_router.middleware.loading import load_plugins
from slime_router.retrieval import Retriever
from slime_router.server.access import IN_SESSION, Access
from slime_router.server.admin import ModelAdmin
from slime_router.server.boundary import boundary
from slime_router.server.control import ControlRoutes
from slime_router.server.cors import Cors
from slime_router.server.fleet import Fleet
from slime_router.server.greetings import GREETING_DELAYS_S
from slime_router.server.passthrough import PassThrough
from slime_router.server.slow_clients import SlowClients
from slime_router.server.strays import Strays
from slime_router.server.tls import tls_context
from slime_router.server.upkeep import Upkeep
from slime_router.server.workers import WorkerAdmin
from slime_router.token_path import TokenPath
from slime_router.types import GenerateCall

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Route = tuple[str, str, Handler]


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
        self.access, self.cors = Access.of(config), Cors(config.cors_allowed_origins)
        self.tls = tls_context(config.tls_cert_path, config.tls_key_path)
        self.tokenizer = Tokenizer.load(
            config.hf_checkpoint,
            trust_remote_code=config.trust_remote_code,
            chat_template=config.chat_template,
            tool_call_parser=config.tool_call_parser,
        )
        self.template = ChatTemplate(self.tokenizer)
        self.formats = choose_formats(
            config.tool_call_parser,
            config.reasoning_parser,
            detect=lambda: detect(_model(self.tokenizer)),
            try_out=lambda tools, reasoning: ReplyParsers(
                load_parsers, tools=tools, reasoning=reasoning
            ),
        )
        self.parsers = ReplyParsers(
            load_parsers,
            tools=self.formats.tools.name,
            reasoning=self.formats.reasoning.name,
            presumes_thinking=self.formats.presumes_thinking,
            new_call_id=self.template.spelling.new_id,
        )
        self.path = TokenPath(
            self.tokenizer,
            self.template,
            self.parsers,
            history=config.history,
            capture=config.capture,
            max_cached_tokens=config.radix_tree_max_size,
            max_stored_tokens=config.max_stored_tokens or config.radix_tree_max_size,
            max_sessions=config.max_sessions,
        )
        self.cache, self.store, self.weights = self.path.cache, self.path.store, self.path.weights
        self.maker, self.sessions = self.path.maker, self.path.sessions
        self.recording = self.path.recording
        self.slow_clients = SlowClients(config.client_timeout_s)
        self.fleet = Fleet(
            config, self.tokenizer, self.weights, greeting_delays_s=greeting_delays_s
        )
        self.pool, self.client, self.relay = self.fleet.pool, self.fleet.client, self.fleet.relay
        self.upkeep = Upkeep(
            self.store,
            self.cache,
            self.weights,
            idle_s=config.session_idle_s,
            max_version_lag=config.max_version_lag,
        )
        self.plugins = load_plugins(config.middleware_paths, self)
        self._wire_generations()

    def _wire_generations(self) -> None:
        """Plug-ins were loaded: what follows may depend on them."""
        config = self.config
        fitting = FittingMiddleware(self.pool.context_len)
        self.counting = CountingMiddleware()
        self.admission = AdmissionMiddleware(
            max_running=config.max_concurrent_requests,
            max_waiting=config.queue_size,
            timeout_s=config.queue_timeout_s,
        )
        self.router = self.path.router(
            self.relay.generate,
            outer=[self.counting, *self.plugins.generation, self.admission],
            inner=[fitting],
        )
        self.joiner = Joiner(self.router, retry_grace_s=config.retry_grace_s)
        self.others = PassThrough(self.relay, max_payload_size=config.max_payload_size)
        self._wire_doors()

    def _wire_doors(self) -> None:
        config = self.config
        self.frame = Frame(
            joiner=self.joiner,
            vocabulary=self.tokenizer,
            parsers=self.parsers,
            admission=Admission(config.openai_max_concurrent_requests, self.joiner.note_refusal),
            default_model=config.openai_default_model or config.model_name,
            models=_model_names(config),
            media=self._media(),
        )
        has_two_reasonings = config.reasoning_field == "both"
        self.chat = ChatDoor(self.frame, has_two_reasonings=has_two_reasonings)
        self.messages = MessagesDoor(self.frame, prompt_len=self._prompt_len)
        self.responses = ResponsesDoor(self.frame, max_stored=config.max_stored_responses)

    def _media(self) -> MediaPass:
        """The way of requests with media, where the model takes any."""
        asked = self.config.enable_multimodal
        if asked if asked is not None else self.tokenizer.is_multimodal:
            return MediaPass(self.others.hand_on, self.sessions.flight)
        return MediaPass.off()

    async def _prompt_len(self, call: GenerateCall) -> int:
        """How many tokens the prompt of a call has; nothing is kept of it."""
        prompt = await self.maker.make(call)
        try:
            return len(prompt.ids)
        finally:
            self.maker.release(prompt)

    def app(self) -> web.Application:
        """The HTTP application; it starts and stops what the gateway owns.

        Raises:
            SetupError: the chat path is no path, or has another use.
        """
        app = web.Application(
            client_max_size=self.config.max_payload_size,
            middlewares=[
                boundary,
                self.slow_clients.middleware,
                *([self.cors.preflight] if self.cors.is_on else []),
                self.access.guard,
                *self.plugins.http,
            ],
        )
        of_sessions, anywhere = self._session_routes(), self._doors()
        control = ControlRoutes(
            self.pool,
            self.client,
            self.relay,
            self.admission,
            on_weights=self.upkeep.on_weights,
        )
        workers = WorkerAdmin(self.pool)
        admins = [*control.routes(), *workers.routes()]
        self.access.reserve((method, path) for method, path, _ in admins)
        table = [*of_sessions, *anywhere, *admins]
        chat_path = self._chat_path({path for _, path, _ in table})
        for method, path, handler in [*of_sessions, *_in_sessions(anywhere), *table]:
            _add_route(app, method, path, handler)
        if chat_path is not None:
            for path in (IN_SESSION + chat_path, chat_path):
                _add_chat(app, path, self.chat.handle)
        strays = Strays(self.pool, self.others)
        app.router.add_route("*", IN_SESSION + "/{path:(?s:.*)}", strays.handle_in_session)
        app.router.add_route("*", "/{path:(?s:.*)}", strays.handle)
        app.cleanup_ctx.append(self._lifespan)
        if self.cors.is_on:
            app.on_response_prepare.append(self.cors.on_prepare)
        return app

    def _doors(self) -> list[Route]:
        """What is served with and without a session in its path."""
        generate = GenerateDoor(self.joiner, self.tokenizer)
        completions = CompletionsDoor(self.frame)
        retrieve = RetrieveDoor(Retriever(self.maker, self.cache, self.store, self.tokenizer))
        doctor = Doctor(self.maker, self.store, self.tokenizer, self.template)
        model = ModelAdmin(
            self.tokenizer,
            self.template,
            self.pool,
            model_name=self.config.model_name,
            checkpoint=self.config.hf_checkpoint,
            weights=self.weights,
            hand_on=self.others.hand_on,
            figures=self.figures,
        )
        return [
            ("POST", "/generate", generate.handle),
            ("PUT", "/generate", generate.handle),  # SGLang takes both
            ("POST", "/v1/completions", completions.handle),
            ("POST", "/v1/responses", self.responses.handle),
            ("GET", "/v1/responses/{id}", self.responses.show),
            ("DELETE", "/v1/responses/{id}", self.responses.delete),
            ("GET", "/v1/responses/{id}/input_items", self.responses.items),
            ("POST", "/v1/responses/{id}/cancel", self.responses.cancel),
            ("POST", "/v1/messages", self.messages.handle),
            ("POST", "/v1/messages/count_tokens", self.messages.count),
            ("POST", "/retrieve_from_text", retrieve.from_text),
            ("POST", "/retrieve_from_messages_template", retrieve.from_messages),
            ("POST", "/diagnose", DiagnoseDoor(doctor).handle),
            *model.routes(),
        ]

    def _session_routes(self) -> list[Route]:
        sessions = SessionDoor(
            self.store,
            self.sessions,
            self.tokenizer,
            default_max_turns=self.config.session_max_turns,
        )
        rows = RowsDoor(self.store, self.config.realign_threshold)
        return [
            ("POST", "/sessions", sessions.open),
            ("GET", "/sessions", sessions.list),
            ("GET", IN_SESSION, sessions.show),
            ("DELETE", IN_SESSION, sessions.delete),
            ("POST", f"{IN_SESSION}/close", sessions.close),
            ("POST", f"{IN_SESSION}/reward", sessions.reward),
            ("GET", f"{IN_SESSION}/rows", rows.of_session),
            ("POST", "/rows", rows.of_many),
        ]

    def _chat_path(self, used: Collection[str]) -> str | None:
        path = self.config.openai_chat_completion_path
        if not self.config.enable_openai_chat_completion:
            return None
        if path in used:
            raise SetupError(f"chat cannot be served at {path!r}: it has another use")
        return path

    def figures(self) -> dict[str, Any]:
        """What `GET /metrics` shows."""
        counted = figures(
            self.pool,
            self.client,
            self.cache,
            self.store,
            self.weights,
            self.recording.counts,
            self.counting,
        )
        joiner = self.joiner
        retries = {"joined": joiner.joined, "abandoned": joiner.abandoned, "open": joiner.running}
        counted["router"]["media_passed"] = self.frame.media.passed
        admission = {**asdict(self.admission.figures), "cut_clients": self.slow_clients.cut}
        fleet = self.fleet.figures()
        return {**counted, "fleet": fleet, "retries": retries, "admission": admission}

    async def _lifespan(self, _: web.Application) -> AsyncIterator[None]:
        async with self.fleet:
            tasks = [
                asyncio.create_task(self.upkeep.run(), name="upkeep"),
                asyncio.create_task(self.slow_clients.run(), name="slow clients"),
            ]
            yield
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.joiner.close()
        self.tokenizer.close()


def _in_sessions(routes: Sequence[Route]) -> list[Route]:
    """The same under the path of a session: an agent only needs another base URL."""
    return [
        (method, IN_SESSION + path.rstrip("/"), handler)
        for method, path, handler in routes
        if path != "/"
    ]


def _add_route(app: web.Application, method: str, path: str, handler: Handler) -> None:
    app.router.add_route(method, path, handler)
    if method == "GET":
        app.router.add_route("HEAD", path, handler)


def _add_chat(app: web.Application, path: str, handler: Handler) -> None:
    try:
        app.router.add_post(path, handler)
    except ValueError as exc:  # aiohttp reads a pattern in it
        raise SetupError(f"chat cannot be served at {path!r}: {exc}") from exc


def _model(tokenizer: Tokenizer) -> Model:
    """What the formats of its replies are known by."""
    return Model(
        template=tokenizer.jinja_template,
        tokens=tokenizer.token_names(),
        architectures=tokenizer.architectures,
        model_type=tokenizer.model_type,
    )


def _model_names(config: Config) -> ModelNames:
    """All of the one model's names count where any of them does."""
    if not config.strict_model:
        return ModelNames()
    names = (config.served_model_name, config.openai_default_model, config.hf_checkpoint)
    return ModelNames(frozenset(name for name in names if name))
