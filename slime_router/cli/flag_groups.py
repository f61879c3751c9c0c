"""Every flag of the command line, group by group. Names are those that slime's, sglang-router's and
SGLang's users type; each goes to the field of `Config` that has its name, or `dest`.
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
    """What is served."""
    group.add_argument(
        "--hf-checkpoint",
        "--model-path",
        "--tokenizer-path",
        dest="hf_checkpoint",
        metavar="PATH_OR_ID",
        help="the checkpoint whose tokenizer and chat template are used (required)",
    )
    group.add_argument("--chat-template", metavar="FILE", help="used instead of the checkpoint's")
    group.add_argument("--trust-remote-code", action="store_true", default=None)
    group.add_argument("--served-model-name", metavar="NAME", help="what /v1/models lists")
    group.add_argument(
        "--strict-model",
        action="store_true",
        default=None,
        help="404 for requests that name another model; otherwise it is served all the same",
    )
    group.add_argument(
        "--enable-multimodal",
        action=argparse.BooleanOptionalAction,
        help="requests with media go to a worker; as the checkpoint's files say if not given",
    )


def add_worker_flags(group: argparse._ArgumentGroup) -> None:
    """Who serves, and when."""
    seconds = _number(float, 0.0, 1e9)
    group.add_argument("--worker-urls", nargs="*", metavar="URL", help="workers to begin with")
    group.add_argument(
        "--policy", choices=get_args(PolicyName), help="which worker takes the next request"
    )
    group.add_argument(
        "--worker-api-key", metavar="KEY", help="sent to workers that were given no other"
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
        help="whose generations go on by themselves when a worker aborts them",
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
    """What becomes of workers that fail, and of their requests."""
    seconds, positive = _number(float, 0.0, 1e9), _number(float, 0.001, 1e9)
    for flag, kind, metavar in (
        ("--retry-max-retries", _number(int, 0, 1000), "N"),
        ("--retry-initial-backoff-ms", seconds, "MS"),
        ("--retry-max-backoff-ms", seconds, "MS"),
        ("--retry-backoff-multiplier", _number(float, 1.0, 100.0), "X"),
        ("--retry-jitter-factor", _number(float, 0.0, 1.0), "X"),
        ("--cb-failure-threshold", _count(), "N"),
        ("--cb-success-threshold", _count(), "N"),
        ("--health-failure-threshold", _count(), "N"),
        ("--health-success-threshold", _count(), "N"),
    ):
        group.add_argument(flag, type=kind, metavar=metavar)
    for flag, dest, kind in (
        ("--cb-timeout-duration-secs", "cb_timeout_s", seconds),
        ("--cb-window-duration-secs", "cb_window_s", positive),
        ("--health-check-interval-secs", "health_check_interval_s", positive),
        ("--health-check-timeout-secs", "health_check_timeout_s", positive),
    ):
        group.add_argument(flag, dest=dest, type=kind, metavar="S")
    group.add_argument(
        "--health-check-endpoint", metavar="PATH", help="any answer below 500 will do"
    )
    for flag, dest, value in (
        ("--disable-retries", "retry_max_retries", 0),
        ("--disable-circuit-breaker", "enable_circuit_breaker", False),
        ("--disable-health-check", "enable_health_check", False),
    ):
        group.add_argument(flag, dest=dest, action="store_const", const=value)


def add_launch_flags(group: argparse._ArgumentGroup) -> None:
    """Workers that the router starts itself."""
    group.add_argument(
        "--launch-workers",
        type=_count(),
        metavar="N",
        help="start N SGLang servers of the checkpoint; flags behind `--` are theirs",
    )
    group.add_argument(
        "--worker-python", metavar="PATH", help="the Python that has SGLang; this one if not given"
    )
    group.add_argument(
        "--worker-log-dir", metavar="DIR", help="a file for the output of each; else this log"
    )
    group.add_argument(
        "--worker-startup-timeout-secs",
        dest="worker_startup_timeout_s",
        type=_number(float, 0.001, 1e9),
        metavar="S",
        help="how long a worker may take until it answers",
    )


def add_server_flags(group: argparse._ArgumentGroup) -> None:
    """Where and how it listens."""
    group.add_argument("--host", "--sglang-router-ip", dest="host", help="address to listen on")
    group.add_argument(
        "--port",
        "--sglang-router-port",
        dest="port",
        type=_number(int, 1, 65535),
        help="port to listen on",
    )
    group.add_argument("--max-payload-size", type=_count(), metavar="BYTES")
    group.add_argument(
        "--request-timeout-secs",
        "--slime-router-timeout",
        "--sglang-router-request-timeout-secs",
        dest="request_timeout_s",
        type=_number(float, 0.001, 1e9),
        metavar="S",
    )
    group.add_argument(
        "--shutdown-grace-period-secs",
        dest="shutdown_grace_period_s",
        type=_number(float, 0, 1e9),
        metavar="S",
        help="how long running requests may go on after SIGTERM",
    )
    levels = ("debug", "info", "warning", "error")
    group.add_argument("--log-level", choices=levels, type=str.lower)
    group.add_argument("--verbose", action="store_true", help="the same as --log-level debug")


def add_limit_flags(group: argparse._ArgumentGroup) -> None:
    """How much at once, and for how long."""
    group.add_argument(
        "--max-concurrent-requests",
        type=_count(),
        metavar="N",
        help="generations at once, of all doors; each of n samples is one",
    )
    group.add_argument(
        "--queue-size",
        type=_number(int, 0, 2**40),
        metavar="N",
        help="generations that wait beyond those; sessions take turns",
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
        help="a client that sends or reads nothing for so long is cut",
    )


def add_access_flags(group: argparse._ArgumentGroup) -> None:
    """Who may do what."""
    for flag, metavar, text in (
        ("--api-key", "KEY", "what clients must send; without one the router is open"),
        ("--admin-api-key", "KEY", "for control routes, workers and the list of sessions"),
        ("--api-keys-file", "FILE", "lines `name: key`, or JSON: each has sessions of its own"),
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
    """What becomes of tokens."""
    group.add_argument(
        "--history",
        choices=("held", "template"),
        help="continue with what was sampled, or with what the template renders",
    )
    group.add_argument(
        "--capture",
        choices=("full", "tokens", "off"),
        help="record tokens and logprobs, tokens alone, or nothing",
    )
    group.add_argument(
        "--radix-tree-max-size", type=_count(), metavar="TOKENS", help="cache budget"
    )
    group.add_argument(
        "--middleware-paths",
        "--slime-router-middleware-paths",
        dest="middleware_paths",
        nargs="*",
        metavar="MODULE:NAME",
        help="plug-ins, the outermost first",
    )


def add_session_flags(group: argparse._ArgumentGroup) -> None:
    """What is kept of sessions."""
    group.add_argument(
        "--max-stored-tokens",
        type=_count(),
        metavar="TOKENS",
        help="of recorded turns; as many as the cache if not given",
    )
    group.add_argument(
        "--max-sessions", type=_count(), metavar="N", help="opened and not deleted since"
    )
    group.add_argument(
        "--session-max-turns",
        type=_count(),
        metavar="N",
        help="of an opened session that says nothing",
    )
    group.add_argument(
        "--session-idle-secs",
        dest="session_idle_s",
        type=_number(float, 0.001, 1e9),
        metavar="S",
        help="what no open session has goes when it was not used for so long",
    )
    group.add_argument(
        "--realign-threshold",
        type=_number(int, 0, 2**31),
        metavar="TOKENS",
        help="a shorter drift at the end of a reply is masked; a longer one begins a new row",
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
        help="how long a generation waits for the SDK that dropped it to ask again",
    )


def add_chat_flags(group: argparse._ArgumentGroup) -> None:
    """How replies are read, and chat is served."""
    group.add_argument(
        "--tool-call-parser",
        "--sglang-tool-call-parser",
        dest="tool_call_parser",
        metavar="{auto,none,NAME}",
        help="the format in which the model calls tools: found in the template, not read, or one "
        "of SGLang's",
    )
    group.add_argument(
        "--reasoning-parser",
        "--sglang-reasoning-parser",
        dest="reasoning_parser",
        metavar="{auto,none,NAME}",
        help="the format in which the model thinks, likewise",
    )
    group.add_argument(
        "--reasoning-field",
        choices=("reasoning_content", "both"),
        help="in chat: SGLang's name alone, or also `reasoning`, which vLLM's clients read",
    )
    group.add_argument(
        "--enable-openai-chat-completion",
        action=argparse.BooleanOptionalAction,
        help="serve chat completions here; otherwise they go to a worker as they are",
    )
    group.add_argument("--openai-chat-completion-path", metavar="PATH")
    group.add_argument(
        "--openai-default-model", metavar="NAME", help="when a request names no model"
    )
    group.add_argument("--openai-max-concurrent-requests", type=_count(), metavar="N")
    group.add_argument(
        "--max-stored-responses",
        type=_count(),
        metavar="N",
        help="kept for `previous_response_id`; the least recently used goes first",
    )


def _version_policy(text: str) -> int:
    """Updates that a worker may lag; -1 for any."""
    name, _, count = text.partition(":")
    if name == "max-staleness" and count.isdecimal():
        return int(count)
    if text in ("any", "latest"):
        return 0 if text == "latest" else -1
    raise argparse.ArgumentTypeError(f"{text} is not any, latest or max-staleness:K")
