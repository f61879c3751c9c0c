"""The wiring: every part is created here, once, and given what it needs.

endpoint -> [plug-ins] -> pipeline (generation/pipeline.py) -> relay -> SGLang
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from aiohttp import web

from slime_router.api.anthropic.dialect import ANTHROPIC, count_tokens
from slime_router.api.anthropic.reply import ANTHROPIC_ERRORS
from slime_router.api.chat.dialect import CHAT
from slime_router.api.completions.dialect import COMPLETIONS
from slime_router.api.context import Admission, EndpointContext
from slime_router.api.diagnose import DiagnoseDoor
from slime_router.api.dialect import Dialect
from slime_router.api.endpoint import serve
from slime_router.api.errors import NATIVE_ERRORS
from slime_router.api.generate.dialect import GENERATE
from slime_router.api.media import MediaPass
from slime_router.api.request import A
from slime_router.api.responses import stored
from slime_router.api.responses.dialect import responses
from slime_router.api.responses.reply import RESPONSES_ERRORS
from slime_router.api.responses.store import ResponseStore
from slime_router.api.retries import Joiner
from slime_router.api.retrieve import RetrieveDoor
from slime_router.api.sessions.endpoints import SessionDoor
from slime_router.api.sessions.rows import RowsDoor
from slime_router.auth.access import IN_SESSION, Access
from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.config import Config
from slime_router.doctor.doctor import Doctor
from slime_router.errors import SetupError
from slime_router.failover.greetings import GREETING_DELAYS_S
from slime_router.generation.admission import AdmissionQueue
from slime_router.generation.metrics import figures
from slime_router.generation.plugins import PluginContext, load_plugins
from slime_router.generation.retrieval import Retriever
from slime_router.generation.token_path import TokenPath
from slime_router.replies.formats import choose_formats
from slime_router.replies.parser import ReplyParsers
from slime_router.replies.sglang_detection import ModelTraits, detect
from slime_router.replies.sglang_parsers import load_parsers
from slime_router.server.boundary import Boundary, Handler
from slime_router.server.control_routes import ControlRoutes
from slime_router.server.cors import Cors
from slime_router.server.fleet import Fleet
from slime_router.server.model_routes import ModelAdmin
from slime_router.server.proxy import Fallback, PassThrough
from slime_router.server.slow_clients import SlowClients
from slime_router.server.tls import tls_context
from slime_router.server.upkeep import Upkeep
from slime_router.server.worker_routes import WorkerAdmin
from slime_router.template.chat_template import ChatTemplate
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import GenerateCall

logger = logging.getLogger(__name__)

Route = tuple[str, str, Handler]
ERROR_STYLES = {  # of the routes whose errors are not in OpenAI's format
    "/generate": NATIVE_ERRORS,
    "/v1/responses": RESPONSES_ERRORS,
    "/v1/responses/{id}": RESPONSES_ERRORS,
    "/v1/responses/{id}/input_items": RESPONSES_ERRORS,
    "/v1/responses/{id}/cancel": RESPONSES_ERRORS,
    "/v1/messages": ANTHROPIC_ERRORS,
    "/v1/messages/count_tokens": ANTHROPIC_ERRORS,
}


class Gateway:
    """One running router.

    `greeting_delays_s` holds the delays before each attempt to ask a new worker for its tokens.

    Raises:
        SetupError: something that the configuration names is not available.
    """

    def __init__(
        self, config: Config, *, greeting_delays_s: Sequence[float] = GREETING_DELAYS_S
    ) -> None:
        self.config = config
        self.access, self.cors = Access.of(config), Cors(config.cors_allowed_origins)
        self.tls = tls_context(config.tls_cert_path, config.tls_key_path)
        self.tokenizer = load_tokenizer(
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
            admission=_admission(config),
        )
        self.cache, self.store, self.weights = self.path.cache, self.path.store, self.path.weights
        self.maker, self.sessions = self.path.maker, self.path.sessions
        self.recording, self.counting = self.path.recording, self.path.counting
        self.admission = self.path.admission
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
        self.plugins = load_plugins(
            config.middleware_paths,
            PluginContext(config, self.tokenizer, self.template, self.store),
        )
        self._wire_generations()

    def _wire_generations(self) -> None:
        """Runs once plug-ins are loaded: what it wires may depend on them."""
        config = self.config
        self.router = self.path.router(
            self.relay.generate,
            plugins=self.plugins.generation,
            context_len=self.pool.context_len,
        )
        self.joiner = Joiner(self.router, retry_grace_s=config.retry_grace_s)
        self.others = PassThrough(self.relay, max_payload_size=config.max_payload_size)
        self._wire_doors()

    def _wire_doors(self) -> None:
        config = self.config
        self.context = EndpointContext(
            joiner=self.joiner,
            vocabulary=self.tokenizer,
            parsers=self.parsers,
            admission=Admission(config.openai_max_concurrent_requests, self.joiner.note_refusal),
            default_model=config.openai_default_model or config.model_name,
            served_names=_served_names(config),
            media=self._media(),
            has_two_reasonings=config.reasoning_field == "both",
        )
        self.responses = ResponseStore(config.max_stored_responses)

    def _media(self) -> MediaPass:
        """Where requests with media go, if the model takes any."""
        asked = self.config.enable_multimodal
        if asked if asked is not None else self.tokenizer.is_multimodal:
            return MediaPass(self.others.hand_on, self.sessions.flight)
        return MediaPass.off()

    async def _prompt_len(self, call: GenerateCall) -> int:
        """How many tokens a call's prompt has; nothing of it is kept."""
        prompt = await self.maker.make(call)
        try:
            return len(prompt.ids)
        finally:
            self.maker.release(prompt)

    def app(self) -> web.Application:
        """The HTTP application; it starts and stops what the gateway owns.

        Raises:
            SetupError: the chat path is invalid or already in use.
        """
        boundary = Boundary(self.access, ERROR_STYLES)
        app = web.Application(
            client_max_size=self.config.max_payload_size,
            middlewares=[
                boundary.logged,
                self.slow_clients.middleware,
                *([self.cors.preflight] if self.cors.is_on else []),
                *([boundary.guarded] if self.access.is_on else []),
                *([*self.plugins.http, boundary.answered] if self.plugins.http else []),
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
                _add_chat(app, path, self._serving(CHAT))
        strays = Fallback(self.pool, self.others)
        app.router.add_route("*", IN_SESSION + "/{path:(?s:.*)}", strays.handle_in_session)
        app.router.add_route("*", "/{path:(?s:.*)}", strays.handle)
        app.cleanup_ctx.append(self._lifespan)
        if self.cors.is_on:
            app.on_response_prepare.append(self.cors.on_prepare)
        return app

    def _doors(self) -> list[Route]:
        """The routes served both with and without a session in the path."""
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
            ("POST", "/generate", self._serving(GENERATE)),
            ("PUT", "/generate", self._serving(GENERATE)),  # SGLang takes both
            ("POST", "/v1/completions", self._serving(COMPLETIONS)),
            ("POST", "/v1/responses", self._serving(responses(self.responses))),
            ("GET", "/v1/responses/{id}", partial(stored.show, self.responses)),
            ("DELETE", "/v1/responses/{id}", partial(stored.delete, self.responses)),
            ("GET", "/v1/responses/{id}/input_items", partial(stored.list_items, self.responses)),
            ("POST", "/v1/responses/{id}/cancel", partial(stored.cancel, self.responses)),
            ("POST", "/v1/messages", self._serving(ANTHROPIC)),
            (
                "POST",
                "/v1/messages/count_tokens",
                partial(count_tokens, self.context, self._prompt_len),
            ),
            ("POST", "/retrieve_from_text", retrieve.from_text),
            ("POST", "/retrieve_from_messages_template", retrieve.from_messages),
            ("POST", "/diagnose", DiagnoseDoor(doctor).handle),
            *model.routes(),
        ]

    def _serving(self, dialect: Dialect[A]) -> Handler:
        return partial(serve, dialect, self.context)

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
        """What `GET /metrics` returns."""
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
        counted["router"]["media_passed"] = self.context.media.passed
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
    """The same routes under a session's path: an agent only has to change its base URL."""
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
    except ValueError as exc:  # aiohttp takes part of it for a pattern
        raise SetupError(f"chat cannot be served at {path!r}: {exc}") from exc


def _admission(config: Config) -> AdmissionQueue:
    return AdmissionQueue(
        max_running=config.max_concurrent_requests,
        max_waiting=config.queue_size,
        timeout_s=config.queue_timeout_s,
    )


def _model(tokenizer: Tokenizer) -> ModelTraits:
    """What identifies the formats of the model's replies."""
    return ModelTraits(
        template=tokenizer.jinja_template,
        tokens=tokenizer.token_names(),
        architectures=tokenizer.architectures,
        model_type=tokenizer.model_type,
    )


def _served_names(config: Config) -> frozenset[str] | None:
    """With `--strict-model`, every name of the one model; otherwise None."""
    if not config.strict_model:
        return None
    names = (config.served_model_name, config.openai_default_model, config.hf_checkpoint)
    return frozenset(name for name in names if name)
