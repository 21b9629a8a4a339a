"""The playground in a browser: it streams, measures, stops, and shows errors where they belong."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, Locator, Page, Route, expect

from tests.support.console import BROWSER_TESTS, COLOURS, PHONE, Visit, accessibility_faults, create_key, visit
from tests.support.stack import Stack
from tests.support.xss import XSS

pytestmark = BROWSER_TESTS


def side(page: Page, number: int = 1) -> Locator:
    return page.locator(".side-card").nth(number - 1)


def state(page: Page, number: int = 1) -> Locator:
    return side(page, number).locator('[data-side="state-text"]')


async def write(window: Visit, prompt: str, model: str = "sim", **fields: str) -> None:
    """Open the page, and fill in the form."""
    await window.open("playground")
    await window.page.get_by_label("Turn 1", exact=True).fill(prompt)
    await window.page.get_by_label("Model 1", exact=True).select_option(model)
    for name, value in fields.items():
        field = window.page.locator(f"#{name}")
        if not await field.is_visible():  # its section is closed on a phone
            await window.page.locator("summary", has_text="Parameters").first.click()
        await field.fill(value)


async def api(stack: Stack, key: str, method: str, path: str, body: object = None) -> dict[str, Any]:
    """Call the API with a key."""
    headers = {"Authorization": f"Bearer {key}", "Prefer": "wait=20"}
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=30) as client:
        response = await client.request(method, path, json=body)
    found: dict[str, Any] = response.raise_for_status().json()
    return found


async def job_of(window: Visit, number: int = 1) -> str:
    """The id of the job that a side links to."""
    link = await side(window.page, number).locator('[data-side="job"]').get_attribute("href")
    assert link is not None
    return link.removeprefix("jobs/")


async def test_a_prompt_streams(member: Visit, sim_stack: Stack, member_key: str) -> None:
    page = member.page
    await write(member, "Why do mills need water?", max_tokens="200")
    await page.locator("#system").fill("Answer briefly.")
    await page.keyboard.press("Control+Enter")
    text = side(page).locator(".choice > .text")
    await expect(state(page)).to_have_text("Running")
    await expect(text).not_to_be_empty()
    early = len(await text.text_content() or "")
    await expect(state(page)).to_have_text("Cut at the limit")
    assert len(await text.text_content() or "") > early, "it grew while it was shown"
    await expect(side(page).locator('[data-side="output"]')).to_have_text("200 tokens")
    await expect(side(page).locator('[data-side="ttft"]')).to_contain_text(" ms")
    await expect(side(page).locator('[data-side="rate"]')).to_contain_text("tokens/s")
    await expect(side(page).locator('[data-side="finish"]')).to_have_text("length")
    job = await api(sim_stack, member_key, "GET", f"/v1/jobs/{await job_of(member)}")
    assert await text.text_content() == job["output_text"]


async def test_two_models_side_by_side(member: Visit) -> None:
    page = member.page
    await write(member, "Compare", max_tokens="20")
    await page.get_by_role("button", name="Two side by side").click()
    await page.get_by_label("Model 2", exact=True).select_option("small")
    await page.locator("#run").click()
    for number in (1, 2):
        await expect(state(page, number)).to_have_text("Cut at the limit")
        await expect(side(page, number).locator('[data-side="output"]')).to_have_text("20 tokens")
    assert await job_of(member, 1) != await job_of(member, 2)
    await page.locator("#code-side").get_by_role("button", name="small").click()
    await expect(page.locator("#code")).to_contain_text('"model": "small"')


async def test_answers_are_rated_with_the_keyboard(member: Visit, sim_stack: Stack, member_key: str) -> None:
    """With the thumbs of the job's page. The focus stays, so that a second press takes the rating back."""
    page = member.page
    await write(member, "Rate this", max_tokens="4")
    await page.get_by_role("button", name="Two side by side").click()
    await page.get_by_label("Model 2", exact=True).select_option("small")
    await page.locator("#run").click()
    jobs = []
    for number in (1, 2):
        await expect(side(page, number).get_by_role("button", name="Good answer")).to_be_visible()
        jobs.append(await job_of(member, number))
    assert await accessibility_faults(page) == []

    async def given(number: int) -> list[str]:
        found = await api(sim_stack, member_key, "GET", f"/v1/feedback?job_id={jobs[number - 1]}")
        return [one["value"] for one in found["data"]]

    answer = side(page).locator('[data-side="answer"]')
    await answer.focus()
    await page.keyboard.press("Tab")
    good = side(page).get_by_role("button", name="Good answer")
    await expect(good).to_be_focused()
    await page.keyboard.press("Space")
    await expect(good).to_have_attribute("aria-pressed", "true")
    await expect(good).to_be_focused()
    assert (await given(1), await given(2)) == (["up"], [])
    await page.keyboard.press("Space")
    await expect(good).to_have_attribute("aria-pressed", "false")
    assert await given(1) == []
    bad = side(page, 2).get_by_role("button", name="Bad answer")
    await bad.click()
    await expect(bad).to_have_attribute("aria-pressed", "true")
    assert (await given(1), await given(2)) == ([], ["down"])
    await member.open(f"jobs/{jobs[1]}")
    await expect(page.get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "true")
    await member.open(f"playground?job={jobs[1]}")
    await expect(side(page).get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "true")
    await page.get_by_role("button", name="Start over").click()
    await expect(page.get_by_role("button", name="Good answer")).to_have_count(0)


async def test_stop_cancels_the_job(member: Visit, sim_stack: Stack, member_key: str) -> None:
    page = member.page
    await write(member, "A long story", model="small", max_tokens="2000")
    await page.locator("#run").click()
    await expect(side(page).locator(".choice > .text")).not_to_be_empty()
    await page.get_by_role("button", name="Stop", exact=True).click()
    await expect(state(page)).to_have_text("Stopped")
    job = await api(sim_stack, member_key, "GET", f"/v1/jobs/{await job_of(member)}")
    assert job["status"] == "cancelled"
    await expect(page.locator("#run")).to_be_enabled()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", "3", "less than or equal to 2"),
        ("temperature", "warm", "Enter a number."),
        ("max_tokens", "0", "greater than or equal to 1"),
    ],
)
async def test_an_error_is_shown_at_its_field(member: Visit, field: str, value: str, message: str) -> None:
    member.complaints.expect_status(400)
    await write(member, "Hello", **{field: value})
    await member.page.locator("#run").click()
    await expect(member.page.locator(f"#{field}-error")).to_contain_text(message)
    await expect(member.page.locator(f"#{field}")).to_be_focused()
    await expect(member.page.locator(f"#{field}")).to_have_attribute("aria-invalid", "true")
    await member.page.locator(f"#{field}").fill("1")
    await expect(member.page.locator(f"#{field}-error")).to_be_hidden()


async def test_errors_in_folded_sections_open_them(member: Visit) -> None:
    member.complaints.expect_status(400)
    page = member.page
    await write(member, "Hello")
    await page.locator("[data-section=tools] summary").click()
    await page.locator("#tools").fill('[{"type": "function", "function": {"name": "no good"}}]')
    await page.locator("[data-section=tools] summary").click()
    await page.locator("#run").click()
    await expect(page.locator("#tools-error")).to_contain_text("pattern")
    await page.locator("#tools").fill("[")
    await page.locator("#run").click()
    await expect(page.locator("#tools-error")).to_contain_text("This is not JSON")


async def test_tools_and_schemas(member: Visit) -> None:
    page = member.page
    await write(member, "The weather in Paris?")
    await page.locator("[data-section=tools] summary").click()
    await page.get_by_role("button", name="Insert an example").click()
    await page.locator("#tool_choice").select_option("required")
    await page.locator("#run").click()
    await expect(state(page)).to_have_text("Completed")
    await expect(side(page).locator(".tool-call h3")).to_have_text("get_weather()")
    await page.get_by_role("button", name="Continue the conversation").click()
    await expect(page.locator("#turns .turn")).to_have_count(3)
    await expect(page.locator("#turns .turn").nth(1)).to_contain_text("calls get_weather")

    await page.get_by_role("button", name="Start over").click()
    await page.get_by_label("Turn 1", exact=True).fill("A city")
    await page.locator("[data-section=format] summary").click()
    await page.locator("#format").select_option("json_schema")
    await page.locator("#schema").fill(
        '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
    )
    await page.locator("#run").click()
    await expect(state(page)).to_have_text("Completed")
    assert "city" in json.loads(await side(page).locator(".choice > .text").inner_text())


async def test_tokens_are_counted_while_typing(member: Visit) -> None:
    await write(member, "one two three")
    await expect(member.page.locator("#count")).to_have_text("5 of 4,096 tokens")
    await member.page.get_by_label("Turn 1", exact=True).fill("one two three four")
    await expect(member.page.locator("#count")).to_have_text("6 of 4,096 tokens")


async def test_a_typing_pause_costs_one_request(member: Visit) -> None:
    """Also with two models; and a long prompt is sent less often than a short one."""
    page = member.page
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    await page.clock.install(time="2026-11-30T10:00:00")
    async with page.expect_response("**/playground/preview"):
        await member.open("playground")
    await page.clock.pause_at("2026-11-30T10:10:00")
    sent.clear()

    await page.get_by_role("button", name="Two side by side").click()
    await page.get_by_label("Turn 1", exact=True).fill("short")
    await page.get_by_label("Model 2", exact=True).select_option("small")
    await page.clock.run_for(400)
    await expect(page.locator("#count")).to_contain_text("3 of 4,096 tokens")
    await expect(page.locator("#code")).to_contain_text("short")
    await page.locator("#run").click()
    for number in (1, 2):
        await expect(side(page, number).locator('[data-side="job"]')).to_be_visible()
    calls = [url.rpartition("/console/")[2] for url in sent]
    assert calls == ["playground/preview", "v1/jobs", "v1/jobs"], "what is known is not asked again"

    answer = {
        "counts": [{"tokens": 20_003, "estimated": False, "model": "sim", "limit": 4096}],
        "code": dict.fromkeys(("curl", "python", "node"), "long " * 20_001),
    }
    await page.route("**/playground/preview", lambda route: route.fulfill(body=json.dumps(answer)))
    await page.get_by_label("Turn 1", exact=True).fill("long " * 20_001)
    await page.clock.run_for(2900)
    assert len(sent) == 3
    await page.clock.run_for(100)
    await expect(page.locator("#count")).to_contain_text("20,003 of 4,096 tokens")
    assert len(sent) == 4
    await expect(page.locator("#code-cut")).to_be_visible()
    assert len(str(await page.locator("#code").text_content())) < 21_000


async def test_the_state_survives_a_reload(member: Visit) -> None:
    page = member.page
    await write(member, "A long story", model="small", max_tokens="100", temperature="0.5")
    await page.locator("#run").click()
    await expect(side(page).locator(".choice > .text")).not_to_be_empty()
    await page.reload()
    await expect(page.get_by_label("Turn 1", exact=True)).to_have_value("A long story")
    await expect(page.locator("#temperature")).to_have_value("0.5")
    await expect(page.get_by_label("Model 1", exact=True)).to_have_value("small")
    await expect(side(page).locator('[data-side="output"]')).to_have_text("100 tokens")


async def test_a_stream_that_breaks_continues(member: Visit) -> None:
    page = member.page
    seen: list[str | None] = []

    async def cut(route: Route) -> None:
        seen.append(route.request.headers.get("last-event-id"))
        if len(seen) > 1:
            await route.continue_()
            return
        response = await route.fetch()
        frames = (await response.text()).split("\n\n")
        await route.fulfill(response=response, body="\n\n".join(frames[: len(frames) // 2]) + "\n\n")

    await page.route("**/stream", cut)
    await write(member, "A story", max_tokens="60")
    await page.locator("#run").click()
    await expect(side(page).locator('[data-side="output"]')).to_have_text("60 tokens")
    assert seen[0] is None
    assert seen[1] is not None
    response = await page.request.get(f"{member.url}/console/v1/jobs/{await job_of(member)}")
    assert await side(page).locator(".choice > .text").text_content() == (await response.json())["output_text"]


async def test_a_job_is_loaded(member: Visit, sim_stack: Stack, member_key: str) -> None:
    body = {
        "model": "small",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": XSS[0]}],
        "max_tokens": 5, "temperature": 0.25, "top_k": 3, "stop": ["END"],
        "response_format": {"type": "json_object"},
    }  # fmt: skip
    job = await api(sim_stack, member_key, "POST", "/v1/jobs", body)
    page = member.page
    await member.open(f"playground?job={job['id']}")
    await page.wait_for_url("**/console/playground")
    await expect(page.locator("#system")).to_have_value("Be brief.")
    await expect(page.get_by_label("Turn 1", exact=True)).to_have_value(XSS[0])
    await expect(page.locator("#temperature")).to_have_value("0.25")
    await expect(page.locator("#stop")).to_have_value("END")
    await expect(page.locator("#format")).to_have_value("json_object")
    assert json.loads(await page.locator("#more").input_value()) == {"top_k": 3}
    await expect(page.get_by_label("Model 1", exact=True)).to_have_value("small")
    assert await job_of(member) == job["id"]
    await expect(side(page).locator(".choice > .text")).to_have_text(job["output_text"])


async def test_the_job_of_another_project_is_not_found(sim_stack: Stack, member: Visit, operator_key: str) -> None:
    job = await api(sim_stack, operator_key, "POST", "/v1/jobs", {"model": "sim", "prompt": "x", "max_tokens": 1})
    member.complaints.expect_status(404)
    response = await member.open(f"playground?job={job['id']}")
    assert response.status == 404


@pytest.mark.parametrize("text", XSS)
async def test_texts_are_never_markup(member: Visit, sim_stack: Stack, member_key: str, text: str) -> None:
    page = member.page
    await write(member, text, max_tokens="3")
    await page.locator("#run").click()
    await expect(state(page)).to_have_text("Cut at the limit")
    await expect(page.locator("#code")).to_contain_text("HEADRACE_URL")
    # What a model writes: an answer with the text, as the events of a job.
    await page.route(
        "**/stream",
        lambda route: route.fulfill(
            content_type="text/event-stream",
            body="".join(
                f"id: {number}\nevent: job.{name}\ndata: {json.dumps(data)}\n\n"
                for number, (name, data) in enumerate(
                    [
                        ("started", {"worker": text, "attempt": 2}),
                        ("delta", {"index": 0, "text": "", "reasoning": text}),
                        ("delta", {"index": 0, "text": text}),
                        (
                            "delta",
                            {
                                "index": 0,
                                "text": "",
                                "tool_calls": [{"index": 0, "id": text, "name": text, "arguments": text}],
                                "finish_reason": text,
                            },
                        ),
                        ("failed", {"error": {"code": "engine_error", "message": text}}),
                    ],
                    1,
                )
            ),
        ),
    )
    await page.locator("#run").click()
    await expect(state(page)).to_have_text("Failed")
    await expect(side(page).locator(".choice > .text")).to_have_text(text)
    await expect(side(page).locator('[data-side="error"]')).to_have_text(text)
    assert await page.locator(".side-card img, .side-card script, .side-card a[href^=java]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_an_answer_is_accessible(member: Visit, scheme: str) -> None:
    page = member.page
    await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    rules = COLOURS if scheme == "dark" else ()
    member.complaints.expect_status(400)
    await write(member, "Hello", max_tokens="0")
    await page.get_by_role("button", name="Two side by side").click()
    await page.locator("#run").click()
    await expect(page.locator("#max_tokens-error")).to_be_visible()
    assert await accessibility_faults(page, rules) == []
    await page.locator("#max_tokens").fill("5")
    for section in ("tools", "format", "delivery"):
        await page.locator(f"[data-section={section}] summary").click()
    await page.locator("#run").click()
    for number in (1, 2):
        await expect(state(page, number)).to_have_text("Cut at the limit")
    assert await accessibility_faults(page, rules) == []


async def test_on_a_phone_the_prompt_its_button_and_the_answer_are_near(
    browser: Browser, sim_stack: Stack, member_key: str
) -> None:
    async with visit(browser, sim_stack.url, viewport=PHONE) as phone:
        await phone.sign_in(member_key)
        await phone.open("playground")
        boxes = [await phone.page.locator(at).bounding_box() for at in ("#turns", "#run", "#parameters", "#sides")]
        tops = [box["y"] for box in boxes if box is not None]
        assert tops == sorted(tops)
        assert len(tops) == 4
        await expect(phone.page.locator("#temperature")).to_be_hidden()
        await write(phone, "x", max_tokens="5")
        await phone.page.locator("#run").click()
        await expect(phone.page.locator("[data-side=answer]").first).to_be_in_viewport()


async def test_two_answers_fit_a_phone(browser: Browser, sim_stack: Stack, member_key: str) -> None:
    async with visit(browser, sim_stack.url, viewport=PHONE) as phone:
        await phone.sign_in(member_key)
        await write(phone, "x" * 300, max_tokens="5")
        await phone.page.get_by_role("button", name="Two side by side").click()
        await phone.page.locator("#run").click()
        await expect(state(phone.page, 2)).to_have_text("Cut at the limit")
        assert await phone.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


async def test_a_key_without_inference_has_no_playground(visitor: Visit, sim_stack: Stack) -> None:
    visitor.complaints.expect_status(403)
    await visitor.sign_in(create_key(sim_stack, "watcher", "admin"))
    for path in ("playground", "batches"):
        assert (await visitor.open(path)).status == 403
        await expect(visitor.page.locator(f'nav [href="{path}"]')).to_have_count(0)
