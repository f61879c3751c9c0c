"""The `/generate` door over real HTTP: words untouched, batches split, killers refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from slime_router.api.endpoint import serve
from slime_router.api.generate.dialect import GENERATE
from slime_router.api.generate.request import read_generate_request
from slime_router.errors import BadRequest, NoWorker, WorkerFailed, WorkerRefused
from slime_router.generation.admission import aborted
from slime_router.types import Finish, GenerateCall
from tests.integration.scripted import (
    RECEIPT,
    Bytes,
    Client,
    Script,
    Scripted,
    asked,
    events,
    first,
    last,
    served,
)

PATH = "/generate"


def item(call: GenerateCall, finish: Any = None, **meta: Any) -> dict[str, Any]:
    """A worker's item with fields that the router has never heard of."""
    told = {
        "id": call.rid,
        "finish_reason": finish,
        "routed_experts": "AAAA",
        "input_token_logprobs": [],
        "output_token_logprobs": [[-0.5, 65, None]],
        "output_token_logprobs_length": 1,
        "output_top_logprobs": [],
        **meta,
    }
    return {
        "text": f"{call.text}!",
        "output_ids": [65],
        "meta_info": told,
        "future": {"b": 1, "a": 2},
    }


def shown(whole: dict[str, Any]) -> dict[str, Any]:
    meta = {key: value for key, value in whole["meta_info"].items() if "logprobs" not in key}
    return {**whole, "meta_info": meta}


def answer(call: GenerateCall, k: int):
    stop = {"type": "stop", "matched": 256}
    return [first("A", item=item(call)), last(item=item(call, stop))]


@asynccontextmanager
async def door(script: Script = answer) -> AsyncIterator[tuple[Client, Scripted]]:
    scripted = Scripted(script)
    async with served(PATH, partial(serve, GENERATE, scripted.context())) as client:
        yield client, scripted


async def whole(client: Client, **body: Any) -> Any:
    async with client.post(PATH, json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def streamed(client: Client, **body: Any) -> list[Any]:
    async with client.post(PATH, json={**body, "stream": True}) as response:
        assert response.status == 200, await response.text()
        return events(await response.read())


async def test_the_call_has_the_clients_own_body_and_rid():
    body = {"text": "hi", "rid": "mine", "unknown": 1, "sampling_params": {"n": 0, "top_p": None}}
    async with door() as (client, scripted):
        await whole(client, **body)
    (call,) = scripted.calls
    assert call.asked == body
    assert (call.rid, call.text, call.input_ids, call.messages) == ("mine", "hi", None, None)
    assert call.turn_id.startswith("turn_")
    assert not call.stream


async def test_ids_win_over_text():
    async with door() as (client, scripted):
        await whole(client, text="hi", input_ids=[1, 2])
    (call,) = scripted.calls
    assert call.text is None
    assert call.input_ids is not None
    assert call.input_ids.tolist() == [1, 2]


async def test_the_workers_item_is_handed_on_with_the_logprobs_that_were_asked_for():
    async with door() as (client, scripted):
        with_logprobs = await whole(client, text="hi", return_logprob=True)
        without = await whole(client, text="hi")
    stop = {"type": "stop", "matched": 256}
    assert with_logprobs == item(scripted.calls[0], stop)
    assert list(with_logprobs["future"]) == ["b", "a"]
    assert without == shown(item(scripted.calls[1], stop))


async def test_a_stream_hands_on_every_item_as_it_comes():
    async with door() as (client, scripted):
        got = await streamed(client, text="hi")
    (call,) = scripted.calls
    assert call.stream
    assert got == [
        shown(item(call)),
        shown(item(call, {"type": "stop", "matched": 256})),
        "[DONE]",
    ]


async def test_the_receipt_stands_in_the_header_either_way():
    async with door() as (client, _):
        for stream in (False, True):
            async with client.post(PATH, json={"text": "a", "stream": stream}) as response:
                assert response.headers["x-slime-receipt"] == RECEIPT.to_json()
                assert response.headers["x-request-id"].startswith("req_")


async def test_hiding_logprobs_leaves_the_workers_item_whole_for_others():
    """The recording layer holds the very same object."""
    kept: list[dict[str, Any]] = []

    def script(call: GenerateCall, k: int):
        kept.append(item(call, {"type": "stop", "matched": 256}))
        return [first("A"), last(item=kept[0])]

    async with door(script) as (client, scripted):
        await whole(client, text="hi")
    assert kept[0] == item(scripted.calls[0], {"type": "stop", "matched": 256})


async def test_an_abort_is_handed_on_untouched():
    abort = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}

    def script(call: GenerateCall, k: int):
        return [first("A", item=item(call, abort), finish=Finish("abort", message="Aborted"))]

    async with door(script) as (client, _):
        assert (await whole(client, text="hi"))["meta_info"]["finish_reason"] == abort
        got = await streamed(client, text="hi")
    assert got[0]["meta_info"]["finish_reason"] == abort
    assert got[1:] == ["[DONE]"]


async def test_a_batch_becomes_single_calls_with_their_own_entries():
    body = {
        "text": ["a", "b"],
        "rid": ["r1", "r2"],
        "sampling_params": [{"temperature": 0}, {"temperature": 1}],
        "return_logprob": [True, False],
        "token_ids_logprob": [1, 2],
        "lora_path": ["x", None],
        "shared": [1, 2],
    }
    async with door() as (client, scripted):
        reply = await whole(client, **body)
    assert [call.asked for call in scripted.calls] == [
        {
            "text": "a",
            "rid": "r1",
            "sampling_params": {"temperature": 0},
            "return_logprob": True,
            "token_ids_logprob": [1, 2],
            "lora_path": "x",
            "shared": [1, 2],
        },
        {
            "text": "b",
            "rid": "r2",
            "sampling_params": {"temperature": 1},
            "return_logprob": False,
            "token_ids_logprob": [1, 2],
            "lora_path": None,
            "shared": [1, 2],
        },
    ]
    assert [call.rid for call in scripted.calls] == ["r1", "r2"]
    assert len({call.scope for call in scripted.calls}) == 2
    assert [each["text"] for each in reply] == ["a!", "b!"]
    assert "output_token_logprobs" in reply[0]["meta_info"]
    assert "output_token_logprobs" not in reply[1]["meta_info"]


async def test_samples_stand_in_flat_prompt_major_order():
    async with door() as (client, scripted):
        body = {"input_ids": [[1], [2]], "rid": "r", "sampling_params": {"n": 2, "top_k": 1}}
        reply = await whole(client, **body)
    ids = [call.input_ids.tolist() for call in scripted.calls if call.input_ids is not None]
    assert ids == [[1], [1], [2], [2]]
    rids = [call.rid for call in scripted.calls]
    assert len(set(rids)) == 4
    assert [each["meta_info"]["id"] for each in reply] == rids
    natives = [call.asked for call in scripted.calls if call.is_passed_on]
    assert [native["sampling_params"] for native in natives] == [{"top_k": 1}] * 4


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({"text": "a"}, None),
        ({"text": "a", "sampling_params": {"n": 0}}, None),
        ({"text": "a", "sampling_params": {"n": -1}}, None),
        ({"text": ["a"]}, 1),
        ({"input_ids": [[1]]}, 1),
        ({"text": "a", "sampling_params": {"n": 3}}, 3),
    ],
)
async def test_a_batch_and_several_samples_are_answered_as_an_array(body, count):
    async with door() as (client, _):
        reply = await whole(client, **body)
    assert (len(reply) if isinstance(reply, list) else None) == count


async def test_items_of_a_streamed_batch_say_whose_they_are():
    async with door() as (client, _):
        got = await streamed(client, text=["a", "b"])
    assert got[-1] == "[DONE]"
    for index, text in enumerate(("a!", "b!")):
        mine = [each for each in got[:-1] if each["index"] == index]
        assert [each["text"] for each in mine] == [text, text]
        assert mine[-1]["meta_info"]["finish_reason"]["type"] == "stop"


async def test_a_plug_in_that_answers_by_itself_needs_no_item():
    async with door(lambda *_: [first("He"), last(Finish("length"))]) as (client, scripted):
        reply = await whole(client, text="hi")
        got = await streamed(client, text="hi")
    assert reply == {
        "text": "He",
        "output_ids": [72, 101, 256],
        "meta_info": {
            "id": scripted.calls[0].rid,
            "finish_reason": {"type": "length", "length": 3},
            "prompt_tokens": 0,
            "weight_version": "v7",
            "completion_tokens": 3,
            "cached_tokens": 2,
        },
    }
    assert [each["output_ids"] for each in got[:-1]] == [[72, 101], [72, 101, 256]]


async def test_its_logprobs_are_in_the_item_as_a_workers_would_be():
    async with door(lambda *_: [first("He"), last(Finish("length"))]) as (client, _):
        meta = (await whole(client, text="hi", return_logprob=True))["meta_info"]
        got = await streamed(client, text="hi", return_logprob=True)
    sampled = [[-0.5, 72, None], [-0.5, 101, None], [-1.0, 256, None]]
    assert (meta["output_token_logprobs"], meta["output_token_logprobs_length"]) == (sampled, 3)
    told = [each["meta_info"]["output_token_logprobs"] for each in got[:-1]]
    assert told == [sampled[:2], sampled]


async def test_what_is_aborted_before_a_worker_has_it_reads_like_a_workers_abort():
    """AReaL's engine reads the logprobs of each reply, and has no weights to name."""

    def script(call: GenerateCall, k: int):
        return [aborted(call)]

    async with door(script) as (client, _):
        meta = (await whole(client, text="hi", return_logprob=True))["meta_info"]
        plain = (await whole(client, text="hi"))["meta_info"]
    assert (meta["output_token_logprobs"], meta["output_token_logprobs_length"]) == ([], 0)
    assert meta["finish_reason"]["message"] == "Abort in waiting queue"
    assert "weight_version" not in meta
    assert not any("logprobs" in name for name in plain)


BAD: list[dict[str, Any]] = [
    {},
    {"text": None, "input_ids": None},
    {"image_data": "x"},
    {"text": ""},
    {"text": 1},
    {"text": []},
    {"text": ["a", ""]},
    {"text": ["a", 1]},
    {"input_ids": []},
    {"input_ids": 5},
    {"input_ids": [260]},
    {"input_ids": [-1]},
    {"input_ids": [2**31]},
    {"input_ids": [2**40]},
    {"input_ids": [2**64]},
    {"input_ids": [1.0]},
    {"input_ids": ["1"]},
    {"input_ids": [1, True]},
    {"input_ids": [1, None]},
    {"input_ids": [1, [2]]},
    {"input_ids": [[1], []]},
    {"input_ids": [[1], 2]},
    {"input_ids": [[1], [260]]},
    {"text": "a", "stream": 1},
    {"text": "a", "rid": 5},
    {"text": "a", "rid": ["r"]},
    {"text": "a", "rid": 0},
    {"text": "a", "rid": False},
    {"text": "a", "rid": []},
    {"text": ["a", "b"], "rid": {}},
    {"text": ["a", "b"], "rid": ["r"]},
    {"text": ["a", "b"], "rid": ["r", "r"]},
    {"text": ["a", "b"], "rid": ["r", 5]},
    {"text": ["a", "b"], "return_logprob": [True]},
    {"text": ["a", "b"], "sampling_params": [{}]},
    {"text": "a", "sampling_params": [{}]},
    {"text": "a", "sampling_params": "x"},
    {"text": "a", "sampling_params": {"choice": ["a"]}},
    {"text": "a", "sampling_params": {"is_normalized": True}},
    {"text": "a", "sampling_params": {"n": 1.5}},
    {"text": "a", "sampling_params": {"n": 10**9}},
    {"text": "a", "sampling_params": {"max_new_tokens": 1.5}},
    {"text": "a", "sampling_params": {"stop": 5}},
    {"text": ["a", "b"], "sampling_params": [{}, {"stop": ["a", 5]}]},
    {"text": "a", "sampling_params": {"stop_token_ids": [260]}},
    {"text": "a", "sampling_params": {"stop_token_ids": 3}},
    {"text": "a", "sampling_params": {"logit_bias": {"260": 1}}},
    {"text": "a", "sampling_params": {"logit_bias": [1]}},
    {"text": "a", "return_hidden_states": []},
    {"text": "a", "return_hidden_states": [True]},
    {"text": "a", "return_hidden_states": 1},
    {"text": ["a", "b"], "return_hidden_states": [False, []]},
    {"text": "a", "top_logprobs_num": 261},
    {"text": "a", "top_logprobs_num": -1},
    {"text": "a", "top_logprobs_num": True},
    {"text": ["a"], "top_logprobs_num": [261]},
    {"text": "a", "token_ids_logprob": [260]},
    {"text": ["a", "b"], "token_ids_logprob": [[1], [260]]},
]


@pytest.mark.parametrize("body", BAD, ids=lambda body: str(body)[:60])
async def test_what_could_kill_a_worker_is_a_400_in_sglangs_shape(body):
    raw = json.dumps(body)  # orjson cannot write 2**64
    async with door() as (client, scripted), client.post(PATH, data=raw) as response:
        assert response.status == 400
        assert list((await response.json())["error"]) == ["message"]
    assert scripted.calls == []


@pytest.mark.parametrize(
    "pattern", ["(", ["a+", "(?<=a+)b"], ["a{99999999999}"], "a" * 257, 5, [5]]
)
async def test_a_stop_regex_that_is_none_is_named(pattern):
    """SGLang answers with a 500, which would say nothing to the client."""
    body = {"text": "a", "sampling_params": {"stop_regex": pattern}}
    async with door() as (client, scripted), client.post(PATH, json=body) as response:
        assert response.status == 400
        assert "'stop_regex'" in (await response.json())["error"]["message"]
    assert scripted.calls == []


async def test_the_patterns_of_a_batch_have_one_budget():
    params = [{"stop_regex": [f"(?i)[Ā-￾]{n}", f"x{n}"]} for n in range(20)]
    body = {"text": ["a"] * 20, "sampling_params": params}
    async with door() as (client, scripted), client.post(PATH, json=body) as response:
        assert response.status == 400
        assert "'stop_regex'" in (await response.json())["error"]["message"]
    assert scripted.calls == []


@pytest.mark.parametrize("field", ["json_schema", "structural_tag"])
async def test_a_schema_that_refers_to_itself_without_end_is_named(field):
    """SGLang answers with a 500."""
    schema: Any = {"$ref": "#"}
    asked = schema if field == "json_schema" else {"format": {"json_schema": schema}}
    body = {"text": "a", "sampling_params": {field: json.dumps(asked)}}
    async with door() as (client, scripted), client.post(PATH, json=body) as response:
        assert response.status == 400
        assert f"'{field}'" in (await response.json())["error"]["message"]
    assert scripted.calls == []


@pytest.mark.parametrize("pattern", [None, [], "a+", ["a+", "b$"]])
async def test_a_stop_regex_goes_to_the_worker_as_it_is(pattern):
    async with door() as (client, scripted):
        await whole(client, text="a", sampling_params={"stop_regex": pattern})
    assert (scripted.calls[0].asked or {})["sampling_params"] == {"stop_regex": pattern}


async def test_a_body_that_is_not_json_is_a_400():
    async with door() as (client, _), client.post(PATH, data=b"{") as response:
        assert response.status == 400
        assert "JSON" in (await response.json())["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_workers_refusal_is_handed_on_byte_for_byte(stream):
    said = b'{"error": {"message": "The input (9 tokens) is longer"},  "x":1}'
    error = WorkerRefused("other words", status=413, body=said)
    body = {"text": "a", "stream": stream}
    async with door(lambda *_: [error]) as (client, _), client.post(PATH, json=body) as response:
        assert response.status == 413
        assert await response.read() == said
        assert response.content_type == "application/json"


async def test_other_errors_have_sglangs_shape():
    error = NoWorker("none")
    body = {"text": "a"}
    async with door(lambda *_: [error]) as (client, _), client.post(PATH, json=body) as response:
        assert response.status == 503
        assert response.headers["retry-after"] == "1"
        assert await response.json() == {"error": {"message": "none"}}


async def test_an_error_in_a_stream_is_an_event_and_done():
    def script(call: GenerateCall, k: int):
        return [first("A", item=item(call)), WorkerFailed("died")]

    async with door(script) as (client, _):
        got = await streamed(client, text="a")
    assert got[1:] == [{"error": {"message": "died"}}, "[DONE]"]


async def test_one_failure_in_a_batch_fails_it_and_closes_the_others():
    def script(call: GenerateCall, k: int):
        return [NoWorker("none")] if k == 1 else [first("A"), asyncio.Event()]

    body = {"text": ["a", "b", "c"]}
    async with door(script) as (client, scripted), client.post(PATH, json=body) as response:
        assert response.status == 503
    assert len(scripted.closed) == 3


@pytest.mark.parametrize("text", ["a", ["a", "b"]])
async def test_a_client_that_leaves_closes_every_generation(text):
    begun = asyncio.Event()

    class Told(asyncio.Event):
        async def wait(self):
            begun.set()
            return True

    async with door(lambda *_: [first("a"), Told(), asyncio.Event()]) as (client, scripted):
        asking = asyncio.ensure_future(whole(client, text=text))
        await asyncio.wait_for(begun.wait(), 60)
        asking.cancel()
        await asyncio.wait_for(scripted.all_closed.wait(), 60)
    assert len(scripted.closed) == len(text)


def test_a_session_is_named_as_at_the_chat_door():
    call = read_generate_request({"text": "a"}, asked(**{"x-smg-routing-key": "k"}), Bytes()).calls[
        0
    ]
    assert call.session_id == "k"
    assert call.headers["x-smg-routing-key"] == "k"
    assert call.headers.keys() == {"x-smg-routing-key", "x-request-id"}


def test_more_generations_than_a_router_can_run_are_refused():
    with pytest.raises(BadRequest):
        read_generate_request(
            {"text": ["a"] * 200, "sampling_params": {"n": 100}}, asked(), Bytes()
        )
