"""The dashboard's page, and the doors that are made for it, over HTTP and without a browser."""

from __future__ import annotations

import re
from typing import Any

import aiohttp
import orjson

from slime_router.api.sessions.tokens import MAX_TOKENS, SOURCES
from slime_router.dashboard.page import ASSETS
from slime_router.errors import NotFound, WorkerFailed
from slime_router.telemetry.failures import RecentFailures
from slime_router.telemetry.request_record import RequestRecord
from tests.integration.gateway import CHAT, Served, assistant, served, user
from tests.stack import tiny_tokenizer

TEXT = {"max_tokens": 4}


async def body(http: aiohttp.ClientSession, path: str, key: str = "") -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with http.get(path, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def talk(router: Served, session: str = "s", **fields: Any) -> str:
    """A turn, and one that continues it; the id of the second."""
    path = f"/sessions/{session}{CHAT}"
    first, _ = await router.chat([user("Hi")], path=path, **TEXT, **fields)
    again = [user("Hi"), assistant(first), user("And now?")]
    _, receipt = await router.chat(again, path=path, **TEXT, **fields)
    return str(receipt["turn"])


# The page


async def test_the_page_needs_no_key_and_loads_only_what_the_router_serves():
    async with served(api_key="SECRET") as (router, _):
        seen = set()
        for path in ("/dashboard", *(f"/dashboard/{file.name}" for file in ASSETS.iterdir())):
            async with router.http.get(path) as answer:
                text = await answer.text()
                assert answer.status == 200, path
                policy = answer.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                seen.add(answer.content_type)
                links = re.findall(r"(?:src|href|from)[= ]\"([^\"#]+)\"", text)
                for link in links:
                    name = link.removeprefix("dashboard/").removeprefix("./")
                    assert (ASSETS / name).is_file(), f"{path} loads {link}"
        assert seen == {"text/html", "text/css", "text/javascript", "image/svg+xml"}
        status, _ = await body(router.http, "/dashboard/nothing.js")
        assert status == 404


async def test_a_file_that_the_browser_has_is_not_sent_again():
    async with served() as (router, _):
        async with router.http.get("/dashboard/main.js") as answer:
            tag = answer.headers["ETag"]
        async with router.http.get("/dashboard/main.js", headers={"If-None-Match": tag}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")


async def test_after_a_slash_the_page_leads_to_itself():
    async with served() as (router, _), router.http.get("/dashboard/") as answer:
        assert (answer.status, answer.url.path) == (200, "/dashboard")


def test_no_text_becomes_html():
    """The browser would refuse it anyway; see `Content-Security-Policy`."""
    ways = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=")
    for file in ASSETS.iterdir():
        text = file.read_text(encoding="utf-8")
        assert [way for way in ways if way in text] == [], file.name


# What it shows


async def test_the_tree_says_how_turns_follow_each_other():
    async with served() as (router, _):
        path = f"/sessions/s{CHAT}"
        last = await talk(router)
        await router.chat([user("Bye")], path=path, **TEXT)
        status, tree = await router.get("/sessions/s/tree")
        assert status == 200
        assert [turn["cause"] for turn in tree["turns"]] == ["start", "extension", "start"]
        assert tree["turns"][1]["parent"] == tree["turns"][0]["turn_id"]
        assert tree["rows"][0]["row_id"] == last
        assert [span["is_trained"] for span in tree["rows"][0]["spans"]] == [True, True]
        _, export = await router.get("/sessions/s/rows")
        stats = {key: export["stats"][key] for key in tree["stats"]}
        assert tree["stats"] == stats


async def test_looking_is_not_exporting():
    async with served() as (router, _):
        await router.post("/sessions", {"session_id": "s"})
        turn = await talk(router)
        await router.post("/sessions/s/close", {})
        pinned = router.gateway.store.pinned_tokens
        await router.get("/sessions/s/tree")
        await router.get(f"/sessions/s/tokens?row={turn}")
        assert router.gateway.store.pinned_tokens == pinned > 0
        await router.get("/sessions/s/rows")
        assert router.gateway.store.pinned_tokens == 0


async def test_tokens_say_of_each_where_it_comes_from():
    async with served() as (router, _):
        turn = await talk(router)
        _, found = await router.get(f"/sessions/s/tokens?turn={turn}")
    held = router.gateway.store.trace(turn)
    assert found["ids"] == held.ids.tolist()
    assert found["total"] == len(held.ids)
    assert found["loss_mask"] == held.loss_mask.tolist()
    lengths = {
        len(found[key]) for key in ("pieces", "sources", "logprobs", "turn_of", "version_of")
    }
    assert lengths == {found["total"]}
    by_source: dict[str, str] = dict.fromkeys(SOURCES, "")
    for piece, source in zip(found["pieces"], found["sources"], strict=True):
        by_source[SOURCES[source]] += piece
    assert by_source["message"] == "HiAnd now?"
    assert by_source["template"].startswith("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n")
    sampled = [i for i, source in enumerate(found["sources"]) if SOURCES[source] == "sampled"]
    assert all(found["logprobs"][i] == held.logprobs[i] for i in sampled)
    assert [found["logprobs"][i] for i in range(3)] == [None] * 3
    turns = [found["turns"][index] for index in found["turn_of"]]
    assert turns[-1] == turn
    assert turns[0] != turn
    assert {found["versions"][found["version_of"][i]] for i in sampled} == {"default"}


async def test_parts_are_what_the_whole_is():
    async with served() as (router, _):
        turn = await talk(router)
        _, whole = await router.get(f"/sessions/s/tokens?turn={turn}")
        for offset in range(0, whole["total"], 5):
            _, part = await router.get(f"/sessions/s/tokens?turn={turn}&offset={offset}&limit=5")
            for key in ("ids", "pieces", "sources", "loss_mask", "logprobs"):
                assert part[key] == whole[key][offset : offset + 5], key
            named = [part["turns"][index] for index in part["turn_of"]]
            assert named == [whole["turns"][i] for i in whole["turn_of"][offset : offset + 5]]
        _, after = await router.get(f"/sessions/s/tokens?turn={turn}&offset=99999")
        assert (after["ids"], after["offset"]) == ([], whole["total"])


async def test_a_row_has_the_mask_that_the_trainer_gets():
    async with served() as (router, worker):
        path = "/sessions/s/generate"
        for ids, sampled in (([70], [71, 72]), ([70, 71, 72, 73], [74]), ([70, 71, 72, 75], [76])):
            worker.script(sampled)
            await router.post(path, {"input_ids": ids})
        _, export = await router.get("/sessions/s/rows")
        assert len(export["rows"]) == 2
        for row in export["rows"]:
            _, found = await router.get(f"/sessions/s/tokens?row={row['row_id']}")
            assert found["ids"] == row["tokens"]
            assert found["loss_mask"] == row["loss_mask"]
        assert sum(export["rows"][1]["loss_mask"]) == 1, "what the first row trains, it does not"


async def test_bytes_that_are_no_text_are_given_in_hex():
    async with served() as (router, worker):
        ids = tiny_tokenizer().encode("ß🙃").tolist()
        parts = [i for i in range(256) if tiny_tokenizer().token_bytes(i) == b"\xf0"]
        worker.script(parts)
        await router.post("/sessions/s/generate", {"input_ids": ids})
        _, tree = await router.get("/sessions/s/tree")
        turn = tree["turns"][0]["turn_id"]
        _, found = await router.get(f"/sessions/s/tokens?turn={turn}")
        raw = b"".join(
            bytes.fromhex(found["bytes"].get(str(i), piece.encode().hex()))
            for i, piece in enumerate(found["pieces"])
        )
        assert raw == "ß🙃".encode() + b"\xf0"


async def test_wrong_questions_are_refused_by_name():
    async with served() as (router, _):
        turn = await talk(router)
        for query, param in (
            ("", "turn"),
            (f"turn={turn}&row={turn}", "turn"),
            (f"turn={turn}&limit=0", "limit"),
            (f"turn={turn}&limit={MAX_TOKENS + 1}", "limit"),
            (f"turn={turn}&offset=-1", "offset"),
            (f"turn={turn}&offset=x", "offset"),
            (f"turn={turn}&of=1", "of"),
        ):
            status, reply = await router.get(f"/sessions/s/tokens?{query}")
            assert (status, reply["error"]["param"]) == (400, param)
        for query in ("turn=turn_none", "row=turn_none"):
            status, _ = await router.get(f"/sessions/s/tokens?{query}")
            assert status == 404
        status, _ = await router.get("/sessions/none/tree")
        assert status == 404


async def test_a_key_sees_its_own_sessions_only(tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("ann: ANN-key\nbob: BOB-key\n", encoding="utf-8")
    async with served(api_keys_file=str(keys), admin_api_key="ADMIN-key") as (router, _):
        headers = {"Authorization": "Bearer ANN-key"}
        async with router.http.post(
            f"/sessions/s{CHAT}", json={"messages": [user("Hi")], **TEXT}, headers=headers
        ) as answer:
            turn = orjson.loads(answer.headers["x-slime-receipt"])["turn"]
        for key, expected in (("ANN-key", 200), ("BOB-key", 404), ("", 401)):
            for path in ("/sessions/s/tree", f"/sessions/s/tokens?turn={turn}"):
                status, _ = await body(router.http, path, key)
                assert status == expected, (key, path)
        async with router.http.post(
            f"/sessions/s{CHAT}",
            json={"messages": [user("Hi")], **TEXT},
            headers={"Authorization": "Bearer BOB-key"},
        ) as answer:
            assert answer.status == 200
        status, _ = await body(router.http, f"/sessions/s/tokens?turn={turn}", "BOB-key")
        assert status == 404, "a turn of somebody else, asked for in one's own session"


async def test_failed_requests_are_kept_with_their_cause_and_shown_to_their_own_key(tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("ann: ANN-key\nbob: BOB-key\n", encoding="utf-8")
    async with served(api_keys_file=str(keys), admin_api_key="ADMIN-key") as (router, _):
        for key in ("ANN-key", "BOB-key"):
            headers = {"Authorization": f"Bearer {key}"}
            async with router.http.post(CHAT, json={"messages": 1}, headers=headers) as answer:
                assert answer.status == 400
        await body(router.http, "/sessions/none", "ANN-key")  # looking is not failing
        seen = {}
        for key in ("ANN-key", "BOB-key", "ADMIN-key"):
            _, found = await body(router.http, "/recent_errors", key)
            seen[key] = [error["key"] for error in found["errors"]]
            for error in found["errors"]:
                assert (error["status"], error["param"], error["path"]) == (400, "messages", CHAT)
                assert error["at"] > 0
        assert seen == {"ANN-key": ["ann"], "BOB-key": ["bob"], "ADMIN-key": ["bob", "ann"]}
        status, _ = await body(router.http, "/recent_errors")
        assert status == 401


def test_only_the_last_failures_are_kept():
    failures = RecentFailures(kept=2)
    for number in range(3):
        record = RequestRecord(f"req_{number}", CHAT)
        failures.note(record, "POST", CHAT, WorkerFailed("broken"), float(number))
    failures.note(None, "GET", "/sessions/none", NotFound("none"), 3.0)
    kept = failures.seen_by(lambda _: True)
    assert [entry["request"] for entry in kept] == ["req_2", "req_1"]
    assert [entry["reason"] for entry in kept] == ["broken", "broken"]
    assert failures.seen_by(lambda owner: owner == "ann") == []
