"""A page in a real browser, and the sessions that it is shown."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import ConsoleMessage, Page, async_playwright, expect

from slime_router.testing import FakeWorker
from tests.dashboard.chromium import chromium
from tests.integration.gateway import CHAT, Served, assistant, user
from tests.stack import tiny_tokenizer

END = 514  # <|im_end|>
VIEWPORT = {"width": 1360, "height": 800}
PATIENCE_MS = 60_000  # for what takes a moment, beside other work

expect.set_options(timeout=PATIENCE_MS)


def base(router: Served) -> str:
    return str(router.http._base_url).rstrip("/")


@asynccontextmanager
async def page_of(
    router: Served, place: str = "", *, theme: str = "light", faults: list[str] | None = None
) -> AsyncIterator[Page]:
    """The dashboard at a place such as `#/sessions`; it must not complain.

    What the browser says of requests that are refused on purpose is in `faults`, where it is given.
    """
    complaints: list[str] = []
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=chromium(), args=arguments)
        try:
            page = await browser.new_page(color_scheme=theme, viewport=VIEWPORT)  # type: ignore[arg-type]
            page.set_default_timeout(PATIENCE_MS)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda said: complaints.extend(_errors(said)))
            await page.goto(f"{base(router)}/dashboard{place}")
            yield page
        finally:
            await browser.close()
    # whether workers have metrics of their own, the page can only find out by asking
    expected = "the server responded with a status of 404"
    unexpected = [text for text in complaints if expected not in text]
    if faults is None:
        assert unexpected == []
    else:
        faults += unexpected


def script(worker: FakeWorker, text: str, *, version: str = "v1") -> None:
    """What the next generation samples: this text, and the end of the turn."""
    ids = [*tiny_tokenizer().encode(text).tolist(), END]
    logprobs = [-0.02 * (index % 9) ** 2 for index in range(len(ids))]
    spans = [{"version": version, "start": 0, "end": len(ids)}]
    worker.script(ids, finish="stop", logprobs=logprobs, weight_versions=spans)


PARIS, BERLIN = user("What is the weather in Paris?"), user("And in Berlin?")


async def forked(router: Served, worker: FakeWorker, session: str = "ep-7") -> list[dict[str, Any]]:
    """A session that forks, with a retry and two weight versions; its turns as in the tree."""
    path = f"/sessions/{session}{CHAT}"
    await router.post("/sessions", {"session_id": session, "group_id": "prompt-3"})
    script(worker, "It is sunny in Paris today.")
    first, _ = await router.chat([PARIS], path=path)
    script(worker, "It rains in Berlin.\n\nTake an umbrella 🙂.")
    second, _ = await router.chat([PARIS, assistant(first), BERLIN], path=path)
    other = [PARIS, assistant(first), user("And in Köln?")]
    for text in ("Grüße aus Köln: dry.", "thinking about the question"):
        script(worker, text, version="v2")
        await router.chat(other, path=path)
    script(worker, "def add(first, second):\n    return first + second\n", version="v2")
    await router.chat(
        [PARIS, assistant(first), BERLIN, assistant(second), user("Write add in Python.")],
        path=path,
    )
    _, tree = await router.get(f"/sessions/{session}/tree")
    turns: list[dict[str, Any]] = tree["turns"]
    assert [turn["cause"] for turn in turns] == ["start", "extension", "fork", "retry", "extension"]
    return turns


def _errors(said: ConsoleMessage) -> list[str]:
    return [said.text] if said.type == "error" else []
