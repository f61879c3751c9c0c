"""Every benchmark runs to its end; how fast it is, no test asks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from benchmarks import (
    __main__,
    export,
    group,
    load,
    lookups,
    memory,
    next_turn,
    path,
    report,
    routing,
    short_chat,
    streamed_tokens,
)
from benchmarks.fleet import Engine
from benchmarks.report import Measurement
from benchmarks.rounds import interleave
from benchmarks.server import BenchmarkError, Server, serving
from benchmarks.traces import TRACES
from tests.tiny import build_tiny_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def worker() -> Iterator[Server]:
    with serving("benchmarks.worker", "--ids", "5,6,7", "--pause-ms", "0") as server:
        yield server


def check(measurements: list[Measurement], count: int) -> None:
    assert len({m.name for m in measurements}) == count
    assert all(math.isfinite(m.value) and m.value > 0 for m in measurements)


def test_short_chat(checkpoint):
    size = short_chat.Size(rounds=1, requests=2, concurrencies=(1, 2))
    check(short_chat.run(checkpoint, size), 2)


def test_next_turn(checkpoint):
    size = next_turn.Size(rounds=1, repeats=1, messages=6, text_len=1_200)
    check(next_turn.run(checkpoint, size), 4)


def test_streamed_tokens(checkpoint):
    size = streamed_tokens.Size(rounds=1, streams=1, reply_len=4, concurrencies=(1,), pause_ms=0)
    check(streamed_tokens.run(checkpoint, size), 2)


def test_path(checkpoint):
    check(path.run(checkpoint, path.Size(reply_len=12, skipped=4, pause_ms=5)), 3)


def test_lookups():
    size = lookups.Size(rounds=1, lookups=1, finds=2, few=2, many=4, prompt_len=2_048)
    check(lookups.run(size), 2)


def test_group_holds_its_prompt_once():
    measurements = group.run(group.Size(samples=3, prompt_len=20, reply_len=4))
    check(measurements, 2)
    assert [m.value for m in measurements if m.unit == "x"] == [1.0]


def test_memory():
    check(memory.run(memory.Size(sessions=2, turns=2, new_tokens=50)), 1)


def test_export():
    check(export.run(export.Size(rounds=1, turns=3, new_tokens=20)), 2)


def test_routing():
    size = routing.Size(
        workers=2, scale=0.05, rounds=1, long_prompt_len=1_000, short_prompt_len=200
    )
    check(routing.run(size), len(TRACES) * 12 + 2)


def test_our_routing_computes_less_than_the_peers_and_is_more_even_on_every_trace():
    """Simulated, on the benchmark's fleet with half its memory and load; each run is the same."""
    names = (routing.OURS, *routing.PEERS)
    engine = Engine(kv_tokens=75_000)
    for name, write in TRACES.items():
        found = routing.outcomes(write(routing.SEED, 0.5), 8, names, engine)
        ours, peers = found[routing.OURS], [found[peer] for peer in routing.PEERS]
        assert all(ours.computed < 0.95 * peer.computed for peer in peers), name
        assert all(ours.imbalance < 0.95 * peer.imbalance for peer in peers), name


def test_the_sensitivity_names_its_worst_case():
    cases = [routing.Case(0.05, 2, 150_000), routing.Case(0.05, 3, 300_000)]
    measurements = routing.sensitivity(cases, [7])
    assert len(measurements) == 2 * len(TRACES)
    assert all(m.detail.startswith("worst ") and "of 2 runs" in m.detail for m in measurements)


def test_the_workers_two_kinds_of_stream_tell_the_same_tokens(worker):
    body = orjson.dumps({"stream": True})
    requests = [load.post(f"{kind}/generate", body) for kind in ("/cumulative", "/incremental")]
    told = []
    for request in requests:
        [answer] = load.send(worker.port, [request], 1)
        items = [orjson.loads(line[6:]) for line in answer.split(b"\n") if line[:7] == b"data: {"]
        assert len(items) == 3
        told.append([item["output_ids"] for item in items])
    assert told == [[[5], [5, 6], [5, 6, 7]], [[5], [6], [7]]]


def test_a_load_reports_an_answer_that_is_no_200(worker):
    with pytest.raises(ExceptionGroup) as caught:
        load.send(worker.port, [load.post("/nothing", b"{}")], 1)
    assert caught.group_contains(ConnectionError)


def test_a_server_that_does_not_start_says_why():
    with (
        pytest.raises(BenchmarkError, match="the following arguments are required: --ids"),
        serving("benchmarks.worker"),
    ):
        pass


def test_a_ratio_pairs_the_costs_of_one_round():
    """Noise that doubles both sides of a round changes no ratio; the warm-up counts nowhere."""
    costs = {"a": iter([99.0, 6.0, 12.0, 60.0]), "b": iter([1.0, 2.0, 4.0, 20.0])}
    rounds = interleave({name: values.__next__ for name, values in costs.items()}, 3)
    assert rounds.ratio("a", to="b") == 3.0
    assert (rounds.cost("a"), rounds.cost("b")) == (12.0, 4.0)


def test_the_table_judges_only_what_has_an_aim():
    text = report.table(
        [
            Measurement("fast", 1.5, "x", 1.5, "first detail"),
            Measurement("slow", 61.2, "us", 60.0, "second detail"),
            Measurement("told", 12345.6, "us", None, "third detail"),
        ]
    )
    cells = [line.split() for line in text.splitlines() if not line.startswith(" ")]
    assert cells[0] == ["name", "measured", "aim"]
    assert cells[1] == ["fast", "1.5x", "<=", "1.5x", "ok"]
    assert cells[2] == ["slow", "61.2", "us", "<=", "60", "us", "over"]
    assert cells[3] == ["told", "12,346", "us", "-", "-"]


def test_the_command_measures_what_is_named_and_writes_json(monkeypatch, tmp_path, capsys):
    figure = Measurement("one", 1.0, "x", 2.0, "detail")
    monkeypatch.setattr(__main__, "BENCHMARKS", {"one": lambda _: [figure], "two": lambda _: []})
    monkeypatch.setattr(__main__, "_checkpoint", lambda: tmp_path)
    file = tmp_path / "figures.json"
    assert __main__.main(["one", "--json", str(file)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == report.headline()
    assert lines[1].split() == ["one", "1x", "<=", "2x", "ok"]
    written = orjson.loads(file.read_bytes())
    assert [m["verdict"] for m in written["measurements"]] == ["ok"]
    assert written["cpus"] > 0


def test_the_command_refuses_a_name_that_it_does_not_know(capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["nothing"])
    assert "no such benchmark: nothing" in capsys.readouterr().err
