"""Packed bodies at every door and on their way to a worker."""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import sys
import time
import zlib
from io import BytesIO
from typing import Any

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from slime_router.edge.bodies import forget_body, read_body, share_body
from slime_router.edge.codings import CODINGS
from slime_router.edge.lengths import (
    MAX_CONTAINERS,
    MAX_MEMBERS,
    MAX_PARTS,
    check_containers,
    structure,
)
from slime_router.errors import PayloadTooLarge
from tests.integration.gateway import CHAT, served, serving, user
from tests.unit.test_codings import PACKERS

DOORS = (CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/generate", "/tokenize")
OTHERS = ("/sessions", "/rows", "/update_weight_version", "/workers", "/diagnose", "/echo")
PATHS = [*DOORS, *OTHERS]


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_packed_chat_is_read(coding):
    body = json.dumps({"messages": [user("hi")], "max_tokens": 2}).encode()
    headers = {"Content-Encoding": coding}
    async with served() as (router, worker):
        packed = PACKERS[coding](body)
        async with router.http.post(CHAT, data=packed, headers=headers) as response:
            assert response.status == 200, await response.read()
        async with router.http.post("/echo", data=packed, headers=headers) as response:
            assert json.loads(await response.read())["body"].encode() == body
    assert [r.path for r in worker.requests if r.path == "/generate"] == ["/generate"]


@pytest.mark.parametrize("path", [CHAT, "/generate"])
async def test_the_mark_that_some_editors_begin_a_file_with_is_no_part_of_the_body(path):
    body = {"messages": [user("hi")], "text": "hi", "max_tokens": 2}
    raw = json.dumps(body).encode("utf-8-sig")
    async with served() as (router, _), router.http.post(path, data=raw) as response:
        assert response.status == 200, await response.read()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("harm", ["other", "cut"])
async def test_a_corrupt_body_is_a_400_that_changes_nothing(path, coding, harm):
    packed = PACKERS[coding](json.dumps({"text": "x" * 500}).encode())
    data = b"zzzz" if harm == "other" else packed[:-2]
    async with served() as (router, worker):
        before = router.footprint()
        headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
        async with router.http.post(path, data=data, headers=headers) as response:
            assert response.status == 400, await response.read()
            error = (await response.json())["error"]
        assert coding in error["message"]
        assert router.footprint() == before
    assert [r for r in worker.requests if r.path == path] == []


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "compress", "\xff"])
async def test_a_coding_that_is_not_read_is_a_415_that_says_what_is(path, coding):
    async with served() as (router, worker):
        headers = {"Content-Encoding": coding}
        async with router.http.post(path, data=b"{}", headers=headers) as response:
            if coding == "\xff":
                assert response.status in (400, 415)
                return
            assert response.status == 415, await response.read()
            assert response.headers["Accept-Encoding"] == "gzip, deflate, zstd"
            message = (await response.json())["error"]["message"]
        assert all(name in message for name in CODINGS)
    assert [r for r in worker.requests if r.path == path] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", [CHAT, "/echo", "/flush_cache"])
async def test_a_bomb_neither_stops_the_loop_nor_fills_the_memory(path):
    """600 MB that come as 0.6 MB."""
    packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(b"\0" * 2**20) for _ in range(600)) + packer.flush()
    stalls = []

    async def watch() -> None:
        while True:
            before = time.thread_time()  # a busy machine adds nothing to it
            await asyncio.sleep(0.005)
            stalls.append(time.thread_time() - before)

    async with served() as (router, _):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
        task = asyncio.create_task(watch())
        headers = {"Content-Encoding": "gzip"}
        async with router.http.post(path, data=bomb, headers=headers) as response:
            assert response.status in (400, 413)
        task.cancel()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 150 * 2**10
    assert max(stalls) < 0.5  # unpacked at once it is seconds


async def test_a_plugin_sees_the_body_as_it_was_sent_and_the_door_can_still_read_it():
    plugin = f"{__name__}:reads_first"
    async with serving(middleware_paths=(plugin,)) as router:
        packed = gzip.compress(b'{"prompt": "hi"}')
        headers = {"Content-Encoding": "gzip"}
        async with router.http.post("/tokenize", data=packed, headers=headers) as response:
            assert response.status == 200
            assert response.headers["X-Length"] == str(len(packed))


@web.middleware
async def reads_first(request, handler):
    length = len(await request.read())
    response = await handler(request)
    response.headers["X-Length"] = str(length)
    return response


@pytest.mark.parametrize("is_shared", [False, True])
async def test_a_body_can_be_read_again_until_it_is_forgotten(is_shared):
    """One that a plug-in may read, too, is never forgotten."""
    content = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16)
    request = make_mocked_request("POST", CHAT, payload=content, client_max_size=2**20)
    for piece in (b"x" * 70_000, b"y"):
        content.feed_data(piece)
    content.feed_eof()
    if is_shared:
        share_body(request)
    sent = b"x" * 70_000 + b"y"
    assert await read_body(request) == await read_body(request) == sent
    forget_body(request)
    assert await read_body(request) == (sent if is_shared else b"")


async def test_a_body_over_the_limit_is_refused_as_it_comes():
    content = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16)
    request = make_mocked_request("POST", CHAT, payload=content, client_max_size=10)
    content.feed_data(b"x" * 11)
    with pytest.raises(PayloadTooLarge):
        await read_body(request)


FLOODS = {"arrays": b"[],", "lists": b"[0],", "objects": b"{},", "named": b'{"a":[]},'}


@pytest.mark.parametrize("path", [*DOORS, "/v1/embeddings"])
@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_of_small_values_is_refused_before_it_is_read(path, kind):
    """Each of them is an object in memory, and is looked at for what flags would have to allow."""
    flood = FLOODS[kind] * MAX_CONTAINERS + b"{}"
    raw = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"other":[%b]}' % flood
    async with served() as (router, worker):
        before = router.footprint()
        headers = {"Content-Type": "application/json"}
        async with router.http.post(path, data=BytesIO(raw), headers=headers) as response:
            assert response.status == 400
            assert "arrays and objects" in await response.text()
        assert router.footprint() == before
    assert worker.requests == []


@pytest.mark.parametrize("path", [*DOORS, "/v1/embeddings"])
@pytest.mark.parametrize("place", ["body", "message", "in it"])
async def test_a_flood_of_members_is_refused_before_it_is_read(path, place):
    """An object with many names is one object, and each of them is copied and written."""
    members = b",".join(b'"%d":1' % number for number in range(MAX_MEMBERS))
    flood = {"body": b'{%b,"messages":[{"role":"user","content":"hi"}]}'}
    flood["message"] = b'{"messages":[{"role":"user","content":"hi",%b}]}'
    flood["in it"] = b'{"messages":[{"role":"user","content":"hi","other":{%b}}]}'
    async with served() as (router, worker):
        before = router.footprint()
        headers = {"Content-Type": "application/json"}
        data = BytesIO(flood[place] % members)
        async with router.http.post(path, data=data, headers=headers) as response:
            assert response.status == 400
            assert "members" in await response.text()
        assert router.footprint() == before
    assert worker.requests == []


def _call(number: int) -> dict[str, Any]:
    return {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("path", "field", "within"),
    [
        (CHAT, "messages", "tool_calls"),
        (CHAT, "messages", "content"),
        ("/v1/messages", "messages", "content"),
        ("/v1/responses", "input", "content"),
        ("/tokenize", "messages", "tool_calls"),
    ],
)
@pytest.mark.parametrize("messages", [1, 100])
async def test_parts_and_calls_have_a_limit_in_all_messages(path, field, within, messages):
    """They take as long as messages do."""
    each = MAX_PARTS // messages + 1
    entry = _call(1) if within == "tool_calls" else {"type": "text", "text": "a"}
    said = {"role": "assistant", "content": None, within: [entry] * each}
    body = {"model": "tiny", "max_tokens": 3, field: [user("x"), *[said] * messages]}
    data = BytesIO(json.dumps(body).encode())
    async with served() as (router, worker), router.http.post(path, data=data) as response:
        assert (response.status, worker.requests) == (400, [])
        assert "parts and calls" in await response.text()


async def test_parts_have_a_limit_beside_half_of_an_emoji_too():
    """Such a body is read another way."""
    call = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "\ud83d"}}
    parts = [{"type": "text", "text": "a"}] * MAX_PARTS
    talk = [user("x"), {"role": "assistant", "content": [*parts, call]}]
    data = BytesIO(json.dumps({"model": "tiny", "max_tokens": 3, "messages": talk}).encode())
    async with served() as (router, worker), router.http.post("/v1/messages", data=data) as reply:
        assert (reply.status, worker.requests) == (400, [])
        assert "parts and calls" in await reply.text()


async def test_brackets_in_texts_are_no_flood():
    text = '"[{\\":}]' * MAX_CONTAINERS
    check_containers(json.dumps({"messages": [user(text)]}).encode())


def _grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner) | st.dictionaries(st.text('a"\\[{:'), inner)


def _slow_count(value: Any) -> tuple[int, int]:
    if not isinstance(value, (list, dict)):
        return 0, 0
    entries, members = (value.values(), len(value)) if isinstance(value, dict) else (value, 0)
    inner = [_slow_count(each) for each in entries]
    return 1 + sum(n for n, _ in inner), members + sum(m for _, m in inner)


@given(st.recursive(st.text('a"\\[{:') | st.integers(), _grown))
def test_only_what_is_an_array_an_object_or_a_member_counts(value):
    assert structure(json.dumps(value).encode()) == _slow_count(value)


@pytest.mark.parametrize(("path", "field"), [("/tokenize", "prompt"), ("/detokenize", "tokens")])
async def test_texts_of_one_request_have_a_limit(path, field):
    one: Any = "a" if field == "prompt" else [5]
    async with served() as (router, _):
        status, body = await router.post(path, {field: [one] * 20_000})
        assert (status, body["error"]["param"]) == (400, field)
        status, body = await router.post(path, {field: [one] * 3})
        assert (status, len(body["tokens" if field == "prompt" else "text"])) == (200, 3)


async def test_many_texts_are_encoded_and_decoded_between_other_things():
    async with served() as (router, _):
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        _, told = await router.post("/tokenize", {"prompt": ["hello"] * 2000})
        assert turns > 2000
        turns = 0
        _, read = await router.post("/detokenize", {"tokens": told["tokens"]})
        assert turns > 2000
        task.cancel()
        assert read["text"] == ["hello"] * 2000


async def test_half_a_character_in_a_long_body_is_refused_soon():
    raw = b'{"messages":[{"role":"user","content":"\\ud83d"}],"other":[%b1]}'
    long = BytesIO(raw % (b"1," * 2**24))
    async with served() as (router, _), router.http.post(CHAT, data=long) as response:
        assert response.status == 400
        assert "lone surrogate" in await response.text()


ASKS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [user("Hi")]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": [user("Hi")], "max_tokens": 8},
    "/generate": {"text": "Hi"},
    "/inference/v1/generate": {"token_ids": [5]},
}


@pytest.mark.parametrize("path", ASKS)
async def test_no_body_is_held_while_a_reply_is_made(path, monkeypatch):
    """A crowd of long requests would hold hundreds of megabytes."""
    bodies: list[bytes] = []

    async def read(request: web.Request) -> bytes:
        bodies.append(await read_body(request))
        return bodies[-1]

    monkeypatch.setattr("slime_router.api.endpoint.read_body", read)
    async with served() as (router, worker):
        worker.hold(after_tokens=0)
        asked = asyncio.create_task(router.post(path, ASKS[path]))
        await worker.wait_running(1)
        references = sys.getrefcount(bodies[0])
        worker.release()
        assert (await asked)[0] == 200
        assert references == 2, "besides the list's and that of the call there are others"
