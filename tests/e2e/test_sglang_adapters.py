"""Against a real SGLang server with adapters and two data-parallel ranks.

Each adapter samples its own turns, and rows say which; each conversation stays at one rank.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from slime_router.client import Client
from tests.e2e.comparison import Generation, compare
from tests.e2e.conftest import routing
from tests.e2e.test_sglang_refusals import post
from tests.e2e.test_sglang_trajectories import fetch, rows_of
from tests.sglang.recorder import RecordingProxy
from tests.sglang.server import SGLangServer

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(600)]

RANK = 8
NAMES = ("alpha", "beta")
IDS = [*range(1000, 1012)]
GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}


def build_adapter(directory: Path, checkpoint: Path, seed: int) -> None:
    """Random weights, large enough that no two adapters sample the same."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    hidden = config["hidden_size"]
    head = hidden // config["num_attention_heads"]
    widths = {"q_proj": hidden, "v_proj": config["num_key_value_heads"] * head}
    chance = np.random.default_rng(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, width in widths.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            for part, shape in (("lora_A", (RANK, hidden)), ("lora_B", (width, RANK))):
                weights = chance.normal(scale=0.5, size=shape).astype(np.float32)
                tensors[f"{name}.{part}.weight"] = weights
    directory.mkdir()
    safetensors.numpy.save_file(tensors, directory / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [*widths],
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which each adapter has one of its own."""
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def server(adapters: Path, pytestconfig: pytest.Config) -> Iterator[SGLangServer]:
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    paths = [f"{name}={adapters / name}" for name in NAMES]
    flags = ("--enable-lora", "--lora-backend", "torch_native", "--max-lora-rank", str(RANK))
    server = SGLangServer((*flags, "--lora-paths", *paths, "--dp-size", "2"))
    cores = sorted(os.sched_getaffinity(0))
    server.url = ""  # one that runs already has no adapters
    with ExitStack() as stack:
        environ = stack.enter_context(pytest.MonkeyPatch.context())
        environ.setenv("SGLANG_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")  # one for each
        with capture.global_and_fixture_disabled():
            for seed, name in enumerate(NAMES):
                build_adapter(adapters / name, server.checkpoint, seed)
            stack.enter_context(server)
        yield server


@pytest.fixture(scope="module")
def proxy(server: SGLangServer) -> Iterator[RecordingProxy]:
    with RecordingProxy(server.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def url(server: SGLangServer, proxy: RecordingProxy) -> Iterator[str]:
    with routing(proxy, server.checkpoint, "--health-check-interval-secs", "1") as url:
        while json.loads(fetch(f"{url}/workers"))["workers"][0]["dp_size"] == 1:
            time.sleep(0.1)
        yield url


def answer(url: str, path: str, body: Any) -> Any:
    status, _, reply = post(f"{url}{path}", body)
    assert status == 200, reply
    return json.loads(reply)


def test_each_samples_through_the_router_what_it_samples_at_the_worker(url, server):
    replies = []
    for name in (None, *NAMES):
        asked = {"input_ids": IDS, "sampling_params": GREEDY, "lora_path": name}
        here, there = [answer(each, "/generate", asked) for each in (url, server.url)]
        assert here["output_ids"] == there["output_ids"], name
        replies.append(tuple(here["output_ids"]))
    assert len({*replies}) == len(replies)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
        ),
        ("/v1/completions", {"prompt": "Hi", "max_tokens": 4}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 4}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}),
        ("/inference/v1/generate", {"token_ids": [5, 6], "sampling_params": {"max_tokens": 4}}),
    ],
)
def test_one_that_was_never_loaded_is_refused_through_every_door(url, proxy, path, asked):
    proxy.clear()
    for model, status in (("beta", 200), ("base:alpha", 200), ("base:nosuch", 400)):
        found, _, reply = post(f"{url}{path}", {**asked, "model": model})
        assert found == status, reply
        assert ("never been loaded: nosuch" in reply.decode()) == (status == 400)
    sent = [exchange.asked()["lora_path"] for exchange in proxy.exchanges]
    assert sent == ["beta", "alpha", "nosuch"]


def talk(url: str, session: str, models: list[str | None], stop: int) -> None:
    """A conversation of `stop` turns, whose agent names these models in turns."""
    messages: list[Any] = []
    for number in range(stop):
        messages.append({"role": "user", "content": f"And the {number}th?"})
        model = models[number % len(models)]
        asked = {"messages": messages, "max_tokens": 10, "temperature": 1.0}
        named = {} if model is None else {"model": model}
        reply = answer(url, f"/sessions/{session}/v1/chat/completions", {**asked, **named})
        messages.append(reply["choices"][0]["message"])


def test_turns_of_two_adapters_and_of_the_model_never_share_a_row(url, proxy):
    proxy.clear()
    with Client(url).open_session() as session:
        talk(url, session.id, ["alpha", "beta", "base:alpha", ".cache"], 6)
        generations = [Generation.of(exchange) for exchange in proxy.exchanges]
        asked = [exchange.asked().get("lora_path") for exchange in proxy.exchanges]
        assert asked == ["alpha", "beta", "alpha", None, "alpha", "beta"]
        export = rows_of(session)
        compare(export, generations)
        turns = json.loads(fetch(session.url))["turn_list"]
        found = {turn["turn_id"]: turn["adapter"] for turn in turns}
        assert [*found.values()] == asked
        for row in export["rows"]:
            assert len({found[turn] for turn in row["turn_ids"]}) == 1


def test_a_sessions_adapter_samples_all_its_turns_in_one_row(url, proxy):
    """Whatever its agent names."""
    proxy.clear()
    with Client(url).open_session(lora_path="alpha") as session:
        talk(url, session.id, [None, "beta", "alpha"], 6)
        assert {exchange.asked()["lora_path"] for exchange in proxy.exchanges} == {"alpha"}
        export = rows_of(session)
        assert compare(export, [Generation.of(each) for each in proxy.exchanges]) == set()
        assert len(export["rows"]) == 1


def test_a_conversation_meets_its_cached_tokens_at_its_rank(url, proxy):
    """SGLang would deal its turns out to both ranks."""
    homes = set()
    for subject in ("Trees. ", "Rivers. ", "Stones. ", "Winds. "):
        proxy.clear()
        messages: list[Any] = [{"role": "system", "content": subject * 40}]
        for _ in range(3):
            messages.append({"role": "user", "content": "And then?"})
            asked = {"messages": messages, "max_tokens": 10, "temperature": 1.0}
            reply = answer(url, "/v1/chat/completions", {**asked, "user": subject})
            messages.append(reply["choices"][0]["message"])
        said = [exchange.items()[-1]["meta_info"] for exchange in proxy.exchanges]
        assert len({meta["dp_rank"] for meta in said}) == 1
        for before, after in pairwise(said):
            held = before["prompt_tokens"] + before["completion_tokens"]
            assert after["cached_tokens"] >= held - 1  # the last one was sampled, not computed
        homes.add(said[0]["dp_rank"])
    assert homes == {0, 1}
