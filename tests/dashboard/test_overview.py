"""The overview, the key and the themes, as a person sees them in a real browser."""

from __future__ import annotations

import pytest
from playwright.async_api import Route, expect

from tests.dashboard.sights import page_of
from tests.integration.gateway import served, user

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CLIENT, ADMIN = "SECRET-client", "SECRET-admin"


async def test_workers_and_what_happens_are_shown_live():
    async with served() as (router, worker), page_of(router) as page:
        row = page.locator(".workers tbody tr")
        await expect(row).to_contain_text(worker.url)
        await expect(row).to_contain_text("ready")
        await expect(row).to_contain_text("exact")
        await expect(row.get_by_label("healthy")).to_be_visible()
        await expect(page.get_by_text("Nothing failed")).to_be_visible()
        prompts = page.get_by_label("Prompts", exact=True).get_by_role("row", name="fresh")
        await expect(prompts).to_contain_text("0")
        for number in range(3):
            await router.chat([user(f"Hi {number}")], max_tokens=4)
        await expect(prompts).to_contain_text("3")
        tile = page.locator("[data-rate=requests]")
        await expect(tile.get_by_label("Requests, the last minutes")).to_be_visible()
        await expect(page.locator("#pulse")).to_contain_text("live")


async def test_failures_appear_with_what_failed():
    async with served() as (router, worker), page_of(router) as page:
        await expect(page.get_by_text("Nothing failed")).to_be_visible()
        worker.script([], finish={"type": "abort", "message": "broken", "status_code": 400})
        await router.post("/v1/chat/completions", {"messages": [user("Hi")]})
        await router.post("/v1/chat/completions", {"messages": "no list"})
        errors = page.locator(".errors li")
        await expect(errors).to_have_count(2)
        await expect(errors.first).to_contain_text("POST /v1/chat/completions")
        await expect(errors.first).to_contain_text("param messages")
        await expect(errors.first).to_contain_text("400")


async def test_without_a_worker_it_says_how_to_register_one():
    from tests.integration.gateway import serving

    async with serving() as router, page_of(router) as page:
        await expect(page.get_by_text("No worker is registered")).to_be_visible()
        await expect(page.get_by_text("POST /add_worker")).to_be_visible()


async def test_a_router_that_does_not_answer_is_said_and_asked_again():
    faults: list[str] = []
    async with served() as (router, worker), page_of(router, faults=faults) as page:
        await expect(page.locator(".workers")).to_contain_text(worker.url)
        await page.route("**/metrics*", lambda route: route.abort())
        await expect(page.locator("#pulse")).to_have_text("The router does not answer.")
        await expect(page.locator(".workers")).to_contain_text(worker.url)  # what was known stays
        await page.unroute("**/metrics*")
        await expect(page.locator("#pulse")).to_contain_text("live")
    assert faults, "the browser saw it too"


async def test_the_key_is_asked_for_and_kept_in_the_tab_alone():
    faults: list[str] = []
    async with (
        served(api_key=CLIENT, admin_api_key=ADMIN) as (router, worker),
        page_of(router, faults=faults) as page,
    ):
        await page.get_by_role("button", name="Enter the key").click()
        await page.get_by_label("Key", exact=True).fill(CLIENT)
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("This route needs the admin's API key.")).to_be_visible()
        await expect(page.locator("[data-rate=requests]")).to_be_visible()
        await page.get_by_role("button", name="API key").click()
        await page.get_by_label("Key", exact=True).fill(ADMIN)
        await page.get_by_role("button", name="Use it").click()
        await expect(page.locator(".workers")).to_contain_text(worker.url)
        stored = await page.evaluate("[{...sessionStorage}, {...localStorage}, document.cookie]")
        assert stored == [{"slime_router.key": ADMIN}, {}, ""]
        assert ADMIN not in await page.content()
        await page.get_by_role("button", name="API key").click()
        await page.get_by_role("button", name="Forget it").click()
        await expect(page.get_by_text("An API key is needed")).to_be_visible()
        assert await page.evaluate("Object.keys(sessionStorage).length") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_the_theme_is_the_systems_until_the_user_chooses(theme):
    shade = "getComputedStyle(document.body).backgroundColor"
    async with served() as (router, _), page_of(router, theme=theme) as page:
        light, dark = "rgb(247, 248, 250)", "rgb(16, 20, 27)"
        assert await page.evaluate(shade) == (light if theme == "light" else dark)
        button = page.get_by_role("button", name="Theme")
        await button.click()
        assert await page.evaluate(shade) == light
        await button.click()
        assert await page.evaluate(shade) == dark
        await page.reload()
        await expect(button).to_have_text("Theme: dark")
        assert await page.evaluate(shade) == dark


def exposition(looks: int) -> str:
    """Histograms in which 10 requests come with each look: 5 within 0.1 s, all within 0.2 s."""
    name = "slime_router_first_token_seconds_bucket"
    counts = {"0.1": 5 * looks, "0.2": 10 * looks, "+Inf": 10 * looks}
    return "".join(f'{name}{{door="d",le="{le}"}} {n}.0\n' for le, n in counts.items())


async def test_latencies_are_those_of_the_last_minute():
    looks = 0

    async def answer(route: Route) -> None:
        nonlocal looks
        looks += 1
        await route.fulfill(body=exposition(looks), content_type="text/plain")

    async with served() as (router, _), page_of(router) as page:
        await page.route("**/metrics/prometheus", answer)
        await page.reload()
        tile = page.locator("[data-rate=first_token_seconds] .figure")
        await expect(tile).to_have_text("100 msp95 190 ms")
        other = page.locator("[data-rate=generation_seconds] .figure")
        await expect(other).to_have_text("–")
