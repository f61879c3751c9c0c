"""What a trainer says of single turns, over HTTP, and what becomes of it in rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from slime_router.api.sessions.row_formats import FORMATS
from slime_router.client import AsyncClient, BadReply, expand, read_tree
from slime_router.rows.rows import RowSet, RowStats
from slime_router.testing import Script
from slime_router.trajectory.session import Session, SessionSpec
from tests.integration.gateway import CHAT, Served, assistant, served, tiny_worker, user
from tests.integration.test_journal_restart import journaled

EMPTY = RowSet((), RowStats(0, 0, 0, 0, {}, {}))
SPEAKS = {"reply": lambda _: Script(ids=[72, 105, 33], finish="length")}


async def converse(router: Served, text: str = "Hi", **headers: str) -> list[str]:
    """Two turns of one conversation in the session `s`; their ids."""
    path, messages, turns = f"/sessions/s{CHAT}", [user(text)], []
    for _ in range(2):
        body = {"model": "tiny", "messages": messages}
        async with router.http.post(path, json=body, headers=headers) as response:
            reply = await response.json()
        messages += [assistant(reply["choices"][0]["message"]["content"]), user("and?")]
        _, summary = await router.get("/sessions/s")
        turns.append(summary["turn_list"][-1]["turn_id"])
    return turns


async def row_turns(router: Served) -> list[dict[str, Any]]:
    _, export = await router.get("/sessions/s/rows")
    return [turn for row in export["rows"] for turn in row["turns"]]


async def test_rewards_and_tags_of_turns_are_in_rows_and_in_the_list():
    async with served(SPEAKS) as (router, _):
        first, second = await converse(router)
        status, reply = await router.post(f"/turns/{first}/reward", {"reward": 2})
        assert (status, reply) == (
            200,
            {"turn_id": first, "session_id": "s", "reward": 2.0, "tags": [], "speculation": None},
        )
        _, reply = await router.post(f"/turns/{second}/tags", {"tags": ["ugly", "long", "ugly"]})
        assert reply["tags"] == ["ugly", "long"]
        one, two = await row_turns(router)
        assert (one["turn_id"], one["reward"], one["tags"]) == (first, 2.0, [])
        assert (two["turn_id"], two["reward"], two["tags"]) == (second, None, ["ugly", "long"])
        assert (two["kind"], two["parent_turn"]) == ("main", first)
        _, summary = await router.get("/sessions/s")
        assert [turn["reward"] for turn in summary["turn_list"]] == [2.0, None]
        await router.post(f"/turns/{first}/reward", {"reward": None})
        await router.post(f"/turns/{second}/tags", {"tags": []})
        assert [(t["reward"], t["tags"]) for t in await row_turns(router)] == [(None, [])] * 2
        router.gateway.store.check_integrity()


async def test_a_row_says_where_each_turn_stands():
    async with served(SPEAKS) as (router, _):
        await converse(router)
        _, export = await router.get("/sessions/s/rows")
        [row] = export["rows"]
        sampled = [i for turn in row["turns"] for i in range(turn["start"], turn["end"])]
        assert sampled == [i for i, mask in enumerate(row["loss_mask"]) if mask]
        assert [turn["turn_id"] for turn in row["turns"]] == row["turn_ids"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("reward", {}, "reward"),
        ("reward", {"reward": "1"}, "reward"),
        ("reward", {"reward": True}, "reward"),
        ("reward", {"reward": {"a": 1}}, "reward"),
        ("reward", {"reward": 1, "tags": []}, "tags"),
        ("tags", {}, "tags"),
        ("tags", {"tags": "a"}, "tags"),
        ("tags", {"tags": ["a", 1]}, "tags[1]"),
        ("tags", {"tags": [""]}, "tags[0]"),
        ("tags", {"tags": ["a,b"]}, "tags[0]"),
        ("tags", {"tags": ["x" * 129]}, "tags[0]"),
        ("tags", {"tags": [str(n) for n in range(33)]}, "tags"),
    ],
)
async def test_marks_that_are_refused_change_nothing(path: str, body: Any, param: str):
    async with served(SPEAKS) as (router, _):
        turn, _ = await converse(router)
        await router.post(f"/turns/{turn}/reward", {"reward": 0.5})
        await router.post(f"/turns/{turn}/tags", {"tags": ["kept"]})
        status, reply = await router.post(f"/turns/{turn}/{path}", body)
        assert (status, reply["error"]["param"]) == (400, param)
        marked = (await row_turns(router))[0]
        assert (marked["reward"], marked["tags"]) == (0.5, ["kept"])


async def test_a_number_that_is_not_finite_is_refused():
    async with served(SPEAKS) as (router, _):
        turn, _ = await converse(router)
        for written in ("1e999", "NaN"):
            async with router.http.post(
                f"/turns/{turn}/reward", data=f'{{"reward": {written}, "x\\ud800": 1}}'
            ) as response:
                assert response.status == 400


async def test_turns_are_marked_by_their_owner_alone(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann: k-ann\nbob: k-bob\n")
    async with served(SPEAKS, api_keys_file=str(keys), admin_api_key="admin") as (router, _):
        ann = {"Authorization": "Bearer k-ann"}
        path = f"/sessions/s{CHAT}"
        await router.post(path, {"messages": [user("Hi")]}, headers=ann)
        [turn] = router.gateway.store._turns
        for who, expected in (("k-bob", 404), ("k-ann", 200), ("admin", 200)):
            headers = {"Authorization": f"Bearer {who}"}
            for door, body in (("reward", {"reward": 1}), ("tags", {"tags": ["a"]})):
                status, reply = await router.post(f"/turns/{turn}/{door}", body, headers=headers)
                assert status == expected, reply
                if expected == 404:
                    assert reply["error"]["code"] == "turn_not_found"


async def test_marks_outlive_the_router(tmp_path):
    async with tiny_worker(**SPEAKS) as worker:
        async with journaled(worker.url, tmp_path) as router:
            first, second = await converse(router, **{"x-openai-subagent": "review"})
            await router.post(f"/turns/{first}/reward", {"reward": -0.25})
            await router.post(f"/turns/{second}/tags", {"tags": ["é", "b"]})
            before = await row_turns(router)
            assert [turn["kind"] for turn in before] == ["subagent", "subagent"]
        async with journaled(worker.url, tmp_path) as router:
            assert await row_turns(router) == before
            await router.post(f"/turns/{first}/reward", {"reward": None})
        async with journaled(worker.url, tmp_path) as router:
            assert (await row_turns(router))[0]["reward"] is None


async def test_turns_are_left_out_by_what_they_are():
    async with served(SPEAKS) as (router, _):
        _, second = await converse(router)
        await converse(router, "Look", **{"x-slime-kind": "subagent"})
        await router.post(f"/turns/{second}/tags", {"tags": ["draft"]})
        assert len(await row_turns(router)) > 2
        _, export = await router.get("/sessions/s/rows?leave_out=subagent,tag:draft")
        assert [len(row["turns"]) for row in export["rows"]] == [1]
        left_out = export["stats"]["left_out"]
        assert left_out.keys() >= {"subagent", "tag:draft"}
        lost = sum(each["tokens"] for each in left_out.values())
        assert export["stats"]["sampled_tokens"] == export["stats"]["trained_tokens"] + lost
        body = {"session_ids": ["s"], "leave_out": ["subagent", "tag:draft"]}
        async with router.http.post("/rows", json=body) as response:
            assert len((await response.read()).splitlines()) == 2


@pytest.mark.parametrize("rule", ["main", "tag:", "retries", "subagent,"])
async def test_an_unknown_rule_is_refused(rule: str):
    async with served(SPEAKS) as (router, _):
        await converse(router)
        status, reply = await router.get(f"/sessions/s/rows?leave_out={rule}")
        assert (status, reply["error"]["param"]) == (400, "leave_out")


@pytest.mark.parametrize("rules", [5, {"retry": 1}, ["retry", 1], [None], [["retry"]]])
async def test_rules_that_are_not_a_list_of_strings_are_refused(rules: Any):
    async with served(SPEAKS) as (router, _):
        await converse(router)
        status, reply = await router.post("/rows", {"session_ids": ["s"], "leave_out": rules})
        assert (status, reply["error"]["param"]) == (400, "leave_out")


async def test_an_unknown_kind_is_refused_before_anything_is_sampled():
    async with served(SPEAKS) as (router, _):
        status, reply = await router.post(
            CHAT, {"messages": [user("Hi")]}, headers={"x-slime-kind": "retry"}
        )
        assert (status, reply["error"]["param"]) == (400, "x-slime-kind")
        assert not len(router.gateway.store)


async def test_the_client_rewards_tags_and_leaves_out():
    async with served(SPEAKS) as (router, _):
        first, second = await converse(router)
        async with AsyncClient(str(router.http._base_url)) as client:
            session = await client.get_session("s")
            await session.reward_turn(first, 0.5)
            await session.tag_turn(second, "draft", "bad")
            [row] = (await session.rows()).rows
            assert [turn.reward for turn in row.turns] == [0.5, None]
            assert row.turns[1].tags == ("draft", "bad")
            assert row.to_sample()["metadata"]["slime_router"]["turns"][1]["tags"] == [
                "draft",
                "bad",
            ]
            [short] = (await session.rows(leave_out="tag:bad")).rows
            assert [turn.turn_id for turn in short.turns] == [first]


async def test_the_client_reads_a_tree_and_makes_rows_of_it():
    async with served(SPEAKS) as (router, _):
        first, _ = await converse(router)
        await converse(router, "Look")
        await router.post(f"/turns/{first}/reward", {"reward": 0.5})
        async with AsyncClient(str(router.http._base_url)) as client:
            session = await client.get_session("s")
            tree, plain = await session.tree(), await session.rows()
        again = expand(tree)
        assert again.stats == plain.stats
        for row, same in zip(again.rows, plain.rows, strict=True):
            assert row.tokens.tolist() == same.tokens.tolist()
            assert row.loss_mask.tolist() == same.loss_mask.tolist()
            assert (row.turns, row.row_id, row.metadata) == (same.turns, same.row_id, same.metadata)
        assert tree.turns[first]["reward"] == 0.5
        assert len(tree.tokens) < sum(len(row.tokens) for row in plain.rows), "what is shared"


@pytest.mark.parametrize(
    "broken",
    [
        b"no json",
        b"{}",
        {"loss_mask": [1]},
        {"nodes": [{"start": 0, "end": 3, "parent": 0, "turn_id": None}]},
        {"nodes": [{"start": 1, "end": 3, "parent": -1, "turn_id": None}]},
        {"nodes": [{"start": 0, "end": 2, "parent": -1, "turn_id": None}]},
    ],
)
def test_a_tree_that_does_not_fit_together_is_refused(broken: Any):
    whole: dict[str, Any] = {
        **dict.fromkeys(("session_id", "group_id", "rollout_id", "reward", "metadata")),
        **{key: [0, 1, 2] for key in ("tokens", "positions", "parents", "loss_mask", "logprobs")},
        "weight_versions": [None] * 3,
        "nodes": [{"start": 0, "end": 3, "parent": -1, "turn_id": None}],
        "turns": [],
        "rows": [],
        "stats": {},
    }
    assert len(read_tree(orjson.dumps(whole)).tokens) == 3
    data = broken if isinstance(broken, bytes) else orjson.dumps({**whole, **broken})
    with pytest.raises(BadReply):
        read_tree(data)


def test_a_tree_whose_rows_are_not_those_that_were_counted_is_refused():
    tree = read_tree(FORMATS["tree"].encode(Session(SessionSpec(id="s"), is_opened=True), EMPTY))
    counted = {**tree.stats, "trained_tokens": 1}
    with pytest.raises(BadReply):
        expand(replace(tree, stats=counted))
