"""Signing in to the console and out, in a browser."""

from __future__ import annotations

import httpx
from playwright.async_api import Browser, expect

from tests.support.console import BROWSER_TESTS, Visit, create_key, visit
from tests.support.stack import Stack

pytestmark = BROWSER_TESTS


async def create_link(stack: Stack, key: str) -> str:
    """Create a sign-in link over the API."""
    async with httpx.AsyncClient(base_url=stack.url, headers={"Authorization": f"Bearer {key}"}) as client:
        response = await client.post("/v1/console/links")
    assert response.status_code == 201
    assert response.json()["expires_in_s"] == 600
    return stack.url + str(response.json()["path"])


async def test_a_page_leads_to_the_sign_in_and_back(visitor: Visit, operator_key: str) -> None:
    await visitor.open("?range=6h")
    await visitor.page.wait_for_url("**/console/sign-in?next=*")
    await visitor.page.fill("#key", f" {operator_key} ")
    await visitor.page.keyboard.press("Enter")
    await visitor.page.wait_for_url(f"{visitor.url}/console/?range=6h")
    await expect(visitor.page.get_by_role("heading", name="Overview")).to_be_visible()
    await expect(visitor.page.locator(".who-name")).to_have_text("operator")
    await expect(visitor.page.locator(".who-project")).to_have_text("all projects")


async def test_a_member_sees_the_name_of_its_project(member: Visit) -> None:
    await member.open("jobs")
    await expect(member.page.locator(".who-project")).to_have_text("member")


async def test_a_wrong_key_is_refused(visitor: Visit) -> None:
    visitor.complaints.expect_status(401)
    await visitor.open("sign-in")
    await visitor.page.fill("#key", "hr_wrong")
    await visitor.page.click("button")
    await expect(visitor.page.get_by_role("alert")).to_have_text("The API key is not valid.")
    assert await visitor.context.cookies() == []


async def test_a_link_signs_in_once(browser: Browser, visitor: Visit, sim_stack: Stack, member_key: str) -> None:
    link = await create_link(sim_stack, member_key)
    # What a scanner of messages or a preview sends does not use the link.
    async with httpx.AsyncClient() as client:
        assert {(await client.request(method, link)).status_code for method in ("GET", "HEAD")} == {200}
    await visitor.page.goto(link)
    await visitor.page.wait_for_url(f"{visitor.url}/console/")
    await expect(visitor.page.locator(".who-name")).to_have_text("member")
    async with visit(browser, sim_stack.url) as second:
        second.complaints.expect_status(401)
        await second.page.goto(link)
        await expect(second.page.get_by_role("alert")).to_have_text("This sign-in link was used or has expired.")


async def test_the_command_prints_a_link_for_an_operator(visitor: Visit, sim_stack: Stack) -> None:
    printed = [sim_stack.command("api.console", "link", "--url", sim_stack.url).stdout.strip() for _ in range(2)]
    assert printed[0] != printed[1]
    await visitor.page.goto(printed[1])
    await visitor.page.wait_for_url(f"{visitor.url}/console/")
    await expect(visitor.page.locator(".who-project")).to_have_text("all projects")
    listed = sim_stack.command("api.keys", "list").stdout
    assert listed.count(" console\n") == 1, "both links are of one key"


async def test_the_cookie_is_kept_from_scripts_and_other_paths(operator: Visit) -> None:
    (cookie,) = await operator.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"
    assert cookie["path"] == "/console"
    assert not cookie["secure"], "the test uses HTTP"
    await operator.open("jobs")
    assert await operator.page.evaluate("document.cookie") == ""


async def test_signing_out_ends_the_session(operator: Visit) -> None:
    (cookie,) = await operator.context.cookies()
    await operator.open("")
    await operator.page.get_by_role("button", name="Sign out").click()
    await operator.page.wait_for_url("**/console/sign-in")
    assert await operator.context.cookies() == []
    await operator.open("")
    await operator.page.wait_for_url("**/console/sign-in")
    # The token is of no use to whoever has copied it.
    async with httpx.AsyncClient(cookies={cookie["name"]: cookie["value"]}) as client:
        assert (await client.get(f"{operator.url}/console")).status_code == 303


async def test_revoking_the_key_ends_its_sessions(visitor: Visit, sim_stack: Stack) -> None:
    key = create_key(sim_stack, "leaver", "inference")
    await visitor.sign_in(key)
    await visitor.open("")
    await expect(visitor.page.locator("#live")).to_have_attribute("data-state", "live")
    lines = sim_stack.command("api.keys", "list").stdout.splitlines()
    (key_id,) = [line.split()[0] for line in lines if line.split()[-1] == "leaver"]
    sim_stack.command("api.keys", "revoke", key_id)
    # Within HEADRACE_KEY_CACHE_S, the stream of the open page is closed, and its script finds no session.
    await visitor.page.wait_for_url("**/console/sign-in", timeout=20_000)
