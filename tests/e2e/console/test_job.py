"""The page of one job in a browser: it streams, can be cancelled, and shows a failover as it happens."""

from __future__ import annotations

import httpx
import pytest
from playwright.async_api import expect

from tests.e2e.console.test_jobs import HOSTILE, status_of, submit
from tests.support.console import BROWSER_TESTS, COLOURS, Visit, accessibility_faults
from tests.support.stack import Stack

pytestmark = BROWSER_TESTS


async def start(stack: Stack, key: str, **body: object) -> str:
    """Submit a job, without waiting for its end."""
    async with httpx.AsyncClient(base_url=stack.url, headers={"Authorization": f"Bearer {key}"}) as client:
        return str((await client.post("/v1/jobs", json={"prompt": "x", **body})).json()["id"])


async def output_of(stack: Stack, key: str, job: str) -> str:
    async with httpx.AsyncClient(base_url=stack.url, headers={"Authorization": f"Bearer {key}"}) as client:
        return str((await client.get(f"/v1/jobs/{job}")).json()["output_text"])


async def test_an_answer_streams_to_its_end(member: Visit, sim_stack: Stack, member_key: str) -> None:
    job = await start(sim_stack, member_key, model="small", max_tokens=150, prompt="Tell me a story")
    await member.open(f"jobs/{job}")
    status = member.page.locator("[data-part=status]")
    streaming = member.page.locator("#answer .streaming")
    await expect(streaming).not_to_be_empty()
    assert await member.page.locator("h1").text_content() == "Tell me a story"
    await expect(status).to_contain_text("Incomplete", timeout=20_000)
    await expect(streaming).to_have_count(0)
    await expect(member.page.locator("#cancel")).to_be_hidden()
    text = await output_of(sim_stack, member_key, job)
    assert await member.page.locator("#answer .prose").text_content() == text
    await expect(member.page.locator("[data-part=stats]")).to_contain_text("150tokens")
    await member.page.reload()
    assert await member.page.locator("#answer .prose").text_content() == text, "the same, from the server"


async def test_a_job_is_cancelled_from_its_page(member: Visit, sim_stack: Stack, member_key: str) -> None:
    job = await start(sim_stack, member_key, model="small", max_tokens=2000)
    await member.open(f"jobs/{job}")
    await expect(member.page.locator("#answer .streaming")).not_to_be_empty()
    await member.page.get_by_role("button", name="Cancel").click()
    await expect(member.page.locator("[data-part=status]")).to_contain_text("Cancelled")
    assert status_of(sim_stack, member_key, job) == "cancelled"
    await member.page.get_by_role("button", name="Replay").click()
    await expect(member.page.locator("[data-part=facts]")).to_contain_text("Replay of")
    await member.page.get_by_role("button", name="Cancel").click()
    await expect(member.page.locator("[data-part=status]")).to_contain_text("Cancelled")


async def test_a_failover_shows_in_the_timeline(member: Visit, sim_stack: Stack, member_key: str) -> None:
    """The worker is killed while the page is open."""
    job = await start(sim_stack, member_key, model="small", max_tokens=400)
    await member.open(f"jobs/{job}")
    await expect(member.page.locator("#answer .streaming")).not_to_be_empty()
    (worker,) = sim_stack.workers("small")
    sim_stack.kill(worker)
    sim_stack.start_worker("small")
    picture = member.page.locator(".timeline-wide")
    await expect(picture.locator(".phase-lost")).to_have_count(1, timeout=30_000)
    await expect(picture).to_contain_text("continued at token", timeout=30_000)
    await expect(member.page.locator("[data-part=status]")).to_contain_text("Incomplete", timeout=30_000)
    await expect(member.page.locator("[data-part=stats]")).to_contain_text("2 attempts")
    text = await output_of(sim_stack, member_key, job)
    assert await member.page.locator("#answer .prose").text_content() == text
    await member.open(f"jobs/{job}?tab=events")
    await expect(member.page.locator("[data-part=history]")).to_contain_text("its worker was lost")


async def test_hostile_texts_are_shown_as_they_are(operator: Visit, sim_stack: Stack, member_key: str) -> None:
    job = submit(
        sim_stack,
        member_key,
        model="sim",
        prompt=None,
        messages=[{"role": "user", "content": HOSTILE}],
        metadata={"m": HOSTILE},
        user=HOSTILE,
    )
    await operator.open(f"jobs/{job}?tab=request")
    assert await operator.page.locator(".message .prose").text_content() == HOSTILE
    await expect(operator.page.locator("[data-part=facts]")).to_contain_text(HOSTILE)
    await operator.open("jobs")
    await expect(operator.page.locator(f"#row-{job}")).to_contain_text(HOSTILE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_is_accessible(member: Visit, sim_stack: Stack, member_key: str, scheme: str) -> None:
    job = submit(sim_stack, member_key, model="sim", metadata={"a": "b"}, user="ann")
    await member.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    rules = COLOURS if scheme == "dark" else ()
    for tab in ("answer", "request", "events"):
        await member.open(f"jobs/{job}?tab={tab}")
        assert await accessibility_faults(member.page, rules) == []
    await member.open("jobs")
    await expect(member.page.locator("[data-row]").first).to_be_visible()
    assert await accessibility_faults(member.page, rules) == []


async def test_an_answer_is_rated_on_its_page(member: Visit, sim_stack: Stack, member_key: str) -> None:
    job = await start(sim_stack, member_key, model="sim", max_tokens=3)
    await member.open(f"jobs/{job}")
    good, bad = (member.page.get_by_role("button", name=f"{text} answer") for text in ("Good", "Bad"))

    async def given() -> list[tuple[str, str]]:
        headers = {"Authorization": f"Bearer {member_key}"}
        async with httpx.AsyncClient(base_url=sim_stack.url, headers=headers) as client:
            found = (await client.get("/v1/feedback", params={"job_id": job})).json()["data"]
        return [(one["value"], one["source"]) for one in found]

    await good.click()
    await expect(good).to_have_attribute("aria-pressed", "true")
    await expect(good).to_contain_text("1")
    assert await given() == [("up", "console")]
    await bad.click()
    await expect(bad).to_have_attribute("aria-pressed", "true")
    await expect(good).to_have_attribute("aria-pressed", "false")
    assert await given() == [("down", "console")]
    await member.page.reload()
    await expect(bad).to_have_attribute("aria-pressed", "true")
    await bad.click()
    await expect(bad).to_have_attribute("aria-pressed", "false")
    assert await given() == []
