"""The board and the alerts ask only for what a router tells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from slime_router.server.metrics import METRICS, figures
from slime_router.server.together.families import families
from slime_router.server.together.metrics import BUILD_INFO, exposition
from slime_router.telemetry.meters import INSTRUMENTS, PREFIX
from tests.integration.gateway import served

FOLDER = Path(__file__).parents[2] / "docs" / "grafana"
_NAME = re.compile(r"\b(?:slime_router|process|python_gc)_[a-z0-9_]+")
_LABELS = re.compile(r"\b(slime_router_[a-z0-9_]+)\{([^}]*)\}")


def board() -> dict[str, Any]:
    known: dict[str, Any] = json.loads((FOLDER / "slime_router.json").read_text("utf-8"))
    return known


def rules() -> list[dict[str, Any]]:
    known = yaml.safe_load((FOLDER / "alerts.yaml").read_text("utf-8"))
    return [rule for group in known["groups"] for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str]]:
    """Where each stands, and the query."""
    for panel in board()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for note in board()["annotations"]["list"]:
        yield note["name"], note["expr"]
    for variable in board()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for rule in rules():
        yield rule["alert"], rule["expr"]


@cache
def labels_of() -> dict[str, set[str]]:
    """The labels of each metric by the names of its samples."""
    known = {metric.name: set(metric.labels) for metric in METRICS}
    known[BUILD_INFO] = {"version", "python"}
    for made in INSTRUMENTS:
        if made.kind == "counter":
            known[made.name] = set(made.labels)
        else:
            for end in ("bucket", "sum", "count"):
                known[f"{made.name}_{end}"] = {*made.labels, *(["le"] if end == "bucket" else [])}
    return {PREFIX + name: labels for name, labels in known.items()}


async def test_each_query_names_metrics_that_there_are():
    async with served() as (router, _):
        text, _ = exposition(
            figures(router.gateway), [families(router.gateway.path.meters)], "text/plain"
        )
    of_process = {
        sample.name
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.startswith(PREFIX)
    }
    asked = list(queries())
    assert len(asked) > 50, "the test looks at something"
    for place, query in asked:
        found = _NAME.findall(query)
        assert found, f"{place} asks for nothing"
        unknown = set(found) - labels_of().keys() - of_process
        assert not unknown, f"{place} asks for {unknown}"


def test_each_query_selects_and_groups_by_labels_that_there_are():
    for place, query in queries():
        own = {label for name in _NAME.findall(query) for label in labels_of().get(name, ())}
        for name, selectors in _LABELS.findall(query):
            selected = set(re.findall(r"(\w+)\s*[=!]~?", selectors)) - {"instance"}
            assert selected <= labels_of()[name], f"{place}: {name} has no {selected}"
        for grouped in re.findall(r"by \(([^)]*)\)", query):
            by = set(re.split(r",\s*", grouped)) - {"instance"}
            assert by <= own, f"{place} groups by {by - own}"


def test_the_rules_have_what_a_person_needs():
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 10
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        shown = re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])
        own = {label for name in _NAME.findall(rule["expr"]) for label in labels_of()[name]}
        assert set(shown) <= own | {"instance"}


def test_the_panels_lie_side_by_side():
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                 for y in range(at["y"], at["y"] + at["h"])}  # fmt: skip
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", ["slime_router.json", "alerts.yaml"])
def test_the_page_names_them(name):
    assert f"`{name}`" in (FOLDER / "board.md").read_text("utf-8")
