"""The settings of one router. The command builds them once; every part gets only what it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from slime_router.types import Capture, History, PolicyName, Resume

ReasoningField: TypeAlias = Literal["reasoning_content", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting, with its default."""

    hf_checkpoint: str
    host: str = "127.0.0.1"
    port: int = 30000
    worker_urls: tuple[str, ...] = ()
    launch_workers: int = 0  # SGLang servers that the router starts itself
    worker_flags: tuple[str, ...] = ()  # SGLang's own flags for them
    worker_python: str | None = None  # the Python that runs them; None: the router's own
    worker_log_dir: str | None = None  # None: their output goes to the router's log
    worker_startup_timeout_s: float = 1800.0  # as in other routers: big models take long to load
    policy: PolicyName = "cache_aware"
    worker_api_key: str | None = field(default=None, repr=False)  # for workers without their own
    version_policy: int | None = None  # updates by which a serving worker may lag; None: any
    resume_aborted: Resume = "chat"
    worker_wait_s: float = 30.0  # for a worker, while none can be reached
    pause_wait_s: float = 600.0  # for the end of a pause
    retry_max_retries: int = 5  # this and the following are sglang-router's defaults
    retry_initial_backoff_ms: float = 50.0
    retry_max_backoff_ms: float = 30_000.0
    retry_backoff_multiplier: float = 1.5
    retry_jitter_factor: float = 0.2
    cb_failure_threshold: int = 10
    cb_success_threshold: int = 3
    cb_timeout_s: float = 60.0
    cb_window_s: float = 120.0
    enable_circuit_breaker: bool = True
    enable_health_check: bool = True
    health_check_endpoint: str = "/model_info"
    health_check_interval_s: float = 10.0
    health_check_timeout_s: float = 10.0
    health_failure_threshold: int = 3
    health_success_threshold: int = 1
    history: History = "held"
    radix_tree_max_size: int = 20_000_000  # tokens; about 20 bytes each
    middleware_paths: tuple[str, ...] = ()
    chat_template: str | None = None  # a file, or the template itself
    trust_remote_code: bool = False
    served_model_name: str | None = None
    capture: Capture = "full"
    tool_call_parser: str = "auto"  # "none", or SGLang's name of a format
    reasoning_parser: str = "auto"
    reasoning_field: ReasoningField = "reasoning_content"
    enable_multimodal: bool | None = None  # None: as the checkpoint says
    strict_model: bool = False
    enable_openai_chat_completion: bool = True
    openai_chat_completion_path: str = "/v1/chat/completions"
    openai_default_model: str | None = None
    openai_max_concurrent_requests: int = 32_768  # to all chat APIs together
    max_concurrent_requests: int = 32_768  # generations: 64 engines with slime's 512 each
    queue_size: int = 131_072  # clients have no other router to turn to, so queue
    queue_timeout_s: float = 3600.0
    client_timeout_s: float = 60.0  # without any progress
    max_stored_responses: int = 1000  # for `previous_response_id`
    request_timeout_s: float = 14_400.0  # slime's own default: a long rollout is not a failure
    max_stored_tokens: int | None = None  # of turns; None: as many as the cache
    max_sessions: int = 100_000
    session_max_turns: int = 10_000  # of a session that sets no limit itself
    session_idle_s: float = 14_400.0
    realign_threshold: int = 16  # tokens
    max_version_lag: int | None = None  # weight updates; None: old tokens stay
    retry_grace_s: float = 2.0  # SDKs wait half a second before they retry
    max_payload_size: int = 512 * 2**20  # bytes
    shutdown_grace_period_s: float = 30.0
    log_level: str = "info"
    api_key: str | None = field(default=None, repr=False)  # of clients; None: no key is needed
    admin_api_key: str | None = field(default=None, repr=False)
    api_keys_file: str | None = None  # of named clients
    cors_allowed_origins: tuple[str, ...] = ()
    tls_cert_path: str | None = None
    tls_key_path: str | None = None

    @property
    def model_name(self) -> str:
        """The name under which `/v1/models` lists the model."""
        return self.served_model_name or self.openai_default_model or self.hf_checkpoint
