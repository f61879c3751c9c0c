"""`GET /metrics`: those of all processes of the router, as JSON or in Prometheus's text formats."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator, Mapping, Sequence

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from slime_router import __version__
from slime_router.errors import BadRequest
from slime_router.server.metrics import METRICS, Sources, figures
from slime_router.server.together.families import AllFamilies, Family, families
from slime_router.server.together.merging import Figures, merged_figures
from slime_router.telemetry.meters import PREFIX

FIGURES, FAMILIES = "figures", "families"
BUILD_INFO = "build_info"


def answer_figures(sources: Sources) -> None:
    """Other processes may ask for those of this one."""

    async def answer(_: object) -> Figures:
        return figures(sources)

    async def answer_families(_: object) -> list[Family]:
        return families(sources.path.meters)

    sources.siblings.answer(FIGURES, answer)
    sources.siblings.answer(FAMILIES, answer_families)


async def figures_of_all(sources: Sources) -> Figures:
    """The figures of all processes of the router that answer, as one."""
    heard = await sources.siblings.ask(FIGURES)
    return merged_figures([figures(sources), *heard.answers.values()])


async def families_of_all(sources: Sources) -> list[Sequence[Family]]:
    """What is counted and timed while requests run, by the processes that answer."""
    heard = await sources.siblings.ask(FAMILIES)
    return [families(sources.path.meters), *heard.answers.values()]


class _Snapshot(Collector):
    """What the parts count by themselves, as `prometheus_client` collects it."""

    def __init__(self, found: Figures) -> None:
        self._found = found

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        build = GaugeMetricFamily(
            PREFIX + BUILD_INFO, "what runs; always 1", labels=("version", "python")
        )
        build.add_metric((__version__, platform.python_version()), 1)
        yield build
        for metric in METRICS:
            kind = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
            family = kind(PREFIX + metric.name, metric.help, labels=metric.labels)
            for sample in metric.samples:
                group, _, key = sample.figure.partition(".")
                value = self._found[group][key]
                if isinstance(value, Mapping):
                    for label, number in value.items():
                        family.add_metric((*sample.labels, label), number)
                else:
                    family.add_metric(sample.labels, value)
            yield family


async def metrics(sources: Sources, request: web.Request) -> web.Response:
    """The metrics since the start: JSON, or text for Prometheus and whoever prefers text."""
    if _wants_text(request.query.get("format"), _accept(request)):
        return await metrics_text(sources, request)
    return web.json_bytes_response(await figures_of_all(sources), dumps=orjson.dumps)


async def metrics_text(sources: Sources, request: web.Request) -> web.Response:
    """The same metrics, and the histograms, in Prometheus's format."""
    found, timed = await asyncio.gather(figures_of_all(sources), families_of_all(sources))
    # In a thread: hundreds of lines take milliseconds, and each worker has some of its own.
    text, content_type = await asyncio.to_thread(exposition, found, timed, _accept(request))
    return web.Response(body=text, headers={"Content-Type": content_type})


def _accept(request: web.Request) -> str:
    return ", ".join(request.headers.getall("Accept", ()))


def exposition(found: Figures, timed: Sequence[Sequence[Family]], accept: str) -> tuple[bytes, str]:
    """The metrics as text, and its Content-Type: OpenMetrics if `accept` allows it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(found))
    registry.register(AllFamilies(timed))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _wants_text(query_format: str | None, accept: str) -> bool:
    """Whether text is asked for: by Prometheus, or before JSON by somebody else.

    Raises:
        BadRequest: `?format=` is neither `json` nor `prometheus`.
    """
    if query_format is not None:
        if query_format not in ("json", "prometheus"):
            raise BadRequest("'format' must be 'json' or 'prometheus'.", param="format")
        return query_format == "prometheus"
    if "openmetrics" in accept or "version=" in accept:
        return True
    text, json = accept.find("text/plain"), accept.find("application/json")
    return text >= 0 and (json < 0 or text < json)
