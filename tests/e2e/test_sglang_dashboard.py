"""The session explorer on what a real SGLang has sampled, in a real browser."""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

import pytest
from openai import OpenAI
from playwright.async_api import async_playwright, expect

from slime_router.client import Client
from tests.dashboard.chromium import chromium

pytestmark = [pytest.mark.sglang, pytest.mark.browser, pytest.mark.timeout(300)]


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as reply:
        return json.load(reply)


def hold(url: str) -> tuple[str, list[dict[str, Any]]]:
    """A session with an extension, a fork and two samples; its name and its turns."""
    ask: dict[str, Any] = {"model": "default", "max_tokens": 24, "logprobs": True}
    with Client(url) as client, client.open_session(group_id="dashboard") as session:
        with OpenAI(base_url=session.base_url, api_key="none", timeout=60) as agent:
            first = {"role": "user", "content": "What is the weather in Köln? 🙂"}
            reply = agent.chat.completions.create(messages=[first], temperature=1.0, **ask)  # type: ignore[list-item]
            said = {"role": "assistant", "content": reply.choices[0].message.content}
            for text in ("And in Berlin?", "And in Paris?"):
                messages: Any = [first, said, {"role": "user", "content": text}]
                agent.chat.completions.create(messages=messages, n=2, temperature=1.0, **ask)
        tree = fetch(f"{session.url}/tree")
    turns: list[dict[str, Any]] = tree["turns"]
    return session.id, turns


async def test_a_branched_session_is_shown_as_the_worker_sampled_it(router_url: str) -> None:
    session, turns = hold(router_url)
    causes = [turn["cause"] for turn in turns]
    assert causes == ["start", "extension", "sample", "fork", "sample"]
    left, right = turns[1]["turn_id"], turns[3]["turn_id"]
    held = [
        fetch(f"{router_url}/sessions/{session}/tokens?turn={turn}")["ids"]
        for turn in (left, right)
    ]
    parted = next(i for i, (a, b) in enumerate(zip(*held, strict=False)) if a != b)
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=chromium(), args=arguments)
        try:
            page = await browser.new_page(viewport={"width": 1360, "height": 800})
            await page.goto(f"{router_url}/dashboard#/sessions/{session}/compare/{left}/{right}")
            for turn in turns:
                cause = page.locator(f"[data-turn='{turn['turn_id']}'] .cause")
                await expect(cause).to_have_text(turn["cause"])
            marked = page.locator(".tokens .difference")
            await expect(marked).to_have_count(2)
            await expect(marked.first).to_have_attribute("data-i", str(parted))
            for view, ids in enumerate(held):
                await page.locator(".tokens").nth(view).focus()
                await page.keyboard.press("End")
                details = page.locator(".details")
                await expect(details.locator("[data-field=token] dd")).to_have_text(
                    str(len(ids) - 1)
                )
                await expect(details.locator("[data-field=id] dd")).to_have_text(str(ids[-1]))
                await expect(details.locator("[data-field=source] dd")).to_have_text("sampled")
                await expect(details.locator("[data-field=version] dd")).to_have_text("default")
            await expect(page.locator(".verdict b")).to_be_visible()
        finally:
            await browser.close()
