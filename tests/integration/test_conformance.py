"""The conformance kit: what it says of this router, and of gateways that hand over less."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import aiohttp
import numpy as np
import pytest
import safetensors.numpy
from aiohttp import web
from aiohttp.test_utils import TestServer

from slime_router.conformance.adapter import Chat, GatewayError, HandedRow, Http
from slime_router.conformance.gateways import Miles, SlimeRouter
from slime_router.conformance.judge import find_drift, find_faults
from slime_router.conformance.kit import Report, examine, report_text
from slime_router.conformance.worker import Exchange
from tests.integration.gateway import Served, serving
from tests.stack import tiny_tokenizer


async def examined(router: Served, adapter: str) -> Report:
    """The report on a router that uses the kit's workers."""
    announced: asyncio.Future[Sequence[str]] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(
        examine(
            str(router.http._base_url),
            adapter,
            tiny_tokenizer(),
            announce=announced.set_result,
        )
    )
    for url in await announced:
        status, _ = await router.post("/workers", {"url": url})
        assert status in (200, 201, 202)
    return await task


@pytest.mark.parametrize("adapter", ["slime-router", "miles"])
async def test_this_router_passes_every_case(adapter: str):
    async with serving() as router:
        report = await examined(router, adapter)
    assert report.is_exact, report_text(report)
    assert [result.name for result in report.results] == [
        "drift",
        "twin",
        "mask",
        "kill",
        "train once",
    ]


async def test_token_ids_in_chat_replies_are_enough_where_the_gateway_keeps_prompts_exact():
    async with serving() as router:
        report = await examined(router, "openai")
    assert report.is_exact, report_text(report)


async def test_a_gateway_that_passes_chats_on_and_ids_not_fails_what_depends_on_tokens():
    """Its workers encode each conversation again, and so does the trainer."""
    workers: list[str] = []

    async def passed_on(request: web.Request) -> web.Response:
        body = {**await request.json(), "return_token_ids": False}
        url = f"{workers[0]}/v1/chat/completions" if workers else "http://127.0.0.1:1"
        async with aiohttp.ClientSession() as http:
            try:
                async with http.post(url, json=body) as response:
                    return web.Response(body=await response.read(), status=response.status)
            except aiohttp.ClientError:
                return web.Response(status=502)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", passed_on)
    async with TestServer(app) as server:
        report = await examine(
            str(server.make_url("")), "openai", tiny_tokenizer(), announce=workers.extend
        )
    outcomes = {result.name: result.outcome for result in report.results}
    assert outcomes == {
        "drift": "fail",
        "twin": "fail",
        "mask": "fail",
        "kill": "error",
        "train once": "fail",
    }
    text = report_text(report)
    assert "the prompt of turn 2 departs from" in text
    assert "were never sampled after the tokens before them" in text
    assert "502" in text


class Keeper:
    """A gateway that passes chats on and keeps what their workers said of tokens, by session.

    It has the routes of rLLM's gateway, and those that are put before agentcore's.
    """

    def __init__(self) -> None:
        self.workers: list[str] = []
        self.kept: dict[str, list[dict[str, Any]]] = {}

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/sessions", self.open)
        app.router.add_post("/sessions/{name}", self.open)
        app.router.add_post("/sessions/{name}/v1/chat/completions", self.chat)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/admin/flush", self.flush)
        app.router.add_get("/sessions/{name}/traces", self.traces)
        app.router.add_post("/sessions/{name}/finish", self.finish)
        return app

    async def open(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", f"s{len(self.kept)}")
        self.kept[name] = []
        return web.json_response({"session_id": name})

    async def flush(self, _: web.Request) -> web.Response:
        return web.json_response({})

    async def chat(self, request: web.Request) -> web.Response:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        body = {**await request.json(), "return_token_ids": True, "logprobs": True}
        if not self.workers:
            return web.Response(status=502)
        async with aiohttp.ClientSession() as http:
            try:
                async with http.post(f"{self.workers[0]}/v1/chat/completions", json=body) as said:
                    reply = await said.json()
            except aiohttp.ClientError:
                return web.Response(status=502)
        self.kept[request.match_info.get("name", key)].append(reply)
        return web.json_response(reply)

    async def traces(self, request: web.Request) -> web.Response:
        return web.json_response([*map(_trace, self.kept[request.match_info["name"]])])

    async def finish(self, request: web.Request) -> web.Response:
        traces = map(_trace, self.kept.pop(request.match_info["name"]))
        return web.json_response(
            [
                {
                    "tokens": each["prompt_token_ids"] + each["completion_token_ids"],
                    "loss_mask": [1] * len(each["completion_token_ids"]),
                    "rollout_log_probs": each["logprobs"],
                }
                for each in traces
            ]
        )


def _trace(reply: dict[str, Any]) -> dict[str, Any]:
    """As rLLM reads a reply of vLLM's."""
    [choice] = reply["choices"]
    return {
        "prompt_token_ids": reply["prompt_token_ids"],
        "completion_token_ids": choice["token_ids"],
        "logprobs": [each["logprob"] for each in choice["logprobs"]["content"]],
    }


@pytest.mark.parametrize("adapter", ["rllm", "agentcore"])
async def test_a_gateway_that_keeps_the_ids_of_replies_fails_where_prompts_drift(adapter: str):
    keeper = Keeper()
    async with TestServer(keeper.app()) as server:
        report = await examine(
            str(server.make_url("")), adapter, tiny_tokenizer(), announce=keeper.workers.extend
        )
    outcomes = {result.name: result.outcome for result in report.results}
    assert outcomes == {
        "drift": "fail",
        "twin": "pass",
        "mask": "pass",
        "kill": "error",
        "train once": "pass",
    }, report_text(report)


ROW = {"tokens": [1], "loss_mask": [1], "logprobs": [-0.1]}
CHATS = {"choices": [{"message": {"content": "Hello."}}]}


def answering(said: dict[str, Any]) -> web.Application:
    """A gateway that has one answer for each path, whatever it is asked."""

    async def answer(request: web.Request) -> web.Response:
        found = said.get(request.path.rpartition("/")[2])
        if isinstance(found, bytes):
            return web.Response(body=found)
        return web.Response(status=404) if found is None else web.json_response(found)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app


@pytest.mark.parametrize("opened", [[], {}, {"id": "a"}, "a", None, 5])
@pytest.mark.parametrize("adapter", ["slime-router", "miles", "rllm"])
async def test_a_gateway_whose_sessions_cannot_be_read_answers_no_chat(adapter: str, opened: Any):
    said = {"sessions": opened, "completions": CHATS}
    async with TestServer(answering(said)) as server:
        with pytest.raises(GatewayError):
            await examine(str(server.make_url("")), adapter, tiny_tokenizer(), wait_s=-1.0)


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"rows": None},
        {"rows": [{}]},
        {"rows": [5]},
        {"rows": [{**ROW, "tokens": None}]},
        {"rows": [{**ROW, "tokens": [[1]]}]},
        {"rows": [{**ROW, "loss_mask": [1, 1]}]},
        {"rows": [{**ROW, "logprobs": ["x"]}]},
    ],
    ids=repr,
)
async def test_rows_that_cannot_be_read_are_the_gateways_error(answer: Any):
    async with (
        TestServer(answering({"rows": answer})) as server,
        Http(str(server.make_url("")), {}) as http,
    ):
        with pytest.raises(GatewayError, match="the rows cannot be read"):
            await SlimeRouter(http).rows(Chat("", name="a"))


@pytest.mark.parametrize("logprobs", [[None], [], [-0.1, -0.2]])
async def test_rows_without_the_log_probabilities_are_at_fault(logprobs: Any):
    answer = {"rows": [{**ROW, "logprobs": logprobs}]}
    async with (
        TestServer(answering({"rows": answer})) as server,
        Http(str(server.make_url("")), {}) as http,
    ):
        rows = await SlimeRouter(http).rows(Chat("", name="a"))
    assert "1 trained tokens lack" in find_faults(rows, [Exchange((), (1,), (-0.1,))])[0]


@pytest.mark.parametrize("answer", [b"", b"x" * 20, safetensors.numpy.save({"a": np.zeros(1)})])
async def test_samples_that_cannot_be_read_are_the_gateways_error(answer: bytes):
    async with (
        TestServer(answering({"samples": answer})) as server,
        Http(str(server.make_url("")), {}) as http,
    ):
        with pytest.raises(GatewayError, match="the samples"):
            await Miles(http).rows(Chat("", name="a"))


PROMPT, IDS = (1, 2), (3, 4, 5)
SAMPLED = Exchange(PROMPT, IDS, (-0.1, -0.2, -0.3))
GOOD = HandedRow([1, 2, 3, 4, 5], [0, 0, 1, 1, 1], [0, 0, -0.1, -0.2, -0.3])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (GOOD, []),
        (replace(GOOD, tokens=[1, 2, 3, 9, 5]), ["2 trained", "2 sampled tokens are not trained"]),
        (replace(GOOD, loss_mask=[0, 0, 1, 1, 0]), ["1 sampled tokens are not trained"]),
        (replace(GOOD, loss_mask=[0, 1, 1, 1, 1]), ["1 trained tokens were never sampled"]),
        (replace(GOOD, logprobs=[0, 0, -0.1, -0.2, -0.9]), ["1 trained tokens lack", "1 sampled"]),
        (replace(GOOD, logprobs=None), ["3 trained tokens lack", "3 sampled"]),
    ],
)
def test_each_fault_of_a_row_is_found(row: HandedRow, said: list[str]):
    faults = find_faults([row], [SAMPLED])
    assert len(faults) == len(said)
    assert all(fault.startswith(words) for fault, words in zip(faults, said, strict=True)), faults


def test_a_token_that_two_rows_train_is_found():
    assert find_faults([GOOD, GOOD], [SAMPLED]) == ["3 sampled tokens are trained twice"]
    again = replace(SAMPLED, logprobs=(-0.1, -0.2, -0.3))
    assert find_faults([GOOD, GOOD], [SAMPLED, again]) == [], "each was sampled by itself"


def test_a_prompt_that_departs_from_what_was_held_is_found():
    whole = Exchange((*PROMPT, *IDS, 6), (7,), (-1.0,))
    assert find_drift([SAMPLED, whole]) == []
    drifted = Exchange((*PROMPT, 3, 8, 5, 6), (7,), (-1.0,))
    assert find_drift([SAMPLED, drifted]) == ["the prompt of turn 2 departs from 3 of 5 tokens"]
