"""vLLM's token API: ids in, ids out, each with its log-probability."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from slime_router.testing import FakeWorker
from tests.integration.gateway import Served, checkpoint, serving, tiny_worker
from tests.integration.scripted import events
from tests.integration.storytellers import only_turn

PATH = "/inference/v1/generate"
PROMPT = [5, 6, 7]
SAMPLED = [11, 12, 13]
SAMPLING = {
    "max_tokens": 8,
    "temperature": 0.7,
    "stop_token_ids": [3],
    "logprobs": 1,
    "skip_special_tokens": False,
}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "token_ids": PROMPT, "sampling_params": SAMPLING, **fields}


async def ask(router: Served, worker: FakeWorker, **fields: Any) -> Any:
    worker.script(SAMPLED, logprobs=[-0.5, -0.25, -0.125])
    status, reply = await router.post(PATH, body(**fields), headers={"x-session-id": "s"})
    assert status == 200, reply
    return reply


async def test_each_sampled_id_has_one_finite_logprob() -> None:
    async with tiny_worker() as worker, serving(worker.url) as router:
        reply = await ask(router, worker)
        (choice,) = reply["choices"]
        assert choice["token_ids"] == SAMPLED
        assert choice["finish_reason"] == "length"
        entries = choice["logprobs"]["content"]
        assert [entry["token"] for entry in entries] == [
            "token_id:11",
            "token_id:12",
            "token_id:13",
        ]
        assert [entry["logprob"] for entry in entries] == [-0.5, -0.25, -0.125]
        assert reply["usage"]["completion_tokens"] == 3
        sent = worker.requests[0].body
        assert sent["input_ids"] == PROMPT
        assert sent["sampling_params"]["max_new_tokens"] == 8
        assert sent["sampling_params"]["stop_token_ids"] == [3]


async def test_it_is_recorded_as_a_turn_of_its_session() -> None:
    async with tiny_worker() as worker, serving(worker.url) as router:
        await ask(router, worker)
        _, rows = await router.get("/sessions/s/rows")
        (row,) = rows["rows"]
        assert row["tokens"] == PROMPT + SAMPLED
        assert row["loss_mask"] == [0, 0, 0, 1, 1, 1]
        assert row["logprobs"][3:] == [-0.5, -0.25, -0.125]
        # The next prompt begins with what was sampled: the same trajectory goes on.
        worker.script([14])
        status, _ = await router.post(
            PATH,
            {**body(), "token_ids": [*PROMPT, *SAMPLED, 9]},
            headers={"x-session-id": "s"},
        )
        assert status == 200
        _, rows = await router.get("/sessions/s/rows")
        (row,) = rows["rows"]
        assert row["tokens"] == [*PROMPT, *SAMPLED, 9, 14]


@pytest.mark.parametrize(
    ("constraint", "sent"),
    [
        (
            {"structured_outputs": {"json": {"type": "object"}}},
            {"json_schema": '{"type":"object"}'},
        ),
        ({"structured_outputs": {"json_object": True}}, {"json_schema": '{"type": "object"}'}),
        ({"guided_json": {"type": "object"}}, {"json_schema": '{"type":"object"}'}),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"regex": "(a)|(b)"}),
    ],
)
async def test_a_constraint_reaches_the_worker(constraint: dict[str, Any], sent: dict[str, str]):
    async with tiny_worker() as worker, serving(worker.url) as router:
        await ask(router, worker, sampling_params={"max_tokens": 3, **constraint})
    assert worker.requests[-1].body["sampling_params"].items() >= sent.items()


@pytest.mark.parametrize("incremental", [False, True])
async def test_streamed_it_is_the_same(incremental: bool) -> None:
    async with tiny_worker(incremental=incremental) as worker, serving(worker.url) as router:
        worker.script(SAMPLED, logprobs=[-0.5, -0.25, -0.125])
        asked = body(stream=True, stream_options={"include_usage": True})
        async with router.http.post(PATH, json=asked) as response:
            read = events(await response.read())
        assert read[-1] == "[DONE]"
        choices = [event["choices"][0] for event in read[:-1] if event["choices"]]
        assert [i for choice in choices for i in choice["token_ids"]] == SAMPLED
        found = [e["logprob"] for choice in choices for e in choice["logprobs"]["content"]]
        assert found == [-0.5, -0.25, -0.125]
        assert choices[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
async def test_each_sample_is_a_choice_and_a_row(stream: bool) -> None:
    """As Tinker's clients ask for a group: one prompt, `n` samples."""
    async with tiny_worker() as worker, serving(worker.url) as router:
        asked = body(stream=stream, sampling_params={**SAMPLING, "n": 3, "seed": 5})
        async with router.http.post(PATH, json=asked, headers={"x-session-id": "s"}) as response:
            assert response.status == 200
            raw = await response.read()
        replies = events(raw)[:-1] if stream else [orjson.loads(raw)]
        ids: dict[int, list[int]] = {0: [], 1: [], 2: []}
        logprobs: dict[int, list[float]] = {0: [], 1: [], 2: []}
        for choice in (choice for reply in replies for choice in reply["choices"]):
            ids[choice["index"]] += choice["token_ids"]
            entries = choice["logprobs"]["content"]
            logprobs[choice["index"]] += [entry["logprob"] for entry in entries]
        assert sorted(
            sent.body["sampling_params"]["sampling_seed"] for sent in worker.requests
        ) == [*(5, 6, 7)]
        _, rows = await router.get("/sessions/s/rows")
        trained = {tuple(row["tokens"]): row["logprobs"][len(PROMPT) :] for row in rows["rows"]}
        assert trained == {(*PROMPT, *ids[i]): logprobs[i] for i in range(3)}
        if not stream:
            usage = replies[0]["usage"]
            assert usage["prompt_tokens"] == len(PROMPT)
            assert usage["completion_tokens"] == sum(map(len, ids.values()))


@pytest.mark.parametrize("capture", ["full", "off"])
async def test_the_prompt_has_logprobs_where_they_are_asked_for(capture: str) -> None:
    """Of each place after the first: the token that stands there, and `k` likely ones."""
    async with tiny_worker() as worker, serving(worker.url, capture=capture) as router:
        found = {}
        for count in (0, 2):
            sampling = {**SAMPLING, "n": 2, "logprobs": 0, "prompt_logprobs": count}
            found[count] = (await ask(router, worker, sampling_params=sampling))["prompt_logprobs"]
        sent, sibling = (worker.requests[i].body for i in (-2, -1))
        assert (sent["logprob_start_len"], sent["top_logprobs_num"]) == (0, 2)
        assert "logprob_start_len" not in sibling, "one sample reads the prompt for all"
        assert "top_logprobs_num" not in sibling
        assert found[0][0] is None
        assert [set(place) for place in found[0][1:]] == [{"6"}, {"7"}]
        assert found[2][0] is None
        for own, place in zip(("6", "7"), found[2][1:], strict=True):
            ranks = sorted(entry["rank"] or 3 for entry in place.values())
            assert ranks in ([1, 2], [1, 2, 3])
            assert place[own]["logprob"] == found[0][PROMPT.index(int(own))][own]["logprob"]


async def test_the_own_logprob_of_each_token_of_the_prompt_comes_first() -> None:
    """As in vLLM: prime-rl scores a rollout by the first entry of each place."""
    async with tiny_worker() as worker, serving(worker.url) as router:
        unlikely = [[-9.0, PROMPT[1], None], [-8.0, PROMPT[2], None]]
        likely = [[[-0.25, 9, None], [-0.5, 8, None]]] * 2
        worker.script(
            SAMPLED,
            logprobs=[-0.5, -0.25, -0.125],
            input_token_logprobs=[[None, PROMPT[0], None], *unlikely],
            input_top_logprobs=[None, *likely],
        )
        asked = body(sampling_params={"max_tokens": 3, "prompt_logprobs": 1})
        status, reply = await router.post(PATH, asked)
        assert status == 200
        first, *places = reply["prompt_logprobs"]
        assert first is None
        assert [next(iter(place.items())) for place in places] == [
            (str(token), {"logprob": logprob, "rank": None, "decoded_token": None})
            for logprob, token, _ in unlikely
        ]
        assert [list(place) for place in places] == [["6", "9"], ["7", "9"]]
        assert places[0]["9"] == {"logprob": -0.25, "rank": 1, "decoded_token": None}


async def test_an_abort_before_the_prompt_was_read_is_a_reason_too() -> None:
    async with tiny_worker() as worker, serving(worker.url, resume_aborted="none") as router:
        worker.hold(after_tokens=0)
        asked = body(sampling_params={**SAMPLING, "prompt_logprobs": 0})
        running = asyncio.create_task(router.post(PATH, asked))
        await worker.wait_running(1)
        await router.http.post("/abort_request", json={"abort_all": True})
        worker.release()
        status, reply = await running
        assert status == 200
        assert reply["choices"][0]["finish_reason"] == "abort"
        assert reply["prompt_logprobs"] is None


async def test_likely_tokens_of_the_prompt_are_not_those_of_the_reply() -> None:
    async with tiny_worker() as worker, serving(worker.url) as router:
        sampling = {**SAMPLING, "logprobs": 1, "prompt_logprobs": 3}
        reply = await ask(router, worker, sampling_params=sampling)
        entries = reply["choices"][0]["logprobs"]["content"]
        assert [len(entry["top_logprobs"]) for entry in entries] == [1, 1, 1]


@pytest.mark.parametrize("capture", ["full", "tokens", "off"])
async def test_logprobs_are_there_whatever_is_captured(capture: str) -> None:
    async with tiny_worker() as worker, serving(worker.url, capture=capture) as router:
        reply = await ask(router, worker)
        entries = reply["choices"][0]["logprobs"]["content"]
        assert [entry["logprob"] for entry in entries] == [-0.5, -0.25, -0.125]


async def test_without_logprobs_there_are_none() -> None:
    async with tiny_worker() as worker, serving(worker.url) as router:
        reply = await ask(router, worker, sampling_params={"max_tokens": 3})
        assert reply["choices"][0]["logprobs"] is None


async def test_parameters_that_ask_for_nothing_else_are_served() -> None:
    """Clients write out all that vLLM has, with its defaults."""
    idle: dict[str, Any] = {
        **{"n": 1, "best_of": None, "prompt_logprobs": None, "extra_args": None, "seed": None},
        **{"bad_words": [], "logits_processors": None, "return_sampling_mask": False},
        **{"detokenize": False, "flat_logprobs": True, "output_kind": 2, "skip_clone": False},
        **{"include_stop_str_in_output": True, "output_text_buffer_length": 0, "top_k": 0},
    }
    async with tiny_worker() as worker, serving(worker.url) as router:
        reply = await ask(router, worker, sampling_params={**SAMPLING, **idle})
        assert reply["choices"][0]["token_ids"] == SAMPLED


@pytest.mark.parametrize("stream", [False, True])
async def test_an_abort_is_a_reason_with_what_was_sampled(stream: bool) -> None:
    """As with vLLM: whoever aborts a rollout may want to go on from there."""
    async with tiny_worker() as worker, serving(worker.url, resume_aborted="none") as router:
        worker.hold(after_tokens=2)
        asked = body(stream=stream, request_id="mine", sampling_params={**SAMPLING, "logprobs": 0})
        running = asyncio.create_task(router.http.post(PATH, json=asked))
        await worker.wait_running(1)
        await router.http.post("/abort_request", json={"abort_all": True})
        worker.release()
        async with await running as response:
            raw = await response.read()
        assert response.status == 200
        replies = events(raw)[:-1] if stream else [orjson.loads(raw)]
        choices = [reply["choices"][0] for reply in replies]
        ids = [token for choice in choices for token in choice["token_ids"]]
        entries = [entry for choice in choices for entry in choice["logprobs"]["content"]]
        assert choices[-1]["finish_reason"] == "abort"
        assert [entry["token"] for entry in entries] == [f"token_id:{token}" for token in ids]
        turn = only_turn(router)
        assert turn.output_ids.tolist() == ids
        assert len(ids) == 2
        assert router.gateway.store.is_delivered(turn.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"token_ids": None}, "token_ids"),
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": "text"}, "token_ids"),
        ({"token_ids": [1, -1]}, "token_ids"),
        ({"token_ids": [10**6]}, "token_ids"),
        ({"sampling_params": []}, "sampling_params"),
        ({"sampling_params": {"logprobs": True}}, "sampling_params.logprobs"),
        ({"sampling_params": {"logprobs": -1}}, "sampling_params.logprobs"),
        ({"sampling_params": {"temperature": "hot"}}, "sampling_params.temperature"),
        ({"sampling_params": {"stop_token_ids": [10**6]}}, "sampling_params.stop_token_ids"),
        ({"sampling_params": {"n": 0}}, "sampling_params.n"),
        ({"sampling_params": {"n": 129}}, "sampling_params.n"),
        ({"n": 2}, "n"),
        ({"n": {}}, "n"),
        ({"n": True}, "n"),
        (
            {"sampling_params": {"structured_outputs": {"regex": 5}}},
            "sampling_params.structured_outputs.regex",
        ),
        ({"sampling_params": {"guided_json": 5}}, "sampling_params.guided_json"),
        (
            {"sampling_params": {"thinking_token_budget": "x"}},
            "sampling_params.thinking_token_budget",
        ),
        ({"sampling_params": {"bad_words": ["x"]}}, "sampling_params.bad_words"),
        ({"sampling_params": {"logprobs": 129}}, "sampling_params.logprobs"),
        ({"sampling_params": {"prompt_logprobs": -1}}, "sampling_params.prompt_logprobs"),
        ({"sampling_params": {"prompt_logprobs": 129}}, "sampling_params.prompt_logprobs"),
        ({"sampling_params": {"prompt_logprobs": True}}, "sampling_params.prompt_logprobs"),
        (
            {"stream": True, "sampling_params": {"prompt_logprobs": 0}},
            "sampling_params.prompt_logprobs",
        ),
        ({"sampling_params": {"logprob_token_ids": [5]}}, "sampling_params.logprob_token_ids"),
        (
            {"sampling_params": {"return_sampling_mask": True}},
            "sampling_params.return_sampling_mask",
        ),
        (
            {"sampling_params": {"routed_experts_prompt_start": 0}},
            "sampling_params.routed_experts_prompt_start",
        ),
        (
            {"sampling_params": {"truncate_prompt_tokens": 2}},
            "sampling_params.truncate_prompt_tokens",
        ),
        ({"sampling_params": {"extra_args": {"x": 1}}}, "sampling_params.extra_args"),
        ({"sampling_params": {"max_new_tokens": 4}}, "sampling_params.max_new_tokens"),
        ({"ec_transfer_params": {"x": 1}}, "ec_transfer_params"),
        ({"features": {"mm_hashes": {}}}, "features"),
        ({"priority": "high"}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"priority": -(2**31) - 1}, "priority"),
        ({"stream": 1}, "stream"),
    ],
)
async def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    async with tiny_worker() as worker, serving(worker.url) as router:
        before = router.footprint()
        status, reply = await router.post(PATH, body(**fields))
        assert (status, reply["error"]["param"]) == (400, param)
        assert router.footprint() == before
        assert not worker.requests


@pytest.mark.parametrize("priority", [3, 0, -3, 2**31 - 1])
async def test_the_lowest_priority_is_the_first_as_with_vllm(priority: int) -> None:
    """SGLang takes the highest first, unless a flag turns that round."""
    async with tiny_worker() as worker, serving(worker.url) as router:
        assert (await router.post(PATH, body(priority=priority)))[0] == 200
        assert worker.requests[-1].body["priority"] == -priority


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({}, [4]),
        ({"num_hidden_layers": 2, "num_experts_per_tok": 1}, [2, 2, 1]),
        ({"text_config": {"num_hidden_layers": 1, "num_experts_per_tok": 2}}, [2, 1, 2]),
        ({"num_hidden_layers": 3, "num_experts_per_tok": 1}, [4]),
        ({"num_hidden_layers": 2, "num_experts_per_tok": [1, 2]}, [4]),
    ],
)
async def test_routed_experts_come_where_they_are_asked_for(
    config: dict[str, Any], shape: list[int], stream: bool, tmp_path: Path
) -> None:
    """By tokens, layers and experts, as trainers take them apart, where the checkpoint says it."""
    settings: dict[str, Any] = {}
    if config:
        directory = shutil.copytree(checkpoint(), tmp_path / "experts")
        known = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**known, **config}))
        settings["hf_checkpoint"] = str(directory)
    data = "AQAAAAIAAAADAAAABAAAAA=="
    async with tiny_worker() as worker, serving(worker.url, **settings) as router:
        worker.script([11], routed_experts=data)
        asked = body(return_routed_experts=True, stream=stream)
        async with router.http.post(PATH, json=asked) as response:
            raw = await response.read()
        reply = events(raw)[-2] if stream else orjson.loads(raw)
        assert reply["choices"][0]["routed_experts"] == {
            "data": data,
            "dtype": "int32",
            "shape": shape,
            "start": 0,
        }
        assert worker.requests[0].body["return_routed_experts"] is True
