"""The workers' side of the wiring: the pool, and what sends to it, watches it or starts it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from slime_router.auth.session_ids import is_label
from slime_router.config import Config
from slime_router.discovery.discovery import Discovery
from slime_router.discovery.sources import read_source
from slime_router.engine.client import WorkerClient
from slime_router.engine.connector import check_aiohttp
from slime_router.errors import NotFound, RouterError, SetupError
from slime_router.failover.attempts import RelaySettings
from slime_router.failover.greetings import Greetings
from slime_router.failover.health import Health, HealthSettings
from slime_router.failover.native_items import OpenText
from slime_router.failover.relay import Relay
from slime_router.failover.scoring import Scored, Scorer
from slime_router.generation.weight_versions import WeightVersions
from slime_router.launch.command import WorkerCommand, sglang_commands
from slime_router.launch.launcher import Launcher
from slime_router.pool.backoff import Backoff
from slime_router.pool.failures import BreakerSettings
from slime_router.pool.policy import make_policy
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Worker
from slime_router.supervisor import Supervisor
from slime_router.tokens.stop_strings import VisibleText
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.trajectory.measures.scores import TeacherScore
from slime_router.types import Sampling
from slime_router.values import replace

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
        self._pool.mark_down(worker, "its process ended", was_stopped=True)


class Fleet:
    """Everything between the router and its workers; open while the router serves.

    Raises:
        SetupError: a worker's URL, or where to find more, is invalid; or aiohttp is another than
            expected.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        weights: WeightVersions,
        supervisor: Supervisor,
        *,
        greeting_delays_s: Sequence[float],
    ) -> None:
        check_aiohttp()
        self.pool = _pool(config, weights)
        self.client = worker_client(config, tokenizer.vocab_size)
        self.greetings = Greetings(
            self.pool,
            self.client,
            tokenizer,
            supervisor,
            checkpoint=config.hf_checkpoint,
            delays_s=greeting_delays_s,
            allows_mismatch=config.allow_token_mismatch,
        )
        self.health = Health(
            self.pool,
            self.client,
            _health_settings(config),
            supervisor,
            on_up=self.greetings.greet,
        )
        self.relay = Relay(
            self.pool,
            self.client,
            RelaySettings(
                request_timeout_s=config.request_timeout_s,
                worker_wait_s=config.worker_wait_s,
                pause_wait_s=config.pause_wait_s,
                room_wait_s=config.queue_timeout_s,
                resume_aborted=config.resume_aborted,
            ),
            open_text=_text_reader(tokenizer),
            eos_ids=tokenizer.eos_ids,
            backoff=_backoff(config),
            on_suspicion=self.health.suspect,
        )
        self.discovery = Discovery(
            self.pool,
            tuple(map(read_source, config.worker_discovery)),
            supervisor,
            interval_s=config.worker_discovery_interval_s,
        )
        self.launcher = _launcher(config, self, supervisor)
        self._open = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Fleet {self.pool!r}>"

    def launched(self, api_key: str | None) -> LaunchedWorkers:
        """What learns of launched workers, which all require this key."""
        return LaunchedWorkers(self.pool, self.client, self.greetings.greet, api_key=api_key)

    async def __aenter__(self) -> Fleet:
        async with AsyncExitStack() as stack:  # what fails to open leaves nothing open
            for part in (self.client, self.health, self.discovery, self.launcher):
                await stack.enter_async_context(part)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.greetings.stop()
        await self._open.aclose()


class WorkerGroups:
    """Workers of other models, such as teachers: each group has a pool, a policy and weights of
    its own, and is open while the router serves.

    Raises:
        SetupError: a group has no name or no worker, or its name is taken.
    """

    def __init__(
        self,
        config: Config,
        new_fleet: Callable[[Config], Fleet],
        *,
        vocab_size: int,
    ) -> None:
        self._fleets: dict[str, Fleet] = {}
        self._scorers: dict[str, Scorer] = {}
        for name, *urls in config.worker_group:
            if name in self._fleets or not is_label(name) or not urls or "://" in name:
                raise SetupError(f"--worker-group takes a new name and URLs, not {name!r} {urls}")
            own = replace(
                config,
                worker_urls=tuple(urls),
                launch_workers=0,
                worker_flags=(),
                version_policy=None,
            )
            fleet = self._fleets[name] = new_fleet(own)
            self._scorers[name] = Scorer(fleet.relay, vocab_size=vocab_size)
        self._open = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<WorkerGroups {', '.join(self._fleets)}>"

    async def __aenter__(self) -> WorkerGroups:
        async with AsyncExitStack() as stack:  # what fails to open leaves nothing open
            for fleet in self._fleets.values():
                await stack.enter_async_context(fleet)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    @property
    def pools(self) -> dict[str, WorkerPool]:
        """The workers of each group, by its name."""
        return {name: fleet.pool for name, fleet in self._fleets.items()}

    async def score(
        self, group: str, rows: Mapping[str, Scored], *, top: int
    ) -> dict[str, TeacherScore]:
        """What a group thinks of the rows, by their names.

        Raises:
            NotFound: there is no such group.
            RouterError: it cannot score them.
        """
        scorer = self._scorers.get(group)
        if scorer is None:
            known = ", ".join(self._scorers) or "none"
            raise NotFound(
                f"There is no worker group '{group:.100}'; there are: {known}.",
                param="worker_group",
            )
        return await scorer.score(rows, top=top)


def worker_client(config: Config, vocab_size: int) -> WorkerClient:
    """What speaks with workers, once it is entered; ids are in `[0, vocab_size)`."""
    return WorkerClient(
        vocab_size=vocab_size,
        capture=config.capture,
        request_timeout_s=config.request_timeout_s,
    )


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
        cooldown=_backoff(config),
        probe_s=config.health_check_interval_s,
        max_in_flight=config.max_inflight_per_worker,
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
        endpoint=_endpoint(config.health_check_endpoint),
        interval_s=config.health_check_interval_s,
        timeout_s=config.health_check_timeout_s,
        failure_threshold=config.health_failure_threshold,
        success_threshold=config.health_success_threshold,
        startup_timeout_s=config.worker_startup_timeout_s,
    )


def _endpoint(path: str) -> str:
    """The path that is probed; one without its slash gets it.

    Raises:
        SetupError: it cannot be a path.
    """
    if not path.isascii() or not path.isprintable() or " " in path or "#" in path or "://" in path:
        raise SetupError(f"--health-check-endpoint takes a path such as /health, not {path!r}")
    return f"/{path.lstrip('/')}"


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


def _launcher(config: Config, fleet: Fleet, supervisor: Supervisor) -> Launcher:
    commands = worker_commands(config)
    launched = fleet.launched(commands[0].api_key if commands else None)
    return launcher_of(
        config,
        commands,
        supervisor,
        answers=launched.answers,
        on_up=launched.note_up,
        on_down=launched.note_down,
    )


def worker_commands(config: Config) -> tuple[WorkerCommand, ...]:
    """How the workers that are to be launched are started. Raises SetupError."""
    return sglang_commands(
        config.launch_workers,
        config.hf_checkpoint,
        config.worker_flags,
        python=config.worker_python or sys.executable,
        trust_remote_code=config.trust_remote_code,
        api_key=config.worker_api_key,
    )


def launcher_of(
    config: Config,
    commands: Sequence[WorkerCommand],
    supervisor: Supervisor,
    *,
    answers: Callable[[str], Awaitable[bool]],
    on_up: Callable[[str], None],
    on_down: Callable[[str], None],
) -> Launcher:
    """What launches them, as the settings say. Raises SetupError: there is no place for a log."""
    return Launcher(
        commands,
        supervisor,
        answers=answers,
        on_up=on_up,
        on_down=on_down,
        startup_timeout_s=config.worker_startup_timeout_s,
        log_dir=Path(config.worker_log_dir) if config.worker_log_dir else None,
    )
