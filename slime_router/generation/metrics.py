"""The figures of `GET /metrics`: the counts of all parts, as one JSON object."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from slime_router.cache.prefix_cache import PrefixCache
from slime_router.engine.client import WorkerClient
from slime_router.generation.middleware import CallNext
from slime_router.generation.recording import RecordingCounts
from slime_router.generation.weight_versions import WeightVersions
from slime_router.pool.pool import WorkerPool
from slime_router.trajectory.store import TrajectoryStore
from slime_router.types import GenerateCall, GenerateChunk


@dataclass(slots=True)
class GenerationCounts:
    """Generations by how their prompts were made, and their tokens; over all endpoints."""

    started: int = 0
    finished: int = 0
    failed: int = 0
    extended: int = 0
    branched: int = 0
    fresh: int = 0
    reused_tokens: int = 0
    encoded_tokens: int = 0
    output_tokens: int = 0


class Count:
    """Counts one generation, for the block."""

    __slots__ = ("_counts", "_is_finished")

    def __init__(self, counts: GenerationCounts) -> None:
        self._counts = counts
        self._is_finished = False

    def __enter__(self) -> Count:
        self._counts.started += 1
        return self

    def add(self, chunk: GenerateChunk) -> None:
        """Counts a chunk on its way to the client."""
        counts = self._counts
        if chunk.prompt is not None:
            receipt = chunk.prompt.receipt
            setattr(counts, receipt.status, getattr(counts, receipt.status) + 1)
            counts.reused_tokens += receipt.reused
            counts.encoded_tokens += receipt.encoded
        counts.output_tokens += len(chunk.output_ids)
        self._is_finished = self._is_finished or chunk.finish is not None

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._counts.finished += self._is_finished
        self._counts.failed += not self._is_finished


class Counting:
    """Counts generations as clients see them: one, however often a plug-in asks again."""

    def __init__(self) -> None:
        self.chat = GenerationCounts()
        self.generate = GenerationCounts()

    def count(self, call: GenerateCall) -> Count:
        """Starts counting a generation."""
        return Count(self.chat if call.native is None else self.generate)

    async def around(
        self, call: GenerateCall, call_next: CallNext
    ) -> AsyncGenerator[GenerateChunk, None]:
        """The same as a middleware, to count outside the plug-ins."""
        with self.count(call) as count:
            async for chunk in call_next(call):
                count.add(chunk)
                yield chunk


def figures(
    pool: WorkerPool,
    client: WorkerClient,
    cache: PrefixCache,
    store: TrajectoryStore,
    weights: WeightVersions,
    recorded: RecordingCounts,
    counted: Counting,
) -> dict[str, Any]:
    """All figures since the start; ratios in [0, 1], sizes in tokens."""
    lookups = cache.counts.hits + cache.counts.misses
    return {
        "router": {
            "active_workers": len(pool),
            "worker_loads": pool.loads,
            "total_in_flight": pool.total_in_flight,
            "aborts_sent": client.aborts_sent,
            "aborts_failed": client.aborts_failed,
        },
        "cache": {
            "total_entries": cache.size.nodes,
            "cache_hits": cache.counts.hits,
            "cache_misses": cache.counts.misses,
            "hit_rate": cache.counts.hits / lookups if lookups else 0.0,
            "hit_tokens": cache.counts.hit_tokens,
            "cur_cache_size": cache.size.tokens,
            "max_cache_size": cache.budget_tokens,
            "evicted_entries": cache.counts.evicted_nodes,
            "lost_paths": cache.counts.lost_paths,
            "stale_entries": cache.counts.stale_nodes,
        },
        "weights": {"current": weights.current, "epoch": weights.epoch},
        "trajectories": {
            "turns": len(store),
            "tokens": store.tokens,
            "max_tokens": store.budget_tokens,
            "pinned_tokens": store.pinned_tokens,
            "sessions": len(store.sessions),
            "opened_sessions": store.sessions.opened,
            "dropped_turns": store.dropped_turns,
            "expired_turns": store.expired_turns,
            **{f"recorded_{name}": value for name, value in asdict(recorded).items()},
        },
        "chat_completion": asdict(counted.chat),
        "generate": asdict(counted.generate),
    }
