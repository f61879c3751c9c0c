"""The settings of one router. `cli.py` builds it once; every part gets only what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from slime_router.types import Capture, History

ReasoningField: TypeAlias = Literal["reasoning_content", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting, with the default a user gets who says nothing."""

    hf_checkpoint: str
    host: str = "127.0.0.1"
    port: int = 30000
    worker_urls: tuple[str, ...] = ()
    history: History = "held"
    radix_tree_max_size: int = 20_000_000  # tokens; about 20 bytes each
    middleware_paths: tuple[str, ...] = ()
    chat_template: str | None = None  # a file, or the template itself
    trust_remote_code: bool = False
    served_model_name: str | None = None
    capture: Capture = "full"
    tool_call_parser: str | None = None  # names of SGLang's formats
    reasoning_parser: str | None = None
    reasoning_field: ReasoningField = "reasoning_content"
    enable_multimodal: bool | None = None  # None: as the checkpoint says
    strict_model: bool = False
    enable_openai_chat_completion: bool = True
    openai_chat_completion_path: str = "/v1/chat/completions"
    openai_default_model: str | None = None
    openai_max_concurrent_requests: int = 4096
    max_stored_responses: int = 1000  # for `previous_response_id`
    request_timeout_s: float = 14_400.0  # slime's own figure: a long rollout is no failure
    max_stored_tokens: int | None = None  # of turns; None: as many as the cache
    max_sessions: int = 100_000
    session_max_turns: int = 10_000  # of a session that says nothing else
    session_idle_s: float = 14_400.0
    realign_threshold: int = 16  # tokens
    max_version_lag: int | None = None  # weight updates; None: old tokens stay
    retry_grace_s: float = 2.0  # SDKs wait half a second before they ask again
    max_payload_size: int = 512 * 2**20  # bytes
    shutdown_grace_period_s: float = 30.0
    log_level: str = "info"

    @property
    def model_name(self) -> str:
        """The name under which `/v1/models` lists the model."""
        return self.served_model_name or self.openai_default_model or self.hf_checkpoint
