"""The rows doors over real HTTP: what is exported, in which format, of which sessions."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet
import pytest
import safetensors.numpy
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from slime_router import aside
from slime_router.api.sessions import row_formats as rows_reply
from slime_router.api.sessions import rows as rows_door
from slime_router.api.sessions.rows import RowsDoor
from slime_router.errors import NotDurable
from slime_router.journal.fetching import AllIsHere
from slime_router.rows.rows import RowSet, build_rows
from slime_router.trajectory.session import SessionSpec
from slime_router.trajectory.store import TrajectoryStore
from slime_router.trajectory.turn import Turn
from slime_router.types import Finish, VersionSpan, token_ids
from tests.integration.gateway import CHAT, assistant, served, user
from tests.integration.scripted import application

ROW_KEYS = {
    "row_id",
    "session_id",
    "group_id",
    "rollout_id",
    "turn_ids",
    "turn_versions",
    "turns",
    "tokens",
    "loss_mask",
    "logprobs",
    "weight_versions",
    "response_length",
    "status",
    "reward",
    "finish_reason",
    "truncated_sampling",
    "metadata",
}


@dataclass
class Doors:
    store: TrajectoryStore
    http: TestClient[web.Request, web.Application]

    async def get(self, path: str, **headers: str) -> tuple[int, str, bytes]:
        """Status, media type and body."""
        async with self.http.get(path, headers=headers) as response:
            return response.status, response.content_type, await response.read()

    async def rows(self, query: str = "", session_id: str = "s") -> Any:
        status, _, raw = await self.get(f"/sessions/{session_id}/rows{query}")
        assert status == 200, raw
        return orjson.loads(raw)

    async def lines(self, **body: Any) -> list[Any]:
        """The lines of a `POST /rows`."""
        async with self.http.post("/rows", json=body) as response:
            assert response.status == 200, await response.read()
            assert response.content_type == "application/x-ndjson"
            raw = await response.read()
        assert raw.endswith(b"\n")
        return [orjson.loads(line) for line in raw.splitlines()]

    async def refused(self, body: Any) -> tuple[int, Any]:
        async with self.http.post("/rows", json=body) as response:
            error = (await response.json())["error"]
            assert error.keys() == {"message", "type", "param", "code"}
            return response.status, error["param"]

    def add(self, turn_id: str, session_id: str, prompt: list[int], output: list[int]) -> None:
        """A turn on the deepest one that its prompt begins with."""
        base = self.store.deepest_prefix(token_ids(prompt), session_id)
        base_len = base.held_len if base else 0
        self.store.add(
            Turn(
                id=turn_id,
                base=base.id if base else None,
                base_len=base_len,
                prompt_ids=token_ids(prompt[base_len:]),
                output_ids=token_ids(output),
                logprobs=np.full(len(output), -0.5, np.float32),
                weight_versions=(VersionSpan("v1", 0, len(output)),),
                finish=Finish("stop"),
                session_id=session_id,
            )
        )

    def open(self, session_id: str, **fields: Any) -> None:
        """A session with two rows: a path of two turns, and one that begins again."""
        self.store.open_session(SessionSpec(id=session_id, **fields))
        self.add(f"{session_id}1", session_id, [1, 2], [3, 4])
        self.add(f"{session_id}2", session_id, [1, 2, 3, 4, 5], [6])
        self.add(f"{session_id}3", session_id, [9], [8, 7, 6])


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    store = TrajectoryStore(100_000)
    door = RowsDoor(store, AllIsHere(), realign_threshold=5)
    app = application(2**20)
    app.router.add_get("/sessions/{session}/rows", door.of_session)
    app.router.add_post("/rows", door.of_many)
    async with TestClient(TestServer(app)) as client:
        yield Doors(store, client)


async def test_a_session_becomes_rows_and_stats(doors):
    doors.open("s", group_id="g", rollout_id="r", metadata={"task": 1})
    doors.store.sessions.set_reward("s", 1.0)
    body = await doors.rows()
    assert body.keys() == {"rows", "stats"}
    first, second = body["rows"]
    assert first.keys() == second.keys() == ROW_KEYS
    assert (first["tokens"], first["loss_mask"]) == ([1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 0, 1])
    assert (second["tokens"], second["loss_mask"]) == ([9, 8, 7, 6], [0, 1, 1, 1])
    assert first["logprobs"] == [0, 0, -0.5, -0.5, 0, -0.5]
    assert first["weight_versions"] == [None, None, "v1", "v1", None, "v1"]
    assert first["turn_ids"] == ["s1", "s2"]
    for row in body["rows"]:
        shared = ("session_id", "group_id", "rollout_id", "reward", "metadata")
        assert [row[name] for name in shared] == ["s", "g", "r", 1.0, {"task": 1}]
    stats = body["stats"]
    assert (stats["rows"], stats["turns"], stats["recorded_turns"]) == (2, 3, 3)
    assert stats["sampled_tokens"] == stats["trained_tokens"] == 6
    assert (stats["dropped_turns"], stats["dropped_tokens"], stats["running"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("query", "accept", "media_type"),
    [
        ("", "*/*", "application/json"),
        ("", "application/json", "application/json"),
        ("", "text/html, image/png", "application/json"),
        ("?format=json", "application/x-npz", "application/json"),
        ("?format=jsonl", "*/*", "application/x-ndjson"),
        ("?format=slime", "*/*", "application/json"),
        ("?format=npz", "*/*", "application/x-npz"),
        ("?format=safetensors", "*/*", "application/x-safetensors"),
        ("?format=parquet", "*/*", "application/vnd.apache.parquet"),
        ("", "application/x-npz", "application/x-npz"),
        ("", "text/html, Application/X-Safetensors;q=0.9, */*", "application/x-safetensors"),
    ],
)
async def test_the_format_is_named_by_the_query_or_else_accepted(doors, query, accept, media_type):
    doors.open("s")
    status, told, raw = await doors.get(f"/sessions/s/rows{query}", Accept=accept)
    assert (status, told) == (200, media_type)
    tokens = [1, 2, 3, 4, 5, 6, 9, 8, 7, 6]
    if told == "application/x-npz":
        assert np.load(io.BytesIO(raw))["tokens"].tolist() == tokens
    elif told == "application/x-safetensors":
        assert safetensors.numpy.load(raw)["tokens"].tolist() == tokens
    elif told == "application/vnd.apache.parquet":
        lists = pyarrow.parquet.read_table(io.BytesIO(raw))["tokens"].to_pylist()
        assert [token for row in lists for token in row] == tokens
    elif told == "application/x-ndjson":
        assert [len(orjson.loads(line)) for line in raw.splitlines()] == [len(ROW_KEYS)] * 2 + [2]
    else:
        rows = orjson.loads(raw)["samples" if "slime" in query else "rows"]
        assert [token for row in rows for token in row["tokens"]] == tokens


@pytest.mark.parametrize("form", [*rows_reply.FORMATS])
async def test_long_rows_are_made_and_written_in_a_thread(doors, monkeypatch, form):
    doors.open("s")
    _, _, expected = await doors.get(f"/sessions/s/rows?format={form}")
    monkeypatch.setattr(aside, "INLINE_SIZE", 0)
    threads: list[int] = []
    encode = rows_reply.FORMATS[form].encode

    def noted(*given: Any) -> Any:
        threads.append(threading.get_ident())
        return encode(*given) if isinstance(given[-1], RowSet) else build_rows(*given)

    monkeypatch.setattr(rows_door, "build_rows", noted)
    other = replace(rows_reply.FORMATS[form], encode=noted)
    monkeypatch.setattr(rows_reply, "FORMATS", {**rows_reply.FORMATS, form: other})
    _, _, written = await doors.get(f"/sessions/s/rows?format={form}")
    assert len(threads) == 2
    assert threading.get_ident() not in threads
    if form != "parquet":  # which says when it was written
        assert written == expected


async def test_what_comes_while_rows_are_made_is_not_exported(doors, monkeypatch):
    monkeypatch.setattr(aside, "INLINE_SIZE", 0)
    doors.open("s")
    begun, go_on = threading.Event(), threading.Event()

    def slow(*given: Any) -> RowSet:
        begun.set()
        assert go_on.wait(30)
        return build_rows(*given)

    monkeypatch.setattr(rows_door, "build_rows", slow)
    asked = asyncio.create_task(doors.rows())
    await asyncio.to_thread(begun.wait, 30)
    doors.add("s4", "s", [5, 5], [5])
    doors.store.freeze(doors.store.sessions.get("s"))
    go_on.set()
    body = await asked
    assert [row["turn_ids"] for row in body["rows"]] == [["s1", "s2"], ["s3"]]
    assert not doors.store.sessions.get("s").was_exported
    assert len((await doors.rows())["rows"]) == 3
    assert doors.store.sessions.get("s").was_exported


OPTIONS = [
    ({"realign_threshold": 0}, {"realign_threshold": 0}),
    ({"realign_threshold": 40, "max_len": 1}, {"realign_threshold": 40, "max_len": 1}),
    ({"retries": "keep"}, {"keeps_retries": True}),
    ({"retries": "drop"}, {}),
    ({}, {}),
]


@pytest.mark.parametrize(("asked", "made"), OPTIONS)
async def test_options_reach_the_rows_from_either_door(doors, monkeypatch, asked, made):
    """What is not said is the router's default."""
    doors.open("s")
    seen: list[Any] = []

    def noting(source: Any, turn_ids: Any, options: Any) -> Any:
        seen.append((options.realign_threshold, options.max_len, options.keeps_retries))
        return build_rows(source, turn_ids, options)

    monkeypatch.setattr(rows_door, "build_rows", noting)
    query = "&".join(f"{name}={value}" for name, value in asked.items())
    await doors.rows(f"?{query}")
    await doors.lines(session_ids=["s"], **asked)
    wanted = {"realign_threshold": 5, "max_len": None, "keeps_retries": False, **made}
    assert seen == [tuple(wanted.values())] * 2


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("format=arrow", "format"),
        ("format=json&format=npz", "format"),
        ("realign_threshold=-1", "realign_threshold"),
        ("realign_threshold=1.5", "realign_threshold"),
        ("realign_threshold=", "realign_threshold"),
        ("max_len=0", "max_len"),
        ("max_len=many", "max_len"),
        ("max_len=%D9%A3", "max_len"),
        ("max_len=" + "9" * 5_000, "max_len"),
        ("retries=maybe", "retries"),
        ("retries=1", "retries"),
        ("max_length=5", "max_length"),
    ],
    ids=lambda value: value[:30],
)
async def test_a_bad_query_is_refused_by_the_name_of_its_parameter(doors, query, param):
    doors.open("s")
    status, _, raw = await doors.get(f"/sessions/s/rows?{query}")
    assert (status, orjson.loads(raw)["error"]["param"]) == (400, param)


async def test_the_rows_of_what_is_not_there_are_not_found(doors):
    status, _, raw = await doors.get("/sessions/none/rows")
    assert (status, orjson.loads(raw)["error"]["code"]) == (404, "session_not_found")
    assert len(doors.store.sessions) == 0


def shape(lines: list[Any]) -> list[Any]:
    """A row by its id, stats and errors by their session."""
    kinds = {"stats", "error"}
    return [
        line["row_id"] if "row_id" in line else (line["session_id"], *(kinds & line.keys()))
        for line in lines
    ]


async def test_many_sessions_come_one_after_the_other(doors):
    """Rows, then their stats; what is not there has a line in its place, and the rest goes on."""
    doors.open("a")
    doors.open("b")
    lines = await doors.lines(session_ids=["b", "none", "a"])
    assert shape(lines) == [
        "b2",
        "b3",
        ("b", "stats"),
        ("none", "error"),
        "a2",
        "a3",
        ("a", "stats"),
    ]
    error = lines[3]["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == "session_not_found"
    of_one = await doors.rows(session_id="b")
    assert lines[:2] == of_one["rows"]
    assert lines[2] == {"session_id": "b", "stats": of_one["stats"]}


async def test_sessions_are_found_by_group_and_by_rollout(doors):
    doors.open("a", group_id="7", rollout_id="r1")
    doors.open("b", group_id="7", rollout_id="r2")
    doors.open("c", group_id="8", rollout_id="r2")
    assert shape(await doors.lines(group_id=7))[2::3] == [("a", "stats"), ("b", "stats")]
    assert shape(await doors.lines(rollout_id="r2"))[2::3] == [("b", "stats"), ("c", "stats")]
    assert await doors.refused({"group_id": "none"}) == (404, "group_id")


BAD_BODIES = [
    ({}, "session_ids"),
    ({"session_ids": ["a"], "group_id": "g"}, "session_ids"),
    ({"session_id": "a"}, "session_id"),
    ({"session_ids": []}, "session_ids"),
    ({"session_ids": "a"}, "session_ids"),
    ({"session_ids": ["x"] * 100_001}, "session_ids"),
    ({"session_ids": ["a", 1]}, "session_ids[1]"),
    ({"session_ids": ["a", "b", "a"]}, "session_ids[2]"),
    ({"group_id": []}, "group_id"),
    ({"rollout_id": True}, "rollout_id"),
    ({"session_ids": ["a"], "max_len": "5"}, "max_len"),
    ({"session_ids": ["a"], "realign_threshold": True}, "realign_threshold"),
    ({"session_ids": ["a"], "retries": 1}, "retries"),
    ({"session_ids": ["a"], "format": "npz"}, "format"),
]


@pytest.mark.parametrize(("body", "param"), BAD_BODIES, ids=lambda value: str(value)[:40])
async def test_a_bad_request_for_many_is_refused_by_the_name_of_its_field(doors, body, param):
    doors.open("a")
    assert await doors.refused(body) == (400, param)


async def test_a_session_that_fails_is_told_and_the_next_comes(doors, monkeypatch, caplog):
    """The status line is out already: nothing but a line can tell."""
    doors.open("a")
    doors.open("b")

    def failing(source: Any, turn_ids: Any, options: Any) -> Any:
        if "a1" in turn_ids:
            raise ZeroDivisionError
        return build_rows(source, turn_ids, options)

    monkeypatch.setattr(rows_door, "build_rows", failing)
    lines = await doors.lines(session_ids=["a", "b"])
    assert shape(lines) == [("a", "error"), "b2", "b3", ("b", "stats")]
    assert lines[0]["error"]["code"] == "internal_error"
    assert "ZeroDivisionError" in caplog.text


async def test_others_are_served_between_two_sessions(doors, monkeypatch):
    """A long export holds nobody up: the loop turns after every session."""
    names = [f"s{number}" for number in range(20)]
    for name in names:
        doors.open(name)
    turns, seen = 0, []

    async def turning() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def noting(source: Any, turn_ids: Any, options: Any) -> Any:
        seen.append(turns)
        return build_rows(source, turn_ids, options)

    monkeypatch.setattr(rows_door, "build_rows", noting)
    other = asyncio.create_task(turning())
    await doors.lines(session_ids=names)
    other.cancel()
    assert len(set(seen)) == len(names)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first turns of the sessions whose rows were built."""
    built: list[str] = []

    def counting(source: Any, turn_ids: Any, options: Any) -> Any:
        built.append(turn_ids[0])
        return build_rows(source, turn_ids, options)

    monkeypatch.setattr(rows_door, "build_rows", counting)
    return built


async def test_a_session_that_cannot_be_fetched_has_an_error_line(doors, monkeypatch):
    """The status line is out by then, and the sessions that follow have rows."""
    doors.open("a")
    doors.open("b")

    async def fetched(_: object, session_id: str) -> Any:
        if session_id == "a":
            raise NotDurable("The store does not answer at present.")
        return nullcontext()

    monkeypatch.setattr(AllIsHere, "of_session", fetched)
    async with doors.http.post("/rows", json={"session_ids": ["a", "b"]}) as response:
        first, *others = [orjson.loads(line) for line in (await response.read()).splitlines()]
    assert (first["session_id"], first["error"]["code"]) == ("a", "journal_failed")
    assert {line["session_id"] for line in others} == {"b"}


async def test_a_client_that_leaves_ends_the_export(doors, monkeypatch):
    """Nobody reads any more: the sessions that were still to come are not built."""
    names = [f"s{number}" for number in range(1_000)]
    for name in names:
        doors.open(name)
    built = counted(monkeypatch)
    async with doors.http.post("/rows", json={"session_ids": names}) as response:
        await response.content.readline()
        response.close()
    for _ in range(100):
        await asyncio.sleep(0)
    settled = len(built)
    for _ in range(100):
        await asyncio.sleep(0)
    assert 0 < settled == len(built) < len(names)


async def test_a_line_that_cannot_be_written_ends_the_export(doors, monkeypatch, caplog):
    """Where the connection is found broken before the handler is cancelled: no fault of ours."""
    doors.open("a")
    doors.open("b")
    built = counted(monkeypatch)

    async def broken(self: web.StreamResponse, data: bytes) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(web.StreamResponse, "write", broken)
    async with doors.http.post("/rows", json={"session_ids": ["a", "b"]}) as response:
        assert await response.read() == b""
    assert built == ["a1"]
    assert not caplog.records


async def test_the_rows_of_a_session_are_one_snapshot(doors, monkeypatch):
    """A reward that comes between two lines is in none of them: rows of one rollout agree."""
    doors.open("s")
    encode = rows_reply.lines

    def rewarding(session: Any, rowset: Any) -> Any:
        for line in encode(session, rowset):
            yield line
            doors.store.sessions.set_reward("s", 1.0)

    monkeypatch.setattr(rows_reply, "lines", rewarding)
    first, second, _ = await doors.lines(session_ids=["s"])
    assert first["reward"] is second["reward"] is None
    assert doors.store.sessions.get("s").reward == 1.0


async def test_a_session_is_walked_from_its_opening_to_its_end():
    """Through the whole gateway: what an agent sampled there is in the rows."""
    async with served() as (router, _):
        status, opened = await router.post("/sessions", {"session_id": "a/b", "group_id": 1})
        assert status == 201
        path = URL(opened["url"]).raw_path
        chat = f"{URL(opened['base_url']).raw_path}/chat/completions"
        reply, _ = await router.chat([user("Hi")], path=chat, max_tokens=5)
        await router.chat([user("Hi"), assistant(reply), user("And?")], path=chat, max_tokens=5)
        _, closed = await router.post(f"{path}/close")
        assert (closed["state"], closed["turns"], closed["sampled_tokens"]) == ("closed", 2, 10)
        await router.post(f"{path}/reward", {"reward": 1})
        _, exported = await router.get(f"{path}/rows")
        [row] = exported["rows"]
        assert sum(row["loss_mask"]) == exported["stats"]["sampled_tokens"] == 10
        assert (row["session_id"], row["group_id"], row["reward"]) == ("a/b", "1", 1.0)
        async with router.http.post("/rows", json={"group_id": "1"}) as response:
            assert orjson.loads(await response.content.readline()) == row
        async with router.http.delete(path) as response:
            assert response.status == 200
        assert (await router.get(f"{path}/rows"))[0] == 404


async def test_a_row_without_the_experts_that_its_session_wants_is_counted():
    """A worker without the flag gives none, and does not mention it."""
    async with served() as (router, worker):
        spec = {"session_id": "s", "return_routed_experts": True, "return_indexer_topk": True}
        await router.post("/sessions", spec)
        worker.script([11])
        await router.chat([user("Hi")], path=f"/sessions/s{CHAT}")
        _, rows = await router.get("/sessions/s/rows")
        assert rows["stats"]["routed_experts_missing"] == {"missing": 1}
        assert rows["stats"]["indexer_topk_missing"] == {"missing": 1}
