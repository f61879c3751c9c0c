"""The settings about workers: which serve, how failing ones are treated, and which are started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slime_router.choices import PolicyName, Resume, read_version_policy, show_version_policy
from slime_router.setting import SOON, count, path, seconds, setting


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Which workers serve, and when."""

    title: ClassVar[str] = "workers"

    worker_urls: tuple[str, ...] = setting(
        (), "workers to start with; others can register later", metavar="URL"
    )
    worker_group: tuple[tuple[str, ...], ...] = setting(
        (),
        "workers of another model, such as a teacher: its name, then their addresses; repeatable",
        metavar="NAME_OR_URL",
        is_repeated=True,
    )
    worker_discovery: tuple[str, ...] = setting(
        (),
        "where more workers are found: the lines of a watched file, the addresses of a name",
        metavar="{file:PATH,dns:NAME:PORT}",
    )
    worker_discovery_interval_s: float = seconds(5.0, "how often to look there", low=SOON)
    policy: PolicyName = setting("cache_aware", "which worker takes the next request")
    worker_api_key: str | None = setting(
        None, "sent to workers that have no key of their own", metavar="KEY", is_secret=True
    )
    allow_token_mismatch: bool = setting(
        False, "let workers serve that tokenize differently from the router"
    )
    version_policy: int | None = setting(  # updates by which a serving worker may lag
        None,
        "which weights a worker must run to serve",
        metavar="{any,latest,max-staleness:K}",
        read=read_version_policy,
        show=show_version_policy,
        default_help="any",
    )
    resume_aborted: Resume = setting(
        "chat", "which generations are resumed when a worker aborts them"
    )
    worker_wait_s: float = seconds(30.0, "how long a request waits while no worker can be reached")
    pause_wait_s: float = seconds(600.0, "how long a request waits while generation is paused")


@dataclass(frozen=True, kw_only=True)
class FailureSettings:
    """What happens to failing workers, and to their requests. The defaults are sglang-router's."""

    title: ClassVar[str] = "worker failures"

    retry_max_retries: int = count(
        5,
        "how often a request is retried in a row without a new token",
        low=0,
        high=1000,
        shorthands=(("--disable-retries", 0, "the same as --retry-max-retries 0"),),
    )
    retry_initial_backoff_ms: float = setting(
        50.0, "the first delay before a retry", metavar="MS", low=0.0, high=1e9
    )
    retry_max_backoff_ms: float = setting(
        30_000.0, "the longest delay before a retry", metavar="MS", low=0.0, high=1e9
    )
    retry_backoff_multiplier: float = setting(
        1.5, "the factor by which each delay grows", metavar="X", low=1.0, high=100.0
    )
    retry_jitter_factor: float = setting(
        0.2, "the share by which each delay varies at random", metavar="X", low=0.0, high=1.0
    )
    cb_failure_threshold: int = count(10, "failures that open a worker's circuit breaker")
    cb_success_threshold: int = count(3, "successes that close it again")
    cb_timeout_s: float = seconds(
        60.0, "how long a circuit breaker stays open", flag="--cb-timeout-duration-secs"
    )
    cb_window_s: float = seconds(
        120.0, "forget failures older than this", low=SOON, flag="--cb-window-duration-secs"
    )
    enable_circuit_breaker: bool = setting(
        True,
        "keep requests from failing workers; without it they get some, at growing intervals",
        shorthands=(
            ("--disable-circuit-breaker", False, "the same as --no-enable-circuit-breaker"),
        ),
    )
    enable_health_check: bool = setting(
        True,
        "probe all workers; without it, only those that failed a request",
        shorthands=(("--disable-health-check", False, "the same as --no-enable-health-check"),),
    )
    health_check_endpoint: str = setting(
        "/model_info", "the path to probe; any answer below 500 counts as healthy", metavar="PATH"
    )
    health_check_interval_s: float = seconds(10.0, "the time between two probes", low=SOON)
    health_check_timeout_s: float = seconds(10.0, "how long a probe may take", low=SOON)
    health_failure_threshold: int = count(3, "failed probes until a worker is down")
    health_success_threshold: int = count(1, "successful probes until it is back")


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    """Workers that the router starts itself."""

    title: ClassVar[str] = "workers that the router starts"

    launch_workers: int = count(
        0, "start N SGLang servers for the checkpoint; flags after `--` go to them"
    )
    worker_flags: tuple[str, ...] = setting((), "SGLang's own flags for them", flag=None)
    worker_python: str | None = path("the Python that has SGLang", "PATH", default_help="this one")
    worker_log_dir: str | None = path(
        "write their output to files in this directory",
        "DIR",
        default_help="it goes to this log",
    )
    worker_startup_timeout_s: float = seconds(  # big models take long to load
        1800.0, "how long a worker may take to come up", low=SOON
    )
