"""Every benchmark runs to its end; how fast it is, no test asks."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import orjson
import pytest

from benchmarks import (
    __main__,
    bounded_memory,
    compare,
    cores,
    crowd,
    encoders,
    export,
    group,
    growth,
    journal,
    load,
    long_ids,
    long_stream,
    lookups,
    memory,
    next_turn,
    parsed_tokens,
    path,
    processes,
    report,
    routing,
    same_reply,
    short_chat,
    start,
    streamed_tokens,
)
from benchmarks.fleet import Engine
from benchmarks.full import __main__ as full
from benchmarks.full import gateways, growing, lengths, page, short_chats
from benchmarks.full.field import Field, Plot, field
from benchmarks.native import build, stand_in
from benchmarks.native.drive import drive
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
    size = short_chat.Size(rounds=1, requests=2, concurrencies=(1, 2), seconds=0.1)
    measurements = short_chat.run(checkpoint, size)
    check([m for m in measurements if m.unit != "ms"], 7)
    at_a_rate = build.program("load") is not None
    assert [m.unit for m in measurements].count("ms") == 1 + at_a_rate
    assert all(math.isfinite(m.value) for m in measurements)  # what is added may be below zero


def test_same_reply(checkpoint):
    check(same_reply.run(checkpoint, same_reply.Size(2, requests=2, compared=1)), 1)


def test_growth(checkpoint):
    size = growth.Size(rounds=1, repeats=1, few=4, many=8, message_len=60)
    check(growth.run(checkpoint, size), 2)


def test_long_ids(checkpoint):
    size = long_ids.Size(rounds=1, requests=(2, 1), prompt_lens=(16, 200), new_len=50)
    check(long_ids.run(checkpoint, size), 2)


def test_next_turn(checkpoint):
    size = next_turn.Size(rounds=1, repeats=1, messages=6, text_len=1_200)
    check(next_turn.run(checkpoint, size), 4)


def test_streamed_tokens(checkpoint):
    size = streamed_tokens.Size(rounds=1, streams=1, reply_len=4, concurrencies=(1, 2), pause_ms=1)
    measurements = streamed_tokens.run(checkpoint, size)
    assert len({m.name for m in measurements}) == 8
    assert all(math.isfinite(m.value) for m in measurements)  # delays may be below the worker's


def test_parsed_tokens(checkpoint):
    size = parsed_tokens.Size(rounds=1, streams=2, reply_len=4, concurrency=2, pause_ms=1)
    check(parsed_tokens.run(checkpoint, size), 1)


def test_crowd(checkpoint):
    [measured] = crowd.run(checkpoint, crowd.Size(requests=4, body_len=2_000, pause_ms=1))
    assert math.isfinite(measured.value)  # so little may be lost in what was free


def test_start(checkpoint):
    check(start.run(checkpoint, start.Size(rounds=1)), 4)


def test_journal(checkpoint):
    measurements = journal.run(checkpoint, rounds=1, requests=2, turns=40)
    assert len({m.name for m in measurements}) == len(measurements) >= 5
    assert all(math.isfinite(m.value) for m in measurements)


def test_processes(checkpoint):
    size = processes.Size(rounds=1, connections=2, streams=4, reply_len=4, pause_ms=1)
    check(processes.run(checkpoint, size), 4)


def test_cores(checkpoint, monkeypatch):
    monkeypatch.setattr(cores, "OTHERS", 1 - len(os.sched_getaffinity(0)))
    size = cores.Size(
        processes=(1, 2),
        rounds=1,
        per_second=50,
        seconds=0.2,
        connections=2,
        chats=2,
        reply_len=4,
        pause_ms=1,
    )
    check(cores.run(checkpoint, size), 6)


def test_without_cores_of_their_own_nothing_is_measured(checkpoint, monkeypatch):
    monkeypatch.setattr(cores, "OTHERS", len(os.sched_getaffinity(0)))
    [told] = cores.run(checkpoint)
    assert math.isnan(told.value)
    assert "too few" in told.detail


def test_long_stream(checkpoint):
    size = long_stream.Size(rounds=1, early=4, late=(8, 40), pause_ms=1)
    measurements = long_stream.run(checkpoint, size)
    assert len({m.name for m in measurements}) == 2
    assert all(math.isfinite(m.value) for m in measurements)


def test_path(checkpoint):
    measurements = path.run(checkpoint, path.Size(reply_len=12, skipped=4, pause_ms=5))
    check(measurements[:-1], 2)
    assert measurements[-1].unit == "frames"  # none, unless tokens came together


def test_lookups():
    size = lookups.Size(rounds=1, lookups=1, finds=2, inserts=2, few=2, many=4, prompt_len=2_048)
    check(lookups.run(size), 4)


def test_encoders(checkpoint):
    check(encoders.run([checkpoint], encoders.Size(rounds=1, text_len=600)), 2)


def test_group_holds_its_prompt_once():
    measurements = group.run(group.Size(samples=3, prompt_len=20, reply_len=4))
    check(measurements, 2)
    assert [m.value for m in measurements if m.unit == "x"] == [1.0]


def test_bounded_memory():
    check(bounded_memory.run(limit=200_000), 2)


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


@pytest.mark.parametrize("is_native", [True, False], ids=["C", "Python"])
def test_a_workers_two_kinds_of_stream_tell_the_same_tokens(monkeypatch, is_native):
    if not is_native:
        monkeypatch.setattr(build, "program", lambda _: None)
    elif build.program("worker") is None:
        pytest.skip("no gcc")
    body = orjson.dumps({"stream": True})
    requests = [load.post(f"{kind}/generate", body) for kind in ("/cumulative", "/incremental")]
    told = []
    with stand_in.worker([5, 6, 7], pause_ms=0.5, variants=1) as server:
        for request in requests:
            [answer] = load.send(server.port, [request], 1)
            lines = [line for line in answer.split(b"\n") if line[:7] == b"data: {"]
            items = [orjson.loads(line[6:]) for line in lines]
            assert len(items) == 3
            told.append([item["output_ids"] for item in items])
            assert items[-1]["meta_info"]["finish_reason"] == {"type": "stop", "matched": 7}
    assert told == [[[5], [5, 6], [5, 6, 7]], [[5], [6], [7]]]


def test_the_worker_in_c_varies_its_replies_but_ends_each_with_the_stop():
    if build.program("worker") is None:
        pytest.skip("no gcc")
    with stand_in.worker([5, 6, 7, 8], variants=3) as server:
        requests = [load.post("/generate", b"{}")] * 4
        replies = [orjson.loads(each)["output_ids"] for each in load.send(server.port, requests, 1)]
    assert replies[0] == replies[3] == [5, 6, 7, 8]
    assert len({tuple(reply) for reply in replies}) == 3
    assert all(reply[-1] == 8 for reply in replies)


@pytest.mark.parametrize("is_native", [True, False], ids=["C", "Python"])
def test_a_load_counts_answers_and_events(monkeypatch, is_native):
    if not is_native:
        monkeypatch.setattr(build, "program", lambda _: None)
    elif build.program("load") is None:
        pytest.skip("no gcc")
    with stand_in.worker([5, 6, 7], pause_ms=0.5) as server:
        outcome = drive(server, "/generate", [orjson.dumps({"stream": True})] * 5, 2)
        assert (outcome.requests, outcome.events) == (5, 5 * 4)  # three items and the end
        assert len(outcome.latency_us) == 101
        assert list(outcome.latency_us) == sorted(outcome.latency_us)
        with pytest.raises(BenchmarkError, match=r"/nothing: .*"):
            drive(server, "/nothing", [b"{}"], 1)


def test_a_load_at_a_rate_sends_when_requests_are_due():
    if build.program("load") is None:
        pytest.skip("no gcc")
    with stand_in.worker([5, 6, 7]) as server:
        outcome = drive(server, "/generate", [b"{}"] * 40, 4, per_second=400)
    assert outcome.requests == 40
    assert outcome.seconds > 0.03  # at once it would take a millisecond


def test_a_load_at_a_rate_counts_from_when_a_request_was_due():
    """One connection that is busy for longer than requests are apart: they wait, and it shows."""
    if build.program("load") is None:
        pytest.skip("no gcc")
    with stand_in.worker([5, 6, 7], pause_ms=10) as server:
        bodies = [orjson.dumps({"stream": True})] * 8
        outcome = drive(server, "/generate", bodies, 1, per_second=1e6)
    assert outcome.latency_us[100] > 8 * 20_000  # each takes 20 ms at least


def test_without_gcc_there_is_no_load_at_a_rate(monkeypatch):
    monkeypatch.setattr(build, "program", lambda _: None)
    with (
        stand_in.worker([5, 6, 7]) as server,
        pytest.raises(BenchmarkError, match="takes the generator in C"),
    ):
        drive(server, "/generate", [b"{}"], 1, per_second=1)


def test_without_gcc_one_line_says_what_is_used(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert build.program.__wrapped__("load") is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "gcc is not installed" in said


@pytest.fixture(scope="module")
def two(checkpoint: Path) -> Iterator[Field]:
    with field(checkpoint, gateways=()) as servers:
        yield servers


def test_short_chats_of_everything(two):
    part = short_chats.run(two, short_chats.Size(rounds=1, requests=2, concurrencies=(1, 64)))
    check(list(part.measurements), 2)
    assert [plot.name for plot in part.plots] == ["latency"]


def test_lengths(two):
    size = lengths.Size(rounds=1, requests=1, counts=(4, 8), message_len=40, new_len=20)
    part = lengths.run(two, size)
    check(list(part.measurements), 2)
    [plot] = part.plots
    assert [at for at, _ in plot.lines["slime_router"]] == [4, 8]


def test_growing(two):
    part = growing.run(two, growing.Size(rounds=1, turns=2, new_len=20, ids=range(10, 300)))
    check(list(part.measurements), 2)
    assert [plot.name for plot in part.plots] == ["growth_chat", "growth_ids"]


def test_a_gateway_that_cannot_be_installed_is_told(monkeypatch, checkpoint, tmp_path):
    monkeypatch.setattr(gateways, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with field(checkpoint, gateways=gateways.GATEWAYS[:1]) as servers:
        [absent] = servers.told_absent()
    assert absent.verdict == "-"
    assert "none" in report.table([absent])
    assert "sglang-router 0.3.2 cannot be installed: uv is not there" in absent.detail


def test_a_benchmark_that_breaks_off_leaves_the_others_and_says_whose_side_it_was(capsys):
    def broken(_: Path) -> list[Measurement]:
        interleave({"ours": lambda: 1.0, "smg": Mock(side_effect=BenchmarkError("gone"))}, 1)
        return []

    chosen = {"broken": broken, "fine": lambda _: [Measurement("fine", 1.0, "x", None, "once")]}
    failed, fine = __main__.measured(chosen, Path("checkpoint"))
    assert (failed.name, failed.detail) == ("broken", "smg: gone")
    assert (failed.verdict, fine.verdict) == ("failed", "-")
    assert "broken: smg: gone\n" in capsys.readouterr().err
    again = full.told([failed, fine], [], load=0.5)
    assert "| broken | none | - | failed | smg: gone |" in page.with_figures("", again)


@pytest.mark.parametrize(("error", "status"), [(None, 0), (BenchmarkError("gone"), 1)])
def test_the_exit_status_says_whether_a_benchmark_broke_off(monkeypatch, tmp_path, error, status):
    run = Mock(side_effect=error, return_value=[Measurement("fine", 1.0, "x", None, "once")])
    monkeypatch.setattr(__main__, "QUICK", {"group": run})
    monkeypatch.setattr(__main__, "checkpoint_of_all", lambda: tmp_path)
    assert __main__.main(["--json", str(tmp_path / "figures.json")]) == status
    assert (tmp_path / "figures.json").exists()


def test_the_page_and_its_plots_come_from_one_file(tmp_path):
    figures = full.told(
        [
            Measurement("fast", 1.5, "x", 2.0, "a | b"),
            Measurement("gone", math.nan, "", None, "not there"),
        ],
        [Plot("growth", "Growth", "turns", "ms", {"ours": [(1.0, 2.0), (2.0, 40.0)]})],
        load=0.5,
    )
    text = tmp_path / "performance.md"
    text.write_text(f"# Title\n{page.BEGIN}\nold\n{page.END}\nmore\n")
    page.write(figures, text, tmp_path / "performance")
    written = text.read_text()
    assert written.startswith("# Title\n")
    assert written.endswith("\nmore\n")
    assert "old" not in written
    assert "| fast | 1.5x | <= 2x | ok | a \\| b |" in written
    assert "| gone | none | - | - | not there |" in written
    picture = (tmp_path / "performance" / "growth.svg").read_text()
    assert picture.count("<polyline") == 1
    again = orjson.loads((tmp_path / "performance" / "figures.json").read_bytes())
    assert page.with_figures(written, again) == written


@pytest.mark.skipif(not page.FIGURES.exists(), reason="nothing was measured yet")
def test_the_page_tells_the_figures_that_are_kept():
    figures = orjson.loads(page.FIGURES.read_bytes())
    assert page.with_figures(page.PAGE.read_text(), figures) == page.PAGE.read_text()
    for name, picture in page.plots(figures).items():
        assert (page.FOLDER / name).read_text() == picture


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


def test_a_tree_compared_with_itself(checkpoint):
    size = compare.Size(
        rounds=1, chats=2, streams=1, reply_len=4, pause_ms=0.0, connections=1, formats=()
    )
    check(compare.run(report.ROOT, checkpoint, size), 3)


def test_a_commit_that_does_not_exist_is_one_line():
    with pytest.raises(BenchmarkError, match="nowhere"), compare.checked_out("nowhere"):
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
    monkeypatch.setattr(__main__, "QUICK", {"one": lambda _: [figure], "two": lambda _: []})
    monkeypatch.setattr(__main__, "checkpoint_of_all", lambda: tmp_path)
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
