"""Each page of the console, in a browser: accessible in both themes, and without a sideways scroll on a phone."""

from __future__ import annotations

from collections import Counter

import httpx
import pytest
from playwright.async_api import Browser, expect

from api.console.pages import PAGES
from tests.e2e.console.test_jobs import submit
from tests.support.console import BROWSER_TESTS, COLOURS, PHONE, Visit, accessibility_faults, create_key, visit
from tests.support.stack import Stack

pytestmark = BROWSER_TESTS

PATHS = ["sign-in", "no-such-page", *(page.path for page in PAGES)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PATHS)
async def test_pages_are_accessible(operator: Visit, path: str, scheme: str) -> None:
    operator.complaints.expect_status(404)
    await operator.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    await operator.open(path)
    assert await accessibility_faults(operator.page, COLOURS if scheme == "dark" else ()) == []


@pytest.mark.parametrize("path", PATHS)
async def test_pages_fit_a_phone(browser: Browser, sim_stack: Stack, operator_key: str, path: str) -> None:
    async with visit(browser, sim_stack.url, viewport=PHONE) as phone:
        phone.complaints.expect_status(404)
        await phone.sign_in(operator_key)
        await phone.open(path)
        width = await phone.page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], "only tables may scroll sideways, within their frame"


@pytest.mark.parametrize(
    ("path", "action"), [("keys?project=operator", "Rotate operator"), ("keys/projects", "Create a key of")]
)
async def test_actions_are_in_sight_on_a_phone(
    browser: Browser, sim_stack: Stack, operator_key: str, path: str, action: str
) -> None:
    async with visit(browser, sim_stack.url, viewport=PHONE) as phone:
        await phone.sign_in(operator_key)
        await phone.open(path)
        box = await phone.page.get_by_role("link", name=action).first.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= PHONE["width"]


async def test_actions_of_keys_are_in_sight_on_a_small_laptop(
    browser: Browser, sim_stack: Stack, operator_key: str
) -> None:
    create_key(sim_stack, "a second key", "inference", "admin", project="team-documentation")
    async with visit(browser, sim_stack.url, viewport={"width": 1280, "height": 800}) as laptop:
        await laptop.sign_in(operator_key)
        await laptop.open("keys?project=team-documentation")
        await expect(laptop.page.get_by_role("link", name="Revoke a second key")).to_be_visible()
        frame = laptop.page.locator(".table-frame")
        assert await frame.evaluate("frame => frame.scrollWidth - frame.clientWidth") == 0


@pytest.mark.parametrize("path", ["", "jobs", "batches", "keys", "keys/projects", "routing"])
async def test_tables_are_tables_on_a_phone(browser: Browser, sim_stack: Stack, operator_key: str, path: str) -> None:
    """For screen readers too, though each row is a block there."""
    if path == "jobs":
        submit(sim_stack, operator_key, model="sim")
    if path == "batches":
        headers = {"Authorization": f"Bearer {operator_key}"}
        files = {"file": ("table.jsonl", b"{}\n")}
        async with httpx.AsyncClient(base_url=sim_stack.url, headers=headers) as client:
            await client.post("/v1/files", data={"purpose": "batch"}, files=files)
    async with visit(browser, sim_stack.url, viewport=PHONE) as phone:
        await phone.sign_in(operator_key)
        await phone.open(path)
        devtools = await phone.context.new_cdp_session(phone.page)
        tree = await devtools.send("Accessibility.getFullAXTree")
        roles = Counter(node["role"]["value"] for node in tree["nodes"] if not node["ignored"])
        shown = {tag: await phone.page.locator(f".stacked {tag}:not(.roomy)").count() for tag in ("tr", "th", "td")}
        assert shown["td"] > 0
        assert roles["row"] >= shown["tr"]
        assert roles["columnheader"] >= shown["th"]
        assert roles["cell"] >= shown["td"]
        assert await phone.page.locator(":is(.stacked, .stacked *):is(table, tr, th, td):not([role])").count() == 0
        assert await accessibility_faults(phone.page) == []


async def test_the_pages_are_one_line_on_a_phone(browser: Browser, sim_stack: Stack, operator_key: str) -> None:
    async with visit(browser, sim_stack.url, viewport=PHONE) as phone:
        await phone.sign_in(operator_key)
        await phone.open("keys")
        links = phone.page.locator(".side-pages a")
        tops = await links.evaluate_all("links => links.map((link) => link.getBoundingClientRect().top)")
        assert len(tops) > 5
        assert len(set(tops)) == 1
        current = await phone.page.locator(".side-pages [aria-current]").bounding_box()
        assert current is not None
        assert 0 <= current["x"] <= PHONE["width"] - current["width"], "the current page is in sight"


async def test_an_unknown_page_says_so(operator: Visit) -> None:
    operator.complaints.expect_status(404)
    response = await operator.open("no-such-page/below")
    assert response.status == 404
    await expect(operator.page.get_by_role("heading", level=1)).to_have_text("Not found")
    await operator.page.get_by_role("link", name="Start page").click()
    await operator.page.wait_for_url(f"{operator.url}/console/")


async def test_the_keyboard_leads_to_pages_and_to_help(operator: Visit) -> None:
    await operator.open("?range=24h")
    await operator.page.keyboard.press("?")
    await expect(operator.page.get_by_role("dialog")).to_be_visible()
    await operator.page.keyboard.press("Escape")
    await operator.page.keyboard.press("g")
    await operator.page.keyboard.press("o")
    await operator.page.wait_for_url(f"{operator.url}/console/")
