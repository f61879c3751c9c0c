"""The command line: flags to a `Config`, then the server until it is told to stop.

Exit codes: 0 stopped by a signal, 1 cannot start, 2 wrong arguments, 130 interrupted before it
was up or while it was stopping.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, get_args

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from slime_router.config import Config
from slime_router.diagnose_cli import diagnose_main
from slime_router.errors import SetupError
from slime_router.launch.command import ROUTERS_OWN
from slime_router.server.app import Gateway, banner
from slime_router.server.stopping import hurry_at_second_signal
from slime_router.types import PolicyName, Resume

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130
MIN_GRACE_S = 0.01  # aiohttp takes 0 for "without end"
AIOHTTP_WAITS = 2  # it waits that often, one after the other, before it cancels a handler


class _Parser(argparse.ArgumentParser):
    """An argument parser that guesses what a wrong flag was meant to be."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # argparse overloads it
        """Parse, or leave with exit code 2 and a hint."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._hint(unknown[0]))
        return parsed

    def _hint(self, flag: str) -> str:
        known = [name for action in self._actions for name in action.option_strings]
        close = difflib.get_close_matches(flag.partition("=")[0], known, n=1)
        said = flag.partition("=")[0]  # behind it may stand a key
        return f"unknown argument {said}" + (f": did you mean {close[0]}?" if close else "")

    def error(self, message: str) -> NoReturn:
        """One line, then exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


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


def parser() -> argparse.ArgumentParser:
    """All flags. Names and their aliases are those that slime and sglang-router users type."""
    p = _Parser(
        prog="slime-router",
        description="A token-exact gateway to SGLang workers.",
        usage="%(prog)s --hf-checkpoint PATH_OR_ID [FLAG ...] [-- SGLANG_FLAG ...]",
        epilog="slime-router diagnose FILE: where held tokens and a text part, and why",
    )
    _add_model_flags(p.add_argument_group("model"))
    _add_worker_flags(p.add_argument_group("workers"))
    _add_retry_flags(p.add_argument_group("failures of workers"))
    _add_launch_flags(p.add_argument_group("workers that the router starts"))
    _add_server_flags(p.add_argument_group("server"))
    _add_access_flags(p.add_argument_group("access"))
    _add_limit_flags(p.add_argument_group("limits"))
    _add_token_flags(p.add_argument_group("tokens"))
    _add_session_flags(p.add_argument_group("sessions"))
    _add_chat_flags(p.add_argument_group("chat completions"))
    return p


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
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


def _add_worker_flags(group: argparse._ArgumentGroup) -> None:
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


def _add_retry_flags(group: argparse._ArgumentGroup) -> None:
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


def _version_policy(text: str) -> int:
    """Updates that a worker may lag; -1 for any."""
    name, _, count = text.partition(":")
    if name == "max-staleness" and count.isdecimal():
        return int(count)
    if text in ("any", "latest"):
        return 0 if text == "latest" else -1
    raise argparse.ArgumentTypeError(f"{text} is not any, latest or max-staleness:K")


def _add_launch_flags(group: argparse._ArgumentGroup) -> None:
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


def _add_server_flags(group: argparse._ArgumentGroup) -> None:
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


def _add_limit_flags(group: argparse._ArgumentGroup) -> None:
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


def _add_access_flags(group: argparse._ArgumentGroup) -> None:
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


def _add_token_flags(group: argparse._ArgumentGroup) -> None:
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


def _add_session_flags(group: argparse._ArgumentGroup) -> None:
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


def _add_chat_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tool-call-parser",
        "--sglang-tool-call-parser",
        dest="tool_call_parser",
        metavar="NAME",
        help="SGLang's name of the format in which the model calls tools",
    )
    group.add_argument(
        "--reasoning-parser",
        "--sglang-reasoning-parser",
        dest="reasoning_parser",
        metavar="NAME",
        help="SGLang's name of the format in which the model thinks",
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


def read_config(argv: Sequence[str] | None = None) -> Config:
    """The configuration that the arguments ask for; leaves with exit code 2 on wrong ones."""
    p = parser()
    own, worker_flags = _split(sys.argv[1:] if argv is None else argv)
    given = vars(p.parse_args(own))
    if not given["hf_checkpoint"]:  # argparse would say so before it names a misspelled flag
        p.error("--hf-checkpoint is required")
    if given.pop("verbose"):
        given["log_level"] = "debug"
    values = {name: value for name, value in given.items() if value is not None}
    if values.get("version_policy") == -1:
        del values["version_policy"]
    for name in ("worker_urls", "middleware_paths", "cors_allowed_origins"):
        if name in values:
            values[name] = tuple(values[name])
    _check_worker_flags(p, worker_flags, is_launching="launch_workers" in values)
    if not str(values.get("openai_chat_completion_path", "/")).startswith("/"):
        p.error("--openai-chat-completion-path must begin with /")
    return Config(**values, worker_flags=tuple(worker_flags))


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Our own arguments, and those behind `--`, which are SGLang's."""
    end = argv.index("--") if "--" in argv else len(argv)
    return argv[:end], argv[end + 1 :]


def _check_worker_flags(
    p: argparse.ArgumentParser, flags: Sequence[str], *, is_launching: bool
) -> None:
    if flags and not is_launching:
        p.error("flags behind -- are for workers: --launch-workers says how many to start")
    for flag in flags:
        if flag.partition("=")[0] in ROUTERS_OWN:
            p.error(f"{flag} behind --: the router chooses where its workers listen")


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM, or diagnose a file; returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["diagnose"]:
        return diagnose_main(given[1:])
    config = read_config(given)
    _start_log(config.log_level)
    try:
        return serve(Gateway(config))
    except SetupError as exc:
        return _failed(exc.message)
    except KeyboardInterrupt:  # while it loads, or for the second time
        return EXIT_INTERRUPTED


def serve(gateway: Gateway) -> int:
    """Serve on the configured address. SIGTERM stops accepting, drains, then cancels.

    A second signal cancels at once.

    Raises:
        SetupError: the chat path cannot be used.
    """
    config = gateway.config
    app = gateway.app()
    hurry_at_second_signal(app, gateway.slow_clients)
    if (warning := gateway.access.warning(config.host)) is not None:
        logger.warning("%s", warning)

    def announce(_: str) -> None:
        sys.stdout.write(banner(gateway))
        sys.stdout.flush()

    try:
        web.run_app(
            app,
            host=config.host,
            port=config.port,
            print=announce,
            access_log=None,
            handler_cancellation=True,  # or a client that leaves would not be noticed
            shutdown_timeout=max(config.shutdown_grace_period_s, MIN_GRACE_S) / AIOHTTP_WAITS,
            loop=_event_loop(),
            ssl_context=gateway.tls,
        )
    except OSError as exc:
        return _failed(f"cannot listen on {config.host}:{config.port}: {_reason(exc)}")
    return 0


def _failed(message: str) -> int:
    sys.stderr.write(f"slime-router: error: {message}\n")
    return 1


def _reason(exc: OSError) -> str:
    """Without the address, which an event loop's own message says again."""
    if exc.errno is not None and exc.errno > 0:  # a resolver's numbers are negative
        return os.strerror(exc.errno)
    return str(exc.strerror or exc)


def _start_log(level: str) -> None:
    """Our own log at `level`; of the libraries' only what is wrong."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("slime_router").setLevel(level.upper())
    logging.getLogger("aiohttp.server").addFilter(_without_headers)


def _without_headers(record: logging.LogRecord) -> bool:
    """aiohttp shows the header that it cannot read: there may be a key in it."""
    exc = record.exc_info[1] if record.exc_info else None
    if isinstance(exc, HttpProcessingError):
        record.msg, record.args, record.exc_info = "a request that is no HTTP", (), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def _event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not to be had on Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
