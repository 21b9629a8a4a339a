"""Routing and the cache in a browser: try a route, see what was decided, remove answers."""

from __future__ import annotations

import httpx
import pytest
from playwright.async_api import expect

from tests.support.console import BROWSER_TESTS, Visit, accessibility_faults
from tests.support.stack import Stack

pytestmark = BROWSER_TESTS

# Only complete answers are stored.
CACHED = {"model": "auto", "prompt": "said twice", "stop": ["🌊"], "temperature": 0, "cache": {"ttl": 600}}


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_route_is_tried(operator: Visit, scheme: str) -> None:
    await operator.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page, answer = operator.page, operator.page.locator("#try-answer")
    await operator.open("routing")
    await page.get_by_label("Route", exact=True).select_option("auto")
    await page.get_by_label("Prompt").fill("an orphan story")
    await page.get_by_role("button", name="Show the decision").click()
    await expect(answer).to_contain_text("scarce")
    await expect(answer).to_contain_text("says orphan")
    await expect(answer).to_contain_text("it has no ready worker")
    await page.get_by_label("Prompt").fill("2 + 2?")
    await page.get_by_role("button", name="Show the decision").click()
    await expect(answer).to_contain_text("complexity")
    await expect(answer.locator(".try-model")).to_have_text("sim")
    assert await accessibility_faults(page) == []


async def test_the_cache_is_purged(operator: Visit, sim_stack: Stack, operator_key: str) -> None:
    headers = {"Authorization": f"Bearer {operator_key}", "Prefer": "wait=30"}
    async with httpx.AsyncClient(base_url=sim_stack.url, headers=headers, timeout=60) as client:

        async def outcome() -> str:
            return (await client.post("/v1/jobs", json=CACHED)).headers["x-headrace-cache"]

        await outcome()
        assert await outcome() == "HIT"
        await operator.open("routing?range=1h")
        page = operator.page
        stored = page.get_by_role("region", name="Stored answers").get_by_role("row")
        await expect(stored.filter(has_text="sim")).to_have_count(1)
        await expect(page.get_by_role("region", name="Rules of auto")).to_contain_text("complexity")
        await page.get_by_role("link", name="Remove answers").click()
        assert await accessibility_faults(page) == []
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Of the model").select_option("sim")
        await dialog.get_by_role("button", name="Remove").click()
        await expect(page.get_by_role("status").filter(has_text="removed from the response cache")).to_be_visible()
        assert await outcome() == "MISS"


async def test_a_member_sees_the_requests_of_its_project(member: Visit) -> None:
    await member.open("routing?range=1h")
    await expect(member.page.get_by_role("heading", level=1)).to_have_text("Routing and cache")
    await member.page.get_by_role("link", name="Remove answers").click()
    await expect(member.page.get_by_role("dialog")).to_contain_text("of your project")
    await expect(member.page.get_by_role("dialog").get_by_label("Of the project")).to_have_count(0)
