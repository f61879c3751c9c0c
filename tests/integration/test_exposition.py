"""The figures as Prometheus reads them: the same as the JSON, under names that stay."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families as text_families

from slime_router import __version__
from slime_router.server.metrics import METRICS, NAMES, figures
from slime_router.server.together.families import AllFamilies, Family, families
from slime_router.server.together.merging import merged_figures
from slime_router.server.together.metrics import BUILD_INFO, exposition
from slime_router.telemetry.meters import DELAYS, INSTRUMENTS, PREFIX, TOKEN_GAP, Histograms, Meters
from slime_router.telemetry.request_record import GAPS, Course
from tests.integration.gateway import CHAT, Served, served, user
from tests.integration.test_docs import names, section, table

PROMETHEUS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*"


async def fetched(router: Served, path: str, accept: str | None = None) -> tuple[str, str]:
    headers = {} if accept is None else {"Accept": accept}
    async with router.http.get(path, headers=headers) as answer:
        assert answer.status == 200
        return answer.headers["Content-Type"], await answer.text()


def told_by(router: Served) -> tuple[dict[str, dict[str, Any]], list[list[Family]]]:
    """All that one process tells."""
    return figures(router.gateway), [families(router.gateway.path.meters)]


@pytest.mark.parametrize(
    ("path", "accept", "kind"),
    [
        ("/metrics", None, "application/json"),
        ("/metrics", "*/*", "application/json"),
        ("/metrics", "text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("/metrics", PROMETHEUS, "application/openmetrics-text"),
        ("/metrics", "text/plain;version=0.0.4;q=1", "text/plain"),
        ("/metrics", "text/plain", "text/plain"),
        ("/metrics", "text/plain, application/json", "text/plain"),
        ("/metrics", "application/json", "application/json"),
        ("/metrics", "application/json, text/plain, */*", "application/json"),
        ("/metrics/prometheus", "*/*", "text/plain"),
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


@pytest.mark.parametrize("accept", ["text/plain;version=0.0.4", "application/openmetrics-text"])
async def test_every_metric_has_the_same_value_in_the_text_and_in_the_json(accept):
    parse = openmetrics_families if "openmetrics" in accept else text_families
    async with served() as (router, _):
        await router.chat([user("Hi")])
        await router.post("/generate", {"text": "Hi"})
        text, _ = exposition(
            figures(router.gateway), [families(router.gateway.path.meters)], accept
        )
        counted = figures(router.gateway)
    apart = {PREFIX + each.name.removesuffix("_total") for each in INSTRUMENTS}
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(text.decode())
        for sample in family.samples
        if family.name not in apart and family.name.startswith(PREFIX)
    }
    [build] = [name for name in samples if name[0] == PREFIX + BUILD_INFO]
    assert samples.pop(build) == 1
    assert ("version", __version__) in build
    assert counted["weights"].pop("current") == "default", "a name is not a number"
    late = counted["loop"].pop("late")
    assert [float(over) / 1e3 for over in late] == [*DELAYS], "in the text it is a histogram"
    for metric in METRICS:
        for sample in metric.samples:
            group, _, key = sample.figure.partition(".")
            known = counted[group].pop(key)
            if not isinstance(known, dict):
                known = {None: known}
            for label, number in known.items():
                given = sample.labels if label is None else (*sample.labels, label)
                labels = sorted(zip(metric.labels, given, strict=True))
                value = samples.pop((PREFIX + metric.name, *labels))
                if key not in ("lag_s", "stalled_s", "longest_stall_s"):  # they go on meanwhile
                    assert value == number, sample.figure
    assert samples == {}
    assert not any(counted.values())


async def test_both_doors_are_counted():
    async with served() as (router, _):
        await router.chat([user("Hi")])
        await router.post("/generate", {"text": "Hi"})
        _, counted = await router.get("/metrics")
    for door in ("chat_completion", "generate"):
        shown = counted[door]
        assert (shown["started"], shown["finished"], shown["failed"]) == (1, 1, 0)
        assert (shown["fresh"], shown["extended"], shown["branched"]) == (1, 0, 0)
        assert shown["encoded_tokens"] > shown["reused_tokens"] == 0
        assert shown["output_tokens"] > 0


def test_a_metric_is_declared_once():
    places = [sample.figure for metric in METRICS for sample in metric.samples]
    assert len(set(places)) == len(places)
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(metric.help for metric in METRICS)


def test_the_figures_stand_on_the_api_page():
    told: dict[str, set[str]] = {}
    for row in table(section("docs/api.md", "Operation"), "in `/metrics`"):
        for group in names(row[0]):
            told.setdefault(group, set()).update(names(row[1]))
    real: dict[str, set[str]] = {}
    for sample in (*(sample for metric in METRICS for sample in metric.samples), *NAMES):
        group, _, key = sample.figure.partition(".")
        real.setdefault(group, set()).add(key)
    assert told == real


def test_the_names_stand_on_the_api_page_with_their_labels():
    rows = table(section("docs/api.md", "Operation"), "name")
    told = {name: tuple(names(row[1])) for row in rows for name in names(row[0])}
    real = {metric.name: metric.labels for metric in METRICS}
    real |= {each.name: each.labels for each in INSTRUMENTS}
    assert told == {**real, BUILD_INFO: ("version", "python")}


# What is counted and timed while requests run


async def told(router: Served) -> dict[tuple[Any, ...], float]:
    """Each sample by name and values of its labels."""
    _, text = await fetched(router, "/metrics/prometheus")
    return {
        (sample.name.removeprefix(PREFIX), *sample.labels.values()): sample.value
        for family in text_families(text)
        for sample in family.samples
    }


async def test_requests_and_generations_are_counted_and_timed_at_each_door():
    async with served() as (router, worker):
        _, reply = await router.post(CHAT, {"messages": [user("Hi")], "stream": False})
        await router.chat([user("Hi")], stream=True)
        await router.post("/generate", {"text": "Hi"})
        await router.post("/v1/messages", {"messages": []})
        await router.get("/nowhere")
        seen = await told(router)
        tokens = sum(t.output_ids.size for t in router.gateway.store._turns.values())
        finish = reply["choices"][0]["finish_reason"]
    model = router.gateway.config.model_name
    assert seen["requests_total", CHAT, model, "200"] == 2
    assert seen["requests_total", "/generate", model, "200"] == 1
    assert seen["requests_total", "/v1/messages", model, "400"] == 1
    assert seen["requests_total", "none", model, "404"] == 1
    for name, door, count in (
        ("request_seconds", CHAT, 2),
        ("request_seconds", "/v1/messages", 1),
        ("generation_seconds", CHAT, 2),
        ("first_token_seconds", "/generate", 1),
    ):
        assert seen[f"{name}_count", door] == count
        assert 0 < seen[f"{name}_sum", door] < 60
        assert seen[f"{name}_bucket", door, "+Inf"] == count
    for name in ("queue_wait_seconds", "prompt_seconds"):
        assert seen[f"{name}_count",] == 3
    assert seen["token_gap_seconds_count",] <= tokens - 3
    assert seen["turns_ended_total", finish, "fresh"] >= 1
    assert worker.requests


async def test_the_doctors_answers_and_what_rows_leave_out_are_counted():
    async with served() as (router, _):
        await router.chat([user("Hi")], path=f"/sessions/s{CHAT}")
        await router.post("/sessions/s/diagnose", {"messages": [user("Ho")]})
        [turn_id] = router.gateway.store.sessions.get("s").turns
        router.gateway.store.mark_undelivered(turn_id)
        _, export = await router.get("/sessions/s/rows")
        seen = await told(router)
    [cause] = [name[1] for name in seen if name[0] == "diagnoses_total"]
    assert seen["diagnoses_total", cause] == 1
    left = export["stats"]["left_out"]["undelivered"]["tokens"]
    assert seen["left_out_tokens_total", "undelivered"] == left > 0


async def test_the_wait_for_the_journal_is_timed(tmp_path):
    async with served(journal=str(tmp_path)) as (router, _):
        assert router.gateway.journal is not None
        await router.gateway.journal.read()
        await router.chat([user("Hi")])
        seen = await told(router)
    assert seen["journal_wait_seconds_count",] == 1
    assert seen["journal_wait_seconds_sum",] > 0


async def test_a_worker_shows_whether_it_is_up_and_how_old_its_weights_are():
    async with served() as (router, worker):
        await router.chat([user("Hi")])
        router.gateway.weights.set_current("v2")
        router.gateway.weights.set_current("v3")
        before = await told(router)
        known = router.gateway.pool.get(worker.url)
        for _ in range(50):
            router.gateway.pool.failed(known)
        after = await told(router)
    assert (before["worker_up", worker.url], before["worker_breaker_open", worker.url]) == (1, 0)
    assert before["worker_version_lag", worker.url] == 2
    assert after["worker_breaker_open", worker.url] == 1


async def test_each_router_counts_for_itself_and_tells_of_its_process():
    async with served() as (one, _), served() as (other, _):
        await one.chat([user("Hi")])
        seen, unseen = await told(one), await told(other)
    model = one.gateway.config.model_name
    assert seen["requests_total", CHAT, model, "200"] == 1
    assert ("requests_total", CHAT, model, "200") not in unseen
    assert seen["process_resident_memory_bytes",] > 2**20
    assert any(name[0].startswith("python_gc") for name in seen)
    assert not any(name[0].endswith("_created") for name in seen)


def test_several_processes_are_told_of_as_one():
    """Counts are added; the router is as old as the first of its processes."""
    one, other = Meters("m"), Meters("m")
    one.answered("/generate", 200, 0.02)
    other.answered("/generate", 200, 3.0)
    other.answered("/generate", 500, 3.0)
    each = [orjson.loads(orjson.dumps(families(meters))) for meters in (one, other)]
    for number, told_ in enumerate(each):
        [start] = [f for f in told_ if f["name"] == "process_start_time_seconds"]
        start["samples"][0][2] = 100.0 + number
    seen = {
        (sample.name.removeprefix(PREFIX), *sample.labels.values()): sample.value
        for family in AllFamilies(each).collect()
        for sample in family.samples
    }
    assert seen["requests_total", "/generate", "m", "200"] == 2
    assert seen["requests_total", "/generate", "m", "500"] == 1
    assert seen["request_seconds_count", "/generate"] == 3
    assert seen["request_seconds_bucket", "/generate", "0.025"] == 1
    assert seen["request_seconds_sum", "/generate"] == pytest.approx(6.02)
    assert seen["process_start_time_seconds",] == 100.0
    names = [family.name for family in AllFamilies(each).collect()]
    assert len(set(names)) == len(names)


def test_workers_are_as_bad_as_the_worst_view_of_them():
    def view(up: int, lag: int) -> dict[str, dict[str, Any]]:
        return {
            "fleet": {
                "worker_up": {"a": up, "b": 1},
                "worker_version_lag": {"a": lag},
                "worker_breaker_open": {"a": 1 - up},
                "deaths": 3 - up,
                "forgotten_adapters": lag,
                "full": up,
                "moved": 1,
            },
            "router": {"worker_loads": {"a": 2}},
        }

    merged = merged_figures([view(1, 0), view(0, 3)])
    assert merged["fleet"] == {
        "worker_up": {"a": 0, "b": 1},
        "worker_version_lag": {"a": 3},
        "worker_breaker_open": {"a": 1},
        "deaths": 3,  # all see the same ones
        "forgotten_adapters": 3,
        "full": 1,
        "moved": 2,
    }
    assert merged["router"] == {"worker_loads": {"a": 4}}


def test_the_time_between_tokens_is_shared_by_those_that_came_together():
    gaps, now = Histograms(TOKEN_GAP), [0.0]
    course = Course(gaps.of(), clock=lambda: now[0], now=lambda: 0.0)
    for after_s, tokens in ((1.0, 5), (0.03125, 4), (0.015625, 1), (100.0, 1)):
        now[0] += after_s
        course.sampled("w", tokens)
    [family] = gaps.collect()
    buckets = {s.labels.get("le"): s.value for s in family.samples if s.name.endswith("_bucket")}
    assert course.first_token_s == 1.0
    assert [buckets[str(bound)] for bound in (0.005, 0.01, 0.015, 0.02, 5.0)] == [0, 4, 4, 5, 5]
    assert buckets["+Inf"] == 6
    assert list(buckets) == [*map(str, GAPS), "+Inf"]
    [total] = [s.value for s in family.samples if s.name.endswith("_sum")]
    assert total == 100.046875


UNITS = "milliseconds|minutes|hours|days|kilobytes|megabytes|percent|ms"


@pytest.mark.parametrize("accept", ["text/plain;version=0.0.4", "application/openmetrics-text"])
async def test_the_names_keep_the_rules_of_prometheus(accept):
    """Those that `promtool check metrics` looks at."""
    parse = openmetrics_families if "openmetrics" in accept else text_families
    async with served() as (router, _):
        await router.chat([user("Hi")])
        text, _ = exposition(
            figures(router.gateway), [families(router.gateway.path.meters)], accept
        )
    for family in parse(text.decode()):
        if not family.name.startswith(PREFIX):
            continue
        assert re.fullmatch("[a-z][a-z0-9_]*", family.name)
        assert family.documentation, family.name
        assert re.search(f"_({UNITS})(_|$)", family.name) is None
        assert (
            re.search("_(counter|gauge|histogram|summary|count|sum|bucket)$", family.name) is None
        )
        assert not (family.type == "gauge" and family.name.endswith("_total"))
        names = {sample.name for sample in family.samples}
        if family.type == "counter":
            assert all(name.endswith("_total") for name in names)
        labels = {label for sample in family.samples for label in sample.labels}
        assert not labels & {"quantile", "job", "instance"}
