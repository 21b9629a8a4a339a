"""Models and workers in a browser: drain a worker, pause and resume a queue."""

from __future__ import annotations

import httpx
import pytest
from playwright.async_api import Locator, expect

from tests.support.console import BROWSER_TESTS, Visit, accessibility_faults
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = BROWSER_TESTS


def card(visit: Visit, model: str) -> Locator:
    """The card of a model."""
    heading = visit.page.get_by_role("link", name=model, exact=True)
    return visit.page.locator("[data-part=models] section").filter(has=heading)


async def confirm(visit: Visit, action: str) -> None:
    """Say yes in the dialog."""
    dialog = visit.page.get_by_role("dialog")
    await expect(dialog).to_be_visible()
    await dialog.get_by_role("button", name=action).click()


async def test_a_worker_is_drained(operator: Visit, sim_stack: Stack) -> None:
    await operator.open("models")
    rows = card(operator, "sim").locator("tbody tr")
    before = await rows.count()
    name = sim_stack.start_worker("sim")
    await expect(rows).to_have_count(before + 1)
    process = sim_stack.processes[name]
    row = rows.filter(has_text=f"{process.pid}")
    worker = await row.locator("[data-copy]").get_attribute("data-copy")
    assert worker is not None
    await row.get_by_role("link", name="Drain").click()
    assert await accessibility_faults(operator.page) == []
    await operator.page.get_by_role("dialog").get_by_role("link", name="Cancel").click()
    await expect(operator.page.get_by_role("dialog")).to_have_count(0)
    await row.get_by_role("link", name="Drain").click()
    await confirm(operator, "Drain")
    ended = operator.page.locator("[data-part=ended] li").filter(has_text=worker)
    await expect(ended).to_contain_text("drained")
    await expect(rows).to_have_count(before)

    async def has_ended() -> bool:
        return process.poll() is not None

    await eventually(has_ended, "the process ends")
    sim_stack.processes.pop(name)


async def test_a_queue_is_paused_and_resumed(operator: Visit, sim_stack: Stack, member_key: str) -> None:
    await operator.open("models")
    small = card(operator, "small")
    await small.get_by_role("link", name="Pause").click()
    await confirm(operator, "Pause")
    await expect(small.get_by_text("Paused since")).to_be_visible()
    headers = {"Authorization": f"Bearer {member_key}"}
    async with httpx.AsyncClient(base_url=sim_stack.url, headers=headers, timeout=60) as client:
        job = (await client.post("/v1/jobs", json={"model": "small", "prompt": "x", "max_tokens": 2})).json()["id"]
        await expect(small.locator(".measures")).to_contain_text("1 waiting")
        assert (await client.get(f"/v1/jobs/{job}")).json()["status"] == "queued"
        await small.get_by_role("link", name="Resume").click()
        await confirm(operator, "Resume")
        await expect(small.get_by_text("Paused since")).to_have_count(0)

        async def has_run() -> bool:
            return (await client.get(f"/v1/jobs/{job}")).json()["status"] in ("completed", "incomplete")

        await eventually(has_run, "the job runs")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_of_a_model(operator: Visit, scheme: str) -> None:
    await operator.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    await operator.open("models")
    await card(operator, "sim").get_by_role("link", name="sim", exact=True).click()
    await expect(operator.page.get_by_role("heading", level=1)).to_have_text("sim")
    await expect(operator.page.locator("#live")).to_have_attribute("data-state", "live")
    await expect(operator.page.locator("[data-chart] canvas")).to_have_count(1)
    await expect(operator.page.locator(".code")).to_contain_text('"ttft_ms": 5')
    assert await accessibility_faults(operator.page) == []


async def test_actions_work_without_scripts(operator: Visit) -> None:
    """A question is a page of its own, too."""
    await operator.open("models/pause?model=orphan")
    await expect(operator.page.get_by_role("heading", level=1)).to_have_text("Pause the queue of orphan?")
    assert await accessibility_faults(operator.page) == []
    await operator.page.get_by_role("link", name="Cancel").click()
    await operator.page.wait_for_url(f"{operator.url}/console/models")
