"""`GET /turns/{id}`: what is known of a turn, by whichever id somebody has of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from slime_router.telemetry.request_record import Course
from slime_router.testing.script import Script
from slime_router.types import Finish, GenerateChunk
from tests.integration.gateway import (
    CHAT,
    FOUR_KEYS,
    Served,
    assistant,
    served,
    serving,
    tiny_worker,
    user,
)
from tests.stack import Stack

CALLS = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


async def shown(router: Served, name: str, *include: str, **headers: str) -> dict[str, Any]:
    """The turn that goes by this name."""
    path = f"/turns/{name}" + (f"?include={','.join(include)}" if include else "")
    async with router.http.get(path, headers=headers) as answer:
        body: dict[str, Any] = await answer.json()
        assert answer.status == 200, body
    return body


async def test_a_receipt_leads_to_its_turn_with_time_place_and_person(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann: k-ann\n")
    ann = {"Authorization": "Bearer k-ann"}
    settings: dict[str, Any] = {"api_keys_file": str(keys), "admin_api_key": "admin"}
    async with served(**settings) as (router, worker):
        before = time.time()
        path, sent = f"/sessions/s{CHAT}", {"messages": [user("Hi")]}
        async with router.http.post(path, json=sent, headers=ann) as answer:
            reply = await answer.json()
            known_as = answer.headers["x-request-id"]
        after = time.time()
        [turn_id] = router.gateway.store.sessions.get("ann\x1fs").turns
        found = await shown(router, turn_id, **ann)
        for_admin = await shown(router, turn_id, Authorization="Bearer admin")
        listed = (await (await router.http.get("/sessions/s", headers=ann)).json())["turn_list"]
    assert before <= found["started"] <= after
    assert 0 < found["first_token_s"] <= found["duration_s"] < after - before + 1
    assert 0 <= found["queued_s"] + found["prompt_s"] < found["first_token_s"]
    assert (found["workers"], for_admin["workers"]) == (None, [worker.url])
    assert (found["door"], found["key"], found["session_id"]) == (CHAT, "ann", "s")
    assert (found["rid"], found["x_request_id"]) == (reply["id"], known_as)
    assert found["finish_reason"] == reply["choices"][0]["finish_reason"]
    assert found["prompt_tokens"] == reply["usage"]["prompt_tokens"]
    assert found["output_tokens"] == reply["usage"]["completion_tokens"]
    assert found["receipt"]["turn"] == found["turn_id"] == turn_id
    assert found["weight_versions"] == [
        {"version": "default", "start": 0, "end": found["output_tokens"]}
    ]
    assert listed == [{key: found[key] for key in listed[0]}]


async def test_a_turn_is_found_by_every_id_that_its_client_has():
    async with served() as (router, _):
        names: list[tuple[str, str]] = []
        for path, body in (
            (CHAT, {"messages": [user("Hi")]}),
            ("/v1/responses", {"input": "Hi"}),
            ("/v1/messages", {"messages": [user("Hi")], "max_tokens": 4}),
            ("/v1/completions", {"prompt": "Hi"}),
        ):
            sent = {"x-request-id": f"mine-{path}".replace("/", "-")}
            async with router.http.post(path, json=body, headers=sent) as answer:
                names.append(((await answer.json())["id"], sent["x-request-id"]))
        await router.post("/generate", {"text": "Hi", "rid": "my-rid"})
        for by_response, by_request in names:
            one = await shown(router, by_response)
            assert one == await shown(router, by_request) == await shown(router, one["turn_id"])
        found = [(await shown(router, name))["turn_id"] for name, _ in names]
        assert len({*found, (await shown(router, "my-rid"))["turn_id"]}) == 5


async def test_the_samples_of_one_request_are_named_together():
    async with served() as (router, _):
        _, reply = await router.post(CHAT, {"messages": [user("Hi")], "n": 3})
        first = await shown(router, reply["id"])
        assert len(first["turns_of_request"]) == 3
        assert first["turn_id"] in first["turns_of_request"]
        for turn_id in first["turns_of_request"]:
            assert (await shown(router, turn_id))["turns_of_request"] == first["turns_of_request"]


@pytest.mark.parsers
async def test_a_tool_call_leads_to_the_turn_that_made_it():
    def reply(_: Any) -> Script:
        ids = router.gateway.tokenizer.encode(CALLS).tolist()
        return Script(ids=ids, finish="stop")

    async with served({"reply": reply}, tool_call_parser="qwen25") as (router, _):
        _, told = await router.post(CHAT, {"messages": [user("Hi")], "tools": TOOLS})
        [call] = told["choices"][0]["message"]["tool_calls"]
        found = await shown(router, call["id"], "reply")
    assert found["rid"] == told["id"]
    assert [made["id"] for made in found["reply"]["message"]["tool_calls"]] == [call["id"]]


@pytest.mark.parametrize(
    ("path", "status", "param", "code"),
    [
        ("/turns/none", 404, "id", "turn_not_found"),
        ("/turns/none?include=x", 400, "include", "invalid_value"),
        ("/turns/none?include=reply,,x", 400, "include", "invalid_value"),
        ("/turns/none?with=x", 400, "with", "unknown_parameter"),
        ("/turns/none?include=reply&include=prompt", 400, "include", "invalid_value"),
    ],
)
async def test_what_there_is_not_is_refused_by_name(path, status, param, code):
    async with serving() as router:
        answered, body = await router.get(path)
    error = body["error"]
    assert (answered, error["param"], error["code"]) == (status, param, code)
    assert error.keys() == FOUR_KEYS


# What was said


async def test_the_conversation_of_a_turn_is_put_together_from_those_before():
    async with served() as (router, worker):
        talk = [user("Hi")]
        for text in ("more", "and more", None):
            reply, receipt = await router.chat(talk, path=f"/sessions/s{CHAT}")
            said = [*talk, assistant(reply)]
            found = await shown(router, receipt["turn"], "messages", "prompt", "reply")
            assert (found["messages"], found["has_all_messages"]) == (talk, True)
            assert found["reply"]["message"] == assistant(reply)
            talk = said if text is None else [*said, user(text)]
        sent = worker.requests[-1].body["input_ids"]
        words = router.gateway.tokenizer
        assert found["prompt"] == words.decode(sent, skip_special_tokens=False)
        assert found["reply"]["text"].startswith(reply)
        kept = [len(t.account.words or b"") for t in _turns(router) if t.account is not None]
        assert max(kept) < 2 * min(kept), "each turn keeps only what is new"


async def test_a_branch_has_the_messages_of_its_own():
    async with served() as (router, _):
        path = f"/sessions/s{CHAT}"
        reply, _ = await router.chat([user("Hi")], path=path)
        await router.chat([user("Hi"), assistant(reply), user("one")], path=path)
        other = [user("Hi"), assistant("another reply"), user("two")]
        _, receipt = await router.chat(other, path=path)
        assert (await shown(router, receipt["turn"], "messages"))["messages"] == other


async def test_a_text_has_no_messages_and_its_prompt_is_shown():
    async with served() as (router, _):
        await router.post("/generate", {"text": "Hi there", "rid": "r"})
        found = await shown(router, "r", "messages", "prompt", "reply")
    assert (found["messages"], found["has_all_messages"]) == ([], False)
    assert found["prompt"] == "Hi there"
    assert found["reply"]["message"] is None
    assert found["reply"]["text"]


async def test_words_give_way_to_newer_ones_and_that_is_counted():
    async with served() as (router, _):
        ledger = router.gateway.store.ledger
        path = f"/sessions/s{CHAT}"
        reply, first = await router.chat([user("Hi" * 40)], path=path)
        ledger.max_words_bytes = 150
        talk = [user("Hi" * 40), assistant(reply), user("more")]
        _, second = await router.chat(talk, path=path)
        found = await shown(router, second["turn"], "messages")
        assert (found["messages"], found["has_all_messages"]) == ([user("more")], False)
        lost = await shown(router, first["turn"], "messages", "reply")
        assert (lost["messages"], lost["reply"]["message"]) == ([], None)
        assert lost["reply"]["text"].startswith(reply), "tokens are never given up for that"
        _, counted = await router.get("/metrics")
        assert counted["trajectories"]["dropped_words"] == ledger.dropped_words == 1
        assert counted["trajectories"]["account_bytes"] == ledger.bytes > 0
        router.gateway.store.check_integrity()


async def test_no_words_are_kept_where_none_may_be():
    async with served(max_words_bytes=0) as (router, _):
        _, receipt = await router.chat([user("a secret")])
        found = await shown(router, receipt["turn"], "messages")
    assert (found["messages"], found["has_all_messages"]) == ([], False)


def _turns(router: Served) -> Sequence[Any]:
    return tuple(router.gateway.store._turns.values())


# Whose it is


async def test_another_keys_turn_is_not_there(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann: k-ann\nbob: k-bob\n")
    ann, bob, admin = ({"Authorization": f"Bearer {key}"} for key in ("k-ann", "k-bob", "admin"))
    async with served(api_keys_file=str(keys), admin_api_key="admin") as (router, _):
        ids: dict[str, str] = {}
        for name, key in (("ann", ann), ("bob", bob)):
            sent = {**key, "x-request-id": "same"}
            async with router.http.post(CHAT, json={"messages": [user("Hi")]}, headers=sent) as a:
                ids[name] = (await a.json())["id"]
        anns = await shown(router, ids["ann"], **ann)
        for name in (ids["ann"], anns["turn_id"]):
            async with router.http.get(f"/turns/{name}", headers=bob) as answer:
                assert answer.status == 404
                assert (await answer.json())["error"]["code"] == "turn_not_found"
            assert (await shown(router, name, **admin))["key"] == "ann"
            as_ann = {**admin, "x-slime-owner": "ann"}
            assert (await shown(router, name, **as_ann))["turn_id"] == anns["turn_id"]
            async with router.http.get(f"/turns/{name}") as answer:
                assert answer.status == 401
        assert (await shown(router, "same", **ann))["turn_id"] == anns["turn_id"]
        assert (await shown(router, "same", **bob))["key"] == "bob"
        found = await shown(router, "same", **ann)
        assert found["turns_of_request"] == [anns["turn_id"]]


async def test_a_deleted_sessions_turn_that_another_builds_on_is_still_its_owners(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann: k-ann\nbob: k-bob\n")
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in ("k-ann", "k-bob"))
    async with served(api_keys_file=str(keys)) as (router, _):
        talk = [user("Hi")]
        reply = (await router.post(f"/sessions/s{CHAT}", {"messages": talk}, headers=ann))[1]
        talk += [assistant(reply["choices"][0]["message"]["content"]), user("more")]
        await router.post(CHAT, {"messages": talk}, headers=ann)
        async with router.http.delete("/sessions/s", headers=ann) as answer:
            assert answer.status == 200
        assert (await shown(router, reply["id"], **ann))["session_id"] is None
        async with router.http.get(f"/turns/{reply['id']}", headers=bob) as answer:
            assert answer.status == 404


# When and where


async def test_a_reply_of_two_workers_names_both():
    async def two(call: Any) -> Any:
        for url, finish in (("http://a", None), ("http://a", None), ("http://b", Finish("length"))):
            yield GenerateChunk(output_ids=[65], worker_url=url, finish=finish)

    stack = Stack(dispatch=two)
    call = stack.call(["Hi"])
    await stack.generate(call)
    turn = stack.store.get(call.turn_id)
    assert turn is not None
    assert turn.account is not None
    assert turn.account.workers == ("http://a", "http://b")
    assert (turn.account.door, turn.account.rid) == ("", call.rid), "no request, as in a check-up"


def test_a_course_says_what_happened_when():
    now = [100.0]
    course = Course(clock=lambda: now[0], now=lambda: 1_000.0)
    assert (course.started, course.prompt_s, course.first_token_s) == (1_000.0, 0.0, None)
    for event in (course.admitted, course.prompted):
        now[0] += 1.0
        event()
    for url in ("a", "a", "b"):
        now[0] += 0.5
        course.sampled(url, 1)
    assert (course.admitted_s, course.prompt_s, course.first_token_s) == (1.0, 1.0, 2.5)
    assert (course.workers, course.elapsed_s()) == (("a", "b"), 3.5)


# After a restart


async def test_what_is_known_of_a_turn_outlives_the_router(tmp_path: Path):
    settings: dict[str, Any] = {"journal": str(tmp_path)}
    async with tiny_worker() as worker:
        async with serving(worker.url, **settings) as router:
            reply, _ = await router.chat([user("Hi")], path=f"/sessions/s{CHAT}")
            talk = [user("Hi"), assistant(reply), user("more")]
            _, receipt = await router.chat(talk, path=f"/sessions/s{CHAT}")
            every = ("messages", "prompt", "reply")
            before = await shown(router, receipt["turn"], *every)
            size = router.gateway.store.ledger.bytes
        async with serving(worker.url, **settings) as router:
            assert router.gateway.journal is not None
            await router.gateway.journal.read()
            for name in (receipt["turn"], before["rid"], before["x_request_id"]):
                assert await shown(router, name, *every) == before
            assert router.gateway.store.ledger.bytes == size
            router.gateway.store.check_integrity()
    assert before["messages"] == talk
