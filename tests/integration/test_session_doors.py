"""The session doors over real HTTP: what they open, tell, refuse and forget."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from itertools import count
from typing import Any

import numpy as np
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from slime_router.api.sessions.endpoints import SessionDoor
from slime_router.api.sessions.request import SPEC_FIELDS
from slime_router.generation.sessions import Sessions
from slime_router.journal.fetching import AllIsHere
from slime_router.trajectory.session import Session, SessionSpec
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Account, Turn
from slime_router.types import Finish, Grammar, Receipt, Sampling, VersionSpan, token_ids
from tests.integration.gateway import CHAT, served, user
from tests.integration.scripted import application

FOUR_KEYS = {"message", "type", "param", "code"}
ACCOUNT_KEYS = (
    "started", "duration_s", "first_token_s", "queued_s", "prompt_s", "workers", "door", "key",
    "x_request_id", "rid", "adapter",
)  # fmt: skip


class Words:
    """A vocabulary without words."""

    vocab_size = 600

    def token_bytes(self, token_id: int) -> bytes:
        return b""

    def is_special(self, token_id: int) -> bool:
        return False


class Flights(Sessions):
    """The real one, which notes how it was asked to close."""

    def __init__(self, store: TrajectoryStore) -> None:
        super().__init__(store)
        self.closings: list[dict[str, Any]] = []

    async def close(self, session_id: str, *, cancel: bool, timeout_s: float) -> Session:
        self.closings.append({"cancel": cancel, "timeout_s": timeout_s})
        return await super().close(session_id, cancel=cancel, timeout_s=timeout_s)


@dataclass
class Doors:
    store: TrajectoryStore
    flights: Flights
    http: TestClient[web.Request, web.Application]

    async def ask(self, method: str, path: str, json: Any = None) -> tuple[int, Any]:
        """Status and JSON body; the path goes out as it is written."""
        url = self.http.make_url("/").join(URL(path, encoded=True))
        async with self.http.session.request(method, url, json=json) as response:
            return response.status, await response.json()

    async def open(self, **body: Any) -> dict[str, Any]:
        """The summary of a new session."""
        status, summary = await self.ask("POST", "/sessions", body)
        assert status == 201, summary
        return dict(summary)

    async def refused(self, method: str, path: str, json: Any = None) -> tuple[int, Any, Any]:
        """Status, `param` and `code` of an error, which has all four keys."""
        status, body = await self.ask(method, path, json)
        assert body.keys() == {"error"}
        assert body["error"].keys() == FOUR_KEYS
        return status, body["error"]["param"], body["error"]["code"]


@asynccontextmanager
async def _doors(**settings: Any) -> AsyncIterator[Doors]:
    store = TrajectoryStore(1_000, **settings)
    flights = Flights(store)
    clock = count(1_000)
    now = lambda: float(next(clock))  # noqa: E731
    door = SessionDoor(store, flights, Words(), AllIsHere(), now=now)
    app = application()
    app.router.add_post("/sessions", door.open)
    app.router.add_get("/sessions", door.list)
    app.router.add_get("/sessions/{session}", door.show)
    app.router.add_delete("/sessions/{session}", door.delete)
    app.router.add_post("/sessions/{session}/close", door.close)
    app.router.add_post("/sessions/{session}/reward", door.reward)
    async with TestClient(TestServer(app)) as client:
        yield Doors(store, flights, client)


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    async with _doors() as opened:
        yield opened


def turn(turn_id: str, session_id: str, base: Turn | None = None, **fields: Any) -> Turn:
    given: dict[str, Any] = {
        "id": turn_id,
        "base": base.id if base else None,
        "base_len": base.held_len if base else 0,
        "prompt_ids": token_ids([1, 2, 3]),
        "output_ids": token_ids([4, 5]),
        "logprobs": np.array([-0.5, -0.25]),
        "weight_versions": (VersionSpan("v1", 0, 2),),
        "finish": Finish("stop", 5),
        "session_id": session_id,
    }
    return Turn(**{**given, **fields})


async def test_an_opened_session_is_told_whole(doors):
    summary = await doors.open(
        session_id="task-7",
        group_id="g",
        rollout_id="r",
        metadata={"level": [1, None]},
        max_turns=3,
        max_tokens=100,
        return_routed_experts=True,
    )
    url = str(doors.http.make_url("/sessions/task-7"))
    assert summary == {
        "session_id": "task-7",
        "url": url,
        "base_url": f"{url}/v1",
        "state": "open",
        "group_id": "g",
        "rollout_id": "r",
        "metadata": {"level": [1, None]},
        "max_turns": 3,
        "max_tokens": 100,
        "return_routed_experts": True,
        "reward": None,
        "turns": 0,
        "recorded_turns": 0,
        "sampled_tokens": 0,
        "dropped_turns": 0,
        "running": 0,
        "started": 1_000.0,
        "last_active": 1_000.0,
    }
    assert await doors.ask("GET", "/sessions/task-7") == (200, {**summary, "turn_list": []})


async def test_a_session_without_a_name_gets_a_new_one(doors):
    ids = [(await doors.open(**body))["session_id"] for body in ({}, {"session_id": None})]
    assert len(set(ids)) == 2
    for session_id in ids:
        assert session_id.startswith("sess_")
        assert len(bytes.fromhex(session_id.removeprefix("sess_"))) == 12
        assert doors.store.sessions.get(session_id).rollout_id == session_id


@pytest.mark.parametrize(
    "session_id",
    ["a/b", "/", "a/../b", "...", "50%", "%2F", "a b", "naïve 🙂", "q?a=b#c", "x" * 512],
)
async def test_the_url_of_a_session_leads_to_it_whatever_its_name(doors, session_id):
    summary = await doors.open(session_id=session_id)
    assert "/" not in summary["url"].removeprefix(str(doors.http.make_url("/sessions/")))
    status, shown = await doors.ask("GET", summary["url"])
    assert (status, shown["session_id"]) == (200, session_id)
    assert await doors.ask("DELETE", summary["url"]) == (
        200,
        {"session_id": session_id, "deleted": True},
    )
    assert (await doors.ask("GET", summary["url"]))[0] == 404


async def test_numbers_name_groups_and_rollouts(doors):
    summary = await doors.open(group_id=7, rollout_id=-1)
    assert (summary["group_id"], summary["rollout_id"]) == ("7", "-1")


async def test_sampling_is_read_in_the_words_of_a_chat_request(doors):
    sampling = {
        "max_completion_tokens": 9,
        "temperature": 0,
        "top_k": 0,
        "stop": "END",
        "stop_token_ids": [5],
        "include_stop_str_in_output": True,
        "response_format": {"type": "json_object"},
        "seed": None,
    }
    summary = await doors.open(sampling=sampling)
    assert doors.store.sessions.get(summary["session_id"]).sampling == Sampling(
        max_tokens=9,
        temperature=0,
        top_k=-1,
        stop=("END",),
        stop_token_ids=(5,),
        keep_stop=True,
        grammar=Grammar("json_schema", '{"type": "object"}'),
    )
    plain = await doors.open()
    assert doors.store.sessions.get(plain["session_id"]).sampling == Sampling()


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def each(field: str, *values: Any) -> list[tuple[Any, str]]:
    return [({field: value}, field) for value in values]


BAD_SESSIONS: list[tuple[Any, str]] = [
    ({"max_turn": 3}, "max_turn"),
    *each("session_id", "", ".", "..", 7, True, [], "a\nb", "x" * 513),
    *each("group_id", "", True, 1.5, {}, "\x00", "x" * 513),
    *each("rollout_id", "", False, 2.0, ["r"]),
    *each("metadata", "text", [1], 3, {"a": "x" * 2**16}, nested(250)),
    ({"metadata": {"slime_router": {}}}, "metadata.slime_router"),
    *each("max_turns", 0, -1, True, 1.5, "3", 2**63),
    *each("max_tokens", 0, 1.0, []),
    *each("return_routed_experts", 1, "yes"),
    *each("sampling", [], "hot", 1),
    *(({"sampling": {n: 1}}, f"sampling.{n}") for n in ("n", "stream", "messages", "temprature")),
    ({"sampling": {"temperature": 3}}, "sampling.temperature"),
    ({"sampling": {"temperature": "1"}}, "sampling.temperature"),
    ({"sampling": {"temperature": True}}, "sampling.temperature"),
    ({"sampling": {"stop": ["a", 1]}}, "sampling.stop[1]"),
    ({"sampling": {"stop_token_ids": [600]}}, "sampling.stop_token_ids"),
    ({"sampling": {"logit_bias": {"x": 1}}}, "sampling.logit_bias"),
    ({"sampling": {"max_tokens": 1, "min_tokens": 2}}, "sampling.min_tokens"),
    ({"sampling": {"response_format": {"type": "xml"}}}, "sampling.response_format.type"),
]


@pytest.mark.parametrize(("body", "param"), BAD_SESSIONS, ids=lambda value: str(value)[:40])
async def test_a_bad_session_is_refused_by_the_name_of_its_field_and_leaves_nothing(
    doors, body, param
):
    status, named, _ = await doors.refused("POST", "/sessions", body)
    assert (status, named) == (400, param)
    assert len(doors.store.sessions) == 0


async def test_a_session_needs_no_body(doors):
    async with doors.http.post("/sessions") as response:
        assert response.status == 201
        assert (await response.json())["session_id"].startswith("sess_")


@pytest.mark.parametrize("raw", [b"[]", b'{"reward": NaN}', b"{"])
async def test_what_is_no_json_object_is_refused(doors, raw):
    await doors.open(session_id="s")
    for path in ("/sessions", "/sessions/s/reward"):
        async with doors.http.post(path, data=raw) as response:
            assert response.status == 400
            assert (await response.json())["error"]["code"] == "invalid_json"
    assert len(doors.store.sessions) == 1
    assert doors.store.sessions.get("s").reward is None


async def test_metadata_may_fill_its_room_to_the_last_byte_and_level(doors):
    fits = {"a": "x" * (2**16 - len(b'{"a":""}'))}
    deep = nested(240)
    assert (await doors.open(metadata=fits))["metadata"] == fits
    assert (await doors.open(metadata=deep))["metadata"] == deep
    status, listing = await doors.ask("GET", "/sessions")
    assert (status, listing["total"]) == (200, 2)
    fits["a"] += "x"
    assert (await doors.refused("POST", "/sessions", {"metadata": fits}))[:2] == (400, "metadata")


async def test_a_name_is_taken_until_its_session_is_deleted(doors):
    await doors.open(session_id="s", max_turns=1)
    async with doors.http.post("/sessions", json={"session_id": "s"}) as response:
        assert response.status == 409
        assert response.headers["x-should-retry"] == "false"
        assert (await response.json())["error"]["param"] == "session_id"
    assert doors.store.sessions.get("s").max_turns == 1
    assert (await doors.ask("DELETE", "/sessions/s"))[0] == 200
    for method, path in (("DELETE", ""), ("GET", ""), ("POST", "/close")):
        status, *_ = await doors.refused(method, f"/sessions/s{path}")
        assert status == 404
    assert (await doors.open(session_id="s"))["max_turns"] is None


async def test_one_session_more_than_there_may_be_is_refused():
    async with _doors(max_sessions=1) as doors:
        await doors.open()
        assert (await doors.refused("POST", "/sessions", {}))[0] == 429
        assert len(doors.store.sessions) == 1


async def test_sessions_are_listed_by_group_rollout_and_state(doors):
    await doors.open(session_id="a", group_id="g1", rollout_id="r1")
    await doors.open(session_id="b", group_id="g1", rollout_id="r2")
    await doors.open(session_id="c", group_id="g2", rollout_id="r3")
    await doors.ask("POST", "/sessions/b/close")
    doors.store.add(turn("t", "d"))

    async def listed(query: str) -> str:
        status, body = await doors.ask("GET", f"/sessions{query}")
        assert status == 200
        assert body["total"] == len(body["sessions"])
        return "".join(summary["session_id"] for summary in body["sessions"])

    assert await listed("") == "abcd"
    assert await listed("?group_id=g1") == "ab"
    assert await listed("?group_id=g1&state=closed") == "b"
    assert await listed("?rollout_id=r3") == "c"
    assert await listed("?state=implicit") == "d"
    assert await listed("?group_id=none") == ""


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("group=g", "group"),
        ("state=shut", "state"),
        ("state=open&state=closed", "state"),
        *((f"limit={bad}", "limit") for bad in ("0", "-1", "1001", "x", "1.5", "", "9" * 30)),
        *((f"cursor={bad}", "cursor") for bad in ("-1", "x", "", "9" * 30)),
        *((f"since={bad}", "since") for bad in ("x", "", "1e999", "2026-13-01", "-5")),
        ("until=yesterday", "until"),
        ("order=up", "order"),
        (f"search={'x' * 513}", "search"),
    ],
)
async def test_a_filter_that_is_not_known_is_refused(doors, query, param):
    assert (await doors.refused("GET", f"/sessions?{query}"))[:2] == (400, param)


async def paged(doors: Doors, query: str, *, then: Callable[[int], None] = lambda _: None) -> str:
    """The names on all pages, pages apart; `then` is called after each."""
    pages: list[str] = []
    cursor = ""
    while True:
        status, body = await doors.ask("GET", f"/sessions?{query}{cursor}")
        assert status == 200
        pages.append("".join(each["session_id"] for each in body["sessions"]))
        if body["next_cursor"] is None:
            return "|".join(pages)
        cursor = f"&cursor={body['next_cursor']}"
        then(len(pages))


async def test_sessions_come_in_pages_of_either_order(doors):
    for name in "abcde":
        await doors.open(session_id=name)
    assert await paged(doors, "limit=2") == "ab|cd|e"
    assert await paged(doors, "limit=2&order=desc") == "ed|cb|a"
    assert await paged(doors, "limit=5") == "abcde"
    assert await paged(doors, "limit=1000&order=desc") == "edcba"
    status, body = await doors.ask("GET", "/sessions?limit=2&cursor=3")
    assert (status, body["total"]) == (200, 5), "the total is that of all pages"


async def test_a_page_is_right_while_sessions_come_and_go(doors):
    """What was there all the time is seen once, also where the last of a page is deleted."""
    for name in "abcd":
        await doors.open(session_id=name)

    def then(page: int) -> None:
        if page < 3:
            doors.store.delete_session("ab"[page - 1])
        if page == 1:
            doors.store.open_session(SessionSpec(id="e"))

    assert await paged(doors, "limit=1", then=then) == "a|b|c|d|e"
    assert await paged(doors, "limit=1&order=desc") == "e|d|c"


async def test_sessions_are_found_by_the_time_in_which_they_were_active(doors):
    for name in "abc":  # at 1000, 1001 and 1002
        await doors.open(session_id=name)
    account = Account(started=1_010.0, duration_s=5.0)
    doors.store.add(turn("t", "a", account=account))
    doors.store.add(turn("u", "d"))  # nobody knows when

    async def active(query: str) -> str:
        return await paged(doors, query)

    assert await active("since=1001") == "abc"
    assert await active("since=1002.5") == "a"
    assert await active("since=1015") == "a"
    assert await active("since=1015.5") == ""
    assert await active("until=1001") == "a"
    assert await active("since=1001&until=1002") == "ab"
    assert await active("since=1970-01-01T00:16:42") == "ac"
    assert await active("until=1970-01-01T01:16:41%2B01:00") == "a"
    _, shown = await doors.ask("GET", "/sessions/a")
    assert (shown["started"], shown["last_active"]) == (1_000.0, 1_015.0)
    _, shown = await doors.ask("GET", "/sessions/d")
    assert (shown["started"], shown["last_active"]) == (None, None)


async def test_sessions_are_searched_by_names_and_by_what_is_in_them(doors):
    await doors.open(session_id="Task-7", group_id="blue", rollout_id="r1")
    await doors.open(session_id="other")
    account = Account(started=1.0, duration_s=1.0, request_id="req_1", rid="chatcmpl-9")
    made = turn("turn_5", "other", account=account, request_id="asked", calls=(("call_3", "f"),))
    doors.store.add(made)
    for text in ("task", "TASK-7", "-7", "Blue", "r1"):
        assert await paged(doors, f"search={text}") == "Task-7", text
    for text in ("turn_5", "req_1", "chatcmpl-9", "asked", "call_3", "OTHER"):
        assert await paged(doors, f"search={text}") == "other", text
    assert await paged(doors, "search=chatcmpl-") == "", "of ids only whole ones"
    assert await paged(doors, "search=none") == ""
    assert await paged(doors, "search=r1&state=closed") == ""


async def test_the_turns_of_a_session_are_told_oldest_first(doors):
    await doors.open(session_id="s")
    receipt = Receipt("extended", 5, 3, "t2", "grew")
    first = doors.store.add(turn("t1", "s"))
    doors.store.add(
        turn(
            "t2",
            "s",
            first,
            receipt=receipt,
            request_id="req",
            finish=Finish("length"),
            weight_versions=(VersionSpan("v1", 0, 1), VersionSpan(2, 1, 2)),
        )
    )
    doors.store.mark_undelivered("t2")
    status, shown = await doors.ask("GET", "/sessions/s")
    assert status == 200
    unknown: dict[str, Any] = {  # as of turns that an earlier router has recorded
        **dict.fromkeys(ACCOUNT_KEYS),
        **{"reward": None, "tags": [], "speculation": None},
    }
    counts = ("turns", "recorded_turns", "sampled_tokens", "dropped_turns")
    assert [shown[name] for name in counts] == [2, 2, 4, 0]
    assert shown["turn_list"] == [
        {
            "turn_id": "t1",
            "seq": 1,
            "base": None,
            "base_len": 0,
            "prompt_tokens": 3,
            "output_tokens": 2,
            "finish_reason": "stop",
            "matched": 5,
            "is_delivered": True,
            "weight_versions": [{"version": "v1", "start": 0, "end": 2}],
            "request_id": "",
            "receipt": None,
            **unknown,
        },
        {
            "turn_id": "t2",
            "seq": 2,
            "base": "t1",
            "base_len": 5,
            "prompt_tokens": 8,
            "output_tokens": 2,
            "finish_reason": "length",
            "matched": None,
            "is_delivered": False,
            "weight_versions": [
                {"version": "v1", "start": 0, "end": 1},
                {"version": 2, "start": 1, "end": 2},
            ],
            "request_id": "req",
            "receipt": orjson.loads(receipt.to_json()),
            **unknown,
        },
    ]


async def test_closing_says_how_long_to_wait_and_is_the_same_twice(doors):
    await doors.open(session_id="s")
    closed = [
        await doors.ask("POST", "/sessions/s/close", body)
        for body in (None, {}, {"in_flight": "cancel", "timeout_secs": 0})
    ]
    assert [(status, summary["state"]) for status, summary in closed] == [(200, "closed")] * 3
    assert doors.flights.closings == [
        {"cancel": False, "timeout_s": 30.0},
        {"cancel": False, "timeout_s": 30.0},
        {"cancel": True, "timeout_s": 0.0},
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"inflight": "wait"}, "inflight"),
        *each("in_flight", "stop", None, []),
        *each("timeout_secs", -1, 86_401, True, "1", None),
    ],
)
async def test_a_bad_close_leaves_the_session_open(doors, body, param):
    await doors.open(session_id="s")
    assert (await doors.refused("POST", "/sessions/s/close", body))[:2] == (400, param)
    assert doors.store.sessions.get("s").state == "open"


@pytest.mark.parametrize("reward", [0, 1, -0.5, {"score": 1.0, "why": ["a"]}, {}])
async def test_a_reward_is_a_number_or_an_object(doors, reward):
    await doors.open(session_id="s")
    status, summary = await doors.ask("POST", "/sessions/s/reward", {"reward": reward})
    assert (status, summary["reward"]) == (200, reward)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "reward"),
        ({"reward": 1, "rewards": 1}, "rewards"),
        *each("reward", True, None, "1", [1], {"a": "x" * 2**16}),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_reward_changes_nothing(doors, body, param):
    await doors.open(session_id="s")
    assert (await doors.refused("POST", "/sessions/s/reward", body))[:2] == (400, param)
    assert doors.store.sessions.get("s").reward is None


async def test_the_sessions_of_a_rollout_have_one_reward(doors):
    for session_id in ("a", "b"):
        await doors.open(session_id=session_id, rollout_id="r")
    for session_id in ("a", "b"):
        status, _ = await doors.ask("POST", f"/sessions/{session_id}/reward", {"reward": 1})
        assert status == 200
    refused = await doors.refused("POST", "/sessions/b/reward", {"reward": 0})
    assert refused[:2] == (409, "reward")
    assert doors.store.sessions.get("b").reward == 1


async def test_what_nobody_named_is_not_found_and_not_made(doors):
    asked = [("GET", ""), ("DELETE", ""), ("POST", "/close"), ("POST", "/reward")]
    for method, path in asked:
        status, *_ = await doors.refused(method, f"/sessions/none{path}", {"reward": 1})
        assert status == (400 if path == "/close" else 404)
    assert (await doors.refused("POST", "/sessions/none/close"))[0] == 404
    assert len(doors.store.sessions) == 0


async def test_a_sessions_own_host_name_stands_in_its_url(doors):
    async with doors.http.post("/sessions", json={}, headers={"Host": "router:9"}) as response:
        assert (await response.json())["url"].startswith("http://router:9/sessions/sess_")


def test_the_specs_fields_are_those_that_the_door_reads():
    """A field that the table learns and the door does not would be refused forever."""
    assert {f.name for f in fields(SessionSpec)} == {*SPEC_FIELDS, "id"} - {"session_id"}


async def test_a_session_that_says_nothing_has_the_turns_that_the_router_gives_it():
    async with served(session_max_turns=1) as (router, _):
        status, opened = await router.post("/sessions", {"session_id": "s"})
        assert (status, opened["max_turns"]) == (201, 1)
        await router.chat([user("hi")], path=f"/sessions/s{CHAT}")
        status, body = await router.post(f"/sessions/s{CHAT}", {"messages": [user("more")]})
    assert (status, body["error"]["code"]) == (429, "session_limit_exceeded")
