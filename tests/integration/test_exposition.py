"""The figures as Prometheus reads them: the same as the JSON, under names that stay."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families as text_families

from slime_router.server.prometheus import FAMILIES, PREFIX
from tests.integration.gateway import Served, served, user
from tests.integration.test_docs import names, section, table

PROMETHEUS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*"
NO_SAMPLES = {("weights", "current")}  # a name is not a number


async def fetched(router: Served, path: str, accept: str | None = None) -> tuple[str, str]:
    headers = {} if accept is None else {"Accept": accept}
    async with router.http.get(path, headers=headers) as answer:
        assert answer.status == 200
        return answer.headers["Content-Type"], await answer.text()


@pytest.mark.parametrize(
    ("path", "accept", "kind"),
    [
        ("/metrics", None, "application/json"),
        ("/metrics", "*/*", "application/json"),
        ("/metrics", "text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("/metrics", PROMETHEUS, "application/openmetrics-text"),
        ("/metrics", "text/plain;version=0.0.4;q=1", "text/plain"),
        ("/metrics", "application/openmetrics-text", "application/openmetrics-text"),
        ("/metrics?format=prometheus", None, "text/plain"),
        ("/metrics?format=json", PROMETHEUS, "application/json"),
        ("/metrics/prometheus", None, "text/plain"),
        ("/metrics/prometheus", PROMETHEUS, "application/openmetrics-text"),
        ("/prometheus/metrics", "*/*", "text/plain"),
    ],
)
async def test_who_asks_like_a_prometheus_gets_text_everyone_else_json(path, accept, kind):
    async with served() as (router, _):
        content_type, text = await fetched(router, path, accept)
    assert content_type.partition(";")[0] == kind
    assert text.startswith("{" if "json" in kind else "# HELP slime_router_")
    assert text.endswith("# EOF\n") == ("openmetrics" in kind)


async def test_another_format_is_a_400():
    async with served() as (router, _):
        status, body = await router.get("/metrics?format=xml")
    assert (status, body["error"]["param"]) == (400, "format")


def figure(figures: Any, path: str) -> float:
    group, _, key = path.partition(".")
    return float(figures[group][key])


@pytest.mark.parametrize("accept", ["text/plain;version=0.0.4", "application/openmetrics-text"])
async def test_every_figure_has_its_name_and_value(accept):
    parse = openmetrics_families if "openmetrics" in accept else text_families
    async with served() as (router, worker):
        await router.chat([user("Hi")])
        await router.post("/generate", {"text": "Hi"})
        _, text = await fetched(router, "/metrics/prometheus", accept)
        _, figures = await router.get("/metrics")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }
    for family in FAMILIES:
        for values, path in family.samples.items():
            labels = sorted(zip(family.labels, values, strict=True))
            assert samples.pop((PREFIX + family.name, *labels)) == figure(figures, path), path
    load = (f"{PREFIX}worker_requests_active", ("worker", worker.url))
    assert samples == {load: 0.0}
    told = {path for family in FAMILIES for path in family.samples.values()}
    numbers = {
        f"{group}.{key}"
        for group, values in figures.items()
        for key, value in values.items()
        if not isinstance(value, dict) and (group, key) not in NO_SAMPLES
    }
    assert told == numbers, "a new figure needs a name"
    assert figures["chat_completion"]["finished"] == figures["generate"]["finished"] == 1


def test_the_names_stand_on_the_api_page_with_their_labels():
    rows = table(section("docs/api.md", "Operation"), "name")
    told = {name: tuple(names(row[1])) for row in rows for name in names(row[0])}
    real = {family.name: family.labels for family in FAMILIES}
    assert told == {**real, "worker_requests_active": ("worker",)}
