"""What a shared store costs: short chats with Redis on loopback, a shared journal, and neither."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.conversation import reply_ids
from benchmarks.driven import Driven
from benchmarks.native.stand_in import worker
from benchmarks.report import Measurement
from benchmarks.rounds import interleave
from benchmarks.server import router
from benchmarks.short_chat import CHAT, REPLY_LEN, bodies
from tests.redis_server import RedisServer, program

CONNECTIONS = 16
NAMES = {"redis": "Redis on loopback", "shared": "shared journal"}


def run(checkpoint: Path, *, rounds: int = 5, requests: int = 800) -> list[Measurement]:
    """CPU of the router over that of one without a store; latency added at p99."""
    with (
        tempfile.TemporaryDirectory() as folder,
        worker(reply_ids(checkpoint, REPLY_LEN)) as behind,
    ):
        urls = ("--worker-urls", behind.url)
        server = RedisServer(Path(folder) / "redis")
        has_redis = program() is not None
        if has_redis:
            server.start()
            server.wait_ready()
        store = ("--store", server.url) if has_redis else ("--journal", f"{folder}/other")
        shared = ("--journal", f"{folder}/shared", "--journal-shared")
        try:
            with (
                router(checkpoint, *urls) as bare,
                router(checkpoint, *urls, *store) as redis,
                router(checkpoint, *urls, *shared) as journaled,
            ):
                servers = {"bare": bare, "redis": redis, "shared": journaled}
                sides = {
                    name: Driven(each, CHAT, bodies(), requests, CONNECTIONS)
                    for name, each in servers.items()
                    if has_redis or name != "redis"
                }
                measured = interleave(sides, rounds)
        finally:
            server.kill()
    found = []
    for name, words in NAMES.items():
        if name not in sides:
            continue
        costs = measured.cost(name) * 1e6, measured.cost("bare") * 1e6
        added_ms = sides[name].quantile_ms("latency", 99) - sides["bare"].quantile_ms("latency", 99)
        found += [
            Measurement(
                f"{words}: CPU of a short chat over that without a store",
                measured.ratio(name, to="bare"),
                "x",
                None,
                f"{costs[0]:.0f} us over {costs[1]:.0f} us; {rounds} rounds of {requests}",
            ),
            Measurement(
                f"{words}: latency added at p99",
                added_ms,
                "ms",
                None,
                f"at {CONNECTIONS} connections, as fast as they go",
            ),
        ]
    return found
