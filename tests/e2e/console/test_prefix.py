"""The console behind a proxy that serves the API below a path."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import Browser, expect

from api.console.pages import PAGES
from tests.e2e.console.test_jobs import submit
from tests.e2e.console.test_playground import side, state, write
from tests.support.console import BROWSER_TESTS, Visit, visit
from tests.support.proxy import serving_below
from tests.support.stack import Stack

pytestmark = BROWSER_TESTS
PREFIX = "/tools/headrace"


@pytest_asyncio.fixture(loop_scope="session")
async def window(browser: Browser, sim_stack: Stack) -> AsyncIterator[Visit]:
    """A window on the console below the path. Every request of it has to be below the path too."""
    async with serving_below(PREFIX, sim_stack.url) as url, visit(browser, url) as window:
        yield window


async def test_a_session_begins_and_ends(window: Visit, operator_key: str) -> None:
    await window.page.goto(f"{window.url}/console")
    await window.page.wait_for_url(f"{window.url}/console/sign-in")
    await window.page.fill("#key", operator_key)
    await window.page.keyboard.press("Enter")
    await window.page.wait_for_url(f"{window.url}/console/")
    (cookie,) = await window.context.cookies()
    assert cookie["path"] == f"{PREFIX}/console", "other applications of the host do not get it"
    await window.page.get_by_role("button", name="Sign out").click()
    await window.page.wait_for_url(f"{window.url}/console/sign-in")
    assert await window.context.cookies() == []
    await window.open("jobs?status=failed")
    await window.page.fill("#key", operator_key)
    await window.page.keyboard.press("Enter")
    await window.page.wait_for_url(f"{window.url}/console/jobs?status=failed")


async def test_a_link_signs_in(window: Visit, sim_stack: Stack) -> None:
    link = sim_stack.command("api.console", "link", "--url", window.url).stdout.strip()
    assert link.startswith(f"{window.url}/console/sign-in?token=")
    await window.page.goto(link)
    await window.page.wait_for_url(f"{window.url}/console/")


async def test_every_page_works(window: Visit, sim_stack: Stack, operator_key: str) -> None:
    job = submit(sim_stack, operator_key, model="orphan")
    await window.sign_in(operator_key)
    page = window.page
    await window.open("")
    live = page.locator("#live[data-live]")
    for one in PAGES:
        await page.locator(f'.side-pages [data-go="{one.key}"]').click()
        await expect(page.locator(f'.side-pages [data-go="{one.key}"]')).to_have_attribute("aria-current", "page")
        assert page.url == f"{window.url}/console/{one.path}"
        if await live.count():
            await expect(live).to_have_attribute("data-state", "live")
    for path in (f"jobs/{job}", "models/model?name=sim", "keys/projects", "keys/new"):
        assert (await window.open(path)).ok
    await window.open(f"jobs/{job}")
    await expect(page.locator("#live")).to_have_attribute("data-state", "live")
    await page.get_by_role("button", name="Cancel").click()
    await page.wait_for_url(f"{window.url}/console/jobs/{job}")
    await expect(page.locator("[data-part=status]")).to_contain_text("Cancelled")
    await page.get_by_role("link", name="API reference").click()
    await page.wait_for_url(f"{window.url}/docs")


async def test_requests_of_scripts_and_forms_work(window: Visit, operator_key: str) -> None:
    await window.sign_in(operator_key)
    page = window.page
    await write(window, "Hello", max_tokens="5")
    await page.locator("#run").click()
    await expect(state(page)).to_have_text("Cut at the limit")
    await side(page).get_by_role("link", name="Timeline of the job").click()
    await page.wait_for_url(f"{window.url}/console/jobs/job_*")

    await window.open("routing")
    await page.get_by_label("Route", exact=True).select_option("auto")
    await page.get_by_label("Prompt").fill("2 + 2?")
    await page.get_by_role("button", name="Show the decision").click()
    await expect(page.locator("#try-answer .try-model")).to_have_text("sim")

    await window.open("keys/projects")
    await page.get_by_role("link", name="Create a project").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    await window.open("keys/new")
    await page.fill("#name", "below a path")
    await page.get_by_role("button", name="Create the key").click()
    await expect(page.locator("#secret")).to_contain_text("hr_")
    assert page.url.startswith(f"{window.url}/console/keys/")
