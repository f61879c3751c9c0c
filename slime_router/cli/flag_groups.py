"""Every command-line flag, group by group. The names are those that users of slime, sglang-router
and SGLang know; each sets the field of `Config` with its name, or `dest`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import get_args

from slime_router.types import PolicyName, Resume


def _number(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in [{low}, {high}]")
        return value

    parse.__name__ = kind.__name__
    return parse


def _count() -> Callable[[str], float]:
    return _number(int, 1, 2**40)


def add_model_flags(group: argparse._ArgumentGroup) -> None:
    """Which model is served."""
    group.add_argument(
        "--hf-checkpoint",
        "--model-path",
        "--tokenizer-path",
        dest="hf_checkpoint",
        metavar="PATH_OR_ID",
        help="the checkpoint whose tokenizer and chat template are used (required)",
    )
    group.add_argument("--chat-template", metavar="FILE", help="use it instead of the checkpoint's")
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        default=None,
        help="run Python code from the checkpoint",
    )
    group.add_argument("--served-model-name", metavar="NAME", help="the name in /v1/models")
    group.add_argument(
        "--strict-model",
        action="store_true",
        default=None,
        help="404 for requests that name another model; by default any name is accepted",
    )
    group.add_argument(
        "--enable-multimodal",
        action=argparse.BooleanOptionalAction,
        help="whether requests with media go to a worker; by default, as the checkpoint says",
    )


def add_worker_flags(group: argparse._ArgumentGroup) -> None:
    """Which workers serve, and when."""
    seconds = _number(float, 0.0, 1e9)
    group.add_argument("--worker-urls", nargs="*", metavar="URL", help="workers to start with")
    group.add_argument(
        "--policy", choices=get_args(PolicyName), help="which worker takes the next request"
    )
    group.add_argument(
        "--worker-api-key", metavar="KEY", help="sent to workers that have no key of their own"
    )
    group.add_argument(
        "--version-policy",
        type=_version_policy,
        metavar="{any,latest,max-staleness:K}",
        help="which weights a worker must run to serve",
    )
    group.add_argument(
        "--resume-aborted",
        choices=get_args(Resume),
        help="which generations are resumed when a worker aborts them",
    )
    group.add_argument(
        "--worker-wait-secs",
        dest="worker_wait_s",
        type=seconds,
        metavar="S",
        help="how long a request waits while no worker can be reached",
    )
    group.add_argument(
        "--pause-wait-secs",
        dest="pause_wait_s",
        type=seconds,
        metavar="S",
        help="how long a request waits while generation is paused",
    )


def add_retry_flags(group: argparse._ArgumentGroup) -> None:
    """What happens to failing workers, and to their requests."""
    seconds, positive = _number(float, 0.0, 1e9), _number(float, 0.001, 1e9)
    for flag, kind, metavar, text in (
        ("--retry-max-retries", _number(int, 0, 1000), "N", "retries in a row without a token"),
        ("--retry-initial-backoff-ms", seconds, "MS", "the first delay before a retry"),
        ("--retry-max-backoff-ms", seconds, "MS", "the longest delay before a retry"),
        ("--retry-backoff-multiplier", _number(float, 1.0, 100.0), "X", "growth of each delay"),
        ("--retry-jitter-factor", _number(float, 0.0, 1.0), "X", "random share of each delay"),
        ("--cb-failure-threshold", _count(), "N", "failures that open a circuit breaker"),
        ("--cb-success-threshold", _count(), "N", "successes that close it again"),
        ("--health-failure-threshold", _count(), "N", "failed probes until a worker is down"),
        ("--health-success-threshold", _count(), "N", "good probes until it is back"),
    ):
        group.add_argument(flag, type=kind, metavar=metavar, help=text)
    for flag, dest, kind, text in (
        ("--cb-timeout-duration-secs", "cb_timeout_s", seconds, "how long a breaker stays open"),
        ("--cb-window-duration-secs", "cb_window_s", positive, "failures older than this expire"),
        ("--health-check-interval-secs", "health_check_interval_s", positive, "between probes"),
        ("--health-check-timeout-secs", "health_check_timeout_s", positive, "limit for a probe"),
    ):
        group.add_argument(flag, dest=dest, type=kind, metavar="S", help=text)
    group.add_argument(
        "--health-check-endpoint",
        metavar="PATH",
        help="the path to probe; any answer below 500 counts as healthy",
    )
    for flag, dest, value, text in (
        ("--disable-retries", "retry_max_retries", 0, "the same as --retry-max-retries 0"),
        (
            "--disable-circuit-breaker",
            "enable_circuit_breaker",
            False,
            "failing workers keep serving",
        ),
        ("--disable-health-check", "enable_health_check", False, "probe only after failures"),
    ):
        group.add_argument(flag, dest=dest, action="store_const", const=value, help=text)


def add_launch_flags(group: argparse._ArgumentGroup) -> None:
    """Workers that the router starts itself."""
    group.add_argument(
        "--launch-workers",
        type=_count(),
        metavar="N",
        help="start N SGLang servers for the checkpoint; flags after `--` go to them",
    )
    group.add_argument(
        "--worker-python", metavar="PATH", help="the Python that has SGLang; by default this one"
    )
    group.add_argument(
        "--worker-log-dir",
        metavar="DIR",
        help="write their output to files there; by default to this log",
    )
    group.add_argument(
        "--worker-startup-timeout-secs",
        dest="worker_startup_timeout_s",
        type=_number(float, 0.001, 1e9),
        metavar="S",
        help="how long a worker may take to come up",
    )


def add_server_flags(group: argparse._ArgumentGroup) -> None:
    """Where and how the router listens."""
    group.add_argument("--host", "--sglang-router-ip", dest="host", help="address to listen on")
    group.add_argument(
        "--port",
        "--sglang-router-port",
        dest="port",
        type=_number(int, 1, 65535),
        help="port to listen on",
    )
    group.add_argument(
        "--max-payload-size", type=_count(), metavar="BYTES", help="limit for a decompressed body"
    )
    group.add_argument(
        "--request-timeout-secs",
        "--slime-router-timeout",
        "--sglang-router-request-timeout-secs",
        dest="request_timeout_s",
        type=_number(float, 0.001, 1e9),
        metavar="S",
        help="limit for a whole generation",
    )
    group.add_argument(
        "--shutdown-grace-period-secs",
        dest="shutdown_grace_period_s",
        type=_number(float, 0, 1e9),
        metavar="S",
        help="how long running requests may continue after SIGTERM",
    )
    levels = ("debug", "info", "warning", "error")
    group.add_argument("--log-level", choices=levels, type=str.lower)
    group.add_argument("--verbose", action="store_true", help="the same as --log-level debug")


def add_limit_flags(group: argparse._ArgumentGroup) -> None:
    """How much runs at once, and for how long."""
    group.add_argument(
        "--max-concurrent-requests",
        type=_count(),
        metavar="N",
        help="concurrent generations of all APIs; n samples count as n",
    )
    group.add_argument(
        "--queue-size",
        type=_number(int, 0, 2**40),
        metavar="N",
        help="generations that may wait beyond those; sessions take turns",
    )
    group.add_argument(
        "--queue-timeout-secs",
        dest="queue_timeout_s",
        type=_number(float, 0.001, 1e9),
        metavar="S",
        help="how long each may wait",
    )
    group.add_argument(
        "--client-timeout-secs",
        dest="client_timeout_s",
        type=_number(float, 0.001, 1e9),
        metavar="S",
        help="disconnect a client that sends or reads nothing for this long",
    )


def add_access_flags(group: argparse._ArgumentGroup) -> None:
    """Who may use what."""
    for flag, metavar, text in (
        ("--api-key", "KEY", "the key that clients must send; without one the router is open"),
        ("--admin-api-key", "KEY", "for control routes, workers and the list of sessions"),
        ("--api-keys-file", "FILE", "lines `name: key`, or JSON: each name has its own sessions"),
        ("--tls-cert-path", "FILE", "serve HTTPS with this certificate (PEM)"),
        ("--tls-key-path", "FILE", "its private key (PEM)"),
    ):
        group.add_argument(flag, metavar=metavar, help=text)
    group.add_argument(
        "--cors-allowed-origins",
        nargs="*",
        metavar="ORIGIN",
        help="web pages that may use the router; * for all",
    )


def add_token_flags(group: argparse._ArgumentGroup) -> None:
    """How tokens are kept and reused."""
    group.add_argument(
        "--history",
        choices=("held", "template"),
        help="continue from the sampled tokens, or from what the template renders",
    )
    group.add_argument(
        "--capture",
        choices=("full", "tokens", "off"),
        help="record tokens and logprobs, tokens only, or nothing",
    )
    group.add_argument(
        "--radix-tree-max-size", type=_count(), metavar="TOKENS", help="size of the cache"
    )
    group.add_argument(
        "--middleware-paths",
        "--slime-router-middleware-paths",
        dest="middleware_paths",
        nargs="*",
        metavar="MODULE:NAME",
        help="plug-ins, outermost first",
    )


def add_session_flags(group: argparse._ArgumentGroup) -> None:
    """What is kept of sessions, and for how long."""
    group.add_argument(
        "--max-stored-tokens",
        type=_count(),
        metavar="TOKENS",
        help="size of the store of turns; by default that of the cache",
    )
    group.add_argument(
        "--max-sessions",
        type=_count(),
        metavar="N",
        help="sessions that are opened and not deleted",
    )
    group.add_argument(
        "--session-max-turns",
        type=_count(),
        metavar="N",
        help="turns of an opened session that does not set max_turns",
    )
    group.add_argument(
        "--session-idle-secs",
        dest="session_idle_s",
        type=_number(float, 0.001, 1e9),
        metavar="S",
        help="drop turns outside open sessions after this idle time",
    )
    group.add_argument(
        "--realign-threshold",
        type=_number(int, 0, 2**31),
        metavar="TOKENS",
        help="drift at the end of a reply that is shorter is masked; longer drift begins a new row",
    )
    group.add_argument(
        "--max-version-lag",
        type=_number(int, 0, 2**31),
        metavar="K",
        help="drop cached tokens older than K weight updates",
    )
    group.add_argument(
        "--retry-grace-secs",
        dest="retry_grace_s",
        type=_number(float, 0, 3600),
        metavar="S",
        help="keep a generation this long for an SDK's retry",
    )


def add_chat_flags(group: argparse._ArgumentGroup) -> None:
    """How replies are parsed, and chat is served."""
    group.add_argument(
        "--tool-call-parser",
        "--sglang-tool-call-parser",
        dest="tool_call_parser",
        metavar="{auto,none,NAME}",
        help="the format of the model's tool calls: detected, not parsed, or by SGLang's name",
    )
    group.add_argument(
        "--reasoning-parser",
        "--sglang-reasoning-parser",
        dest="reasoning_parser",
        metavar="{auto,none,NAME}",
        help="the same for its reasoning",
    )
    group.add_argument(
        "--reasoning-field",
        choices=("reasoning_content", "both"),
        help="where chat puts reasoning: SGLang's field only, or also vLLM's `reasoning`",
    )
    group.add_argument(
        "--enable-openai-chat-completion",
        action=argparse.BooleanOptionalAction,
        help="serve chat completions here; otherwise they go to a worker unchanged",
    )
    group.add_argument(
        "--openai-chat-completion-path", metavar="PATH", help="the route of chat completions"
    )
    group.add_argument(
        "--openai-default-model", metavar="NAME", help="for requests that name no model"
    )
    group.add_argument(
        "--openai-max-concurrent-requests",
        type=_count(),
        metavar="N",
        help="concurrent requests to all chat APIs; one more gets a 429 at once",
    )
    group.add_argument(
        "--max-stored-responses",
        type=_count(),
        metavar="N",
        help="responses kept for `previous_response_id`; the least recently used goes first",
    )


def _version_policy(text: str) -> int:
    """How many updates a worker may lag; -1 for any number."""
    name, _, count = text.partition(":")
    if name == "max-staleness" and count.isdecimal():
        return int(count)
    if text in ("any", "latest"):
        return 0 if text == "latest" else -1
    raise argparse.ArgumentTypeError(f"{text} is not any, latest or max-staleness:K")
