"""The part of a limit that one of several processes may use. Pure."""

from __future__ import annotations

from typing import Any

from slime_router.config import Config
from slime_router.siblings.place import Place
from slime_router.values import replace

_LIMITS = (
    "max_concurrent_requests", "max_inflight_per_worker", "queue_size",
    "openai_max_concurrent_requests", "radix_tree_max_size", "max_stored_tokens", "max_memory",
)  # fmt: skip


def portion(limit: int, number: int, count: int) -> int:
    """What process `number` of `count` gets of `limit`: the first ones get the remainder.

    Each gets at least one, where there is any; so few places are more when several share them.
    """
    if not limit:
        return 0
    return max(limit // count + (number <= limit % count), 1)


def portion_of(config: Config, place: Place) -> Config:
    """The settings of one process: those of all, its part of their limits, one store.

    Workers are launched by whoever starts the processes.
    """
    limits = {name: getattr(config, name) for name in _LIMITS}
    parts: dict[str, Any] = {
        name: portion(limit, place.number, place.count)
        for name, limit in limits.items()
        if limit is not None
    }
    if config.store is None:  # what they share must be somewhere
        parts |= {"journal": config.journal or str(place.directory / "journal")}
        parts |= {"journal_shared": True}
    return replace(config, **parts, launch_workers=0, worker_flags=())
