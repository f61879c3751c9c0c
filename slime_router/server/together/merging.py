"""One answer from those of several processes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from slime_router.siblings.siblings import Heard

Figures: TypeAlias = dict[str, dict[str, Any]]
Worker: TypeAlias = Mapping[str, Any]  # as `GET /workers` shows it

_BREAKERS = ("open", "half_open", "closed")  # the worst first


def same(values: Sequence[Any]) -> Any:
    """What each of them says for all: the first is as good as any."""
    return values[0]


# How a figure of all processes follows from theirs, where it is not the sum.
ACROSS: Mapping[str, Callable[[Sequence[Any]], Any]] = MappingProxyType(
    {
        "router.active_workers": max,
        **{
            f"fleet.{state}": max
            for state in (
                "up", "paused", "draining", "refusing", "unfit", "full", "token_mismatch",
            )
        },
        # Each process sees the same deaths, sources and adapters as the others.
        **{
            f"fleet.{event}": max
            for event in ("deaths", "recoveries", "discovery_failures", "forgotten_adapters")
        },
        "fleet.worker_up": min,
        "fleet.worker_breaker_open": max,
        "fleet.worker_version_lag": max,
        "encoder.fast": min,
        "loop.longest_stall_s": max,
        "loop.lag_s": max,
        "weights.epoch": max,
        "weights.current": same,
        "journal.degraded": max,
        "processes.count": max,
    }
)  # fmt: skip


def merged_figures(each: Sequence[Figures]) -> Figures:
    """The metrics of all processes: counters are added, gauges as their meaning asks."""
    if len(each) == 1:
        return each[0]
    found: Figures = {}
    for group, figures in each[0].items():
        for key in figures:
            values = [other[group][key] for other in each if key in other.get(group, {})]
            combine = ACROSS.get(f"{group}.{key}", sum)
            if isinstance(values[0], Mapping):
                value: Any = _by_key(values, combine)
            else:
                value = combine(values)
            found.setdefault(group, {})[key] = value
    cache = found.get("cache", {})
    if "hit_rate" in cache:
        lookups = cache["cache_hits"] + cache["cache_misses"]
        cache["hit_rate"] = cache["cache_hits"] / lookups if lookups else 0.0
    return found


def merged_workers(each: Iterable[Sequence[Worker]]) -> list[dict[str, Any]]:
    """The workers as all processes see them: their load is that of all, their health the worst."""
    views: dict[str, list[Worker]] = {}
    for listed in each:
        for worker in listed:
            views.setdefault(worker["url"], []).append(worker)
    return [dict(seen[0]) if len(seen) == 1 else _merged_worker(seen) for seen in views.values()]


def _merged_worker(seen: Sequence[Worker]) -> dict[str, Any]:
    worst = next((view for view in seen if not view["is_healthy"]), seen[0])
    exact = [view["is_token_exact"] for view in seen if view["is_token_exact"] is not None]
    return {
        **worst,
        "load": sum(view["load"] for view in seen),
        "queued": max(view["queued"] for view in seen),
        "circuit_breaker": min((v["circuit_breaker"] for v in seen), key=_BREAKERS.index),
        "context_len": _known(seen, "context_len"),
        "is_token_exact": all(exact) if exact else None,
        "weight_version": _known(seen, "weight_version"),
    }


def _known(seen: Sequence[Worker], key: str) -> Any:
    """What the first of them says that knows it."""
    return next((view[key] for view in seen if view[key] is not None), None)


def silence(heard: Heard) -> dict[str, Any]:
    """What a reply says of processes that did not answer; nothing where all have."""
    if not heard.silent:
        return {}
    return {"silent_processes": {str(number): why for number, why in heard.silent.items()}}


def _by_key(
    each: Sequence[Mapping[str, Any]], combine: Callable[[Sequence[Any]], Any]
) -> dict[str, Any]:
    """What several say of the same things, each thing for itself."""
    keys = dict.fromkeys(key for figures in each for key in figures)
    return {key: combine([figures[key] for figures in each if key in figures]) for key in keys}
