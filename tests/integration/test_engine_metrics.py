"""`/engine_metrics`: what all workers measure, in one text."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from slime_router.server.engine_metrics import merge
from tests.integration.gateway import serving, tiny_worker

TEXT = """\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m"} %d
# HELP sglang:tokens_total Tokens.
# TYPE sglang:tokens_total counter
sglang:tokens_total{model_name="m"} 5
"""


def samples(text: bytes) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels["worker_addr"]): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_each_worker_has_its_own_samples_in_one_family() -> None:
    merged = merge({"http://a": TEXT % 1, "http://b": TEXT % 2})
    assert merged.count(b"# TYPE sglang:num_running_reqs gauge") == 1
    assert samples(merged) == {
        ("sglang:num_running_reqs", "http://a"): 1,
        ("sglang:num_running_reqs", "http://b"): 2,
        ("sglang:tokens_total", "http://a"): 5,
        ("sglang:tokens_total", "http://b"): 5,
    }


@pytest.mark.parametrize("bad", ["x{", "x 1 2 3 4", '{"json": 1}', "a{b=} 1"])
def test_a_text_that_cannot_be_read_hides_no_other(bad: str) -> None:
    merged = merge({"http://a": bad, "http://b": TEXT % 2})
    assert samples(merged)[("sglang:num_running_reqs", "http://b")] == 2


async def test_without_any_there_is_a_404_that_says_why() -> None:
    async with tiny_worker() as worker, serving(worker.url) as router:
        status, reply = await router.get("/engine_metrics")
        assert status == 404
        assert "--enable-metrics" in reply["error"]["message"]
        assert [each.path for each in worker.controls].count("/metrics") == 1
