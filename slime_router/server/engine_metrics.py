"""`GET /engine_metrics`: the metrics of all workers in one text, as sglang-router gives them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from slime_router.engine.client import WorkerClient
from slime_router.errors import NotFound, RouterError
from slime_router.pool.pool import WorkerPool
from slime_router.pool.worker import Worker

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
MAX_TEXT_LEN = 16 * 2**20  # bytes of one worker
LABEL = "worker_addr"  # sglang-router's


async def engine_metrics(
    pool: WorkerPool, client: WorkerClient, _: web.Request
) -> web.StreamResponse:
    """The merged text; each sample has a label with its worker.

    Raises:
        NotFound: no worker has any.
    """
    workers = pool.list()
    texts = await asyncio.gather(*(_text(client, worker) for worker in workers))
    found = {
        worker.url: text for worker, text in zip(workers, texts, strict=True) if text is not None
    }
    if not found:
        raise NotFound("No worker serves metrics: start SGLang with --enable-metrics.")
    merged = await asyncio.to_thread(merge, found)
    return web.Response(
        body=merged, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    )


async def _text(client: WorkerClient, worker: Worker) -> str | None:
    try:
        answer = await client.ask(worker, "GET", "/metrics", headers={}, timeout_s=TIMEOUT_S)
    except RouterError as exc:
        logger.info("no metrics: worker=%s reason=%s", worker.url, exc)
        return None
    if answer.status != 200 or len(answer.body) > MAX_TEXT_LEN:
        return None
    return answer.body.decode("utf-8", "replace")


def merge(texts: Mapping[str, str]) -> bytes:
    """The metrics of several workers, by URL, as one text; what cannot be read is left out."""
    registry = CollectorRegistry()
    registry.register(_Merged(texts))
    return generate_latest(registry)


class _Merged(Collector):
    """Families of one name become one family."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        """Each family once, with the samples of all workers."""
        families: dict[str, Metric] = {}
        for url, text in self._texts.items():
            for family in _families(url, text):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                merged.samples += [
                    sample._replace(labels={**sample.labels, LABEL: url})
                    for sample in family.samples
                ]
        return families.values()


def _families(url: str, text: str) -> Iterator[Metric]:
    try:
        yield from list(text_string_to_metric_families(text))
    except (ValueError, KeyError, IndexError) as exc:
        logger.warning("metrics cannot be read: worker=%s reason=%s", url, exc)
