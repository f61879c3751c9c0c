"""A worker client and the relay before it, on one pool, as the router wires them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from slime_router.engine.client import WorkerClient
from slime_router.failover.attempts import RelaySettings
from slime_router.failover.relay import Relay
from slime_router.pool.backoff import Backoff
from slime_router.pool.pool import WorkerPool
from slime_router.testing.script import Numbers
from slime_router.tokens.decoder import FindBytes
from slime_router.tokens.stop_strings import VisibleText
from slime_router.types import Sampling


class Spelled:
    """Spells each id as `<7>`, as a fake worker without a tokenizer does."""

    def push(self, ids: Iterable[int]) -> str:
        return Numbers().decode([*ids])

    def run_len(self, find: FindBytes, ids: Sequence[int]) -> int:
        return 0

    def flush(self) -> str:
        return ""


def open_text(rules: Sampling) -> VisibleText:
    """The text that such a worker shows."""
    return VisibleText(Spelled(), rules)


class Relayed(WorkerClient):
    """The client; `relay` runs generations with it, each once on a worker that takes it."""

    def __init__(self, pool: WorkerPool, **settings: Any) -> None:
        given = {
            "vocab_size": 32_000,
            "capture": "full",
            "request_timeout_s": 5.0,
            "abort_timeout_s": 1.0,
            **settings,
        }
        super().__init__(**given)
        self.pool = pool
        self.relay = Relay(
            pool,
            self,
            RelaySettings(
                request_timeout_s=given["request_timeout_s"],
                worker_wait_s=0,
                pause_wait_s=0,
                resume_aborted="none",
            ),
            open_text=open_text,
            backoff=Backoff(max_retries=0),
        )

    async def __aenter__(self) -> Relayed:
        await super().__aenter__()
        return self
