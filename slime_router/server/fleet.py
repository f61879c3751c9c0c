"""The workers' side of the wiring: the pool, and what sends to it, watches it or starts it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from slime_router.config import Config
from slime_router.engine.client import WorkerClient
from slime_router.errors import NotFound, RouterError, SetupError
from slime_router.failover.attempts import RelaySettings
from slime_router.failover.greetings import Greetings
from slime_router.failover.health import Health, HealthSettings
from slime_router.failover.native_items import OpenText
from slime_router.failover.relay import Relay
from slime_router.generation.weight_versions import WeightVersions
from slime_router.launch.command import sglang_commands
from slime_router.launch.launcher import Launcher
from slime_router.pool.backoff import Backoff
from slime_router.pool.breaker import BreakerSettings
from slime_router.pool.policy import make_policy
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Worker
from slime_router.tokens.stop_strings import VisibleText
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.types import Sampling

_COUNTS = ("waited", "retried", "moved", "resumed", "dropped_tokens")


PROBE_TIMEOUT_S = 10.0


class LaunchedWorkers:
    """Keeps the pool informed; `greet` is called with each worker that starts serving.

    `api_key` is the key that all of them require.
    """

    def __init__(
        self,
        pool: WorkerPool,
        client: WorkerClient,
        greet: Callable[[Worker], None],
        *,
        api_key: str | None = None,
    ) -> None:
        self._api_key = api_key
        self._pool = pool
        self._client = client
        self._greet = greet

    async def answers(self, url: str) -> bool:
        """Whether the worker at `url`, which need not be registered, is ready to serve."""
        try:
            answer = await self._client.ask(
                Worker(url, api_key=self._api_key),
                "GET",
                "/health",
                headers={},
                timeout_s=PROBE_TIMEOUT_S,
            )
        except RouterError:
            return False
        return answer.status == 200

    def note_up(self, url: str) -> None:
        """Registers it, or takes it back into service."""
        worker = self._pool.add(url, api_key=self._api_key)
        self._pool.mark_up(worker)
        self._greet(worker)

    def note_down(self, url: str) -> None:
        """Takes it out of service; its cache, its pause and its weights are lost with it."""
        try:
            worker = self._pool.get(url)
        except NotFound:  # a user has removed it
            return
        self._pool.mark_down(worker)
        self._pool.rest(worker, is_paused=False, is_asleep=False)
        worker.weight_version = None


class Fleet:
    """Everything between the router and its workers; open while the router serves.

    Raises:
        SetupError: a worker's URL is invalid.
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
        """The state of the workers, and what became of the requests they failed."""
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
