"""The wiring: every part is created here, once, and given what it needs.

endpoint -> [plug-ins] -> pipeline (generation/pipeline.py) -> relay -> SGLang
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from functools import partial

import orjson
from aiohttp import web

from slime_router.api.anthropic.dialect import ANTHROPIC, count_tokens
from slime_router.api.chat.dialect import CHAT
from slime_router.api.chat.settings import SettingsReader
from slime_router.api.completions.dialect import COMPLETIONS
from slime_router.api.context import Admission, EndpointContext
from slime_router.api.diagnose import DiagnoseDoor
from slime_router.api.dialect import Dialect
from slime_router.api.endpoint import serve
from slime_router.api.generate.dialect import GENERATE
from slime_router.api.generate.worker_bodies import WorkerBodies
from slime_router.api.inference.dialect import INFERENCE
from slime_router.api.known.strictness import Strictness
from slime_router.api.media.media_pass import MediaPass
from slime_router.api.media.pictures import PictureDoor
from slime_router.api.model_names import ModelNames
from slime_router.api.openapi.description import ApiDescription
from slime_router.api.request import A
from slime_router.api.responses import stored
from slime_router.api.responses.dialect import count_input, responses
from slime_router.api.responses.journaled import JournaledResponses
from slime_router.api.responses.store import ResponseStore
from slime_router.api.retries import Joiner
from slime_router.api.retrieve import RetrieveDoor
from slime_router.api.sessions.routes import Route, session_routes
from slime_router.api.sessions.rules import sampling_rules
from slime_router.archive.opening import opened
from slime_router.auth.access import IN_SESSION, STRAYS, Access
from slime_router.auth.shares import Shares
from slime_router.auth.tls import tls_context
from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.checkup.chosen_formats import chosen_formats
from slime_router.config import Config
from slime_router.dashboard.page import Dashboard
from slime_router.doctor.doctor import Doctor
from slime_router.edge.allowances import Allowances
from slime_router.edge.bodies import SERVER_ARGS
from slime_router.edge.cors import Cors
from slime_router.edge.descriptors import DescriptorWatch, raise_limit
from slime_router.edge.grace import Grace
from slime_router.edge.heads import PARSER_LIMITS
from slime_router.edge.log_lines import keep_lines_apart
from slime_router.edge.paths import TidyPaths, add_chat, add_route, in_sessions
from slime_router.edge.plugin_guard import PluginGuard
from slime_router.errors import SetupError
from slime_router.failover.greetings import GREETING_DELAYS_S, PROBE_TEXT
from slime_router.failover.session_kv import SessionKv, kv_name
from slime_router.generation.admission import AdmissionQueue
from slime_router.generation.plugins import PluginContext, load_plugins
from slime_router.generation.retrieval import Retriever
from slime_router.generation.token_path import TokenPath
from slime_router.reload.reloader import Reloader
from slime_router.server.boundary import Boundary, Handler
from slime_router.server.control_routes import ControlRoutes
from slime_router.server.engine_metrics import engine_metrics
from slime_router.server.fleet import Fleet, WorkerGroups
from slime_router.server.loop.stalls import StallWatch
from slime_router.server.model_routes import ModelAdmin
from slime_router.server.proxy import Fallback, PassThrough
from slime_router.server.signals import end_now
from slime_router.server.slow_clients import SlowClients
from slime_router.server.together.metrics import answer_figures, metrics, metrics_text
from slime_router.server.together.responses import SharedResponses
from slime_router.server.together.together import Together
from slime_router.server.upkeep import Upkeep
from slime_router.server.worker_routes import GroupAdmin, WorkerAdmin
from slime_router.siblings.place import Place
from slime_router.siblings.siblings import Siblings
from slime_router.supervisor import Supervisor
from slime_router.telemetry.meters import Meters
from slime_router.telemetry.tracing import Tracing
from slime_router.template.chat_template import ChatTemplate
from slime_router.trajectory.store import TrajectoryStore

logger = logging.getLogger(__name__)


class Gateway:
    """One running router, or one process of a router that has several.

    `greeting_delays_s` holds the delays before each attempt to ask a new worker for its tokens;
    `read_again` gives the configuration as it is when somebody asks for a reload.

    Raises:
        SetupError: something that the configuration names is not available.
    """

    def __init__(
        self,
        config: Config,
        *,
        greeting_delays_s: Sequence[float] = GREETING_DELAYS_S,
        place: Place | None = None,
        read_again: Callable[[], Config] | None = None,
    ) -> None:
        self.config, self.place, self.siblings = config, place, Siblings(place)
        self.failure: str | None = None  # why it had to stop
        self.access, self.cors = Access.of(config), Cors(config.cors_allowed_origins)
        self.tls = tls_context(config.tls_cert_path, config.tls_key_path)
        self.tokenizer = load_tokenizer(
            config.hf_checkpoint,
            trust_remote_code=config.trust_remote_code,
            chat_template=config.chat_template,
            tool_call_parser=config.tool_call_parser,
        )
        self.tokenizer.choose_encoder(config.encoder)
        self.template = ChatTemplate(self.tokenizer)
        self.formats, self.parsers = chosen_formats(
            config.tool_call_parser,
            config.reasoning_parser,
            tokenizer=self.tokenizer,
            template=self.template,
            strips_newlines=config.strip_reasoning_newlines,
        )
        known = [self.tokenizer.vocab_size, self.tokenizer.encode(PROBE_TEXT).tolist()]
        self.journal = opened(config, orjson.dumps(known), self.end, idle_s=config.session_idle_s)
        room, owners = config.max_stored_tokens or config.radix_tree_max_size, self.access.owners
        new_store = TrajectoryStore if self.journal is None else self.journal.new_store
        path = self.path = TokenPath(
            self.tokenizer,
            self.template,
            self.parsers,
            history=config.history,
            capture=config.capture,
            max_cached_tokens=config.radix_tree_max_size,
            store=new_store(room, max_sessions=config.max_sessions, owners=owners),
            journal=self.journal,
            fetch=None if self.journal is None else self.journal.fetching(self.template),
            admission=AdmissionQueue.of(config),
            rules=sampling_rules(config, self.tokenizer),
            meters=Meters(config.model_name),
        )
        self.cache, self.store, self.weights = path.cache, path.store, path.weights
        self.maker, self.sessions, self.recording = path.maker, path.sessions, path.recording
        self.counting, self.admission = path.counting, path.admission
        self._wire_workers(greeting_delays_s)
        self._wire_generations()
        self.reloader = Reloader(self, read_again)

    def _wire_workers(self, greeting_delays_s: Sequence[float]) -> None:
        config = self.config
        self.store.ledger.max_words_bytes = config.max_words_bytes
        self.meters = self.path.meters
        self.tracing = Tracing.of(config.otlp_endpoint, config.model_name)
        self.slow_clients = SlowClients(config.client_timeout_s)
        self.stalls = StallWatch(self.slow_clients, self.meters.loop_delay)
        self.descriptors = DescriptorWatch(raise_limit())
        self.supervisor = Supervisor()
        parts = (self.tokenizer, self.weights, self.supervisor)

        def new_fleet(config: Config) -> Fleet:
            return Fleet(config, *parts, greeting_delays_s=greeting_delays_s)

        self.fleet = new_fleet(config)
        self.groups = WorkerGroups(config, new_fleet, vocab_size=self.tokenizer.vocab_size)
        self.pool, self.client, self.relay = self.fleet.pool, self.fleet.client, self.fleet.relay
        if config.max_inflight_per_worker is not None:
            self.admission.keep_to(self.pool.places)
            self.pool.subscribe(self.admission.admit)
        self.sessions.abort = self.relay.abort
        self.session_kv = SessionKv(self.pool, self.client)
        if config.session_kv:
            self.sessions.kv_name = self.path.caching.kv_name = kv_name
            self.store.sessions.on_end = self.session_kv.ended
        around = PluginContext(config, self.tokenizer, self.template, self.store)
        self.plugins = load_plugins(config.middleware_paths, around)

    def end(self, reason: str) -> None:
        """Stops the router, as a signal does, because it cannot go on; `failure` says why."""
        self.failure = reason
        logger.critical("the router stops: %s", reason)
        asyncio.get_running_loop().call_soon(end_now)

    def _wire_generations(self) -> None:
        """Runs once plug-ins are loaded: what it wires may depend on them."""
        config = self.config
        idle_s, lag = config.session_idle_s, config.max_version_lag
        self.upkeep = Upkeep(
            self.store, self.cache, self.weights, idle_s=idle_s, max_version_lag=lag
        )
        keep_lines_apart()  # of plug-ins' parts of the package, too
        self.guard = PluginGuard(config.plugin_timeout_s)
        self.together = Together(
            self.siblings, self.fleet, self.path, self.upkeep, self.guard, self.journal
        )
        self.grace = Grace(config.shutdown_grace_period_s)
        self.router = self.path.router(
            self.relay.generate,
            plugins=tuple(map(self.guard.generations, self.plugins.generation)),
            context_lens=self.pool.context_lens,
        )
        if self.plugins.generation or self.plugins.http:
            self.router.on_cancelled = self.guard.cancelled
        self.joiner = Joiner(self.router, retry_grace_s=config.retry_grace_s)
        allowed = Allowances(config.allow_local_media, config.allow_custom_logit_processors)
        vocab_size, isolates = self.tokenizer.vocab_size, config.isolate_tenants
        self.bodies = WorkerBodies(vocab_size, allowed, isolates_owners=isolates)
        self.others = PassThrough(
            self.relay,
            max_payload_size=config.max_payload_size,
            grace=self.grace,
            keepalive_s=config.sse_keepalive_s,
            admission=self.admission,
        )
        self._wire_doors()

    def _wire_doors(self) -> None:
        config = self.config
        places = Shares(config.openai_max_concurrent_requests, self.access.owners)
        settings = SettingsReader.of(config, self.tokenizer, self.parsers, self.plugins.generation)
        self.context = EndpointContext(
            joiner=self.joiner,
            vocabulary=self.tokenizer,
            chat_settings=settings,
            admission=Admission(places, self.joiner.note_refusal),
            models=ModelNames(
                config.openai_default_model or config.model_name,
                config.served_names,
                self.pool.adapters,
            ),
            media=self._media(),
            pictures=PictureDoor(
                self.template.pictures if config.capture_pictures else None,
                self.path.caching.proof,
            ),
            allowances=self.bodies.allowances,
            isolates_owners=config.isolate_tenants,
            grace=self.grace,
            keepalive_s=config.sse_keepalive_s,
            tokens_as_ids=config.return_tokens_as_token_ids,
            experts_shape=self.tokenizer.experts_shape,
            strictness=Strictness(config.strict_fields),
        )
        self.responses = ResponseStore(config.max_stored_responses)
        if self.journal is not None:
            self.responses = JournaledResponses(self.journal, config.max_stored_responses)

    def _media(self) -> MediaPass:
        """Where requests with media go, if the model takes any."""
        asked = self.config.enable_multimodal
        if asked if asked is not None else self.tokenizer.is_multimodal:
            return MediaPass(self.others.hand_on, self.sessions.flight, self.bodies.prepared)
        return MediaPass.off()

    def app(self) -> web.Application:
        """The HTTP application; it starts and stops what the gateway owns.

        Raises:
            SetupError: the chat path is invalid or already in use, or a proxy has no address.
        """
        boundary = Boundary.of(
            self.config, self.access, self.cors, self.grace, self.journal, self.meters, self.tracing
        )
        app = web.Application(
            handler_args={**SERVER_ARGS, **PARSER_LIMITS},
            client_max_size=self.config.max_payload_size,
            middlewares=[
                boundary.logged,
                self.slow_clients.middleware,
                *([self.cors.preflight] if self.cors.is_on else []),
                *([boundary.guarded] if self.access.is_on else []),
                *([boundary.durable] if self.journal is not None else []),
                *self.guard.middlewares(self.plugins.generation, self.plugins.http, self.grace),
                *([boundary.answered] if self.plugins.http else []),
            ],
        )
        of_sessions, anywhere = self._session_routes(), self._doors()
        registry, aborts = self.together.registry, self.together.aborts
        control = ControlRoutes(self.pool, self.client, aborts, registry)
        workers = WorkerAdmin(self.pool, registry, self.siblings)
        groups = GroupAdmin(self.groups.pools, self.config.policy)
        shown = [*workers.routes(), *groups.routes(), *self.reloader.routes()]
        admins = [*control.routes(), *shown]
        self.access.reserve((method, path) for method, path, _ in admins)
        table = [*of_sessions, *anywhere, *admins, *Dashboard(boundary.failures).routes()]
        chat_path = self._chat_path({path for _, path, _ in table})
        for method, path, handler in [*of_sessions, *in_sessions(anywhere), *table]:
            add_route(app, method, path, handler)
        if chat_path is not None:
            for path in {chat_path, "/invocations"}:  # the second is Amazon's, for the same body
                add_chat(app, IN_SESSION + path, self._serving(CHAT))
                add_chat(app, path, self._serving(CHAT))
        strays = Fallback(self.pool, self.others, self.bodies.prepared)
        for prefix, stray in ((IN_SESSION, strays.handle_in_session), ("", strays.handle)):
            app.router.register_resource(TidyPaths(app.router, prefix or "/", STRAYS))
            add_route(app, "*", prefix + "/{path:(?s:.*)}", stray)
        app.cleanup_ctx.append(self._lifespan)
        app.on_shutdown.append(self.grace.start)
        if self.cors.is_on:
            app.on_response_prepare.append(self.cors.on_prepare)
        return app

    def _doors(self) -> list[Route]:
        """The routes served both with and without a session in the path."""
        names = self.context.models
        retrieve = RetrieveDoor(
            Retriever(self.maker, self.cache, self.store, self.tokenizer, self.path.fetch), names
        )
        doctor = Doctor(self.maker, self.store, self.tokenizer, self.template, self.path.fetch)
        model = ModelAdmin(
            self.tokenizer,
            self.template,
            self.pool,
            model_name=self.config.model_name,
            checkpoint=self.config.hf_checkpoint,
            weights=self.weights,
            hand_on=self.others.hand_on,
            siblings=self.siblings,
        )
        answer_figures(self)
        kept = self.responses
        shared = SharedResponses(kept, self.siblings, self.journal).first
        settled = None if self.journal is None else self.journal.written
        counts = (self.context, self.path.length)
        return [
            ("POST", "/generate", self._serving(GENERATE)),
            ("PUT", "/generate", self._serving(GENERATE)),  # SGLang takes both
            ("POST", "/v1/completions", self._serving(COMPLETIONS)),
            ("POST", "/inference/v1/generate", self._serving(INFERENCE)),
            ("POST", "/v1/responses", shared(self._serving(responses(kept, settled)))),
            ("POST", "/v1/responses/input_tokens", shared(partial(count_input, *counts, kept))),
            *stored.routes(kept, shared),
            ("POST", "/v1/messages", self._serving(ANTHROPIC)),
            ("POST", "/v1/messages/count_tokens", partial(count_tokens, *counts)),
            ("POST", "/retrieve_from_text", retrieve.from_text),
            ("POST", "/retrieve_from_messages_template", retrieve.from_messages),
            ("POST", "/diagnose", DiagnoseDoor(doctor, names, self.path.meters.diagnosed).handle),
            ("GET", "/engine_metrics", partial(engine_metrics, self.pool, self.client)),
            ("GET", "/metrics", partial(metrics, self)),
            ("GET", "/metrics/prometheus", partial(metrics_text, self)),
            ("GET", "/prometheus/metrics", partial(metrics_text, self)),
            *model.routes(),
            *ApiDescription(self.config.openai_chat_completion_path.rstrip("/")).routes(),
        ]

    def _serving(self, dialect: Dialect[A]) -> Handler:
        return partial(serve, dialect, self.context)

    def _session_routes(self) -> list[Route]:
        return session_routes(
            self.store,
            self.sessions,
            self.tokenizer,
            self.template,
            self.path.fetch,
            self.groups,
            default_max_turns=self.config.session_max_turns,
            realign_threshold=self.config.realign_threshold,
            on_left_out=self.path.meters.left_out,
        )

    def _chat_path(self, used: Collection[str]) -> str | None:
        path = self.config.openai_chat_completion_path.rstrip("/") or "/"
        if not self.config.enable_openai_chat_completion:
            return None
        if path in used:
            raise SetupError(f"chat cannot be served at {path!r}: it has another use")
        return path

    def _bring_back(self) -> None:
        assert self.journal is not None  # which has more than turns and sessions
        self.together.enrolment.register_again()
        if isinstance(self.responses, JournaledResponses):
            self.responses.bring_back_all(self.journal.named("responses"))

    async def _lifespan(self, _: web.Application) -> AsyncIterator[None]:
        if self.journal is not None:
            self.journal.start(self.weights.note, self._bring_back)
        async with self.supervisor, self.fleet, self.groups:
            self.upkeep.start(self.supervisor)
            self.session_kv.start(self.supervisor)
            self.slow_clients.start(self.supervisor)
            self.descriptors.start(self.supervisor)
            choosing = self.supervisor.start("faster encoder", self.tokenizer.encoder_chosen)
            self.encoder_choice = choosing  # done where no more is loaded
            async with self.siblings:
                await self.together.start(self.supervisor)
                with self.stalls.watching():
                    yield
            await self.joiner.close()
        if self.journal is not None:
            await self.journal.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        self.tokenizer.close()
