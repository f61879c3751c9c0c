"""Plug-ins, loaded as a user loads them, in a running router."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from slime_router.cli.flags import read_config
from slime_router.edge import plugin_guard
from slime_router.errors import NotFound, SetupError
from slime_router.generation.plugins import PluginContext, load_plugins
from tests.clock import Clock
from tests.integration.gateway import CHAT, FOUR_KEYS, assistant, served, serving, user
from tests.stack import Stack, tiny_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "middleware.md"
STOP_ID = 514
HELLO = [*tiny_tokenizer().encode("Hello").tolist(), STOP_ID]

PLUGINS = '''
import asyncio
from dataclasses import replace

from aiohttp import web

from slime_router.errors import TooManyRequests
from slime_router.types import Finish, GenerateChunk


async def polite(call, call_next):
    """Changes the messages."""
    manners = {"role": "system", "content": "Be polite."}
    async for chunk in call_next(replace(call, messages=(manners, *call.messages))):
        yield chunk


async def silent(call, call_next):
    """Answers by itself."""
    yield GenerateChunk(output_ids=[], text="out of office", finish=Finish("stop"))


async def twice(call, call_next):
    """Asks again."""
    async for _ in call_next(call):
        pass
    async for chunk in call_next(call):
        yield chunk


async def cancelling_itself(call, call_next):
    """Takes itself for one that is not needed any more."""
    asyncio.current_task().cancel()
    async for chunk in call_next(call):
        yield chunk


async def cancelling_as_it_waits(call, call_next):
    asyncio.current_task().cancel()
    await asyncio.sleep(0)
    yield


async def cancelling_late(call, call_next):
    async for chunk in call_next(call):
        asyncio.current_task().cancel()
        yield chunk


@web.middleware
async def cancelling_itself_http(request, handler):
    asyncio.current_task().cancel()
    return await handler(request)


HEADERS = {}  # that a plug-in gives a call, or a request


async def heading(call, call_next):
    async for chunk in call_next(replace(call, headers=HEADERS["given"])):
        yield chunk


@web.middleware
async def heading_http(request, handler):
    return await handler(request.clone(headers={**request.headers, **HEADERS["given"]}))


@web.middleware
async def two_lines(request, handler):
    """Repeats what it was sent, whatever that is."""
    response = await handler(request)
    response.headers["x-note"] = "one\\r\\nset-cookie: two"
    return response


@web.middleware
async def no_status(request, handler):
    """Invents a status."""
    response = await handler(request)
    response.set_status(99_999)
    return response


async def beside(call, call_next):
    """Asks for another reply while it keeps the first one half read."""
    first = aiter(call_next(call))
    await anext(first)
    async for chunk in call_next(call):
        yield chunk


async def gathering(call, call_next):
    """Reads on in its own task, while something else fails."""

    async def refuse():
        raise TooManyRequests("not today")

    first = aiter(call_next(call))
    await anext(first)
    await asyncio.gather(anext(first), refuse())
    yield


async def loud(call, call_next):
    """Changes what the client sees."""
    async for chunk in call_next(call):
        chunk = chunk.changed(text=chunk.text.upper())
        yield chunk


async def refusing(call, call_next):
    raise TooManyRequests("not today")
    yield


async def broken(call, call_next):
    raise LookupError("a secret of the plug-in")
    yield


class Counting:
    def __init__(self, context):
        self.context = context
        self.hello = context.tokenizer.encode("Hello").tolist()
        self.is_known = context.session("nobody") is not None
        self.count = 0
        self.closed = 0

    async def __call__(self, call, call_next):
        self.count += 1
        try:
            async for chunk in call_next(call):
                yield chunk
        finally:
            self.closed += 1


class Marking:
    """Puts letters around the text: who stands outside of it sees them too."""

    def __init__(self, context):
        pass

    async def __call__(self, call, call_next):
        async for chunk in call_next(call):
            chunk = chunk.changed(text=f"a{chunk.text}z" if chunk.text else "")
            yield chunk


@web.middleware
async def signed(request, handler):
    response = await handler(request)
    if not response.prepared:
        response.headers["X-Signed"] = "yes"
    return response


@web.middleware
async def guarded(request, handler):
    raise web.HTTPForbidden(text="not you")


async def coroutine(call, call_next):
    return None


class Unbuildable:
    def __init__(self, context):
        raise OSError("two\\nlines")


class Leaving:
    def __init__(self, context):
        raise SystemExit("two\\nlines")


async def ending(call, call_next):
    """Would end the router."""
    raise SystemExit(3)
    yield


async def ending_late(call, call_next):
    async for chunk in call_next(call):
        yield chunk
        raise KeyboardInterrupt


async def ending_at_its_end(call, call_next):
    try:
        async for chunk in call_next(call):
            yield chunk
    finally:
        raise SystemExit("bye")


async def sleeping(call, call_next):
    import asyncio
    await asyncio.Event().wait()
    yield


async def sleeping_late(call, call_next):
    import asyncio
    async for chunk in call_next(call):
        yield chunk
        await asyncio.Event().wait()


class Waiting:
    """Works until it is cancelled: before it asks, or between chunks."""

    def __init__(self, context):
        import asyncio
        self.is_working = asyncio.Event()
        self.was_cancelled = asyncio.Event()

    async def work(self):
        import asyncio
        self.is_working.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.was_cancelled.set()


class WaitingFirst(Waiting):
    async def __call__(self, call, call_next):
        await self.work()
        async for chunk in call_next(call):
            yield chunk


class WaitingLate(Waiting):
    async def __call__(self, call, call_next):
        async for chunk in call_next(call):
            yield chunk
            await self.work()


waiting = Waiting(None)


@web.middleware
async def waiting_http(request, handler):
    if request.path != "/abort_request":
        await waiting.work()
    return await handler(request)


@web.middleware
async def waiting_read_http(request, handler):
    if request.path != "/abort_request":
        await request.read()
        await waiting.work()
    return await handler(request)


@web.middleware
async def ending_http(request, handler):
    raise SystemExit(3)


@web.middleware
async def sleeping_http(request, handler):
    import asyncio
    await asyncio.Event().wait()


@web.middleware
async def cancelling_http(request, handler):
    import asyncio
    raise asyncio.CancelledError


@web.middleware
async def leaving_http(request, handler):
    raise GeneratorExit


async def cancelling(call, call_next):
    import asyncio
    raise asyncio.CancelledError
    yield


@web.middleware
async def failing_after_http(request, handler):
    await handler(request)
    raise LookupError("too late")


@web.middleware
async def ending_after_http(request, handler):
    await handler(request)
    raise SystemExit(3)


@web.middleware
async def another_http(request, handler):
    await handler(request)
    return web.Response(text="another reply")


@web.middleware
async def raising_another_http(request, handler):
    await handler(request)
    raise web.HTTPForbidden(text="another reply")


@web.middleware
async def again_http(request, handler):
    await handler(request)
    return await handler(request)


@web.middleware
async def silent_http(request, handler):
    return None


@web.middleware
async def socket_http(request, handler):
    return web.WebSocketResponse()


@web.middleware
async def renaming_http(request, handler):
    return await handler(request.clone(headers={**request.headers, "x-client": "renamed"}))


SORRY = web.json_response({"error": "not today"}, status=403)


@web.middleware
async def stale_http(request, handler):
    return SORRY if request.method == "POST" else await handler(request)


async def void(call, call_next):
    async for chunk in call_next(call):
        yield None


async def wordy(call, call_next):
    yield "no chunk"


async def mute(call, call_next):
    async for chunk in call_next(call):
        pass
    return
    yield


@web.middleware
async def wordy_http(request, handler):
    return "no response"


number = 7
'''


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """A folder on the path with the plug-ins; what is imported from it is forgotten again."""
    folder = tmp_path / "modules"
    (folder / "team").mkdir(parents=True)
    (folder / "team" / "__init__.py").write_text("")
    (folder / "team" / "plugins.py").write_text(PLUGINS)
    (folder / "failing.py").write_text("{}.missing\n")
    (folder / "unreadable.py").write_text("def f(:\n")
    (folder / "script.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(folder)
    known = set(sys.modules)
    yield folder
    for name in set(sys.modules) - known:
        if name.partition(".")[0] in ("team", "failing", "unreadable", "my_plugins"):
            del sys.modules[name]


def paths(*names: str) -> dict[str, Any]:
    return {"middleware_paths": tuple(f"team.plugins:{name}" for name in names)}


async def test_a_plugin_can_change_the_messages():
    async with served(**paths("polite")) as (router, worker):
        await router.chat([user("hi")])
    sent = tiny_tokenizer().decode(worker.requests[0].body["input_ids"], skip_special_tokens=False)
    assert sent.startswith("<|im_start|>system\nBe polite.<|im_end|>")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_plugin_can_answer_by_itself(stream):
    async with served(**paths("silent")) as (router, worker):
        text, _ = await router.chat([user("hi")], stream=stream)
        assert len(router.gateway.store) == 0
    assert text == "out of office"
    assert worker.requests == []


async def test_a_plugin_can_ask_again_and_each_generation_is_a_turn():
    async with served(**paths("twice")) as (router, worker):
        worker.script([9, STOP_ID])
        worker.script(HELLO)
        text, _ = await router.chat([user("hi")])
        assert len(router.gateway.store) == 2
    assert text == "Hello"


@pytest.mark.parametrize("count", [1, 3])
async def test_generations_side_by_side_do_not_share_a_rid(count):
    async with served(**paths("beside")) as (router, worker):
        body = {"messages": [user("hi")], "max_tokens": 4, "n": count, "stream": True}
        async with router.http.post(CHAT, json=body) as response:
            raw = await response.read()
    rids = [request.body["rid"] for request in worker.requests]
    assert response.status == 200, raw
    assert b'"error"' not in raw
    assert len(set(rids)) == len(rids) == 2 * count


async def test_an_abort_ends_all_that_run_side_by_side_for_one_rid():
    async with served(**paths("beside")) as (router, worker):
        worker.hold(after_tokens=1)
        body = {"text": "hi", "rid": "mine", "stream": True}
        async with router.http.post("/generate", json=body) as response:
            await worker.wait_running(2)
            async with router.http.post("/abort_request", json={"rid": "mine"}) as aborted:
                assert aborted.status == 200
            raw = await response.read()
    assert sorted(worker.aborted[:2]) == sorted(each.body["rid"] for each in worker.requests)
    assert b'"type":"abort"' in raw


async def test_a_failure_beside_a_generation_that_runs_is_what_the_client_gets():
    async with served(**paths("gathering")) as (router, worker):
        worker.hold(after_tokens=1)
        body = {"messages": [user("hi")], "max_tokens": 4, "stream": True}
        async with router.http.post(CHAT, json=body) as response:
            answer = await response.json()
    assert (response.status, answer["error"]["message"]) == (429, "not today")
    assert worker.aborted[:1] == [worker.requests[0].body["rid"]]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_plugin_changes_what_the_client_sees_and_not_what_is_recorded(stream):
    async with served(**paths("loud")) as (router, worker):
        worker.script(HELLO)
        text, receipt = await router.chat([user("hi")], stream=stream)
        turn = router.gateway.store.get(receipt["turn"])
    assert text == "HELLO"
    assert turn is not None
    assert turn.output_ids.tolist() == HELLO


async def test_a_plugin_can_refuse():
    async with served(**paths("refusing")) as (router, worker):
        status, body = await router.post(CHAT, {"messages": [user("hi")]})
    assert (status, body["error"]["message"]) == (429, "not today")
    assert worker.requests == []


async def test_a_plugin_that_fails_is_a_500_that_tells_no_secrets():
    async with served(**paths("broken")) as (router, _):
        status, body = await router.post(CHAT, {"messages": [user("hi")]})
    assert (status, set(body["error"])) == (500, FOUR_KEYS)
    assert "secret" not in str(body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "name",
    [
        "ending",
        "ending_late",
        "ending_at_its_end",
        "sleeping",
        "sleeping_late",
        "ending_http",
        "sleeping_http",
        "cancelling",
        "cancelling_http",
        "leaving_http",
    ],
)
async def test_a_plugin_can_neither_end_the_router_nor_keep_a_request(name, stream, caplog):
    body = {"messages": [user("hi")], "stream": stream, "max_tokens": 3}
    async with served({"chunk_tokens": 1}, plugin_timeout_s=0.2, **paths(name)) as (router, _):
        async with router.http.post(CHAT, json=body) as response:
            said = await response.text()
        if "late" not in name and name != "ending_at_its_end":  # those see the whole reply first
            assert response.status == 500, said
        if stream and "late" in name:
            assert "server_error" in said
            assert said.endswith("data: [DONE]\n\n")
        if not name.endswith("_http"):
            _, figures = await router.get("/metrics")
            assert figures["router"]["plugin_failures"] == 1
        assert router.gateway.guard.failures >= 1
        assert router.gateway.pool.total_in_flight == 0
    assert f"plug-in failed: {name}" in caplog.text


@pytest.mark.parametrize("order", [{"rid": "mine"}, {"abort_all": True}], ids=["rid", "all"])
@pytest.mark.parametrize("outer", [(), ("loud", "twice")], ids=["alone", "nested"])
@pytest.mark.parametrize("name", ["WaitingFirst", "WaitingLate"])
async def test_an_abort_ends_a_plugin_that_works(name, outer, order):
    is_late = name == "WaitingLate"  # without a stream, it would see the whole reply first
    body = {"messages": [user("hi")], "rid": "mine", "max_tokens": 3, "stream": is_late}
    async with served({"chunk_tokens": 1}, **paths(*outer, name)) as (router, _):

        async def ask() -> str:
            async with router.http.post(CHAT, json=body) as response:
                return await response.text()

        plugin: Any = router.gateway.plugins.generation[-1]
        asked = asyncio.create_task(ask())
        async with asyncio.timeout(10):
            await plugin.is_working.wait()
            assert (await router.post("/abort_request", order))[0] == 200
            await plugin.was_cancelled.wait()
            assert "generation was aborted" in await asked
        assert router.gateway.guard.failures == 0
        assert router.gateway.pool.total_in_flight == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [user("hi")], "n": 3}),
        ("/v1/completions", {"prompt": "hi", "n": 3}),
        ("/generate", {"text": "hi", "sampling_params": {"n": 3}}),
    ],
)
async def test_an_abort_ends_the_plugin_of_each_sample(path, body):
    """Only the first sample has the rid that the client chose."""
    async with served(**paths("WaitingFirst")) as (router, worker):
        plugin: Any = router.gateway.plugins.generation[-1]
        asked = asyncio.create_task(router.post(path, {**body, "rid": "mine"}))
        async with asyncio.timeout(10):
            await plugin.is_working.wait()
            assert (await router.post("/abort_request", {"rid": "mine"}))[0] == 200
            _, answer = await asked
    assert "abort" in str(answer)
    assert [each for each in worker.requests if each.path == "/generate"] == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("order", [{"rid": "mine"}, {"abort_all": True}], ids=["rid", "all"])
@pytest.mark.parametrize("name", ["waiting_http", "waiting_read_http"])
async def test_an_abort_ends_a_plugin_of_aiohttps_kind_that_works(name, order, stream):
    """The rid is in a body that nobody has parsed by then."""
    body = {"messages": [user("hi")], "rid": "mine", "max_tokens": 3, "stream": stream}
    async with served(**paths(name)) as (router, worker):
        waiting = sys.modules["team.plugins"].waiting
        asked = asyncio.create_task(router.post(CHAT, body))
        async with asyncio.timeout(10):
            await waiting.is_working.wait()
            assert (await router.post("/abort_request", {"rid": "other"}))[0] == 200
            assert not asked.done()
            assert (await router.post("/abort_request", order))[0] == 200
            await waiting.was_cancelled.wait()
            status, answer = await asked
        assert (status, "aborted" in answer["error"]["message"]) == (503, True)
        assert router.gateway.guard.failures == 0
    assert [each for each in worker.requests if each.path == "/generate"] == []


async def test_aborts_parse_the_body_of_a_waiting_request_once(monkeypatch):
    parsed: list[bytes] = []

    def loads(body: bytes) -> Any:
        parsed.append(body)
        return json.loads(body)

    monkeypatch.setattr(
        plugin_guard, "orjson", SimpleNamespace(loads=loads, JSONDecodeError=ValueError)
    )
    async with served(**paths("waiting_http")) as (router, _):
        waiting = sys.modules["team.plugins"].waiting
        asked = asyncio.create_task(router.post(CHAT, {"messages": [user("hi")], "rid": "mine"}))
        async with asyncio.timeout(10):
            await waiting.is_working.wait()
            parsed.clear()
            for _ in range(20):
                router.gateway.guard.cancel("other")
            assert len(parsed) == 1
            router.gateway.guard.cancel("mine")
            assert (await asked)[0] == 503


@pytest.mark.parametrize("name", ["WaitingFirst", "WaitingLate"])
async def test_a_client_that_leaves_ends_a_plugin_that_works(name):
    async with served({"chunk_tokens": 1}, **paths(name)) as (router, _):
        (plugin,) = router.gateway.plugins.generation
        working: Any = plugin
        asked = asyncio.create_task(router.post(CHAT, {"messages": [user("hi")], "max_tokens": 3}))
        async with asyncio.timeout(10):
            await working.is_working.wait()
            asked.cancel()
            await working.was_cancelled.wait()
        assert router.gateway.guard.failures == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "failing_after_http",
        "ending_after_http",
        "another_http",
        "raising_another_http",
        "again_http",
    ],
)
async def test_a_request_has_one_reply_whatever_a_plugin_does_after_it(name, stream, caplog):
    """A second one on the same connection would be taken for that of the next request."""
    body = {"messages": [user("hi")], "stream": stream, "max_tokens": 3}
    async with served(**paths(name)) as (router, worker):
        replies = set()
        for count in (1, 2):  # which may take the same connection
            async with router.http.post(CHAT, json=body) as response:
                assert response.status == 200
                replies.add(said := await response.text())
            assert said.endswith("data: [DONE]\n\n") if stream else "choices" in said
            assert len([each for each in worker.requests if each.path == "/generate"]) == count
            assert router.gateway.guard.failures == count
        assert len(replies) == 2
    assert f"plug-in failed: {name}" in caplog.text


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("silent_http", "nothing"),
        ("wordy_http", "a str"),
        ("socket_http", "a WebSocketResponse that it did not prepare"),
    ],
)
async def test_a_plugin_that_returns_no_response_is_named_in_the_log(name, what, caplog):
    async with served(**paths(name)) as (router, _):
        status, body = await router.post(CHAT, {"messages": [user("hi")]})
        assert (status, set(body["error"])) == (500, FOUR_KEYS)
        assert router.gateway.guard.failures == 1
    assert f"plug-in failed: {name}: it returned {what}" in caplog.text


async def test_a_plugin_that_returns_one_response_to_two_requests_is_named_in_the_log(caplog):
    """A response that was sent is not sent again: the second client would wait forever."""
    async with served(**paths("stale_http")) as (router, _), asyncio.timeout(10):
        assert (await router.post(CHAT, {"messages": [user("hi")]}))[0] == 403
        for _ in range(2):
            status, body = await router.post(CHAT, {"messages": [user("hi")]})
            assert (status, set(body["error"])) == (500, FOUR_KEYS)
        assert router.gateway.guard.failures == 2
    assert "plug-in failed: stale_http: it returned a response that was sent before" in caplog.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_plugin_may_hand_another_one_a_copy_of_the_request(stream):
    body = {"messages": [user("hi")], "stream": stream, "max_tokens": 3}
    async with (
        served(**paths("renaming_http", "signed")) as (router, _),
        router.http.post(CHAT, json=body) as response,
    ):
        await response.read()
        assert (response.status, router.gateway.guard.failures) == (200, 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("void", "it yielded nothing"),
        ("wordy", "it yielded a str"),
        ("mute", "it ended without a finish"),
    ],
)
async def test_a_plugin_that_yields_no_whole_reply_is_named_in_the_log(name, what, stream, caplog):
    body = {"messages": [user("hi")], "stream": stream, "max_tokens": 3}
    async with served({"chunk_tokens": 1}, **paths("loud", name)) as (router, _):
        status, answer = await router.post(CHAT, body)
        assert (status, set(answer["error"])) == (500, FOUR_KEYS)
        assert "plug-in" in answer["error"]["message"]
        assert router.gateway.guard.failures == 1
        assert router.gateway.pool.total_in_flight == 0
    assert f"plug-in failed: {name}: {what}" in caplog.text


async def test_the_time_of_a_generation_is_not_its_plugins():
    clock = Clock()
    async with served(plugin_timeout_s=5.0, **paths("loud", "signed")) as (router, worker):
        worker.hold(after_tokens=1)
        task = asyncio.create_task(router.chat([user("hi")], max_tokens=3))
        await worker.wait_running(1)
        clock.put_forward(6.0)  # longer than a plug-in may take
        await asyncio.sleep(0)  # whatever is due now
        worker.release()
        await task
        assert router.gateway.guard.failures == 0


async def test_a_class_is_constructed_once_with_what_it_may_use():
    async with served(middleware_paths=("team.plugins.Counting",)) as (router, _):
        await router.chat([user("hi")])
        _, receipt = await router.chat([user("ho")], stream=True)
        plugin: Any
        (plugin,) = router.gateway.plugins.generation
        context: PluginContext = plugin.context
        turn = context.turn(receipt["turn"])
        assert turn is not None
        assert context.held_ids(turn.id).tolist() == router.gateway.store.held_ids(turn.id).tolist()
        assert context.turn("nothing") is None
        with pytest.raises(NotFound):
            context.held_ids("nothing")
        assert context.config is router.gateway.config
        assert context.template is router.gateway.template
    assert (plugin.count, plugin.closed) == (2, 2)
    assert plugin.hello == HELLO[:-1]
    assert not plugin.is_known


@pytest.mark.parametrize(
    ("names", "shown"), [(("Marking", "loud"), "aHELLOz"), (("loud", "Marking"), "AHELLOZ")]
)
async def test_the_first_plugin_is_the_outermost(names, shown):
    async with served({"chunk_tokens": 9}, **paths(*names)) as (router, worker):
        worker.script(HELLO)
        text, _ = await router.chat([user("hi")])
    assert text == shown


async def test_aiohttps_own_middleware_wraps_http():
    async with served(**paths("signed")) as (router, _):
        async with router.http.get("/health") as response:
            assert response.headers["X-Signed"] == "yes"
        for path in ("/tokenize", CHAT):  # a plug-in sees an error as the reply that it becomes
            async with router.http.post(path, data=b"{") as response:
                assert (response.status, response.headers["X-Signed"]) == (400, "yes")
                assert set((await response.json())["error"]) == FOUR_KEYS


async def test_a_reply_that_a_plugin_raises_is_sent():
    async with served(**paths("guarded")) as (router, _), router.http.get("/health") as response:
        assert (response.status, await response.text()) == (403, "not you")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("plugins", "expected package.module:name"),
        (":loud", "expected package.module:name"),
        ("team.plugins:", "expected package.module:name"),
        ("team.plugins:nothing", "team.plugins has no 'nothing'"),
        ("team.nowhere:loud", "ModuleNotFoundError: No module named 'team.nowhere'"),
        ("failing:plugin", "AttributeError: 'dict' object has no attribute 'missing'"),
        ("unreadable:f", "SyntaxError: "),
        ("script:main", "SystemExit: 0"),
        ("team.plugins:Unbuildable", "OSError: two lines"),
        ("team.plugins:Leaving", "SystemExit: two lines"),
        ("team.plugins:coroutine", "expected an async generator"),
        ("team.plugins:number", "expected an async generator"),
        ("team.plugins:GenerateChunk", "expected an async generator"),
        ("asyncio:Event", "TypeError: "),
    ],
)
def test_what_cannot_be_loaded_is_named_in_one_line(path, reason):
    with pytest.raises(SetupError) as caught:
        load_plugins([path], Stack().plugin_context())
    message = caught.value.message
    assert message.startswith(f"plug-in {path!r}: ")
    assert reason in message
    assert "\n" not in message


RADIX_TREES = (
    "slime_router.generation.caching:RadixTreeMiddleware",
    "slime_router.generation.caching.RadixTreeMiddleware",
    "slime.router.middleware_hub.radix_tree_middleware.RadixTreeMiddleware",
    "slime.router.middleware_hub.radix_tree_middleware:RadixTreeMiddleware",
)


@pytest.mark.parametrize("path", RADIX_TREES)
async def test_the_radix_tree_can_be_named_and_nothing_is_doubled(path, caplog):
    caplog.set_level("INFO", "slime_router")
    arguments = ["--hf-checkpoint", "m", "--slime-router-middleware-paths", path]
    named = read_config(arguments).middleware_paths
    async with served(middleware_paths=(*named, "team.plugins:Counting")) as (router, worker):
        worker.script(HELLO)
        await router.chat([user("hi")])
        assert len(router.gateway.plugins.generation) == 1, "the other plug-in"
        assert len(router.gateway.store) == 1
    [line] = [r.getMessage() for r in caplog.records if "built in" in r.getMessage()]
    assert line == f"{path}: the radix tree is built in, nothing is added"


async def test_generations_are_counted_as_clients_ask_for_them():
    async with served(**paths("twice")) as (router, _):
        await router.chat([user("hi")])
        counts = router.gateway.counting.chat
        assert (counts.started, counts.finished, counts.failed) == (1, 1, 0)


async def test_the_plugin_of_the_documentation_works_as_it_is_shown(modules):
    """A model that ends its turn without a word is asked once more."""
    page = PAGE.read_text(encoding="utf-8")
    code = re.search(r"```python\n(# my_plugins\.py\n.*?)```", page, re.DOTALL)
    command = re.search(r"```sh\n(.*?)```", page, re.DOTALL)
    assert code is not None
    assert command is not None
    (modules / "my_plugins.py").write_text(code[1], encoding="utf-8")
    importlib.invalidate_caches()
    arguments = shlex.split(command[1])
    config = read_config(arguments[arguments.index("slime_router") + 1 :])
    async with served(middleware_paths=config.middleware_paths) as (router, worker):
        worker.script([STOP_ID])
        worker.script(HELLO)
        text, receipt = await router.chat([user("hi")])
        assert text == "Hello"
        assert len(worker.requests) == 2
        for _ in range(3):
            worker.script([STOP_ID])
        status, _ = await router.post(CHAT, {"messages": [user("ho")]})
        assert status == 502
        _, again = await router.chat([user("hi"), assistant("Hello"), user("more")])
    assert again["status"] == "extended", receipt


@pytest.mark.parametrize(
    "name",
    ["cancelling", "cancelling_itself", "cancelling_as_it_waits", "cancelling_itself_http"],
)
@pytest.mark.parametrize(
    ("count", "headers"), [(1, {}), (3, {}), (1, {"x-stainless-retry-count": "0"})]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_plugin_that_cancels_itself_keeps_no_client_waiting(
    count, headers, stream, name, caplog
):
    """Whoever reads what the cancelled task was to write."""
    body = {"messages": [user("hi")], "n": count, "stream": stream}
    async with served(**paths(name)) as (router, _), asyncio.timeout(60):
        status, reply = await router.post(CHAT, body, headers=headers)
        assert (status, reply["error"]["code"]) == (500, "internal_error")
        if not name.endswith("_http") or not headers:  # else the next try may come
            assert router.gateway.pool.total_in_flight == 0
        assert 1 <= router.gateway.guard.failures <= count
        assert f"plug-in failed: {name}: it " in caplog.text


async def test_a_plugin_that_cancels_itself_in_the_middle_breaks_the_stream_off(caplog):
    body = {"messages": [user("hi")], "stream": True, "max_tokens": 3}
    async with served({"chunk_tokens": 1}, **paths("cancelling_late")) as (router, _):
        async with router.http.post(CHAT, json=body) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        assert router.gateway.pool.total_in_flight == 0
        assert router.gateway.guard.failures == 1
    assert "plug-in failed: cancelling_late: it cancelled the task" in caplog.text


@pytest.mark.parametrize("name", ["two_lines", "no_status"])
async def test_a_reply_of_a_plugin_that_is_not_http_is_a_500(name, caplog):
    """The client would get nothing, or a reply of somebody's making."""
    async with served(**paths(name)) as (router, _):
        status, reply = await router.get("/v1/models")
        assert (status, reply["error"]["code"]) == (500, "internal_error")
        assert router.gateway.guard.failures == 1
    assert f"plug-in failed: {name}: " in caplog.text


HEADERS: dict[str, Any] = {
    "lines": {"x-note": "one\r\nx-evil: two"},
    "a line in a name": {"x-note\nx-evil": "two"},
    "a space in a name": {"x note": "two"},
    "no name": {"": "two"},
    "a null": {"x-note": "\0"},
}
OF_CALLS: dict[str, Any] = {
    **HEADERS,
    "half a pair": {"x-note": "\ud800"},
    "a number": {"x-note": 5},
    "nothing": None,
    "a length": {"Content-Length": "5"},
    "a framing": {"Transfer-Encoding": "chunked"},
}


@pytest.mark.parametrize(
    ("name", "path", "given"),
    [
        *(("heading", CHAT, given) for given in OF_CALLS.values()),
        *(("heading_http", path, given) for path in (CHAT, "/x") for given in HEADERS.values()),
    ],
    ids=str,
)
async def test_headers_that_a_plugin_makes_and_nobody_can_send_are_its_fault(
    name, path, given, caplog
):
    body = {"messages": [user("hi")], "max_tokens": 3}
    async with served(**paths(name)) as (router, worker):
        made = sys.modules["team.plugins"].HEADERS
        made["given"] = {"x-note": "é 1\t"}
        assert (await router.post(CHAT, body))[0] == 200
        made["given"] = given
        status, reply = await router.post(path, body)
        assert (status, reply["error"]["code"]) == (500, "internal_error"), reply
        assert "plug-in" in reply["error"]["message"]
        assert router.gateway.guard.failures == len(worker.requests) == 1
    assert f"plug-in failed: {name}: it set headers that cannot be sent" in caplog.text
    assert "retrying" not in caplog.text


async def test_where_there_are_no_plugins_none_is_to_blame_for_what_is_cancelled(caplog):
    async with serving() as router:
        gateway = router.gateway
        failure = gateway.router.failure(asyncio.CancelledError())
        assert str(failure) == "The generation was cancelled."
        assert (gateway.guard.failures, caplog.text) == (0, "")
