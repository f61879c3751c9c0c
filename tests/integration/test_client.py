"""Both clients: against a router, and against what answers like none."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from numpy.testing import assert_array_equal

from slime_router.api.sessions.request import SPEC_FIELDS
from slime_router.client import (
    AsyncClient,
    BadReply,
    Client,
    Conflict,
    Export,
    NotFound,
    Refused,
    StorageFull,
    TimedOut,
    TooManyRequests,
    Unreachable,
    calls,
)
from slime_router.client.calls import SessionOptions
from tests.integration.gateway import Served, served, user

SHORT_S = 0.05
SESSION = {"session_id": "s", "max_turns": 9}


@dataclass
class Trainer:
    """Speaks through one of the two clients as if there were one."""

    client: Client | AsyncClient

    async def do(self, thunk: Callable[[], Any]) -> Any:
        """The result of what `thunk` asks the client for."""
        if isinstance(self.client, Client):
            return await asyncio.to_thread(thunk)
        return await thunk()

    async def open(self, **options: Any) -> Any:
        return await self.do(lambda: self.client.open_session(**options))

    async def exports(self, *, into: list[Export] | None = None, **options: Any) -> list[Export]:
        """All exports of `rows`; those that came before an error are in `into`."""
        came = [] if into is None else into
        if isinstance(self.client, Client):
            blocking = self.client
            await asyncio.to_thread(lambda: came.extend(blocking.rows(**options)))
        else:
            async for export in self.client.rows(**options):
                came.append(export)
        return came

    async def use(self, session: Any, thunk: Callable[[], Any]) -> None:
        """Run `thunk` in the session's `with` block."""
        if isinstance(self.client, Client):

            def use() -> None:
                with session:
                    thunk()

            await asyncio.to_thread(use)
        else:
            async with session:
                await thunk()

    async def break_down(self, session: Any) -> None:
        """An agent that fails in the session's `with` block."""

        def fail() -> None:
            raise ZeroDivisionError

        await self.use(session, fail)


@pytest.fixture(params=["blocking", "awaiting"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def trainer(kind: str, url: str, **settings: Any) -> AsyncIterator[Trainer]:
    if kind == "blocking":
        with Client(url, **settings) as client:
            yield Trainer(client)
    else:
        async with AsyncClient(url, **settings) as awaiting:
            yield Trainer(awaiting)


def url_of(router: Served) -> str:
    return str(router.http._base_url)


async def converse(base_url: str, *questions: str, **fields: Any) -> list[str]:
    """An agent's conversation; the replies."""
    messages: list[Any] = []
    async with openai.AsyncOpenAI(base_url=base_url, api_key="x", max_retries=0) as llm:
        for question in questions:
            messages.append(user(question))
            reply = await llm.chat.completions.create(
                model="m", messages=messages, max_tokens=8, **fields
            )
            messages.append({"role": "assistant", "content": reply.choices[0].message.content})
    return [message["content"] for message in messages if message["role"] == "assistant"]


class TestWithARouter:
    async def test_a_rollout_from_its_opening_to_its_end(self, kind):
        """What is trained is what the worker sampled, bit for bit, and each token once."""
        async with served() as (router, worker), trainer(kind, url_of(router)) as it:
            session = await it.open(
                group_id="g", rollout_id="r", metadata={"task": 1}, sampling={"top_p": 0.5}
            )
            await converse(session.base_url, "Hello", "And again?")
            summary = await it.do(session.close)
            assert (summary.state, summary.turns, summary.metadata) == ("closed", 2, {"task": 1})
            assert (await it.do(lambda: session.set_reward(0.25))).reward == 0.25
            export = await it.do(session.rows)
            [row] = export.rows
            turns = [router.gateway.store.get(turn_id) for turn_id in row.turn_ids]
            sampled = [id_ for turn in turns if turn for id_ in turn.output_ids.tolist()]
            logprobs = [turn.logprobs for turn in turns if turn]
            known = [p for each in logprobs if each is not None for p in each.tolist()]
            assert row.tokens[row.loss_mask == 1].tolist() == sampled
            assert row.logprobs is not None
            assert row.logprobs[row.loss_mask == 1].tolist() == known
            assert row.trained_tokens == export.stats.sampled_tokens == len(sampled)
            assert (row.group_id, row.rollout_id, row.reward) == ("g", "r", 0.25)
            await it.do(session.delete)
            with pytest.raises(NotFound) as caught:
                await it.do(session.summary)
            assert caught.value.code == "session_not_found"
        assert worker.requests

    async def test_a_sample_is_what_the_router_would_write_for_slime(self, kind):
        async with served() as (router, _), trainer(kind, url_of(router)) as it:
            session = await it.open(metadata={"task": 1})
            await converse(session.base_url, "Hello")
            await it.do(lambda: session.set_reward({"score": 1}))
            [row] = (await it.do(session.rows)).rows
            _, body = await router.get(f"/sessions/{session.id}/rows?format=slime")
            [sample] = body["samples"]
            assert {**row.to_sample(), "group_index": None, "index": None} == sample

    async def test_a_stream_of_sessions_is_what_each_has_by_itself(self, kind):
        async with served() as (router, _), trainer(kind, url_of(router)) as it:
            sessions = [await it.open(group_id="g", session_id=f"g/{i}") for i in range(3)]
            for session in sessions[:2]:
                await converse(session.base_url, "Hello", "And again?")
            exports = await it.exports(group_id="g")
            assert [export.session_id for export in exports] == ["g/0", "g/1", "g/2"]
            assert exports[2].rows == ()
            for session, export in zip(sessions, exports, strict=True):
                alone = await it.do(session.rows)
                assert alone.stats == export.stats
                for one, other in zip(alone.rows, export.rows, strict=True):
                    assert one.to_sample() == other.to_sample()
                    assert_array_equal(one.loss_mask, other.loss_mask)
                    assert one.weight_versions == other.weight_versions

    async def test_a_session_that_is_gone_costs_the_others_nothing(self, kind):
        async with served() as (router, _), trainer(kind, url_of(router)) as it:
            session = await it.open()
            await converse(session.base_url, "Hello")
            came: list[Export] = []
            with pytest.raises(NotFound, match="gone"):
                await it.exports(into=came, session_ids=["gone", session.id])
            assert [export.session_id for export in came] == [session.id]

    async def test_a_session_can_ask_for_all_that_the_router_knows(self, kind):
        assert set(SessionOptions.__annotations__) == set(SPEC_FIELDS)
        async with served() as (router, worker), trainer(kind, url_of(router)) as it:
            session = await it.open(top_logprobs=2, sampling_pins={"max_tokens": 4})
            await converse(session.base_url, "Hello")
            sent = worker.requests[-1].body
            assert (sent["top_logprobs_num"], sent["sampling_params"]["max_new_tokens"]) == (2, 4)
            [row] = (await it.do(session.rows)).rows
            assert len(row.top_ids) == 2 * row.trained_tokens

    async def test_a_worker_group_scores_a_session(self, kind):
        async with (
            served() as (_, teacher),
            served(worker_group=(("teacher", teacher.url),)) as (router, _),
            trainer(kind, url_of(router)) as it,
        ):
            session = await it.open()
            await converse(session.base_url, "Hello")
            await it.do(lambda: session.score("teacher", top_logprobs=3))
            assert teacher.requests[-1].body["top_logprobs_num"] == 3
            _, body = await router.get(f"/sessions/{session.id}/rows")
            [wanted] = body["rows"]
            [row] = (await it.do(session.rows)).rows
            [export] = await it.exports(session_ids=[session.id])
            _, samples = await router.get(f"/sessions/{session.id}/rows?format=slime")
            for each in (row, *export.rows):
                score = each.teachers["teacher"]
                assert score.top_ids.tolist() == wanted["teacher_top_ids"]["teacher"]
                assert score.version == wanted["teacher_versions"]["teacher"]
                sample, [told] = each.to_sample(), samples["samples"]
                for name in ("logprobs", "top_ids", "top_logprobs", "versions"):
                    assert sample[f"teacher_{name}"] == told[f"teacher_{name}"]
            with pytest.raises(NotFound):
                await it.do(lambda: session.score("nobody"))

    async def test_options_reach_the_router(self, kind):
        async with served() as (router, _), trainer(kind, url_of(router)) as it:
            session = await it.open()
            await converse(session.base_url, "Hello")
            export = await it.do(lambda: session.rows(max_len=2))
            assert export.rows == ()
            assert export.stats.left_out["over_length"].tokens == export.stats.sampled_tokens
            with pytest.raises(Refused) as caught:
                await it.do(lambda: session.rows(max_len=0))
            assert (caught.value.status, caught.value.param) == (400, "max_len")

    async def test_what_is_taken_is_a_conflict(self, kind):
        """A name twice, and two rewards for one rollout."""
        async with served() as (router, _), trainer(kind, url_of(router)) as it:
            first = await it.open(session_id="a", rollout_id="r")
            with pytest.raises(Conflict) as caught:
                await it.open(session_id="a")
            assert (caught.value.code, caught.value.param) == ("session_exists", "session_id")
            other = await it.open(rollout_id="r")
            await it.do(lambda: first.set_reward(1))
            with pytest.raises(Conflict) as caught:
                await it.do(lambda: other.set_reward(0))
            assert caught.value.code == "reward_conflict"

    async def test_a_session_is_found_again_by_its_id(self, kind):
        """Whatever characters are in it."""
        async with served() as (router, _), trainer(kind, url_of(router)) as it:
            opened = await it.open(session_id="a/b?c #ä%2F", group_id="g")
            found = await it.do(lambda: it.client.get_session(opened.id))
            assert (found.id, found.group_id, found.base_url) == (
                opened.id,
                "g",
                opened.base_url,
            )
            await converse(found.base_url, "Hello")
            [listed] = await it.do(lambda: it.client.list_sessions(group_id="g"))
            assert (listed.session_id, listed.turns) == (opened.id, 1)
            assert await it.do(lambda: it.client.list_sessions(group_id="other")) == ()

    async def test_a_closed_session_takes_no_turns(self, kind):
        async with served() as (router, _), trainer(kind, url_of(router)) as it:
            session = await it.open()
            await it.do(session.close)
            assert (await it.do(session.close)).state == "closed", "closing twice is not a mistake"
            with pytest.raises(openai.ConflictError):
                await converse(session.base_url, "Hello")


class TestSessionBlocks:
    async def test_leaving_closes_and_keeps_the_turns(self):
        async with served() as (router, _), AsyncClient(url_of(router)) as client:
            async with await client.open_session() as session:
                await converse(session.base_url, "Hello")
            assert (await session.summary()).state == "closed"
            assert len((await session.rows()).rows) == 1

    async def test_an_error_passes_and_what_is_in_flight_is_ended(self, kind):
        """Nothing waits for an agent that is gone; what it sampled before stays."""
        async with served() as (router, worker), trainer(kind, url_of(router)) as it:
            session = await it.open()
            await converse(session.base_url, "Hello")
            worker.hold(after_tokens=1)
            agent = asyncio.create_task(converse(session.base_url, "Slow"))
            await worker.wait_running(1)
            with pytest.raises(ZeroDivisionError) as caught:
                await it.break_down(session)
            assert not hasattr(caught.value, "__notes__")
            with pytest.raises(openai.APIError):
                await agent
            assert (await it.do(session.summary)).state == "closed"
            assert (await it.do(session.rows)).rows != ()

    async def test_only_an_agent_that_failed_is_not_waited_for(self, kind):
        closings: list[Any] = []

        async def note(request: web.Request) -> web.StreamResponse:
            if request.path.endswith("/close"):
                closings.append((await request.json())["in_flight"])
            return tell_summary(request)

        async with stub(note) as (url, _), trainer(kind, url) as it:
            session = await it.open()
            await it.use(session, session.summary)
            with pytest.raises(ZeroDivisionError):
                await it.break_down(session)
        assert closings == ["wait", "cancel"]

    async def test_leaving_a_block_that_deleted_it_is_quiet(self, kind):
        async with served() as (router, _), trainer(kind, url_of(router)) as it:
            session = await it.open()
            await it.use(session, session.delete)
            assert len(router.gateway.store.sessions) == 0

    async def test_the_first_error_is_not_hidden_by_a_second(self, kind):
        """A router that fails when the block is left: the agent's own error is what is raised."""
        async with stub(tell_summary) as (url, stubbed), trainer(kind, url) as it:
            session = await it.open()
            stubbed.handler = lambda _: web.Response(status=500)
            with pytest.raises(ZeroDivisionError) as caught:
                await it.break_down(session)
            assert "'s' could not be closed: HTTP 500" in caught.value.__notes__[0]

    async def test_a_failure_to_close_is_told_where_there_is_no_other(self, kind):
        async with stub(tell_summary) as (url, stubbed), trainer(kind, url) as it:
            session = await it.open()
            stubbed.handler = lambda request: (
                web.Response(status=500) if request.method == "POST" else tell_summary(request)
            )
            with pytest.raises(Refused, match="HTTP 500"):
                await it.use(session, session.summary)


Handler = Callable[[web.Request], web.StreamResponse | Awaitable[web.StreamResponse]]


@dataclass
class Stub:
    """Answers whatever a test says, and counts."""

    handler: Handler
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path_qs}")
        answer = self.handler(request)
        return answer if isinstance(answer, web.StreamResponse) else await answer


@asynccontextmanager
async def stub(handler: Handler) -> AsyncIterator[tuple[str, Stub]]:
    """A server that is no router; its URL has a path."""
    stubbed = Stub(handler)
    app = web.Application()
    app.router.add_route("*", "/prefix/{path:.*}", stubbed.answer)
    async with TestServer(app, shutdown_timeout=0.1) as server:
        yield str(server.make_url("/prefix/")), stubbed


def summary() -> dict[str, Any]:
    return {
        "session_id": "s",
        "state": "open",
        "group_id": None,
        "rollout_id": "s",
        "metadata": {},
        "max_turns": None,
        "max_tokens": None,
        "return_routed_experts": False,
        "reward": None,
        "turns": 0,
        "recorded_turns": 0,
        "sampled_tokens": 0,
        "dropped_turns": 0,
        "running": 0,
    }


def tell_summary(_: web.Request) -> web.StreamResponse:
    return web.json_response(summary())


def drop(request: web.Request) -> web.StreamResponse:
    """Hang up without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


class TestWithoutARouter:
    async def test_nobody_there_is_said_in_one_line(self, kind):
        with socket.socket() as taken:  # bound, and not listening
            taken.bind(("127.0.0.1", 0))
            async with trainer(kind, f"http://127.0.0.1:{taken.getsockname()[1]}") as it:
                with pytest.raises(Unreachable, match=r"No answer from http://127\.0\.0\.1") as no:
                    await it.open()
        assert "\n" not in str(no.value)
        assert "Error" not in str(no.value), "the reason is in plain words"
        assert (no.value.status, no.value.code) == (None, None)

    async def test_what_only_reads_is_tried_again(self, kind):
        async with stub(drop) as (url, stubbed), trainer(kind, url) as it:

            def third_time(request: web.Request) -> web.StreamResponse:
                return drop(request) if len(stubbed.asked) < 3 else web.json_response(summary())

            stubbed.handler = third_time
            session = await it.do(lambda: it.client.get_session("s"))
            assert session.id == "s"
            assert stubbed.asked == ["GET /prefix/sessions/s"] * 3

    async def test_after_three_tries_it_is_told(self, kind):
        async with stub(drop) as (url, stubbed), trainer(kind, url) as it:
            with pytest.raises(Unreachable):
                await it.do(lambda: it.client.list_sessions())
            assert len(stubbed.asked) == 3

    async def test_what_changes_something_is_never_sent_twice(self, kind):
        async with stub(tell_summary) as (url, stubbed), trainer(kind, url) as it:
            session = await it.open()
            stubbed.handler = drop
            for change in (session.close, session.delete, lambda: session.set_reward(1)):
                stubbed.asked.clear()
                with pytest.raises(Unreachable):
                    await it.do(change)
                assert len(stubbed.asked) == 1

    async def test_silence_has_an_end_and_is_not_tried_again(self, kind):
        async def say_nothing(_: web.Request) -> web.StreamResponse:
            await asyncio.Event().wait()
            raise AssertionError

        async with stub(say_nothing) as (url, stubbed), trainer(kind, url, timeout_s=SHORT_S) as it:
            with pytest.raises(TimedOut, match=r"silent for 0\.05 s"):
                await it.do(lambda: it.client.get_session("s"))
            assert len(stubbed.asked) == 1

    async def test_silence_in_the_middle_of_a_stream_has_an_end(self, kind):
        async def begin(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b'{"session_id"')
            await asyncio.Event().wait()
            raise AssertionError

        async with stub(begin) as (url, _), trainer(kind, url, timeout_s=SHORT_S) as it:
            with pytest.raises(TimedOut):
                await it.exports(group_id="g")

    async def test_closing_may_take_longer_than_the_usual_silence(self, kind):
        async def hesitate(request: web.Request) -> web.StreamResponse:
            if request.path.endswith("/close"):
                await asyncio.sleep(4 * SHORT_S)
            return web.json_response(summary())

        async with (
            stub(hesitate) as (url, _),
            trainer(kind, url) as patient,
            trainer(kind, url, timeout_s=SHORT_S) as it,
        ):
            opened = await patient.open()  # a busy machine takes longer than `SHORT_S` for it
            session = type(opened)(it.client, await patient.do(opened.summary))
            assert (await it.do(lambda: session.close(timeout_s=10))).session_id == "s"

    async def test_a_stream_that_breaks_off_is_no_end(self, kind):
        """A whole session, and then the connection ends: it could be taken for all there is."""

        async def break_off(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            counted = {"turns": 0, "sampled_tokens": 0, "rows": 0, "trained_tokens": 0}
            stats = {"session_id": "s", "stats": {**counted, "left_out": {}}}
            await response.write(orjson.dumps(stats) + b"\n")
            return drop(request)

        async with stub(break_off) as (url, _), trainer(kind, url) as it:
            with pytest.raises(Unreachable):
                await it.exports(session_ids=["s", "t"])

    async def test_an_archive_that_breaks_off_is_an_error(self, kind):
        async def break_off(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b"PK")
            return drop(request)

        async with stub(tell_summary) as (url, stubbed), trainer(kind, url) as it:
            session = await it.open()
            stubbed.handler = break_off
            with pytest.raises(Unreachable):
                await it.do(session.rows)

    @pytest.mark.parametrize(
        ("status", "error"),
        [(404, NotFound), (409, Conflict), (429, TooManyRequests), (507, StorageFull)],
    )
    async def test_each_refusal_has_its_class(self, kind, status, error):
        body = {"error": {"message": "No.", "type": "t", "param": "p", "code": "c"}}
        async with (
            stub(lambda _: web.json_response(body, status=status)) as (url, _),
            trainer(kind, url) as it,
        ):
            with pytest.raises(error, match=r"No\.") as caught:
                await it.open()
        told = caught.value
        assert (told.status, told.message, told.param, told.code) == (status, "No.", "p", "c")

    async def test_something_else_at_the_url_is_a_bad_reply(self, kind):
        async with (
            stub(lambda _: web.Response(text="It works!")) as (url, _),
            trainer(kind, url) as it,
        ):
            with pytest.raises(BadReply, match="describes no session"):
                await it.open()

    async def test_headers_go_with_every_call(self, kind):
        def check(request: web.Request) -> web.StreamResponse:
            assert request.headers["authorization"] == "Bearer x"
            assert request.headers["accept"] == "application/json"
            return web.json_response(summary())

        async with (
            stub(check) as (url, _),
            trainer(kind, url, headers={"Authorization": "Bearer x"}) as it,
        ):
            session = await it.open(**SESSION)
            assert session.base_url == f"{url}sessions/s/v1"
            assert (await it.do(session.summary)).session_id == "s"

    async def test_an_awaiting_client_outside_its_block_says_what_to_do(self):
        client = AsyncClient("http://127.0.0.1:1")
        with pytest.raises(RuntimeError, match="async with"):
            await client.send(calls.read_session("s"))
