"""Keys and projects in a browser: a key is created, rotated and revoked, and works or stops working."""

from __future__ import annotations

import httpx
import pytest
from playwright.async_api import expect

from tests.support.console import BROWSER_TESTS, Visit, accessibility_faults
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = BROWSER_TESTS


async def works(visit: Visit, key: str) -> bool:
    """Whether the API accepts a key."""
    async with httpx.AsyncClient(base_url=visit.url, headers={"Authorization": f"Bearer {key}"}) as client:
        return (await client.get("/v1/models")).status_code == 200


async def secret_of(visit: Visit) -> str:
    """The key that the page shows, which its button copies."""
    secret = await visit.page.locator("#secret").inner_text()
    assert await visit.page.get_by_role("button", name="Copy").get_attribute("data-copy") == secret
    return secret


async def test_a_key_lives_and_dies(operator: Visit) -> None:
    page = operator.page
    await operator.open("keys")
    await page.get_by_role("link", name="Create a key").click()
    await page.get_by_label("Name", exact=True).fill("browser")
    await page.get_by_label("Project", exact=True).fill("browser project")
    await page.get_by_label("Largest max_tokens").fill("64")
    await page.get_by_role("button", name="Create the key").click()
    first = await secret_of(operator)
    assert await accessibility_faults(page) == []
    assert await works(operator, first)

    await page.get_by_role("link", name="I have copied it").click()
    assert first not in await page.content()
    row = page.get_by_role("row").filter(has_text="browser project")
    await expect(row).to_contain_text("max-output-tokens=64")
    await row.get_by_role("link", name="Rotate browser").click()
    await page.get_by_label("The old key works for another").fill("0s")
    await page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    second = await secret_of(operator)
    assert await works(operator, second)

    async def first_is_refused() -> bool:
        return not await works(operator, first)

    await eventually(first_is_refused, "the old key stops working")

    await operator.open("keys?project=browser%20project")
    await page.get_by_role("link", name="Revoke browser").click()
    button = page.get_by_role("dialog").get_by_role("button", name="Revoke")
    await expect(button).to_be_disabled()
    assert await accessibility_faults(page) == []
    await page.get_by_label("Type the name of the key").fill("browse")
    await expect(button).to_be_disabled()
    await page.get_by_label("Type the name of the key").fill("browser")
    await button.click()
    await page.wait_for_url(f"{operator.url}/console/keys")

    async def second_is_refused() -> bool:
        return not await works(operator, second)

    await eventually(second_is_refused, "the revoked key stops working")


async def test_a_key_is_changed(operator: Visit, sim_stack: Stack) -> None:
    operator.complaints.expect_status(422)
    page = operator.page
    options = ("--max-output-tokens", "64", "--cache-ttl", "90m")
    created = sim_stack.command("api.keys", "create", "changeable", "--project", "to be changed", *options)
    key = created.stdout.strip()
    await operator.open("keys?project=to%20be%20changed")
    row = page.get_by_role("row").filter(has_text="changeable")
    await row.get_by_role("link", name="Change changeable").click()
    assert await accessibility_faults(page) == []
    await expect(page.get_by_label("Answers are kept for")).to_have_value("90m")
    await page.get_by_label("Largest max_tokens").fill("8")
    await page.get_by_label("max_tokens of requests without it").fill("9")
    await page.get_by_role("button", name="Save the changes").click()
    await expect(page.get_by_label("max_tokens of requests without it")).to_have_attribute("aria-invalid", "true")
    await expect(page.get_by_label("Largest max_tokens")).to_have_value("8")
    await page.get_by_label("max_tokens of requests without it").fill("4")
    await page.get_by_label("admin").check()
    await page.get_by_label("Name", exact=True).fill("changed")
    await page.get_by_role("button", name="Save the changes").click()
    row = page.get_by_role("row").filter(has_text="to be changed")
    await expect(row).to_contain_text("max-output-tokens=8 default-output-tokens=4 on-exceed=reject cache-ttl=5400")
    await expect(row).to_contain_text("changed")

    async def is_an_operator() -> bool:
        async with httpx.AsyncClient(base_url=operator.url, headers={"Authorization": f"Bearer {key}"}) as client:
            return (await client.get("/v1/admin/keys")).status_code == 200

    await eventually(is_an_operator, "the API uses the new scopes")


async def test_a_project_gets_a_tier_and_a_log_level(operator: Visit) -> None:
    page = operator.page
    await operator.open("keys/projects")
    await page.get_by_role("link", name="Create a project").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Name").fill("tiered")
    await dialog.get_by_role("button", name="Create the project").click()
    row = page.get_by_role("row").filter(has_text="tiered")
    await expect(row).to_contain_text("none")
    await row.get_by_role("link", name="Set the tier of tiered").click()
    await dialog.get_by_label("Tier").fill("free")
    await dialog.get_by_role("button", name="Set the tier").click()
    await expect(row).to_contain_text("free")
    await row.get_by_role("link", name="Set the log level of tiered").click()
    await dialog.get_by_label("The request log keeps at most").select_option("metadata")
    assert await accessibility_faults(page) == []
    await dialog.get_by_role("button", name="Set the level").click()
    await expect(row).to_contain_text("metadata")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["keys/new", "keys/projects", "keys/projects/new"])
async def test_the_pages_are_accessible(operator: Visit, path: str, scheme: str) -> None:
    await operator.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    await operator.open(path)
    assert await accessibility_faults(operator.page) == []


async def test_an_error_is_at_its_field(operator: Visit) -> None:
    operator.complaints.expect_status(422)
    page = operator.page
    await operator.open("keys/new")
    await page.get_by_label("Name", exact=True).fill("kept")
    await page.get_by_label("Expires after").fill("tomorrow")
    await page.get_by_role("button", name="Create the key").click()
    await expect(page.get_by_label("Expires after")).to_have_attribute("aria-invalid", "true")
    await expect(page.get_by_label("Name", exact=True)).to_have_value("kept")
    assert await accessibility_faults(page) == []
