"""The pages of webhooks: endpoints, their secrets, deliveries and tries."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect
from standardwebhooks import Webhook

from tests.e2e.console.test_protection import sign_in, token_of
from tests.support.console import (
    BROWSER_TESTS,
    COLOURS,
    PHONE,
    Visit,
    accessibility_faults,
    create_key,
    visit,
)
from tests.support.stack import Stack
from tests.support.webhooks import Receiver, receiving, status

PATH = "/v1/webhooks"


@pytest.fixture(scope="module")
def hooked_key(sim_stack: Stack) -> str:
    return create_key(sim_stack, "console hooks", "inference")


@pytest.fixture(scope="module")
def hooked(sim_stack: Stack, hooked_key: str) -> Iterator[httpx.Client]:
    """A member of a project with endpoints."""
    with sign_in(sim_stack, hooked_key) as client:
        client.headers["x-csrf-token"] = token_of(client)
        yield client


@pytest.fixture(scope="module")
def other(sim_stack: Stack) -> Iterator[httpx.Client]:
    with sign_in(sim_stack, create_key(sim_stack, "console other", "inference")) as client:
        client.headers["x-csrf-token"] = token_of(client)
        yield client


@pytest.fixture(scope="module")
def operator(sim_stack: Stack, operator_key: str) -> Iterator[httpx.Client]:
    with sign_in(sim_stack, operator_key) as client:
        client.headers["x-csrf-token"] = token_of(client)
        yield client


@pytest.fixture
def api(sim_stack: Stack, hooked_key: str) -> Iterator[httpx.Client]:
    """The API with the member's key. Its endpoints are deleted after the test."""
    with httpx.Client(base_url=sim_stack.url, headers={"Authorization": f"Bearer {hooked_key}"}) as client:
        yield client
        for endpoint in client.get(f"{PATH}/endpoints?limit=100").json()["data"]:
            client.delete(f"{PATH}/endpoints/{endpoint['id']}")


def add(api: httpx.Client, url: str = "http://127.0.0.1:9/hook?token=canary", **more: Any) -> dict[str, Any]:
    response = api.post(f"{PATH}/endpoints", json={"url": url, "events": ["*"], **more})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def send_test(api: httpx.Client, endpoint_id: str) -> dict[str, Any]:
    found: dict[str, Any] = api.post(f"{PATH}/endpoints/{endpoint_id}/test").json()
    return found


def submit(api: httpx.Client, url: str) -> str:
    job = {"model": "sim", "prompt": "x", "max_tokens": 1, "webhook": url}
    return str(api.post("/v1/jobs", json=job).json()["id"])


def test_members_see_their_own_endpoints_and_operators_all(
    api: httpx.Client, hooked: httpx.Client, other: httpx.Client, operator: httpx.Client
) -> None:
    endpoint = add(api, description="<b>mine</b>")
    own, all_projects = hooked.get("webhooks").text, operator.get("webhooks").text
    for page in (own, all_projects):
        assert endpoint["id"] in page
        assert "http://127.0.0.1:9/hook?…" in page
        assert "canary" not in page
        assert "&lt;b&gt;mine" in page
        assert "<b>mine" not in page
    assert "console hooks" in all_projects
    assert endpoint["id"] not in other.get("webhooks").text
    delivery = send_test(api, endpoint["id"])
    pages = (
        f"webhooks/deliveries?endpoint={endpoint['id']}",
        f"webhooks/deliveries/{delivery['id']}",
        f"webhooks/rotate?endpoint={endpoint['id']}",
        f"webhooks/remove?endpoint={endpoint['id']}",
        f"webhooks/created?endpoint={endpoint['id']}",
        f"webhooks/replay-dead?endpoint={endpoint['id']}",
    )
    for path in pages:
        assert hooked.get(path).status_code == operator.get(path).status_code == 200, path
        assert other.get(path).status_code == 404, path
    fields = {"endpoint": endpoint["id"], "delivery": delivery["id"], "overlap_s": "1h", "since_s": "1h"}
    for action in ("rotate", "remove", "switch", "test", "replay", "replay-dead"):
        assert other.post(f"webhooks/{action}", data=fields).status_code == 404, action
    assert api.get(f"{PATH}/endpoints/{endpoint['id']}").json()["enabled"]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, "events"),
        ({"url": "https://example.com", "events": "job.started"}, "events"),
        ({"url": "https://10.0.0.1/", "events": "*"}, "url"),
        ({"url": "https://example.com/" + "x" * 2100, "events": "*"}, "url"),
        ({"url": "https://example.com/", "events": "*", "description": "a\x07b"}, "description"),
    ],
)
def test_forms_say_which_field_is_wrong(hooked: httpx.Client, fields: dict[str, str], wrong: str) -> None:
    response = hooked.post("webhooks/new", data=fields)
    assert response.status_code == 422
    assert f'id="{wrong}-error"' in response.text
    assert "No endpoint was added" in response.text


@pytest.mark.parametrize(("action", "field"), [("rotate", "overlap_s"), ("replay-dead", "since_s")])
def test_durations_are_checked(api: httpx.Client, hooked: httpx.Client, action: str, field: str) -> None:
    endpoint = add(api)
    for value in ("soon", "", "-1h", "999999999d"):
        response = hooked.post(f"webhooks/{action}", data={"endpoint": endpoint["id"], field: value})
        assert response.status_code == 422, value
        assert f'id="{field}-error"' in response.text
    refused = hooked.post("webhooks/rotate", data={"endpoint": endpoint["id"], "overlap_s": "99d"})
    assert refused.status_code == 422


def test_an_endpoint_is_disabled_and_enabled(api: httpx.Client, hooked: httpx.Client) -> None:
    endpoint = add(api)
    for enabled in (False, True):
        fields = {"endpoint": endpoint["id"], "enabled": str(enabled).lower()}
        assert hooked.post("webhooks/switch", data=fields).status_code == 303
        assert api.get(f"{PATH}/endpoints/{endpoint['id']}").json()["enabled"] is enabled
        page = hooked.get("webhooks").text
        assert (">disabled<" in page, 'action="webhooks/test"' in page) == (not enabled, enabled)


def test_deliveries_are_narrowed(api: httpx.Client, hooked: httpx.Client) -> None:
    endpoint = add(api)
    delivery = send_test(api, endpoint["id"])
    found = hooked.get("webhooks/deliveries", params={"endpoint": endpoint["id"], "type": "webhook.test"})
    assert f"webhooks/deliveries/{delivery['id']}" in found.text
    nothing = hooked.get("webhooks/deliveries", params={"endpoint": endpoint["id"], "type": "job.failed"})
    assert "None matches" in nothing.text
    assert hooked.get("webhooks/deliveries", params={"state": "lost"}).status_code == 400
    assert hooked.get("webhooks/deliveries", params={"after": "first"}).status_code == 400


class TestInABrowser:
    pytestmark = BROWSER_TESTS

    @pytest_asyncio.fixture(loop_scope="session")
    async def receiver(self) -> AsyncIterator[Receiver]:
        async with receiving() as receiver:
            yield receiver

    async def test_an_endpoint_lives_and_dies(
        self, visitor: Visit, hooked_key: str, api: httpx.Client, receiver: Receiver
    ) -> None:
        await visitor.sign_in(hooked_key)
        page = visitor.page
        await visitor.open("webhooks")
        await page.get_by_role("link", name="Add an endpoint").click()
        assert await accessibility_faults(page) == []
        await page.get_by_label("URL").fill(f"{receiver.url}?token=canary")
        await page.get_by_label("Events").fill("job.*, batch.*")
        await page.get_by_label("the whole object").check()
        await page.get_by_role("button", name="Add the endpoint").click()
        first = await page.locator("#secret").inner_text()
        assert await accessibility_faults(page) == []
        await page.reload()
        await expect(page.locator("main")).to_contain_text("The secret was shown before")

        await visitor.open("webhooks")
        row = page.get_by_role("row").filter(has_text=receiver.url)
        await row.get_by_role("link", name="Rotate the secret").click()
        await page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
        second = await page.locator("#secret").inner_text()
        assert second != first
        await page.get_by_role("link", name="I have copied it").click()
        await expect(row).to_contain_text("old secret until")

        receiver.answer = status(503)
        await row.get_by_role("button", name="Test").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("webhook.test")
        await expect(page.get_by_role("region", name="Tries")).to_contain_text("answered 503")
        assert await accessibility_faults(page) == []
        (request,) = await receiver.wait(1)
        for secret in (first, second):
            Webhook(secret).verify(request.body.decode(), request.headers)

        await page.get_by_role("link", name="Deliveries of webhooks").click()
        await expect(page.get_by_role("row").filter(has_text="webhook.test")).to_contain_text("503")
        assert await accessibility_faults(page) == []

        await visitor.open("webhooks")
        await row.get_by_role("link", name="Remove").click()
        assert await accessibility_faults(page) == []
        await page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        await expect(page.locator("main")).to_contain_text("No endpoints")

    async def test_a_dead_delivery_is_sent_again(
        self, visitor: Visit, hooked_key: str, api: httpx.Client, receiver: Receiver
    ) -> None:
        receiver.answer = status(410)
        job_id = submit(api, f"{receiver.url}?token=canary")
        await receiver.wait(1)
        await visitor.sign_in(hooked_key)
        page = visitor.page
        await visitor.open("webhooks/deliveries?state=&type=job.incomplete")
        await page.get_by_role("row").nth(1).get_by_role("link").first.click()
        await expect(page.locator("main")).to_contain_text("named by the request")
        await expect(page.get_by_role("link", name=job_id)).to_have_attribute("href", re.compile(f"jobs/{job_id}$"))
        assert "canary" not in await page.content()
        await expect(page.locator("main")).to_contain_text("dead")
        receiver.answer = status(200)
        await page.get_by_role("button", name="Send again").click()
        first, second = await receiver.wait(2)
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        await expect(page.locator("main")).to_contain_text("delivered")

        await visitor.open("webhooks/deliveries")
        await page.get_by_role("link", name="Replay dead").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("Send dead deliveries again?")
        assert await accessibility_faults(page) == []
        await dialog.get_by_role("button", name="Send again").click()
        await page.wait_for_url(f"{visitor.url}/console/webhooks/deliveries")

    @pytest.mark.parametrize("path", ["webhooks", "webhooks/deliveries"])
    async def test_pages_with_data_fit_a_phone(
        self, browser: Browser, sim_stack: Stack, operator_key: str, api: httpx.Client, path: str
    ) -> None:
        endpoint = add(api, description="A receiver with a long description, which wraps on a phone")
        send_test(api, endpoint["id"])
        async with visit(browser, sim_stack.url, viewport=PHONE) as phone:
            await phone.sign_in(operator_key)
            await phone.open(path)
            assert await accessibility_faults(phone.page) == []
            await phone.page.emulate_media(color_scheme="dark")
            assert await accessibility_faults(phone.page, COLOURS) == []
            width = await phone.page.evaluate("document.documentElement.scrollWidth")
            assert width <= PHONE["width"]
