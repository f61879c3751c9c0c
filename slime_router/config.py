"""The settings of one router, each declared once: type, default, limits and help. The command
builds them; every part gets only what it needs.

Each class is a group of `--help`. Names and aliases of flags are those that users of slime,
sglang-router and SGLang know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from slime_router.choices import (
    Capture,
    EncoderName,
    History,
    JournalSync,
    LogFormat,
    LogLevel,
    OnJournalError,
    ReasoningField,
    StrictFields,
)
from slime_router.host_port import bare_host
from slime_router.setting import FOREVER_S, SOON, count, path, required, seconds, setting
from slime_router.worker_settings import FailureSettings, LaunchSettings, WorkerSettings


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model is served."""

    title: ClassVar[str] = "model"

    hf_checkpoint: str = required(
        "the checkpoint whose tokenizer and chat template are used (required)",
        metavar="PATH_OR_ID",
        is_path=True,
        aliases=("--model-path", "--tokenizer-path"),
    )
    chat_template: str | None = path(
        "a file with a chat template, or the template itself", default_help="the checkpoint's"
    )
    trust_remote_code: bool = setting(False, "run Python code from the checkpoint")
    served_model_name: str | None = setting(
        None, "the name in /v1/models", metavar="NAME", default_help="the checkpoint"
    )
    strict_model: bool = setting(False, "answer 404 to requests that name another model")
    enable_multimodal: bool | None = setting(
        None, "send requests with media to a worker", default_help="as the checkpoint says"
    )


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where and how the router listens."""

    title: ClassVar[str] = "server"

    host: str = setting(
        "127.0.0.1", "address to listen on", aliases=("--sglang-router-ip",), read=bare_host
    )
    port: int = setting(
        30000, "port to listen on", low=1, high=65535, aliases=("--sglang-router-port",)
    )
    processes: int = count(
        1, "how many processes serve on the port, each on its own core", high=128
    )
    max_payload_size: int = count(
        512 * 2**20, "the largest body, as sent and unpacked", metavar="BYTES"
    )
    request_timeout_s: float = seconds(  # slime's own default: a long rollout is not a failure
        14_400.0,
        "how long a whole generation may take",
        low=SOON,
        aliases=("--slime-router-timeout", "--sglang-router-request-timeout-secs"),
    )
    shutdown_grace_period_s: float = seconds(
        30.0, "how long running requests may continue after SIGTERM"
    )
    log_level: LogLevel = setting(
        "info",
        "which messages are logged",
        shorthands=(("--verbose", "debug", "the same as --log-level debug"),),
    )
    log_format: LogFormat = setting("text", "a line of the log is text, or a JSON object")
    otlp_endpoint: str | None = setting(
        None,
        "send traces to this collector (OTLP over HTTP), such as http://localhost:4318",
        metavar="URL",
        default_help="none are made",
    )
    log_requests: bool = setting(
        False, "log the bodies of requests for generations too, cut to 4,096 characters"
    )


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """Who may use what."""

    title: ClassVar[str] = "access"

    api_key: str | None = setting(
        None,
        "the key that clients must send",
        metavar="KEY",
        is_secret=True,
        default_help="the router is open",
    )
    admin_api_key: str | None = setting(
        None,
        "the only key for control routes, workers and the list of sessions",
        metavar="KEY",
        is_secret=True,
    )
    api_keys_file: str | None = path("lines `name: key`, or JSON: each name has its own sessions")
    tls_cert_path: str | None = path("serve HTTPS with this certificate (PEM)")
    tls_key_path: str | None = path("its private key (PEM)")
    cors_allowed_origins: tuple[str, ...] = setting(
        (), "web pages that may use the router; * for all", metavar="ORIGIN"
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "names under which a router on a loopback address is asked without keys; * for any",
        metavar="NAME",
    )
    isolate_tenants: bool = setting(False, "named keys do not share what workers have cached")
    allow_custom_logit_processors: bool = setting(False, "requests may bring code that workers run")
    allow_local_media: bool = setting(
        False, "media may be files of workers, or at addresses that are private"
    )
    capture_pictures: bool = setting(True, "hold turns with pictures token by token, if workers do")
    trusted_proxies: tuple[str, ...] = setting(
        (),
        "addresses or networks whose X-Forwarded-Proto and X-Forwarded-Host count",
        metavar="ADDRESS",
    )


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """How much runs at once, and for how long."""

    title: ClassVar[str] = "limits"

    max_concurrent_requests: int = count(  # 64 engines with slime's 512 each
        32_768, "concurrent generations of all APIs; n samples count as n"
    )
    max_inflight_per_worker: int | None = count(
        None, "the most requests that a worker has at a time", default_help="no limit"
    )
    queue_size: int = count(  # clients have no other router to turn to, so queue
        131_072, "generations that may wait beyond those; sessions take turns", low=0
    )
    queue_timeout_s: float = seconds(3600.0, "how long each may wait", low=SOON)
    client_timeout_s: float = seconds(
        60.0, "disconnect a client that sends or reads nothing for this long", low=SOON
    )
    sse_keepalive_s: float = seconds(
        15.0, "a stream that was silent for this long shows a sign of life; 0: never"
    )


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """How tokens are kept and reused."""

    title: ClassVar[str] = "tokens"

    history: History = setting(
        "held", "continue from the sampled tokens, or from what the template renders"
    )
    capture: Capture = setting(
        "full",
        "record tokens and logprobs, also what they were sampled from, tokens only, or nothing",
    )
    mask_top_k: int = count(  # SGLang's limit is 4096, and ties at the cut need room below it
        1024,
        "with --capture distribution, the top_k of a truncated sampling that has none; 0: none",
        low=0,
        high=2**30 - 1,
    )
    keep_top_logprobs: int = count(
        0,
        "keep so many of the likeliest tokens at each sampled one, in sessions that do not say it",
        low=0,
        high=128,
    )
    sampling_pins: str | None = setting(
        None,
        "sampling that holds for all requests, whatever they ask for; OpenAI's names",
        metavar="JSON",
    )
    encoder: EncoderName = setting(
        "auto", "what encodes texts: fastokens where it makes the same tokens, or one of the two"
    )
    radix_tree_max_size: int = count(  # about 20 bytes each
        20_000_000, "the size of the radix tree", metavar="TOKENS"
    )
    middleware_paths: tuple[str, ...] = setting(
        (),
        "plug-ins, outermost first",
        metavar="MODULE:NAME",
        aliases=("--slime-router-middleware-paths",),
    )
    plugin_timeout_s: float = seconds(
        600.0, "how long a plug-in may work by itself before its request fails", low=SOON
    )


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """What is kept of sessions, and for how long."""

    title: ClassVar[str] = "sessions"

    max_stored_tokens: int | None = count(
        None, "the size of the store of turns", metavar="TOKENS", default_help="that of the tree"
    )
    max_words_bytes: int = count(
        2**29,
        "the size of messages and replies kept as text, for GET /turns",
        metavar="BYTES",
        low=0,
    )
    max_sessions: int = count(100_000, "the most sessions at a time, until they are deleted")
    session_max_turns: int = count(10_000, "turns of an opened session that does not set max_turns")
    session_idle_s: float = seconds(
        14_400.0, "drop turns outside open sessions after this idle time", low=SOON
    )
    session_kv: bool = setting(
        False,
        "workers tag what they cache with its session, and give it back when the session ends",
    )
    realign_threshold: int = count(
        16,
        "drift at the end of a reply that is shorter is masked; longer drift begins a new row",
        metavar="TOKENS",
        low=0,
        high=2**31,
    )
    max_version_lag: int | None = count(
        None,
        "drop cached tokens older than K weight updates",
        metavar="K",
        low=0,
        high=2**31,
        default_help="old tokens stay",
    )
    retry_grace_s: float = seconds(  # SDKs wait half a second before they retry
        2.0, "keep a generation this long for an SDK's retry", high=3600.0
    )


@dataclass(frozen=True, kw_only=True)
class JournalSettings:
    """What outlives the router."""

    title: ClassVar[str] = "journal"

    journal: str | None = path(
        "a directory in which turns, sessions, responses and registered workers outlive the router",
        "DIR",
        default_help="they end with it",
    )
    journal_sync: JournalSync = setting(
        "normal", "a reply that is out survives the end of the process, or also a power failure"
    )
    journal_shared: bool = setting(False, "several routers of this machine may have it open")
    journal_on_error: OnJournalError = setting(
        "degrade", "when it cannot be written: serve on and say so in receipts, or stop"
    )
    journal_max_age_s: float | None = setting(
        None,
        "how long a closed session stays in it after it was exported, and changed last",
        metavar="S",
        low=SOON,
        high=FOREVER_S,
        default_help="until it is deleted",
    )
    journal_max_bytes: int | None = count(
        None,
        "while it is larger, closed sessions that were exported go, the oldest first",
        metavar="BYTES",
        default_help="no limit",
    )
    journal_hard_bytes: int | None = count(
        None,
        "while it is larger and none of those is left, those go that nobody has exported",
        metavar="BYTES",
        default_help="they stay",
    )
    store: str | None = setting(
        None,
        "a Redis or Valkey that routers of any number of machines share, instead of a journal",
        metavar="URL",
        is_secret=True,
        default_help="each router has its own turns",
    )
    store_prefix: str = setting("slime", "what its keys begin with", metavar="TEXT")
    store_ttl_s: float = seconds(7 * 86_400.0, "how long it keeps what nobody uses", low=SOON)
    store_timeout_s: float = seconds(
        1.0, "how long a look into it may take; then the request goes on without", low=SOON
    )
    store_wait_replicas: int = count(
        0, "replicas that must have a turn before its reply ends", low=0
    )
    store_on_error: OnJournalError = setting(
        "degrade",
        "when it is away: serve on from memory and say so in receipts, or refuse and be unready",
    )
    max_memory: int | None = count(
        None,
        "what the turns in memory may take; the others stay in the journal or the store",
        metavar="BYTES",
        default_help="no limit of its own",
    )


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """How replies are parsed, and chat is served."""

    title: ClassVar[str] = "chat completions"

    tool_call_parser: str = setting(
        "auto",
        "the format of the model's tool calls: detected, not parsed, or by SGLang's name",
        metavar="{auto,none,NAME}",
        aliases=("--sglang-tool-call-parser",),
    )
    reasoning_parser: str = setting(
        "auto",
        "the same for its reasoning",
        metavar="{auto,none,NAME}",
        aliases=("--sglang-reasoning-parser",),
    )
    reasoning_field: ReasoningField = setting(
        "reasoning_content",
        "where chat puts reasoning: SGLang's field only, or also vLLM's `reasoning`",
    )
    strip_reasoning_newlines: bool = setting(
        False, "content does not begin with the line breaks that follow reasoning"
    )
    return_tokens_as_token_ids: bool = setting(
        False, "name tokens `token_id:40` beside logprobs, unless a request says otherwise"
    )
    enable_openai_chat_completion: bool = setting(
        True, "serve chat completions here; otherwise they go to a worker unchanged"
    )
    openai_chat_completion_path: str = setting(
        "/v1/chat/completions", "the route of chat completions", metavar="PATH"
    )
    openai_default_model: str | None = setting(
        None, "for requests that name no model", metavar="NAME", default_help="the served name"
    )
    openai_max_concurrent_requests: int = count(
        32_768, "concurrent requests to all chat APIs; one more gets a 429 at once"
    )
    strict_fields: StrictFields = setting(
        "ignore",
        "fields that no API here knows are ignored, named in a header and the log, or refused",
    )
    max_stored_responses: int = count(
        1000, "responses kept for `previous_response_id`; the least recently used goes first"
    )


@dataclass(frozen=True, kw_only=True)
class Config(
    ModelSettings,
    WorkerSettings,
    FailureSettings,
    LaunchSettings,
    ServerSettings,
    AccessSettings,
    LimitSettings,
    TokenSettings,
    SessionSettings,
    JournalSettings,
    ChatSettings,
):
    """Every setting, with its default."""

    @property
    def model_name(self) -> str:
        """The name under which `/v1/models` lists the model."""
        return self.served_model_name or self.openai_default_model or self.hf_checkpoint

    @property
    def served_names(self) -> frozenset[str] | None:
        """With `--strict-model`, every name of the one model; otherwise None."""
        if not self.strict_model:
            return None
        names = (self.served_model_name, self.openai_default_model, self.hf_checkpoint)
        return frozenset(name for name in names if name)


GROUPS: tuple[type[Any], ...] = Config.__bases__  # in the order of `--help`
