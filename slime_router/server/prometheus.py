"""The metrics of `GET /metrics` in the text formats that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from slime_router.errors import BadRequest

PREFIX = "slime_router_"
Figures = Mapping[str, Any]


class _Family(NamedTuple):
    """One metric; it is a counter if its name ends in `_total`.

    `samples` maps the values of `labels` to a figure's path, such as `cache.cache_hits`.
    """

    name: str
    what: str
    samples: Mapping[Any, str]
    labels: tuple[str, ...] = ()


def _one(name: str, what: str, figure: str) -> _Family:
    return _Family(name, what, {(): figure})


def _by_door(name: str, what: str, key: str) -> _Family:
    doors = {("chat",): f"chat_completion.{key}", ("generate",): f"generate.{key}"}
    return _Family(name, what, doors, ("door",))


def _by_door_and(label: str, name: str, what: str, keys: Mapping[str, str]) -> _Family:
    """`keys` maps the label's values to keys of a door's figures."""
    samples = {
        (door, value): f"{group}.{key}"
        for door, group in (("chat", "chat_completion"), ("generate", "generate"))
        for value, key in keys.items()
    }
    return _Family(name, what, samples, ("door", label))


def _recorded(key: str, what: str) -> _Family:
    return _one(f"recorded_{key}_total", what, f"trajectories.recorded_{key}")


FAMILIES = (
    _one("workers", "registered workers", "router.active_workers"),
    _one("requests_active", "requests under way at workers", "router.total_in_flight"),
    _one("workers_up", "workers that can be reached", "fleet.up"),
    _one("workers_paused", "workers that were paused or put to sleep", "fleet.paused"),
    _one("workers_draining", "workers that are to leave", "fleet.draining"),
    _one("worker_deaths_total", "workers lost", "fleet.deaths"),
    _one("worker_recoveries_total", "workers that came back", "fleet.recoveries"),
    _one("runs", "generations under way, those that wait too", "fleet.running"),
    _one("waits_total", "requests that waited for a worker", "fleet.waited"),
    _one("retries_total", "tries after a worker failed", "fleet.retried"),
    _one("moves_total", "generations that another worker took over", "fleet.moved"),
    _one("resumes_total", "aborted generations that went on", "fleet.resumed"),
    _one("dropped_tokens_total", "tokens of replies that started over", "fleet.dropped_tokens"),
    _one("admission_running", "generations that have a slot", "admission.running"),
    _one("admission_waiting", "generations that wait for one", "admission.waiting"),
    _one("admission_waited_total", "generations that had to wait", "admission.waited"),
    _one("admission_refused_total", "generations turned away", "admission.refused"),
    _one("queue_seconds_total", "time of all that waited", "admission.queue_time_s"),
    _one("clients_cut_total", "clients that were too slow", "admission.cut_clients"),
    _one("aborts_total", "aborts sent to workers", "router.aborts_sent"),
    _one("aborts_failed_total", "aborts that no worker took", "router.aborts_failed"),
    _one("media_passed_total", "requests with media, not captured", "router.media_passed"),
    _one("cache_entries", "nodes of the tree", "cache.total_entries"),
    _one("cache_tokens", "tokens in the tree", "cache.cur_cache_size"),
    _one("cache_max_tokens", "tokens that the tree may hold", "cache.max_cache_size"),
    _Family(
        "cache_lookup_total",
        "look-ups in the tree",
        {("hit",): "cache.cache_hits", ("miss",): "cache.cache_misses"},
        ("result",),
    ),
    _one("cache_hit_ratio", "look-ups that found something", "cache.hit_rate"),
    _one("cache_hit_tokens_total", "tokens found in the tree", "cache.hit_tokens"),
    _one("cache_evictions_total", "nodes that made room", "cache.evicted_entries"),
    _one("cache_invalidations_total", "nodes of old weights", "cache.stale_entries"),
    _one("cache_lost_paths_total", "turns not filed by text", "cache.lost_paths"),
    _one("weight_epoch", "weight updates seen", "weights.epoch"),
    _one("turns", "recorded turns held", "trajectories.turns"),
    _one("turn_tokens", "tokens of the turns", "trajectories.tokens"),
    _one("turn_max_tokens", "tokens that turns may have", "trajectories.max_tokens"),
    _one("turn_pinned_tokens", "tokens of open sessions", "trajectories.pinned_tokens"),
    _one("sessions", "sessions held", "trajectories.sessions"),
    _one("sessions_opened", "of which opened", "trajectories.opened_sessions"),
    _one("turns_dropped_total", "turns that made room", "trajectories.dropped_turns"),
    _one("turns_expired_total", "turns that were idle", "trajectories.expired_turns"),
    _recorded("turns", "turns recorded"),
    _recorded("undelivered", "turns whose client left"),
    _recorded("empty", "generations without a token"),
    _recorded("missing_logprobs", "tokens without a logprob"),
    _recorded("rebased", "turns whose base was dropped"),
    _recorded("late", "turns of a session that had ended"),
    _recorded("hidden_calls", "tool calls after the first, where one was asked for"),
    _recorded("bad_routed_experts", "turns with unreadable routed experts"),
    _one("retries_open", "generations that a next try may join", "retries.open"),
    _one("retries_joined_total", "tries that joined one", "retries.joined"),
    _one("retries_abandoned_total", "generations without a next try", "retries.abandoned"),
    _by_door("generations_started_total", "generations begun", "started"),
    _by_door("generations_finished_total", "generations that finished", "finished"),
    _by_door("generations_failed_total", "generations that did not", "failed"),
    _by_door_and(
        "status",
        "prompts_total",
        "prompts by how they were made",
        {status: status for status in ("extended", "branched", "fresh")},
    ),
    _by_door_and(
        "token_type",
        "tokens_total",
        "tokens of prompts (reused, encoded) and replies (output)",
        {kind: f"{kind}_tokens" for kind in ("reused", "encoded", "output")},
    ),
)


class _Figures(Collector):
    """A snapshot of the figures, as `prometheus_client` collects them."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            metric = _metric(family.name, family.what, family.labels)
            for labels, figure in family.samples.items():
                group, _, key = figure.partition(".")
                metric.add_metric(labels, self._figures[group][key])
            yield metric
        loads = _metric("worker_requests_active", "requests under way at a worker", ("worker",))
        for url, load in self._figures["router"]["worker_loads"].items():
            loads.add_metric((url,), load)
        yield loads


def _metric(
    name: str, what: str, labels: tuple[str, ...]
) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    return kind(PREFIX + name, what, labels=labels)


def exposition(figures: Figures, accept: str) -> tuple[bytes, str]:
    """The figures as text, and its Content-Type: OpenMetrics if `accept` allows it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(figures))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def wants_text(query_format: str | None, accept: str) -> bool:
    """Whether Prometheus is asking: it gives a `version=` for text, or names OpenMetrics.

    Raises:
        BadRequest: `?format=` is neither `json` nor `prometheus`.
    """
    if query_format is not None:
        if query_format not in ("json", "prometheus"):
            raise BadRequest("'format' must be 'json' or 'prometheus'.", param="format")
        return query_format == "prometheus"
    return "openmetrics" in accept or "version=" in accept
