"""The session explorer, as a person sees it in a real browser."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.dashboard.sights import END, PARIS, forked, page_of, script
from tests.integration.gateway import CHAT, Served, assistant, served, user
from tests.stack import tiny_tokenizer
from tests.turns import common_len

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LONG = 100_000
MOST_IN_DOCUMENT = 3_000  # spans, of any length of a turn


async def tokens_of(router: Served, turn: str, session: str = "ep-7") -> dict[str, Any]:
    _, found = await router.get(f"/sessions/{session}/tokens?turn={turn}")
    return dict(found)


def token(page: Page, index: int, view: int = 0) -> Any:
    return page.locator(".tokens").nth(view).locator(f"[data-i='{index}']")


async def field(page: Page, name: str) -> str:
    return await page.locator(f".details [data-field={name}] dd").inner_text()


async def shade(page: Page, index: int) -> str:
    return str(await token(page, index).evaluate("e => getComputedStyle(e).backgroundColor"))


async def choose(page: Page, mode: str) -> None:
    await page.locator(f".modes label:has-text('{mode}')").click()


# Finding


async def test_a_session_is_found_by_its_name_by_a_turn_and_by_a_request():
    async with served() as (router, worker):
        turns = await forked(router, worker)
        await router.chat([PARIS], path=f"/sessions/other{CHAT}", max_tokens=4)
        async with page_of(router, "#/sessions") as page:
            names = page.locator("[data-session]")
            await expect(names).to_have_count(2)
            search = page.get_by_label("Search sessions")
            for text in ("ep-", turns[2]["turn_id"], turns[2]["receipt"]["turn"]):
                await search.fill(text)
                await expect(names).to_have_count(1)
                await expect(names).to_contain_text("ep-7")
            await search.fill("no such thing")
            await expect(page.get_by_text("Nothing fits")).to_be_visible()
            await search.fill(turns[2]["turn_id"])
            await search.press("Enter")
            chosen = page.locator("[data-turn][aria-current]")
            await expect(chosen).to_have_attribute("data-turn", turns[2]["turn_id"])


async def test_names_that_do_not_exist_are_said():
    faults: list[str] = []
    async with served() as (router, _), page_of(router, "#/sessions", faults=faults) as page:
        await expect(page.get_by_text("No sessions yet")).to_be_visible()
        await page.get_by_label("Search sessions").fill("ep-9")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("No session ep-9")).to_be_visible()


async def test_a_client_key_opens_its_session_by_name():
    faults: list[str] = []
    async with served(api_key="CLIENT", admin_api_key="ADMIN") as (router, _):
        headers = {"Authorization": "Bearer CLIENT"}
        path = f"/sessions/mine{CHAT}"
        async with router.http.post(path, json={"messages": [PARIS]}, headers=headers) as answer:
            assert answer.status == 200
        async with page_of(router, "#/sessions", faults=faults) as page:
            await page.get_by_role("button", name="Enter the key").click()
            await page.get_by_label("Key", exact=True).fill("CLIENT")
            await page.keyboard.press("Enter")
            await expect(page.get_by_text("Sessions are listed for the admin")).to_be_visible()
            await page.get_by_label("Search sessions").fill("mine")
            await page.keyboard.press("Enter")
            await expect(page.locator(".tokens .t").first).to_be_visible()


# The tree


async def test_the_tree_names_each_fork_by_its_cause():
    async with served() as (router, worker):
        turns = await forked(router, worker)
        async with page_of(router, "#/sessions/ep-7") as page:
            for turn in turns:
                item = page.locator(f"[data-turn='{turn['turn_id']}']")
                await expect(item.locator(".cause")).to_have_text(turn["cause"])
            fork = page.locator(f"[data-turn='{turns[2]['turn_id']}']")
            short = turns[0]["turn_id"].removeprefix("turn_")[:8]
            await expect(fork).to_contain_text(f"from {short} at token {turns[2]['departs_at']}")
            await expect(fork).to_contain_text("not trained: retry")
            boxes = [
                await page.locator(f"[data-turn='{turns[i]['turn_id']}']").bounding_box()
                for i in (0, 1, 2, 3)
            ]
            left = [box["x"] for box in boxes if box]
            assert left[0] == left[1] < left[2] < left[3], "what continues stays, forks move right"
            await expect(page.get_by_text("77 sampled = 64 trained + 13 retry")).to_be_visible()


# Tokens


async def test_colours_tell_sources_masks_logprobs_and_versions_apart():
    async with served() as (router, worker):
        turns = await forked(router, worker)
        found = await tokens_of(router, turns[-1]["turn_id"])
        template, message = found["sources"].index(0), found["sources"].index(1)
        sampled = found["sources"].index(2)
        unlikely = min(
            (i for i, each in enumerate(found["logprobs"]) if each is not None),
            key=lambda i: found["logprobs"][i],
        )
        newer = len(found["ids"]) - 1
        async with page_of(router, "#/sessions/ep-7") as page:
            await expect(token(page, newer)).to_be_visible()
            shades = [await shade(page, i) for i in (template, message, sampled)]
            assert len(set(shades)) == 3
            await choose(page, "Mask")
            assert await shade(page, sampled) != await shade(page, message)
            await choose(page, "Logprob")
            assert await shade(page, sampled) != await shade(page, unlikely)
            await choose(page, "Version")
            assert await shade(page, sampled) != await shade(page, newer)
            legend = page.get_by_label("Colours")
            await expect(legend).to_contain_text("v1")
            await expect(legend).to_contain_text("v2")


async def test_pointing_at_a_token_shows_all_that_is_known_of_it():
    async with served() as (router, worker):
        turns = await forked(router, worker)
        turn = turns[-1]["turn_id"]
        found = await tokens_of(router, turn)
        index = len(found["ids"]) - 2
        async with page_of(router, "#/sessions/ep-7") as page:
            await token(page, index).hover()
            assert await field(page, "id") == str(found["ids"][index])
            assert await field(page, "text") == '"\\n"'
            assert await field(page, "bytes") == "0a"
            assert await field(page, "version") == "v2"
            assert await field(page, "turn") == turn.removeprefix("turn_")[:8]
            assert (await field(page, "logprob")).startswith(f"{found['logprobs'][index]:.4f}")
            assert await field(page, "mask") == "1 (sampled)"
            broken = int(next(iter(found["bytes"])))
            await token(page, broken).hover()
            assert await field(page, "bytes") == " ".join(
                re.findall("..", found["bytes"][str(broken)])
            )


async def test_tokens_are_reached_with_the_keyboard_alone():
    async with served() as (router, worker):
        turns = await forked(router, worker)
        found = await tokens_of(router, turns[-1]["turn_id"])
        begins = [
            i
            for i, each in enumerate(found["sources"])
            if each == 2 and found["sources"][i - 1] != 2
        ]
        async with page_of(router, "#/sessions/ep-7") as page:
            await expect(token(page, 0)).to_be_visible()
            for _ in range(60):
                await page.keyboard.press("Tab")
                if await page.evaluate("document.activeElement.className") == "tokens":
                    break
            else:
                raise AssertionError("Tab does not lead to the tokens")
            for key, index in (
                ("ArrowRight", "0"), ("ArrowRight", "1"), ("n", str(begins[0])),
                ("n", str(begins[1])), ("p", str(begins[0])), ("End", str(len(found["ids"]) - 1)),
                ("Home", "0"),
            ):  # fmt: skip
                await page.keyboard.press(key)
                assert await field(page, "token") == index, key


async def test_markup_in_a_message_is_only_text():
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    async with served() as (router, worker):
        script(worker, f"{evil} & <b>bold</b>")
        await router.chat([user(evil)], path=f"/sessions/{CHAT.replace('/', '_')}<b>{CHAT}")
        async with page_of(router, "#/sessions") as page:
            await page.locator("[data-session]").click()
            await expect(page.locator(".tokens .t").first).to_be_visible()
            shown = "".join(await page.locator(".tokens .t").all_inner_texts())
            assert shown.count(evil) == 2
            assert await page.locator("main img, main script, main b:not([class])").count() == 0


# Two turns


async def test_two_branches_stand_side_by_side_with_their_first_difference():
    async with served() as (router, worker):
        turns = await forked(router, worker)
        left, right = turns[1]["turn_id"], turns[3]["turn_id"]
        found = [await tokens_of(router, turn) for turn in (left, right)]
        parted = common_len(found[0]["ids"], found[1]["ids"])
        async with page_of(router, f"#/sessions/ep-7/turn/{left}") as page:
            await page.get_by_label("Compare with").select_option(right)
            await expect(page.locator(".tokens")).to_have_count(2)
            await expect(page.locator(".status")).to_contain_text(
                f"first difference at token {parted}"
            )
            for view in (0, 1):
                marked = page.locator(".tokens").nth(view).locator(".difference")
                await expect(marked).to_have_attribute("data-i", str(parted))
            verdict = page.locator(".verdict")
            await expect(verdict).to_contain_text(f"client rewrite at token {parted}")
            await page.get_by_label("Compare with").select_option("")
            await expect(page.locator(".tokens")).to_have_count(1)


async def test_the_doctors_verdict_says_where_tokens_are_not_those_of_their_text():
    async with served() as (router, worker):
        whole = tiny_tokenizer().encode("HAVING").tolist()
        parts = [i for letter in "HAVING" for i in tiny_tokenizer().encode(letter).tolist()]
        assert parts != whole
        worker.script([*parts, END], finish="stop")
        _, receipt = await router.chat([PARIS], path=f"/sessions/ep-7{CHAT}")
        found = await tokens_of(router, receipt["turn"])
        index = found["sources"].index(2) + common_len(parts, whole)
        async with page_of(router, "#/sessions/ep-7") as page:
            await expect(page.locator(".verdict")).to_contain_text(f"at token {index}")
            await page.get_by_role("button", name="Show it").click()
            await expect(token(page, index)).to_have_class(re.compile("cursor"))


# Rows


async def test_rows_show_the_mask_and_why_a_token_is_not_trained():
    async with served() as (router, worker):
        turns = await forked(router, worker)
        _, tree = await router.get("/sessions/ep-7/tree")
        second = tree["rows"][1]
        earlier = next(span for span in second["spans"] if not span["is_trained"])
        async with page_of(router, "#/sessions/ep-7") as page:
            rows = page.locator("[data-row]")
            await expect(rows).to_have_count(2)
            await rows.nth(1).click()
            await choose(page, "Mask")
            await token(page, earlier["start"]).hover()
            assert await field(page, "mask") == "0 (trained in an earlier row)"
            last = second["spans"][-1]
            await token(page, last["start"]).hover()
            assert await field(page, "mask") == "1 (trained)"
            left_out = page.get_by_label("Left out").get_by_role("row", name="retry")
            await expect(left_out).to_contain_text("the same prompt was sent again")
            await expect(left_out).to_contain_text(f"{turns[2]['output_tokens']} tokens")


# Many tokens


@pytest.mark.timeout(240)
async def test_a_hundred_thousand_tokens_are_only_there_where_one_looks():
    words = tiny_tokenizer().encode("the quick brown fox jumps over the lazy dog. ").tolist()
    prompt = (words * (LONG // len(words) + 1))[: LONG - 4]
    async with served({"context_len": 2 * LONG}) as (router, worker):
        worker.script([72, 73, 74, 75])
        status, _ = await router.post("/sessions/long/generate", {"input_ids": prompt})
        assert status == 200
        async with page_of(router, "#/sessions/long") as page:
            await expect(page.locator(".status")).to_have_text("100,000 tokens", timeout=60_000)
            spans = page.locator(".tokens .t")
            assert 100 < await spans.count() < MOST_IN_DOCUMENT
            await page.locator(".tokens").focus()
            await page.keyboard.press("End")
            await expect(token(page, LONG - 1)).to_be_visible()
            assert await field(page, "id") == "75"
            assert await spans.count() < MOST_IN_DOCUMENT
            await page.locator(".tokens").evaluate("e => { e.scrollTop = e.scrollHeight / 2 }")
            await expect(token(page, LONG - 1)).to_have_count(0)
            assert 100 < await spans.count() < MOST_IN_DOCUMENT
            ask = page.get_by_role("button", name="Ask the drift doctor")
            await expect(ask).to_be_visible()


# Legibility


def luminance(colour: str) -> float:
    parts = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_every_token_can_be_read_in_both_themes(theme):
    """WCAG's contrast for text, 4.5, of each colour that a token can have."""
    kinds = [
        "s-template", "s-message", "s-sampled", "m-trained", "m-left", "m-plain", "lp-missing",
        "v-missing", *(f"lp-{i}" for i in range(7)), *(f"v-{i}" for i in range(8)),
    ]  # fmt: skip
    read = """(token, kind) => {
        token.className = `t ${kind}`;
        const style = getComputedStyle(token), panel = getComputedStyle(token.closest(".tokens"));
        const clear = style.backgroundColor === "rgba(0, 0, 0, 0)";
        return [style.color, clear ? panel.backgroundColor : style.backgroundColor];
    }"""
    async with served() as (router, worker):
        script(worker, "Yes")
        await router.chat([PARIS, assistant("No"), user("Why?")], path=f"/sessions/s{CHAT}")
        async with page_of(router, "#/sessions/s", theme=theme) as page:
            await expect(token(page, 0)).to_be_visible()
            for kind in kinds:
                ink, paper = await token(page, 0).evaluate(read, kind)
                assert contrast(ink, paper) >= 4.5, f"{kind}: {ink} on {paper}"
