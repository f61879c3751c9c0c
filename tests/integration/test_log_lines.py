"""What an operator reads: one line for each request, and never what was said in it."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest

from tests.integration.gateway import CHAT, served, serving, tiny_worker, until, user

SECRET = "a secret prompt"


@pytest.fixture
def lines(caplog):
    """The request lines so far, as `(level, text)`, without the milliseconds."""
    caplog.set_level(logging.DEBUG, "slime_router")

    def read() -> list[tuple[str, str]]:
        return [
            (record.levelname, re.sub(r" \d+ ms ", " - ", record.getMessage()))
            for record in caplog.records
            if re.match(r"[A-Z]+ /", record.getMessage())
        ]

    yield read
    assert SECRET not in caplog.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_generation_is_one_line_with_its_receipt(lines, stream):
    async with served() as (router, worker):
        _, receipt = await router.chat([user(SECRET)], stream=stream)
        await until(lambda: bool(lines()))
        count = len(worker.requests[0].body["input_ids"])
    assert receipt["encoded"] == count
    expected = f"POST {CHAT} 200 - fresh reused=0 encoded={count}"
    assert lines() == [("INFO", expected)]


async def test_an_error_is_one_line_that_says_which(lines):
    async with serving() as router:
        await router.post(CHAT, {"messages": [{"role": SECRET, "content": SECRET}]})
        await router.post(CHAT, {"messages": [user(SECRET)]})
        await router.post("/add_worker")
    assert lines() == [
        ("INFO", f"POST {CHAT} 400 - invalid_value param='messages[0].role'"),
        ("WARNING", f"POST {CHAT} 503 - no_available_workers param=None"),
        ("INFO", "POST /add_worker 400 - -"),
    ]


async def test_a_client_that_left_is_one_line(lines):
    async with served() as (router, worker):
        worker.hold(after_tokens=1)
        asked = asyncio.create_task(router.chat([user(SECRET)], stream=True))
        await worker.wait_running(1)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await until(lambda: bool(lines()))
    assert lines() == [("INFO", f"POST {CHAT} 499 - the client left")]


async def test_a_request_cannot_forge_a_line(lines):
    async with serving() as router:
        await router.post("/x%0AINFO%20forged")
        odd = {"chat_template_kwargs": {"messages\nINFO": 1, "chat_template": SECRET}}
        await router.post("/tokenize", {"messages": [user(SECRET)], **odd})
        await router.post(CHAT, {"messages": [user(SECRET)], "logit_bias": {"1\nINFO": "x"}})
    assert lines() == [
        ("INFO", "POST /x%0AINFO%20forged 404 - unknown_url param=None"),
        ("INFO", "POST /tokenize 400 - invalid_value param='chat_template_kwargs.chat_template'"),
        ("INFO", f"POST {CHAT} 400 - invalid_type param='logit_bias.1\\nINFO'"),
    ]


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
