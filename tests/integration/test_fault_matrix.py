"""What breaks clients in the field, one test for each: no door does it, streamed or whole."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson
import pytest

from slime_router.testing import FakeWorker
from tests.integration.gateway import FOUR_KEYS, Served, serving, tiny_worker, user
from tests.integration.random_replies import PATHS
from tests.integration.scripted import events
from tests.integration.test_tool_calls import REPLIES, TOOLS, parsing, say
from tests.stack import tiny_tokenizer

pytestmark = pytest.mark.parsers

USAGE = {"stream_options": {"include_usage": True}}
ASKS: dict[str, dict[str, Any]] = {
    "chat": {"messages": [user("Hi")], "tools": TOOLS, **USAGE},
    "completions": {"prompt": "Hi", "max_tokens": 500, **USAGE},
    "generate": {"text": "Hi", "sampling_params": {"max_new_tokens": 500}},
    "messages": {
        "messages": [user("Hi")],
        "max_tokens": 500,
        "tools": [{"name": tool["function"]["name"], "input_schema": {}} for tool in TOOLS],
    },
    "responses": {
        "input": "Hi",
        "tools": [{"type": "function", "name": tool["function"]["name"]} for tool in TOOLS],
    },
}
PLAIN = ("chat", "completions", "generate")  # streams of `data:` lines
OPENAI = ("chat", "completions", "responses")
TEXT = tiny_tokenizer().encode("The quick brown fox jumps over the lazy dog. " * 3).tolist()
ERROR = b'{"object":"error","message":"bad top_p","type":"BadRequestError","code":400}'
every_door = pytest.mark.parametrize("door", ASKS)


async def post(router: Served, door: str, *, stream: bool, **fields: Any) -> tuple[int, str, bytes]:
    """Status, content type and body; a connection that is cut raises."""
    body = {"model": "m", **ASKS[door], "stream": stream, **fields}
    async with router.http.post(PATHS[door], json=body) as response:
        return response.status, response.headers["content-type"], await response.read()


async def streamed(router: Served, door: str, **fields: Any) -> bytes:
    status, _, raw = await post(router, door, stream=True, **fields)
    assert status == 200, raw
    return raw


async def whole(router: Served, door: str, **fields: Any) -> Any:
    status, _, raw = await post(router, door, stream=False, **fields)
    assert status == 200, raw
    return orjson.loads(raw)


def payloads(door: str, raw: bytes) -> list[Any]:
    """The events of a stream, without `[DONE]` where that ends it."""
    if door in PLAIN:
        *given, done = events(raw)
        assert done == "[DONE]"
        return given
    return [orjson.loads(block.split(b"\ndata: ")[1]) for block in raw.split(b"\n\n")[:-1]]


def say_all(worker: FakeWorker, count: int = 1) -> None:
    """Reasoning, text and two calls."""
    for _ in range(count):
        say(worker, REPLIES["all"])


# Lines


@pytest.mark.parametrize("door", PLAIN)
async def test_no_comment_id_event_or_retry_lines(door):
    """Nor `: PROCESSING`: each line is a JSON object or `[DONE]`."""
    async with parsing() as (router, worker):
        say_all(worker)
        raw = await streamed(router, door)
    *lines, done, rest = raw.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert all(line.startswith(b'data: {"') and b"\n" not in line for line in lines)


@pytest.mark.parametrize("door", ["messages", "responses"])
async def test_named_events_have_a_name_and_data_and_no_other_lines(door):
    async with parsing() as (router, worker):
        say_all(worker)
        raw = await streamed(router, door)
    *blocks, rest = raw.split(b"\n\n")
    assert rest == b""
    for block in blocks:
        name, data = block.split(b"\n")
        kind = orjson.loads(data.removeprefix(b"data: "))["type"]
        assert name == b"event: " + kind.encode()


@every_door
async def test_nothing_is_sent_while_the_worker_is_slow(door):
    """A frame that keeps the connection alive is what some clients take for an event."""
    async with parsing() as (router, worker):
        worker.hold(after_tokens=40)
        say_all(worker)
        body = {"model": "m", **ASKS[door], "stream": True}
        async with router.http.post(PATHS[door], json=body) as response:
            await worker.wait_running(1)
            before = await response.content.readany()
            worker.release()
            raw = before + await response.read()
    assert payloads(door, raw)
    assert b": keep-alive" not in raw
    assert b"PROCESSING" not in raw


# Chunks


async def test_each_choice_begins_with_its_role_once():
    async with parsing() as (router, worker):
        say_all(worker, 2)
        chunks = payloads("chat", await streamed(router, "chat", n=2))[:-1]
    seen: set[int] = set()
    for chunk in chunks:
        [choice] = chunk["choices"]
        assert ("role" in choice["delta"]) == (choice["index"] not in seen)
        seen.add(choice["index"])
    assert seen == {0, 1}


@pytest.mark.parametrize("door", ["chat", "completions"])
async def test_each_choice_ends_with_one_finish(door):
    """At chat in its own chunk, and no usage on it."""
    async with parsing() as (router, worker):
        say_all(worker, 2)
        *chunks, usage = payloads(door, await streamed(router, door, n=2))
    for index in (0, 1):
        mine = [each["choices"][0] for each in chunks if each["choices"][0]["index"] == index]
        ends = [choice["finish_reason"] for choice in mine]
        assert set(ends[:-1]) == {None}
        assert ends[-1] in ("stop", "tool_calls")
        if door == "chat":
            assert mine[-1]["delta"] == {}
    assert not any("usage" in chunk for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"]


@every_door
async def test_a_stream_says_that_it_ended(door):
    """By `[DONE]`, once; in the other APIs by an event, and `[DONE]` would be no JSON."""
    async with parsing() as (router, worker):
        say_all(worker)
        raw = await streamed(router, door)
    assert raw.count(b"[DONE]") == (door in PLAIN)
    ends = {"messages": "message_stop", "responses": "response.completed"}
    if door in ends:
        assert payloads(door, raw)[-1]["type"] == ends[door]


async def test_each_call_has_an_index_of_its_own_in_every_piece():
    """Id and name stand in the first piece only."""
    async with parsing() as (router, worker):
        say_all(worker)
        chunks = payloads("chat", await streamed(router, "chat"))[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
    assert Counter(type(piece["index"]) for piece in pieces).keys() == {int}
    firsts = [piece for piece in pieces if piece.get("id")]
    assert [piece["index"] for piece in firsts] == [0, 1]
    assert len({piece["id"] for piece in firsts}) == 2
    assert [piece["function"]["name"] for piece in firsts] == ["get_weather", "search"]
    assert len(pieces) > len(firsts)
    rest = [piece for piece in pieces if not piece.get("id")]
    assert not any(piece["function"].get("name") for piece in rest)


@pytest.mark.parametrize(
    "choice", ["auto", "required", {"type": "function", "function": {"name": "search"}}]
)
async def test_a_reply_with_calls_does_not_end_with_stop(choice):
    async with parsing() as (router, worker):
        say_all(worker, 4)
        body = await whole(router, "chat", tool_choice=choice)
        chunks = payloads("chat", await streamed(router, "chat", tool_choice=choice))
        message = await whole(router, "messages")
        told = payloads("messages", await streamed(router, "messages"))
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert message["stop_reason"] == told[-2]["delta"]["stop_reason"] == "tool_use"


# Failures


@every_door
async def test_a_worker_that_dies_in_the_middle_is_told_in_the_stream(door):
    """The connection is not cut: some clients take that for the end of a good reply."""
    async with parsing(retry_max_retries=0) as (router, worker):
        worker.drop_next(after_bytes=3000)
        worker.script(TEXT)
        raw = await streamed(router, door)
        given = payloads(door, raw)
        say_all(worker)
        assert payloads(door, await streamed(router, door)), "the router goes on"
    assert len(given) > 3
    _check_failed_stream(door, given)


@every_door
async def test_an_abort_is_an_error_in_the_stream_and_never_a_finish(door):
    async with parsing(resume_aborted="none") as (router, worker):
        worker.script(TEXT, finish="abort")
        given = payloads(door, await streamed(router, door))
        worker.script(TEXT, finish="abort")
        status, _, raw = await post(router, door, stream=False)
    if door == "generate":  # what RL pipelines go by
        assert given[-1]["meta_info"]["finish_reason"]["type"] == "abort"
        assert orjson.loads(raw)["meta_info"]["finish_reason"]["type"] == "abort"
        return
    _check_failed_stream(door, given)
    assert status >= 500
    _check_error(door, orjson.loads(raw))


def _check_failed_stream(door: str, given: list[Any]) -> None:
    """The error is the last that is said; nothing claims that the reply is whole."""
    if door == "messages":
        assert given[-1]["type"] == "error"
        assert given[-1]["error"].keys() == {"type", "message"}
        assert not {"message_delta", "message_stop"} & {event["type"] for event in given}
        return
    if door == "responses":
        assert [event["type"] for event in given[-2:]] == ["response.failed", "error"]
        assert given[-2]["response"]["error"]["message"] == given[-1]["message"]
        assert not {"response.completed"} & {event["type"] for event in given}
        return
    assert sum("error" in each for each in given) == 1
    if door == "generate":
        assert given[-1]["error"]["message"]
        assert not any(each["meta_info"]["finish_reason"] for each in given[:-1])
        return
    assert given[-1]["error"].keys() == FOUR_KEYS
    assert not any(each["choices"][0]["finish_reason"] for each in given[:-1])


@every_door
@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_dies_before_the_first_token_is_a_real_http_error(door, stream):
    async with parsing() as (router, worker):
        for _ in range(20):  # tries
            worker.drop_next()
        status, kind, raw = await post(router, door, stream=stream)
    assert status in (502, 503)
    assert kind.startswith("application/json")
    _check_error(door, orjson.loads(raw))


@every_door
@pytest.mark.parametrize("stream", [False, True])
async def test_a_flat_error_of_a_worker_is_written_anew(door, stream):
    """`/generate` hands it on as it is: its clients know it."""
    async with parsing() as (router, worker):
        worker.answer_next(400, ERROR)
        status, kind, raw = await post(router, door, stream=stream)
    assert status == 400
    assert kind.startswith("application/json")
    if door == "generate":
        assert raw == ERROR
        return
    _check_error(door, orjson.loads(raw))
    assert b"bad top_p" in raw


@every_door
@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_too_long_says_so_in_words_that_agents_know(door, stream):
    long = "word " * 3000
    fields: dict[str, Any] = {"messages": [user(long)]}
    if door not in ("chat", "messages"):
        fields = {"input": long, "text": long, "prompt": long}
        fields = {name: value for name, value in fields.items() if name in ASKS[door]}
    async with parsing() as (router, worker):
        status, _, raw = await post(router, door, stream=stream, **fields)
        assert not worker.running
    body = orjson.loads(raw)
    assert status == 400
    _check_error(door, body)
    error = body["error"]
    if door in OPENAI:
        assert (error["type"], error["code"]) == (
            "invalid_request_error",
            "context_length_exceeded",
        )
        assert error["message"].startswith("This model's maximum context length is ")
    elif door == "messages":
        assert error["type"] == "invalid_request_error"
        assert error["message"].startswith("prompt is too long")


def _check_error(door: str, body: Any) -> None:
    """Never flat; all keys there; the code is a string or null."""
    if door == "messages":
        assert body["type"] == "error"
        assert body["error"].keys() == {"type", "message"}
    elif door == "generate":
        assert body["error"]["message"]
    else:
        assert body.keys() == {"error"}
        assert body["error"].keys() == FOUR_KEYS
        assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)


@every_door
async def test_no_worker_is_a_503_that_says_when_to_ask_again(door):
    async with tiny_worker() as worker:
        url = worker.url
    async with serving(url) as router:
        body = {"model": "m", **ASKS[door]}
        async with router.http.post(PATHS[door], json=body) as response:
            assert response.status == 503
            assert int(response.headers["retry-after"]) > 0
            _check_error(door, await response.json())


# Types and whole replies


@every_door
async def test_content_types_are_what_stands_in_the_body(door):
    async with parsing() as (router, worker):
        say_all(worker, 2)
        _, stream, _ = await post(router, door, stream=True)
        _, body, _ = await post(router, door, stream=False)
    assert stream == "text/event-stream; charset=utf-8"
    assert body.startswith("application/json")


@every_door
async def test_usage_is_always_there(door):
    async with parsing() as (router, worker):
        say_all(worker, 2)
        body = await whole(router, door)
        *_, before, last = payloads(door, await streamed(router, door))
    names = {"messages": "output_tokens", "responses": "output_tokens"}
    if door == "generate":
        usages = [body["meta_info"], last["meta_info"]]
    elif door == "messages":
        usages = [body["usage"], before["usage"]]
    elif door == "responses":
        usages = [body["usage"], last["response"]["usage"]]
    else:
        usages = [body["usage"], last["usage"]]
    for usage in usages:
        assert usage[names.get(door, "completion_tokens")] > 10


@pytest.mark.parametrize("text", REPLIES)
async def test_a_whole_reply_has_an_id_a_choice_and_arguments_that_are_text(text):
    async with parsing() as (router, worker):
        for _ in range(4):
            say(worker, REPLIES[text])
        chat = await whole(router, "chat")
        completion = await whole(router, "completions")
        message = await whole(router, "messages")
        response = await whole(router, "responses")
    for reply, prefix in (
        (chat, "chatcmpl-"),
        (completion, "cmpl-"),
        (message, "msg_"),
        (response, "resp_"),
    ):
        assert reply["id"].startswith(prefix)
    assert len(chat["choices"]) == len(completion["choices"]) == 1
    assert type(chat["created"]) is int
    calls = chat["choices"][0]["message"].get("tool_calls")
    assert calls != []
    for call in calls or ():
        assert isinstance(call["id"], str)
        assert isinstance(call["function"]["arguments"], str)
    for item in response["output"]:
        assert isinstance(item.get("arguments", ""), str)
    assert response["output"]
    assert all(isinstance(block.get("input", {}), dict) for block in message["content"])
