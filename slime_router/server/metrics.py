"""The metrics of one process, each declared once: its place in the JSON and in Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from slime_router.api.context import EndpointContext
from slime_router.api.responses.store import ResponseStore
from slime_router.api.retries import Joiner
from slime_router.archive.shared import SharedArchive
from slime_router.cache.prefix_cache import PrefixCache
from slime_router.edge.descriptors import DescriptorWatch
from slime_router.edge.plugin_guard import PluginGuard
from slime_router.failover.session_kv import SessionKv
from slime_router.generation.admission import AdmissionQueue
from slime_router.generation.counting import Counting, GenerationCounts
from slime_router.generation.recording import Recorder
from slime_router.generation.token_path import TokenPath
from slime_router.generation.weight_versions import WeightVersions
from slime_router.pool.worker import Worker
from slime_router.server.fleet import Fleet
from slime_router.server.loop.stalls import StallWatch
from slime_router.server.slow_clients import SlowClients
from slime_router.server.together.merging import Figures
from slime_router.siblings.siblings import Siblings
from slime_router.supervisor import Supervisor
from slime_router.tokens.tokenizer import Tokenizer
from slime_router.trajectory.store import TrajectoryStore


class Sources(Protocol):
    """The parts of a router that count."""

    admission: AdmissionQueue
    cache: PrefixCache
    context: EndpointContext
    counting: Counting
    descriptors: DescriptorWatch
    fleet: Fleet
    guard: PluginGuard
    joiner: Joiner
    path: TokenPath
    recording: Recorder
    responses: ResponseStore
    session_kv: SessionKv
    siblings: Siblings
    slow_clients: SlowClients
    stalls: StallWatch
    store: TrajectoryStore
    supervisor: Supervisor
    tokenizer: Tokenizer
    weights: WeightVersions

    @property
    def journal(self) -> SharedArchive | None:
        """What outlives the router, if anything does."""


class Sample(NamedTuple):
    """One number. `figure` is its place in the JSON: a group and a key, such as `cache.hit_rate`.

    `read` may give a number for each value of one more label instead, by that value.
    """

    figure: str
    read: Callable[[Sources], Any]
    labels: tuple[str, ...] = ()  # their values


class Metric(NamedTuple):
    """A metric under its name in Prometheus: a counter where that ends in `_total`, else a gauge.

    `labels` are the names of its samples' labels.
    """

    name: str
    help: str
    samples: tuple[Sample, ...]
    labels: tuple[str, ...] = ()

    @property
    def is_counter(self) -> bool:
        """Whether it only grows."""
        return self.name.endswith("_total")

    @property
    def kind(self) -> Literal["counter", "gauge"]:
        """What it is."""
        return "counter" if self.is_counter else "gauge"


def _one(name: str, figure: str, help: str, read: Callable[[Sources], Any], *labels: str) -> Metric:
    return Metric(name, help, (Sample(figure, read),), labels)


def _workers(name: str, key: str, help: str, counts: Callable[[Worker], bool | None]) -> Metric:
    def read(r: Sources) -> int:
        return sum(bool(counts(worker)) for worker in r.fleet.pool.list())

    return _one(name, f"fleet.{key}", help, read)


def _per_worker(name: str, help: str, read: Callable[[Sources, Worker], int]) -> Metric:
    def by_url(r: Sources) -> dict[str, int]:
        return {worker.url: read(r, worker) for worker in r.fleet.pool.list()}

    return _one(name, f"fleet.{name}", help, by_url, "worker")


def _requests(name: str, key: str, help: str) -> Metric:
    return _one(name, f"fleet.{key}", help, lambda r: r.fleet.relay.counts[key])


def _recorded(key: str, help: str, read: Callable[[Recorder], int]) -> Metric:
    name = f"recorded_{key}"
    return _one(f"{name}_total", f"trajectories.{name}", help, lambda r: read(r.recording))


def _encoder(name: str, help: str) -> Metric:
    key = name.removesuffix("_total")
    return _one(
        f"encoder_{name}", f"encoder.{key}", help, lambda r: r.tokenizer.encoder_figures()[key]
    )


def _journal(name: str, key: str, help: str) -> Metric:
    def read(r: Sources) -> int:
        return 0 if r.journal is None else r.journal.figures().get(key, 0)

    return _one(f"journal_{name}", f"journal.{key}", help, read)


def _by_door(
    name: str,
    help: str,
    keys: Mapping[str, Callable[[GenerationCounts], int]],
    label: str | None = None,
) -> Metric:
    """Of the generations of each door; `label`, where there is one, tells the `keys` apart."""
    doors: tuple[tuple[str, str, Callable[[Sources], GenerationCounts]], ...] = (
        ("chat", "chat_completion", lambda r: r.counting.chat),
        ("generate", "generate", lambda r: r.counting.generate),
    )

    def sample(
        door: str, group: str, of: Callable[[Sources], GenerationCounts], key: str
    ) -> Sample:
        values = (door,) if label is None else (door, key.removesuffix("_tokens"))
        return Sample(f"{group}.{key}", lambda r: keys[key](of(r)), values)

    samples = tuple(sample(*door, key) for door in doors for key in keys)
    return Metric(name, help, samples, ("door",) if label is None else ("door", label))


def _hit_rate(r: Sources) -> float:
    lookups = r.cache.counts.hits + r.cache.counts.misses
    return r.cache.counts.hits / lookups if lookups else 0.0


# fmt: off
METRICS = (
    _one("workers", "router.active_workers", "registered workers", lambda r: len(r.fleet.pool)),
    _one("requests_active", "router.total_in_flight", "requests under way at workers",
         lambda r: r.fleet.pool.total_in_flight),
    _one("worker_requests_active", "router.worker_loads", "requests under way at a worker",
         lambda r: r.fleet.pool.loads, "worker"),
    _one("aborts_total", "router.aborts_sent", "aborts sent to workers",
         lambda r: r.fleet.client.aborts_sent),
    _one("aborts_failed_total", "router.aborts_failed", "aborts that no worker took",
         lambda r: r.fleet.client.aborts_failed),
    _one("media_passed_total", "router.media_passed", "requests with media, not captured",
         lambda r: r.context.media.passed),
    _one("pictures_captured_total", "router.pictures_captured",
         "generations with pictures, captured", lambda r: r.path.caching.proof.captured),
    _one("pictures_changed_total", "router.pictures_changed",
         "generations with pictures whose prompt a worker has changed",
         lambda r: r.path.caching.proof.changed),
    _one("plugin_failures_total", "router.plugin_failures", "requests that a plug-in broke",
         lambda r: r.guard.failures),
    _workers("workers_up", "up", "workers that can be reached", lambda w: w.is_up),
    _workers("workers_paused", "paused", "workers that were paused or put to sleep",
             lambda w: w.is_resting),
    _workers("workers_draining", "draining", "workers that are to leave",
             lambda w: w.is_draining),
    _workers("workers_refusing", "refusing", "workers that say they take nothing new",
             lambda w: w.is_refusing),
    _workers("workers_unfit", "unfit", "workers that cannot serve the model",
             lambda w: w.misfit is not None),
    _one("workers_full", "fleet.full", "workers that have as many requests as they may",
         lambda r: r.fleet.pool.full),
    _workers("workers_token_mismatch", "token_mismatch", "workers that make other tokens",
             lambda w: w.is_token_exact is False),
    _per_worker("worker_up", "1 for a worker that can be reached", lambda _, w: int(w.is_up)),
    _per_worker("worker_breaker_open", "1 for a worker whose circuit breaker is not closed",
                lambda r, w: int(r.fleet.pool.breaker_state(w) != "closed")),
    _per_worker("worker_version_lag", "weight updates that a worker has not seen",
                lambda r, w: r.weights.lag(w.weight_version)),
    _one("worker_deaths_total", "fleet.deaths", "workers lost", lambda r: r.fleet.health.deaths),
    _one("worker_recoveries_total", "fleet.recoveries", "workers that came back",
         lambda r: r.fleet.health.recoveries),
    _one("discovery_failures_total", "fleet.discovery_failures",
         "times that a source of workers could not be asked", lambda r: r.fleet.discovery.failures),
    _one("forgotten_adapters_total", "fleet.forgotten_adapters",
         "names of adapters that were too many", lambda r: r.fleet.pool.adapters.forgotten),
    _one("runs", "fleet.running", "generations under way, those that wait too",
         lambda r: r.fleet.relay.running),
    _requests("waits_total", "waited", "requests that waited for a worker"),
    _requests("retries_total", "retried", "tries after a worker failed"),
    _requests("moves_total", "moved", "generations that another worker took over"),
    _requests("resumes_total", "resumed", "aborted generations that went on"),
    _requests("masks_refused_total", "masks_refused",
              "requests whose sampling masks a worker refused"),
    _requests("dropped_tokens_total", "dropped_tokens", "tokens of replies that started over"),
    _one("admission_running", "admission.running", "generations that have a slot",
         lambda r: r.admission.figures.running),
    _one("admission_places", "admission.places", "generations that may have one",
         lambda r: r.admission.places),
    _one("admission_waiting", "admission.waiting", "generations that wait for one",
         lambda r: r.admission.figures.waiting),
    _one("admission_waited_total", "admission.waited", "generations that had to wait",
         lambda r: r.admission.figures.waited),
    _one("admission_refused_total", "admission.refused", "generations turned away",
         lambda r: r.admission.figures.refused),
    _one("queue_seconds_total", "admission.queue_time_s", "time of all that waited",
         lambda r: r.admission.figures.queue_time_s),
    _one("clients_cut_total", "admission.cut_clients", "clients that were too slow",
         lambda r: r.slow_clients.cut),
    _one("stored_responses", "responses.stored", "responses that are kept",
         lambda r: len(r.responses)),
    _one("stored_response_bytes", "responses.bytes", "what they and what they continue take",
         lambda r: r.responses.size),
    _one("forgotten_responses_total", "responses.forgotten", "dropped to make room",
         lambda r: r.responses.forgotten),
    _encoder("fast", "1 where fastokens encodes"),
    _encoder("checked_total", "requests on which it was compared"),
    _encoder("differed_total", "requests on which it differed"),
    _one("loop_stalls_total", "loop.stalls", "times that nothing could run",
         lambda r: r.stalls.count),
    _one("loop_stalled_seconds_total", "loop.stalled_s", "how long in all",
         lambda r: round(r.stalls.total_s, 6)),
    _one("loop_longest_stall_seconds", "loop.longest_stall_s", "the longest of them",
         lambda r: round(r.stalls.longest_s, 6)),
    _one("loop_lag_seconds", "loop.lag_s", "how late the loop was when it was last looked at",
         lambda r: round(r.stalls.lag_s, 6)),
    _one("accept_pauses_total", "loop.accept_pauses", "times that new clients had to wait",
         lambda r: r.descriptors.pauses),
    _one("descriptors_out_total", "loop.descriptors_out", "times without file descriptors",
         lambda r: r.descriptors.times_out),
    _one("processes", "processes.count", "processes of the router", lambda r: r.siblings.count),
    _one("processes_answering", "processes.answering", "of which answer", lambda _: 1),
    _one("process_restarts_total", "processes.restarts", "processes that were started again",
         lambda r: r.siblings.restarts),
    _one("process_silences_total", "processes.silences", "questions that another did not answer",
         lambda r: r.siblings.silences.total()),
    _one("background_tasks", "background.tasks", "background tasks that run",
         lambda r: len(r.supervisor)),
    _one("background_failures_total", "background.failures", "failures of background tasks",
         lambda r: r.supervisor.failures.total()),
    _one("cache_entries", "cache.total_entries", "nodes of the tree",
         lambda r: r.cache.size.nodes),
    _one("cache_tokens", "cache.cur_cache_size", "tokens in the tree",
         lambda r: r.cache.size.tokens),
    _one("cache_max_tokens", "cache.max_cache_size", "tokens that the tree may hold",
         lambda r: r.cache.budget_tokens),
    Metric(
        "cache_lookup_total",
        "look-ups in the tree",
        (
            Sample("cache.cache_hits", lambda r: r.cache.counts.hits, ("hit",)),
            Sample("cache.cache_misses", lambda r: r.cache.counts.misses, ("miss",)),
        ),
        ("result",),
    ),
    _one("cache_hit_ratio", "cache.hit_rate", "look-ups that found something", _hit_rate),
    _one("cache_hit_tokens_total", "cache.hit_tokens", "tokens found in the tree",
         lambda r: r.cache.counts.hit_tokens),
    _one("cache_evictions_total", "cache.evicted_entries", "nodes that made room",
         lambda r: r.cache.counts.evicted_nodes),
    _one("cache_invalidations_total", "cache.stale_entries", "nodes of old weights",
         lambda r: r.cache.counts.stale_nodes),
    _one("cache_lost_paths_total", "cache.lost_paths", "turns not filed by text",
         lambda r: r.cache.counts.lost_paths),
    _one("cache_failed_insertions_total", "cache.failed_insertions", "faults of the router",
         lambda r: r.cache.counts.failed_insertions),
    _one("template_left_out_total", "template.left_out",
         "prompts without something that the client sent", lambda r: r.path.caching.left_out),
    _one("weight_epoch", "weights.epoch", "weight updates seen", lambda r: r.weights.epoch),
    _one("turns", "trajectories.turns", "recorded turns held", lambda r: len(r.store)),
    _one("turn_tokens", "trajectories.tokens", "tokens of the turns", lambda r: r.store.tokens),
    _one("turn_max_tokens", "trajectories.max_tokens", "tokens that turns may have",
         lambda r: r.store.budget_tokens),
    _one("turn_pinned_tokens", "trajectories.pinned_tokens", "tokens of open sessions",
         lambda r: r.store.pinned_tokens),
    _one("sessions", "trajectories.sessions", "sessions held", lambda r: len(r.store.sessions)),
    _one("sessions_opened", "trajectories.opened_sessions", "of which opened",
         lambda r: r.store.sessions.opened),
    _one("turns_dropped_total", "trajectories.dropped_turns", "turns that made room",
         lambda r: r.store.dropped_turns),
    _one("turns_expired_total", "trajectories.expired_turns", "turns that were idle",
         lambda r: r.store.expired_turns),
    _one("turn_account_bytes", "trajectories.account_bytes", "what is kept about the turns",
         lambda r: r.store.ledger.bytes),
    _one("turn_words_dropped_total", "trajectories.dropped_words", "turns whose text made room",
         lambda r: r.store.ledger.dropped_words),
    _recorded("turns", "turns recorded", lambda r: r.counts.turns),
    _recorded("undelivered", "turns whose client left", lambda r: r.counts.undelivered),
    _recorded("empty", "generations without a token", lambda r: r.counts.empty),
    _recorded("missing_logprobs", "tokens without a logprob",
              lambda r: r.counts.missing_logprobs),
    _recorded("rebased", "turns whose base was dropped", lambda r: r.counts.rebased),
    _recorded("late", "turns of a session that had ended", lambda r: r.counts.late),
    _recorded("hidden_calls", "tool calls after the first, where one was asked for",
              lambda r: r.counts.hidden_calls),
    _recorded("bad_routed_experts", "turns with unreadable routed experts",
              lambda r: r.counts.bad_routed_experts),
    _one("session_kv_released_total", "fleet.session_kv_released",
         "ended sessions that workers were asked to release", lambda r: r.session_kv.released),
    _one("session_kv_failed_total", "fleet.session_kv_failed",
         "requests to release that a worker did not take", lambda r: r.session_kv.failed),
    _recorded("truncated_sampling", "turns sampled from an unknown part of the vocabulary",
              lambda r: r.counts.truncated_sampling),
    _recorded("failed", "turns that a fault of the router kept from being recorded",
              lambda r: r.counts.failed),
    _recorded("after_close", "turns that came after another router had closed their session",
              lambda r: r.counts.after_close),
    _recorded("not_durable", "turns whose replies went out, or failed, before they were durable",
              lambda r: r.counts.not_durable),
    _journal("changes_total", "changes", "changes written to the journal"),
    _journal("commits_total", "commits", "transactions that they took"),
    _journal("waiting", "waiting", "changes that are not written yet"),
    _journal("failures_total", "failures", "transactions that failed"),
    _journal("lost_total", "lost", "changes that will never be written"),
    _journal("skipped", "skipped", "turns that could not be read"),
    _journal("degraded", "degraded", "1 while nothing can be written"),
    _journal("lookups_total", "lookups", "looks into the journal or the store"),
    _journal("failed_lookups_total", "failed_lookups", "those that had no answer in time"),
    _journal("fetched_turns_total", "fetched_turns", "turns that were fetched from there"),
    _journal("evicted_turns_total", "evicted_turns", "turns that left the memory alone"),
    _journal("rewritten_turns_total", "rewritten_turns", "turns that the store had lost"),
    _journal("dropped_sessions_total", "dropped_sessions", "sessions that retention dropped"),
    _journal(
        "dropped_unexported_sessions_total",
        "dropped_unexported_sessions",
        "those that nobody had exported",
    ),
    _journal("dropped_turns_total", "dropped_turns", "turns that retention dropped"),
    _one("retries_open", "retries.open", "generations that a next try may join",
         lambda r: r.joiner.running),
    _one("retries_joined_total", "retries.joined", "tries that joined one",
         lambda r: r.joiner.joined),
    _one("retries_abandoned_total", "retries.abandoned", "generations without a next try",
         lambda r: r.joiner.abandoned),
    _by_door("generations_started_total", "generations begun", {"started": lambda c: c.started}),
    _by_door("generations_finished_total", "generations that finished",
             {"finished": lambda c: c.finished}),
    _by_door("generations_failed_total", "generations that did not",
             {"failed": lambda c: c.failed}),
    _by_door(
        "prompts_total",
        "prompts by how they were made",
        {
            "extended": lambda c: c.extended,
            "branched": lambda c: c.branched,
            "fresh": lambda c: c.fresh,
        },
        "status",
    ),
    _by_door(
        "tokens_total",
        "tokens of prompts (reused, encoded) and replies (output)",
        {
            "reused_tokens": lambda c: c.reused_tokens,
            "encoded_tokens": lambda c: c.encoded_tokens,
            "output_tokens": lambda c: c.output_tokens,
        },
        "token_type",
    ),
)
# fmt: on
# In the JSON only: a name, and what is a histogram in Prometheus.
NAMES = (
    Sample("weights.current", lambda r: r.weights.current),
    Sample("loop.late", lambda r: r.stalls.late_by_ms()),
)


def figures(sources: Sources) -> Figures:
    """The figures of this process by group and key; ratios in [0, 1], sizes in tokens."""
    found: Figures = {}
    for sample in (*(each for metric in METRICS for each in metric.samples), *NAMES):
        group, _, key = sample.figure.partition(".")
        found.setdefault(group, {})[key] = sample.read(sources)
    return found
