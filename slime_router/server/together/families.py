"""What is counted and timed while requests run, of all processes; and the processes themselves.

A family is JSON on its way from one process to another: name, type, help, and samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from slime_router.telemetry.meters import Meters

Family: TypeAlias = Mapping[str, Any]

_STARTS = "start_time_seconds"  # of several processes, the first one's


def families(meters: Meters) -> list[Family]:
    """The metric families of this process, without the times at which counters were made."""
    process = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=process)
    GCCollector(registry=process)
    return [
        {
            "name": family.name,
            "type": family.type,
            "help": family.documentation,
            "samples": [
                (sample.name, sample.labels, sample.value)
                for sample in family.samples
                if not sample.name.endswith("_created")
            ],
        }
        for registry in (meters.registry, process)
        for family in registry.collect()
    ]


class AllFamilies(Collector):
    """The metric families of all processes as one: their samples are added."""

    def __init__(self, each: Sequence[Sequence[Family]]) -> None:
        self._each = each

    def collect(self) -> Iterator[Metric]:
        """Each family once."""
        found: dict[str, Metric] = {}
        values: dict[str, dict[tuple[Any, ...], float]] = {}
        for family in (family for of_process in self._each for family in of_process):
            name = family["name"]
            found.setdefault(name, Metric(name, family["help"], family["type"]))
            known = values.setdefault(name, {})
            for sample, labels, value in family["samples"]:
                place = (sample, *labels.items())
                is_start = sample.endswith(_STARTS)
                if place not in known:
                    known[place] = value
                else:
                    known[place] = min(known[place], value) if is_start else known[place] + value
        for name, metric in found.items():
            for (sample, *labels), value in values[name].items():
                metric.add_sample(sample, dict(labels), value)
            yield metric
