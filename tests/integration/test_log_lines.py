"""What an operator reads: one line for each request, and never what was said in it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from typing import Any
from unittest.mock import ANY

import pytest
from multidict import CIMultiDict

from slime_router.cli import main as cli
from slime_router.cli import run
from slime_router.telemetry.bodies import MAX_BODY_LEN, bounded
from slime_router.telemetry.log_format import formatter
from slime_router.telemetry.request_line import RequestLine
from tests.integration.gateway import CHAT, checkpoint, served, serving, tiny_worker, until, user

SECRET = "a secret prompt"


@pytest.fixture
def lines(caplog):
    """The request lines so far, as `(level, fields)`, without what no test can know."""
    caplog.set_level(logging.DEBUG, "slime_router")

    def read() -> list[tuple[str, dict[str, Any]]]:
        found = [
            (record.levelname, dict(record.msg.fields))
            for record in caplog.records
            if isinstance(record.msg, RequestLine)
        ]
        for _, fields in found:
            assert fields.pop("ms") >= 0
        return found

    yield read
    assert SECRET not in caplog.text


def line(path: str, status: int, request: Any = ANY, **fields: Any) -> dict[str, Any]:
    given = {"method": "POST", "path": path, "status": status, "request": request, "door": path}
    return {name: value for name, value in (given | fields).items() if value is not None}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_generation_is_one_line_with_all_that_is_known_of_it(lines, stream):
    async with served() as (router, worker):
        path = f"/sessions/s{CHAT}"
        body = {"messages": [user(SECRET)], "stream": stream}
        sent = {"x-request-id": "mine"}
        async with router.http.post(path, json=body, headers=sent) as answer:
            await answer.read()
        await until(lambda: bool(lines()))
        [turn_id] = router.gateway.store.sessions.get("s").turns
        turn = router.gateway.store.get(turn_id)
        count = len(worker.requests[0].body["input_ids"])
    assert turn is not None
    [(level, fields)] = lines()
    assert fields.pop("first_token_ms") > 0
    assert level == "INFO"
    assert fields == line(
        path,
        200,
        "mine",
        door=CHAT,
        session="s",
        turn=turn_id,
        worker=worker.url,
        receipt="fresh",
        prompt=count,
        reused=0,
        output=len(turn.output_ids),
        finish=turn.finish.type,
    )


async def test_the_samples_of_a_request_are_one_line_with_the_tokens_of_all(lines):
    async with served() as (router, worker):
        _, reply = await router.post(CHAT, {"messages": [user(SECRET)], "n": 3})
    [(_, fields)] = lines()
    assert fields["samples"] == 3
    assert fields["output"] == reply["usage"]["completion_tokens"]
    assert fields["prompt"] == 3 * len(worker.requests[0].body["input_ids"])


async def test_the_key_of_a_request_is_named_and_never_shown(lines, caplog, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("ann: SECRET-key\n")
    sent = {"Authorization": "Bearer SECRET-key"}
    settings: dict[str, Any] = {"api_keys_file": str(keys), "log_requests": True}
    async with served(**settings) as (router, _):
        await router.post(f"{CHAT}?api_key=SECRET-key", {"messages": [user("Hi")]}, headers=sent)
        tools = [{"type": "mcp", "server_label": "x", "authorization": "SECRET-key"}]
        await router.post("/v1/responses", {"input": "Hi", "tools": tools}, headers=sent)
        await router.post(CHAT, {"messages": []}, headers={"x-api-key": "SECRET-other"})
    assert [fields.get("key") for _, fields in lines()] == ["ann", "ann", None]
    assert "SECRET-" not in caplog.text
    written = [formatter(kind).format(r) for r in caplog.records for kind in ("text", "json")]
    assert "SECRET-" not in "".join(written)
    assert any('"authorization\\":\\"***' in each for each in written), "bodies are there"


async def test_an_error_is_one_line_that_says_which_and_why(lines):
    async with serving() as router:
        await router.post(CHAT, {"messages": [{"role": SECRET, "content": SECRET}]})
        await router.post(CHAT, {"messages": [user(SECRET)]})
        await router.post("/v1/messages", {"messages": [user(SECRET)]})
        await router.post("/generate", {"text": SECRET, "stream": True})
        await router.post("/add_worker")
        await router.http.get("/sessions/none")
    none = {"error": "no_available_workers", "reason": "No worker is registered."}
    bad = {"error": "missing_required_parameter", "param": "max_tokens"}
    lost = {"method": "GET", "door": "/sessions/{session}", "error": "session_not_found"}
    assert lines() == [
        ("INFO", line(CHAT, 400, error="invalid_value", param="messages[0].role")),
        ("WARNING", line(CHAT, 503, **none)),
        ("INFO", line("/v1/messages", 400, **bad)),
        ("WARNING", line("/generate", 503, **none)),
        ("INFO", line("/add_worker", 400)),
        ("INFO", line("/sessions/none", 404, **lost)),
    ]


async def test_a_stream_that_breaks_says_why_in_its_line(lines):
    async with served(retry_max_retries=0) as (router, worker):
        for _ in range(9):
            worker.die_next(after_tokens=1)
        body = {"messages": [user(SECRET)], "stream": True}
        async with router.http.post(CHAT, json=body) as answer:
            await answer.read()
        await until(lambda: bool(lines()))
    [(level, fields)] = lines()
    assert (level, fields["status"]) == ("WARNING", 200)
    assert fields["error"]
    assert fields["reason"]
    assert fields["output"] == 1


async def test_a_client_that_left_is_one_line(lines):
    async with served() as (router, worker):
        worker.hold(after_tokens=1)
        asked = asyncio.create_task(router.chat([user(SECRET)], stream=True))
        await worker.wait_running(1)
        await until(lambda: router.gateway.counting.chat.output_tokens > 0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await until(lambda: bool(lines()))
    [(level, fields)] = lines()
    assert (level, fields["status"], fields["ended"]) == ("INFO", 499, "client_left")
    assert fields["output"] == 1


async def test_a_retry_has_the_id_and_the_turn_of_the_first_try(lines):
    """An SDK gives up on its first try, and asks again while that one still runs."""
    body = {"messages": [user(SECRET)]}
    async with served() as (router, worker):
        worker.hold()

        def ask(number: int) -> asyncio.Task[Any]:
            sent = {"x-stainless-retry-count": str(number), "x-request-id": f"try-{number}"}
            return asyncio.create_task(router.post(CHAT, body, headers=sent))

        first = ask(0)
        await worker.wait_running(1)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await until(lambda: len(lines()) == 1)
        second = ask(1)
        await until(lambda: router.gateway.joiner.joined == 1)
        worker.release()
        await second
        await until(lambda: len(lines()) == 2)
    (_, left), (_, joined) = lines()
    assert (left["request"], left["ended"]) == ("try-0", "client_left")
    assert (joined["request"], joined["joined"], joined["status"]) == ("try-0", True, 200)
    assert joined["output"] > 0


async def test_probes_are_for_whoever_looks_for_them(lines):
    async with serving() as router:
        for path in ("/", "/health", "/liveness", "/readiness", "/metrics"):
            await router.http.get(path)
        await router.http.head("/")
    levels = {(fields["path"], fields["status"]): level for level, fields in lines()}
    assert levels.pop(("/readiness", 503)) == "WARNING", "a failing probe is news"
    assert set(levels.values()) == {"DEBUG"}
    assert len(levels) == 4


async def test_a_worker_gets_the_id_and_the_trace_of_the_request():
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    async with served() as (router, worker):
        for sent in ({"x-request-id": "mine", "traceparent": trace}, {"traceparent": "broken"}):
            for path, body in ((CHAT, {"messages": [user("Hi")]}), ("/generate", {"text": "Hi"})):
                await router.post(path, body, headers=sent)
        heard = [CIMultiDict(request.headers) for request in worker.requests]
    assert [each.get("X-Request-Id") for each in heard][:2] == ["mine", "mine"]
    assert all(each["X-Request-Id"].startswith("req_") for each in heard[2:])
    assert [each.get("traceparent") for each in heard] == [trace, trace, None, None]


async def test_a_request_cannot_forge_a_line(lines, caplog):
    async with serving() as router:
        await router.post("/x%0AINFO%20forged")
        odd = {"chat_template_kwargs": {"messages\nINFO": 1, "chat_template": SECRET}}
        await router.post("/tokenize", {"messages": [user(SECRET)], **odd})
        await router.post(CHAT, {"messages": [user(SECRET)], "logit_bias": {"1\nINFO": "x"}})
    assert [fields["error"] for _, fields in lines()] == [
        "unknown_url", "invalid_value", "invalid_type"
    ]  # fmt: skip
    texts = [str(r.msg) for r in caplog.records if isinstance(r.msg, RequestLine)]
    assert re.sub("[0-9.]+ ms", "- ms", texts[0]) == (
        f"POST /x%0AINFO%20forged 404 - ms request={lines()[0][1]['request']} error=unknown_url"
    )
    assert texts[2].endswith("param='logit_bias.1\\nINFO'")
    assert all(text.isprintable() for text in texts)


async def test_workers_that_come_and_go_are_named(caplog):
    caplog.set_level(logging.INFO, "slime_router")
    async with tiny_worker() as worker, serving() as router:
        await router.post("/add_worker", {"url": worker.url})
        known = router.gateway.pool.get(worker.url)
        await until(lambda: known.is_token_exact is True)
        await router.post("/remove_worker", {"url": worker.url})
        begin = f"worker {worker.url} "
        said = [line.removeprefix(begin) for line in caplog.messages if line.startswith(begin)]
    assert said == ["is registered", "makes the same tokens", "is removed, 0 in flight"]


FORGED = "x\n2026-01-01 00:00:00,000 INFO forged\r\x1b[2K\u2028\u202e"


async def test_nothing_that_others_say_forges_a_line(caplog):
    """Neither a rid, nor a path, nor what a worker answers, nor where it lives."""
    caplog.set_level(logging.DEBUG, "slime_router")
    async with served(worker_wait_s=0.01) as (router, worker):
        for status in (500, 429, 422, 503):
            for _ in range(8):
                worker.answer_next(status, json.dumps({"error": {"message": FORGED}}).encode())
            body = {"text": "hi", "rid": FORGED, "sampling_params": {"max_new_tokens": 2}}
            await router.post("/generate", body)
            await router.post(CHAT, {"messages": [user("hi")], "user": FORGED})
            worker._answers.clear()
        await router.http.post("/v1/x%0a2026-01-01%20INFO%20forged", data=b"{}")
        await router.post("/add_worker", {"url": f"http://a/{FORGED}"})
        await router.post("/sessions", {"session_id": FORGED})
    assert [m for m in caplog.messages if not m.isprintable()] == []
    assert len(caplog.messages) > 10


def test_every_line_of_the_log_is_one_record_or_a_part_of_a_traceback():
    try:
        raise ValueError(FORGED)
    except ValueError:
        record = logging.LogRecord(
            "of.a.library", logging.ERROR, "f.py", 1, "said %s", (FORGED,), sys.exc_info()
        )
    lines = formatter("text").format(record).split("\n")
    assert " ERROR said x\\n2026" in lines[0]
    assert all(line.startswith("    | ") for line in lines[1:])
    assert all(line.isprintable() for line in lines)


# As JSON


async def test_every_record_is_a_json_object_with_the_id_of_its_request(caplog):
    caplog.set_level(logging.DEBUG, "slime_router")
    said: list[dict[str, Any]] = []
    caplog.handler.setFormatter(formatter("json"))
    async with served(retry_max_retries=0) as (router, worker):
        worker.answer_next(500, b"boom")
        await router.post(CHAT, {"messages": [user(FORGED)]}, headers={"x-request-id": "mine"})
    said = [json.loads(line) for line in caplog.handler.stream.getvalue().splitlines()]
    assert all({"time", "level", "logger", "event"} <= each.keys() for each in said)
    [request] = [each for each in said if each["event"] == "request"]
    assert (request["request"], request["status"], request["level"]) == ("mine", 502, "warning")
    assert request["error"] == "upstream_error"
    before = [each for each in said if each["event"].startswith("retrying")]
    assert all(each["request"] == "mine" for each in before)


def test_a_failure_is_told_with_its_traceback_and_without_values():
    def fail(password: str) -> None:
        raise ValueError(f"broken: {len(password)}")

    try:
        fail("".join(("SEC", "RET")))
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "odd \ud800", (), sys.exc_info())
    told = json.loads(formatter("json").format(record))
    assert (told["event"], told["level"]) == ("odd \\ud800", "error")
    assert "ValueError: broken: 6" in told["exception"]
    assert "SECRET" not in told["exception"]


def test_a_body_in_the_log_is_bounded_and_hides_what_opens_doors():
    deep: Any = "x"
    for _ in range(50):
        deep = [deep]
    body = {
        "messages": [user("a" * 5_000)],
        "input_ids": list(range(1_000)),
        "deep": deep,
        "prompt_cache_key": "shown",
        "max_tokens": 5,
        "api_key": "SECRET",
        "tools": [
            {"headers": {"x": "SECRET"}, "Authorization": "SECRET", "access_token": "SECRET"}
        ],
    }
    text = bounded(body)
    assert len(text) < MAX_BODY_LEN + 10
    assert "SECRET" not in text
    assert '"prompt_cache_key":"shown","max_tokens":5' in text
    assert "... 1000 in all" in text
    assert "a" * 1_024 in text
    assert "a" * 1_025 not in text
    assert len(bounded({str(n): "x" * 900 for n in range(60)})) <= MAX_BODY_LEN + 3


def test_starting_and_stopping_are_told(caplog, monkeypatch, capsys):
    async def serving(gateway: Any, app: Any, announce: Any) -> None:
        announce()

    monkeypatch.setattr(run, "_serving", serving)
    monkeypatch.setattr(run, "start_log", lambda *_: None)
    caplog.set_level(logging.INFO, "slime_router")
    assert cli.main(["--hf-checkpoint", str(checkpoint()), "--port", "4321"]) == 0
    told = [each for each in caplog.messages if each.startswith("slime-router ")]
    assert told[0].endswith(f"serves {checkpoint()} on 127.0.0.1:4321")
    assert told[1:] == ["slime-router has stopped"]
