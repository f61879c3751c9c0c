"""The workers' side of the wiring: the pool, and all that sends to it, watches it or starts it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from slime_router.chat.tokenizer import Tokenizer
from slime_router.chat.visible import VisibleText
from slime_router.config import Config
from slime_router.errors import RouterError, SetupError
from slime_router.launch.command import sglang_commands
from slime_router.launch.launcher import Launcher
from slime_router.server.greetings import Greetings
from slime_router.server.launched import LaunchedWorkers
from slime_router.types import Sampling
from slime_router.weights import WeightVersions
from slime_router.workers.attempts import RelaySettings
from slime_router.workers.backoff import Backoff
from slime_router.workers.breaker import BreakerSettings
from slime_router.workers.client import WorkerClient
from slime_router.workers.health import Health, HealthSettings
from slime_router.workers.items import OpenText
from slime_router.workers.policy import make_policy
from slime_router.workers.pool import WorkerPool
from slime_router.workers.relay import Relay
from slime_router.workers.worker import Worker

_COUNTS = ("waited", "retried", "moved", "resumed", "dropped_tokens")


class Fleet:
    """What stands between the router and its workers; open while the router serves.

    Raises:
        SetupError: a worker's URL is none.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        weights: WeightVersions,
        *,
        greeting_delays_s: Sequence[float],
    ) -> None:
        self.pool = _pool(config, weights)
        self.client = WorkerClient(
            capture=config.capture, request_timeout_s=config.request_timeout_s
        )
        self.greetings = Greetings(
            self.pool,
            self.client,
            tokenizer,
            checkpoint=config.hf_checkpoint,
            delays_s=greeting_delays_s,
        )
        self.health = Health(
            self.pool, self.client, _health_settings(config), on_up=self.greetings.greet
        )
        self.relay = Relay(
            self.pool,
            self.client,
            RelaySettings(
                request_timeout_s=config.request_timeout_s,
                worker_wait_s=config.worker_wait_s,
                pause_wait_s=config.pause_wait_s,
                resume_aborted=config.resume_aborted,
            ),
            open_text=_text_reader(tokenizer),
            eos_ids=tokenizer.eos_ids,
            backoff=_backoff(config),
            on_suspicion=self.health.suspect,
        )
        self.launcher = _launcher(config, self)
        self._open = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Fleet {self.pool!r}>"

    def figures(self) -> dict[str, int]:
        """How the workers are, and what became of requests that they failed."""
        workers, counts = self.pool.list(), self.relay.counts
        return {
            "up": sum(worker.is_up for worker in workers),
            "paused": sum(worker.is_paused or worker.is_asleep for worker in workers),
            "draining": sum(worker.is_draining for worker in workers),
            "running": self.relay.running,
            "deaths": self.health.deaths,
            "recoveries": self.health.recoveries,
            **{name: counts[name] for name in _COUNTS},
        }

    async def __aenter__(self) -> Fleet:
        async with AsyncExitStack() as stack:  # what fails to open leaves nothing open
            for part in (self.client, self.health, self.launcher):
                await stack.enter_async_context(part)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.greetings.stop()
        await self._open.aclose()


def _pool(config: Config, weights: WeightVersions) -> WorkerPool:
    most = config.version_policy

    def may_serve(worker: Worker) -> bool:
        return most is None or weights.lag(worker.weight_version) <= most

    pool = WorkerPool(
        policy=make_policy(config.policy),
        breaker=BreakerSettings(
            is_enabled=config.enable_circuit_breaker,
            failure_threshold=config.cb_failure_threshold,
            success_threshold=config.cb_success_threshold,
            open_s=config.cb_timeout_s,
            window_s=config.cb_window_s,
        ),
        may_serve=may_serve,
        api_key=config.worker_api_key,
        probe_s=config.health_check_interval_s,
    )
    for url in config.worker_urls:
        try:
            pool.add(url)
        except RouterError as exc:
            raise SetupError(f"worker {url!r}: {exc.message}") from exc
    return pool


def _health_settings(config: Config) -> HealthSettings:
    return HealthSettings(
        is_enabled=config.enable_health_check,
        endpoint=config.health_check_endpoint,
        interval_s=config.health_check_interval_s,
        timeout_s=config.health_check_timeout_s,
        failure_threshold=config.health_failure_threshold,
        success_threshold=config.health_success_threshold,
        startup_timeout_s=config.worker_startup_timeout_s,
    )


def _backoff(config: Config) -> Backoff:
    return Backoff(
        max_retries=config.retry_max_retries,
        initial_s=config.retry_initial_backoff_ms / 1000,
        factor=config.retry_backoff_multiplier,
        max_s=config.retry_max_backoff_ms / 1000,
        jitter=config.retry_jitter_factor,
    )


def _text_reader(tokenizer: Tokenizer) -> OpenText:
    def open_text(rules: Sampling) -> VisibleText:
        decoder = tokenizer.decoder(skip_special_tokens=rules.skip_special_tokens)
        return VisibleText(decoder, rules)

    return open_text


def _launcher(config: Config, fleet: Fleet) -> Launcher:
    commands = sglang_commands(
        config.launch_workers,
        config.hf_checkpoint,
        config.worker_flags,
        python=config.worker_python or sys.executable,
        trust_remote_code=config.trust_remote_code,
        api_key=config.worker_api_key,
    )
    api_key = commands[0].api_key if commands else None
    launched = LaunchedWorkers(fleet.pool, fleet.client, fleet.greetings.greet, api_key=api_key)
    return Launcher(
        commands,
        answers=launched.answers,
        on_up=launched.note_up,
        on_down=launched.note_down,
        startup_timeout_s=config.worker_startup_timeout_s,
        log_dir=Path(config.worker_log_dir) if config.worker_log_dir else None,
    )
