"""The Responses door over real HTTP: shapes, order, errors, and one trajectory with chat."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import openai
import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import TypeAdapter

from slime_router.api.endpoint import serve
from slime_router.api.responses import stored
from slime_router.api.responses.dialect import responses
from slime_router.api.responses.store import ResponseStore
from slime_router.api.sse import ClientLeft, EventStream
from slime_router.errors import BadRequest, NoWorker, TooManyRequests, WorkerFailed
from slime_router.testing import FakeWorker
from slime_router.types import Finish
from tests.integration import gateway as gateways
from tests.integration.gateway import CHAT, Served, user
from tests.integration.scripted import (
    Client,
    Script,
    Scripted,
    application,
    call,
    first,
    hello,
    last,
    named_events,
    said,
)
from tests.stack import tiny_tokenizer

PATH = "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ASK: dict[str, Any] = {"model": "m", "input": "hi"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "name": "get_weather", "parameters": PARAMETERS}


def thoughtful(*_: Any):
    return [
        first(reasoning="Let me ", reasoning_tokens=2),
        said(reasoning="see."),
        said("I look."),
        call(0, name="get_weather"),
        call(0, '{"city":'),
        call(0, '"Rome"}'),
        call(1, "{}", name="get_weather"),
        last(),
    ]


def babbling(*_: Any):
    return [first("a"), call(0, name="f"), said("b"), call(0, "{}"), last()]


def cut(*_: Any):
    return [first("Hel"), last(Finish("length"))]


def cut_call(*_: Any):
    return [first(), call(0, '{"a', name="f"), last(Finish("length"))]


def silent(*_: Any):
    return [first(), last()]


@asynccontextmanager
async def door(script: Script = hello, limit: int = 8) -> AsyncIterator[tuple[Client, Scripted]]:
    scripted = Scripted(script)
    context, kept = scripted.context(limit), ResponseStore(4)
    app = application()
    app.router.add_post(PATH, partial(serve, responses(kept), context))
    app.router.add_get(PATH + "/{id}", partial(stored.show, kept))
    app.router.add_delete(PATH + "/{id}", partial(stored.delete, kept))
    app.router.add_get(PATH + "/{id}/input_items", partial(stored.list_items, kept))
    app.router.add_post(PATH + "/{id}/cancel", partial(stored.cancel, kept))
    async with TestClient(TestServer(app)) as client:
        yield client, scripted


async def whole(client: Client, **fields: Any) -> Any:
    async with client.post(PATH, json={**ASK, **fields}) as response:
        assert response.status == 200, await response.text()
        reply = await response.json()
    Response.model_validate(reply, strict=False)
    return reply


async def streamed(client: Client, **fields: Any) -> list[Any]:
    async with client.post(PATH, json={**ASK, "stream": True, **fields}) as response:
        assert response.status == 200, await response.text()
        return events(await response.read())


def events(raw: bytes) -> list[Any]:
    """The payloads of a whole stream, each checked against its type in the SDK."""
    payloads = named_events(raw)
    for payload in payloads:
        EVENT.validate_python(payload)
    assert [p["sequence_number"] for p in payloads] == list(range(len(payloads)))
    return payloads


def without_ids(reply: Any) -> Any:
    items = [{k: v for k, v in item.items() if k != "id"} for item in reply["output"]]
    rest = {k: v for k, v in reply.items() if k not in ("id", "created_at", "completed_at")}
    return {**rest, "output": items}


def folded(stream: Sequence[Any]) -> list[str]:
    """Each item's text, put together from its deltas alone."""
    texts: dict[int, str] = {}
    for event in stream:
        if event["type"] == "response.output_item.added":
            assert event["output_index"] == len(texts)
            texts[event["output_index"]] = ""
        elif event["type"].endswith(".delta"):
            texts[event["output_index"]] += event["delta"]
    return list(texts.values())


def text_of(item: Any) -> str:
    return item["arguments"] if "arguments" in item else "".join(p["text"] for p in item["content"])


async def test_the_whole_reply_has_this_shape():
    async with door(thoughtful) as (client, scripted):
        reply = await whole(client, tools=[TOOL], metadata={"a": "b"}, max_output_tokens=9)
    assert reply["id"] == scripted.calls[0].rid
    assert reply["status"] == "completed"
    assert reply["metadata"] == {"a": "b"}
    assert reply["max_output_tokens"] == 9
    calls = {"type": "function_call", "status": "completed", "name": "get_weather"}
    part = {"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}
    assert without_ids(reply)["output"] == [
        {
            "type": "reasoning",
            "status": "completed",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Let me see."}],
            "encrypted_content": "turn_a",
        },
        {"type": "message", "status": "completed", "role": "assistant", "content": [part]},
        {**calls, "call_id": "call_0", "arguments": '{"city":"Rome"}'},
        {**calls, "call_id": "call_1", "arguments": "{}"},
    ]
    assert reply["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 8,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 11,
    }
    assert [item["id"].partition("_")[0] for item in reply["output"]] == ["rs", "msg", "fc", "fc"]


async def test_a_client_that_hangs_up_behind_the_last_event_has_its_reply(monkeypatch):
    """SDKs do not wait for the end of the stream; the turn was delivered anyway."""

    async def left(self):
        raise ClientLeft

    monkeypatch.setattr(EventStream, "end", left)
    async with door(thoughtful) as (client, scripted):
        await streamed(client)
        await scripted.all_closed.wait()
    assert scripted.read_to_end == scripted.closed


async def test_the_events_come_in_this_order():
    async with door(thoughtful) as (client, _):
        got = await streamed(client)
    called = ["function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert [event["type"].removeprefix("response.") for event in got] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        *called,
        "output_item.added",
        *called,
        "completed",
    ]


@pytest.mark.parametrize(
    ("script", "end"),
    [
        (hello, "completed"),
        (thoughtful, "completed"),
        (babbling, "completed"),
        (silent, "completed"),
        (cut, "incomplete"),
        (cut_call, "incomplete"),
    ],
)
async def test_a_stream_says_what_the_whole_reply_says(script, end):
    async with door(script) as (client, _):
        got, reply = await streamed(client), await whole(client)
    assert got[-1]["type"] == f"response.{end}"
    final = got[-1]["response"]
    assert without_ids(final) == without_ids(reply)
    assert reply["status"] == end
    assert (reply["incomplete_details"] is None) == (end == "completed")
    assert reply["output"][-1]["status"] == end
    done = [event["item"] for event in got if event["type"] == "response.output_item.done"]
    assert done == final["output"]
    assert folded(got) == [text_of(item) for item in reply["output"]]


async def test_text_behind_calls_is_not_lost():
    async with door(babbling) as (client, _):
        reply = await whole(client)
    assert [text_of(item) for item in reply["output"]] == ["a", "{}", "b"]


async def test_errors_before_the_first_byte_are_http_errors():
    for exc, status in ((NoWorker("none"), 503), (BadRequest("x", param="messages[1].a"), 400)):
        async with door(lambda *_, e=exc: [e]) as (client, _), client.post(PATH, json=ASK) as got:
            error = (await got.json())["error"]
            assert got.status == status
            assert set(error) == {"message", "type", "param", "code"}
            assert error["param"] == (None if status == 503 else "input[1].a")
    async with door() as (client, _):
        for body, param in (
            ({"temperature": 3}, "temperature"),
            ({"max_output_tokens": 0}, "max_output_tokens"),
            ({"text": {"format": {"type": "x"}}}, "text.format.type"),
            ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
            ({"reasoning": {"effort": "x"}}, "reasoning.effort"),
        ):
            async with client.post(PATH, json={**ASK, **body}) as got:
                error = (await got.json())["error"]
                assert (got.status, error["param"]) == (400, param)
                assert param in error["message"] or "response_format" not in error["message"]


@pytest.mark.parametrize(
    ("exc", "code"),
    [(WorkerFailed("died"), "server_error"), (TooManyRequests("much"), "rate_limit_exceeded")],
)
async def test_a_failure_after_the_first_byte_is_failed_then_error(exc, code):
    async with door(lambda *_: [first("Hel"), exc]) as (client, _):
        *_, failed, error = await streamed(client)
        async with client.get(f"{PATH}/{failed['response']['id']}") as got:
            assert got.status == 404, "what failed is not stored"
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {"code": code, "message": exc.message}
    assert (error["type"], error["code"]) == ("error", exc.code)


async def test_stored_responses_are_shown_continued_and_deleted():
    async with door() as (client, scripted):
        one = await whole(client)
        two = await whole(client, input="more", previous_response_id=one["id"], store=False)
        assert scripted.calls[1].messages == (
            user("hi"),
            {"role": "assistant", "content": "Hello", "turn": "turn_a"},
            user("more"),
        )
        assert two["previous_response_id"] == one["id"]
        async with client.get(f"{PATH}/{one['id']}") as got:
            assert await got.json() == one
        async with client.get(f"{PATH}/{two['id']}") as got:
            assert got.status == 404, "the client did not want it stored"
        async with client.delete(f"{PATH}/{one['id']}") as got:
            assert (await got.json())["deleted"] is True
        async with client.post(PATH, json={**ASK, "previous_response_id": one["id"]}) as got:
            assert got.status == 400
            assert (await got.json())["error"]["code"] == "previous_response_not_found"


async def listed(client: Client, response_id: str, **query: Any) -> Any:
    async with client.get(f"{PATH}/{response_id}/input_items", params=query) as response:
        assert response.status == 200, await response.text()
        page = await response.json()
    if page["data"]:
        ResponseItemList.model_validate(page, strict=False)
        assert page["first_id"] == page["data"][0]["id"]
    return page


async def test_input_items_are_listed_the_newest_first_and_in_pages():
    said = [{"role": "user", "content": f"{i}"} for i in range(30)]
    async with door() as (client, _):
        reply = await whole(client, input=said)
        page = await listed(client, reply["id"])
        assert [item["content"][0]["text"] for item in page["data"]] == [
            str(i) for i in range(29, 9, -1)
        ]
        assert (page["has_more"], page["last_id"]) == (True, page["data"][-1]["id"])
        rest = await listed(client, reply["id"], after=page["last_id"])
        assert [item["content"][0]["text"] for item in rest["data"]] == [
            str(i) for i in range(9, -1, -1)
        ]
        assert not rest["has_more"]
        oldest = await listed(client, reply["id"], order="asc", limit="2")
        assert [item["content"][0]["text"] for item in oldest["data"]] == ["0", "1"]
        assert oldest["has_more"]
        none = await listed(client, reply["id"], after=rest["last_id"])
        assert none == {
            "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
        }  # fmt: skip


async def test_input_items_of_what_continues_another_begin_with_its_own():
    """Their ids stay; what only the router knows of them is not shown."""
    async with door(thoughtful) as (client, _):
        one = await whole(client)
        given = {"role": "user", "content": "more", "id": "msg_mine"}
        two = await whole(client, input=[given], previous_response_id=one["id"])
        page = await listed(client, two["id"], order="asc")
        first, *said, last_one = page["data"]
        assert (first["type"], said) == ("message", one["output"])
        assert (last_one["id"], last_one["content"][0]["text"]) == ("msg_mine", "more")
        again = await listed(client, two["id"], order="asc")
        assert again == page
        assert (await listed(client, one["id"], order="asc"))["data"] == page["data"][:1]


async def test_pages_end_also_where_a_client_names_two_items_alike():
    said = [{"role": "user", "content": f"{i}", "id": "same"} for i in range(3)]
    async with door() as (client, _):
        reply = await whole(client, input=said)
        seen: list[str] = []
        while len(seen) < 4:
            query = {"after": seen[-1]} if seen else {}
            page = await listed(client, reply["id"], order="asc", limit="1", **query)
            seen += [item["content"][0]["text"] for item in page["data"]]
            if not page["has_more"]:
                break
            seen[-1] = page["last_id"]
    assert (len(seen), seen[-1]) == (3, "2")


async def test_items_of_every_kind_are_listed_with_ids():
    called = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "42"}
    part = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    spoken = {"role": "assistant", "content": "ok"}
    async with door() as (client, _):
        reply = await whole(client, input=[part, spoken, called, output])
        page = await listed(client, reply["id"], order="asc")
    kinds = ["message", "message", "function_call", "function_call_output"]
    assert [item["type"] for item in page["data"]] == kinds
    assert len({item["id"] for item in page["data"]}) == 4
    assert page["data"][1]["content"][0]["type"] == "output_text"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"limit": "1" * 5000}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "nosuch"}, "after"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_is_wrong_with_a_page_is_named(query, param):
    async with door() as (client, _):
        reply = await whole(client)
        async with client.get(f"{PATH}/{reply['id']}/input_items", params=query) as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] == param


async def test_nothing_is_listed_or_cancelled_of_what_is_not_stored():
    async with door() as (client, _):
        for method, path in (("GET", "input_items"), ("POST", "cancel")):
            async with client.request(method, f"{PATH}/resp_nosuch/{path}") as response:
                assert response.status == 404
                assert (await response.json())["error"]["param"] == "id"


async def test_a_response_that_has_ended_cannot_be_cancelled():
    async with door() as (client, _):
        reply = await whole(client)
        async with client.post(f"{PATH}/{reply['id']}/cancel") as response:
            assert response.status == 400
            error = (await response.json())["error"]
        assert error["type"] == "invalid_request_error"
        assert "background" in error["message"]
        async with client.get(f"{PATH}/{reply['id']}") as got:
            assert await got.json() == reply


async def test_the_events_of_a_response_that_has_ended_are_not_given_again():
    async with door() as (client, _):
        reply = await whole(client)
        async with client.get(f"{PATH}/{reply['id']}?stream=true") as response:
            assert response.status == 400
            assert (await response.json())["error"]["param"] == "stream"
        async with client.get(f"{PATH}/{reply['id']}?stream=false") as got:
            assert await got.json() == reply


async def test_the_openai_sdk_reads_it():
    async with (
        door(thoughtful) as (client, _),
        openai.AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="x") as sdk,
    ):
        reply = await sdk.responses.create(model="m", input="hi")
        assert reply.output_text == "I look."
        async with sdk.responses.stream(model="m", input="hi") as stream:
            seen = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert seen[-1] == "response.completed"
        assert final.output_text == "I look."
        assert (await sdk.responses.retrieve(reply.id)).id == reply.id
        assert [item.type async for item in sdk.responses.input_items.list(reply.id)] == ["message"]
        with pytest.raises(openai.BadRequestError):
            await sdk.responses.cancel(reply.id)
        await sdk.responses.delete(reply.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(reply.id)


# Through the gateway


IM_END = 514
THOUGHT = "<think>\nWhich city?\n</think>\n\n"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city":  "Paris"}}\n</tool_call>'


def letters(text: str) -> list[int]:
    """One token for each letter, but for the tags: ids that no tokenizer makes of this text."""
    parts = text.replace("<think>", "\0<think>\0").replace("</think>", "\0</think>\0").split("\0")
    pieces = [piece for part in parts for piece in ([part] if "think>" in part else part)]
    return [*(i for piece in pieces for i in tiny_tokenizer().encode(piece).tolist()), IM_END]


def parsing() -> Any:
    return gateways.served(tool_call_parser="qwen25", reasoning_parser="qwen3")


async def asked(router: Served, given: Any, *, stream: bool = False, **more: Any) -> Any:
    """A reply and its receipt."""
    body = {"model": "m", "tools": [TOOL], "input": given, "stream": stream, **more}
    async with router.http.post(PATH, json=body) as response:
        raw = await response.read()
        assert response.status == 200, raw
        receipt = orjson.loads(response.headers["x-slime-receipt"])
    return (events(raw)[-1]["response"] if stream else orjson.loads(raw)), receipt


def extends(worker: FakeWorker, output: Sequence[int]) -> bool:
    """Whether the last prompt begins with the one before it and what was sampled then."""
    before, now = (request.body["input_ids"] for request in worker.requests[-2:])
    held = [*before, *output]
    return len(now) > len(held) and now[: len(held)] == held


@pytest.mark.parsers
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("way", ["echoed", "no reasoning", "previous_response_id"])
async def test_a_tool_loop_keeps_every_sampled_token(stream, way):
    outputs = [letters(THOUGHT + "I look.\n" + CALL), letters("Sunny."), letters("Bye.")]
    asking: list[Any] = [user("Weather in Paris?")]
    async with parsing() as (router, worker):
        for output in outputs:
            worker.script(output)
        reply, receipt = await asked(router, asking, stream=stream)
        assert receipt["status"] == "fresh"
        thought, message, made = reply["output"]
        assert thought["encrypted_content"] == receipt["turn"]
        assert text_of(message).strip() == "I look."
        assert orjson.loads(made["arguments"]) == {"city": "Paris"}
        for output, said_next in (
            (outputs[0], {"type": "function_call_output", "output": "sunny"}),
            (outputs[1], user("Thanks.")),
        ):
            if said_next.get("type"):
                said_next["call_id"] = made["call_id"]
            more: dict[str, Any] = {}
            if way == "previous_response_id":
                given, more = [said_next], {"previous_response_id": reply["id"]}
            else:
                items = reply["output"]
                if way == "no reasoning":
                    items = [item for item in items if item["type"] != "reasoning"]
                asking += [*items, said_next]
                given = asking
            reply, receipt = await asked(router, given, stream=stream, **more)
            assert receipt["status"] == "extended"
            assert extends(worker, output)


@pytest.mark.parsers
async def test_a_conversation_begun_at_the_chat_door_goes_on_at_this_one_and_back():
    output, second = letters(THOUGHT + "I look.\n" + CALL), letters("Sunny.")
    tool = {"type": "function", "function": {k: TOOL[k] for k in ("name", "parameters")}}
    asking = [{"role": "system", "content": "Be brief."}, user("Weather in Paris?")]
    body: dict[str, Any] = {"model": "tiny", "tools": [tool]}
    async with parsing() as (router, worker):
        for ids in (output, second, letters("Bye.")):
            worker.script(ids)
        _, chat = await router.post(CHAT, {**body, "messages": asking})
        message = chat["choices"][0]["message"]
        (made,) = message["tool_calls"]
        given = [
            asking[1],
            {"role": "assistant", "content": message["content"]},
            {"type": "function_call", "call_id": made["id"], **made["function"]},
            {"type": "function_call_output", "call_id": made["id"], "output": "sunny"},
        ]
        reply, receipt = await asked(router, given, instructions="Be brief.")
        assert receipt["status"] == "extended"
        assert extends(worker, output)
        told = {"role": "tool", "tool_call_id": made["id"], "content": "sunny"}
        answer = {"role": "assistant", "content": text_of(reply["output"][-1])}
        back = [*asking, message, told, answer, user("Thanks.")]
        status, _ = await router.post(CHAT, {**body, "messages": back})
        assert status == 200
        assert extends(worker, second)


def logprobs_of(events: list[Any], kind: str) -> list[Any]:
    return [entry for event in events if event["type"] == kind for entry in event["logprobs"]]


@pytest.mark.parametrize("asks", [{"include": ["message.output_text.logprobs"]}, {}], ids=str)
async def test_logprobs_stand_in_the_text_s_part_whole_and_streamed(asks):
    """One for each sampled token; what the last event holds is what the deltas and the end held."""
    ids = tiny_tokenizer().encode("Hello").tolist()
    body = {"input": "Hi", "top_logprobs": 2, **asks}
    async with gateways.served() as (router, worker):
        worker.script(ids)
        _, whole = await router.post(PATH, body)
        worker.script(ids)
        async with router.http.post(PATH, json={**body, "stream": True}) as response:
            raw = await response.read()
        worker.script(ids)
        _, plain = await router.post(PATH, {"input": "Hi"})
    told = [orjson.loads(event.partition(b"data: ")[2]) for event in raw.split(b"\n\n")[:-1]]
    for event in told:
        EVENT.validate_python(event)
    [part] = whole["output"][0]["content"]
    [last_part] = told[-1]["response"]["output"][0]["content"]
    entries = part["logprobs"]
    assert "".join(entry["token"] for entry in entries) == "Hello"
    assert [len(entry["top_logprobs"]) for entry in entries] == [2] * len(ids)
    assert last_part["logprobs"] == entries
    assert logprobs_of(told, "response.output_text.done") == entries
    assert logprobs_of(told, "response.output_text.delta") == entries
    assert (whole["top_logprobs"], plain["top_logprobs"]) == (2, 0)
    assert plain["output"][0]["content"][0]["logprobs"] == []
    asked = [request.body.get("top_logprobs_num") for request in worker.requests]
    assert asked == [2, 2, None]


@pytest.mark.parametrize(
    ("asks", "param"),
    [
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"include": "all"}, "include"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"$ref": "#"}}}},
            "text.format.schema",
        ),
    ],
    ids=str,
)
async def test_what_is_wrong_with_the_form_of_the_reply_is_named(asks, param):
    async with gateways.served() as (router, worker):
        status, reply = await router.post(PATH, {"input": "Hi", **asks})
    assert (status, reply["error"]["param"]) == (400, param)
    assert worker.requests == []


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "json_object"}, '{"type": "object"}'),
        ({"type": "json_schema", "name": "n", "strict": True, "schema": {"b": 1}}, '{"b":1}'),
        ({"type": "text"}, None),
    ],
    ids=str,
)
async def test_a_text_format_is_a_grammar(form, schema):
    async with gateways.served() as (router, worker):
        status, _ = await router.post(PATH, {"input": "Hi", "text": {"format": form}})
    assert status == 200
    assert worker.requests[0].body["sampling_params"].get("json_schema") == schema
