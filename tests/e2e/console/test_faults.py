"""What goes wrong in a browser: impatient people, refused clipboards, lost connections, errors of the API."""

from __future__ import annotations

import json
import re

import pytest
from playwright.async_api import expect

from tests.e2e.console.test_jobs import cancel, submit
from tests.support.console import BROWSER_TESTS, Visit
from tests.support.stack import Stack

pytestmark = BROWSER_TESTS
LIVE = re.compile(r"/live(\?|$)")


# Presses a button twice; returns how many of the submits would have been sent. None is.
_PRESS_TWICE = """() => {
  let sent = 0;
  addEventListener("submit", (event) => {
    if (!event.defaultPrevented) sent += 1;
    event.preventDefault();
  });
  const button = document.querySelector("form.form .button-first");
  button.click();
  button.click();
  return sent;
}"""


async def test_a_form_that_is_sent_twice_acts_once(operator: Visit) -> None:
    await operator.open("keys/new")
    await operator.page.fill("#name", "impatient")
    assert await operator.page.evaluate(_PRESS_TWICE) == 1


async def test_a_selection_is_replayed_once(member: Visit, sim_stack: Stack, member_key: str) -> None:
    job = submit(sim_stack, member_key, model="orphan", metadata={"case": "twice"})
    cancel(sim_stack, member_key, job)
    await member.open("jobs?meta=case%3Dtwice")
    await member.page.locator(f"#row-{job} input").click()
    await member.page.get_by_role("button", name="Replay").dblclick()
    await expect(member.page.locator(".results h2")).to_have_text("Replay: 1 of 1 job")
    await expect(member.page.locator("[data-row]")).to_have_count(2)
    cancel(sim_stack, member_key, str(await member.page.locator("[data-row]").first.get_attribute("id"))[4:])


async def test_a_clipboard_that_is_refused_is_said(member: Visit, sim_stack: Stack, member_key: str) -> None:
    await member.context.add_init_script(
        "navigator.clipboard.writeText = () => Promise.reject(new DOMException('', 'NotAllowedError'));"
        "document.execCommand = () => false;"
    )
    await member.open(f"jobs/{submit(sim_stack, member_key, model='sim')}")
    await member.page.locator(".job-title [data-copy]").click()
    await expect(member.page.locator("#announcer")).to_have_text("The browser does not allow to copy this.")


async def test_an_open_job_says_that_its_connection_is_lost(member: Visit, sim_stack: Stack, member_key: str) -> None:
    job = submit(sim_stack, member_key, model="orphan")
    await member.page.route(LIVE, lambda route: route.abort())
    await member.open(f"jobs/{job}")
    await expect(member.page.locator("#live")).to_have_text("Reconnecting")
    await member.page.unroute(LIVE)
    await expect(member.page.locator("#live")).to_have_attribute("data-state", "live")
    await expect(member.page.locator("#live")).to_be_hidden()
    cancel(sim_stack, member_key, job)


@pytest.mark.parametrize("param", ["a(b", "tools[0].function.parameters", None])
async def test_an_error_about_any_parameter_is_shown(member: Visit, param: str | None) -> None:
    await member.context.add_init_script("delete RegExp.escape;")
    member.complaints.expect_status(400)
    page = member.page
    await member.open("playground")
    message = "is broken" if param is None else f"{param}: is broken"
    error = {"error": {"message": message, "type": "x", "param": param, "code": None}}
    await page.route("**/console/v1/jobs", lambda route: route.fulfill(status=400, body=json.dumps(error)))
    await page.get_by_label("Turn 1", exact=True).fill("x")
    await page.locator("#run").click()
    await expect(page.locator(".field-error:visible, [data-side='error']:visible").first).to_contain_text("is broken")


# A stream of events that a test sends, in place of the browser's.
_SCRIPTED_EVENTS = """
class Scripted extends EventTarget { constructor() { super(); Scripted.last = this; } close() {} }
window.EventSource = Scripted;
window.say = (state) => Scripted.last.dispatchEvent(new MessageEvent("state", { data: state }));
"""


@pytest.mark.parametrize("path", ["", "jobs", "models", "batches"])
async def test_a_page_says_that_its_figures_are_old(operator: Visit, path: str) -> None:
    page = operator.page
    await operator.context.add_init_script(_SCRIPTED_EVENTS)
    await page.clock.install(time="2026-11-30T10:00:00")
    await operator.open(path)
    await page.evaluate("say('live')")
    await expect(page.locator("#live")).to_have_text("Live")
    since = await page.evaluate("new Date().toLocaleTimeString('en-GB')")
    await page.clock.fast_forward(60_000)
    await page.evaluate("say('stale')")
    await expect(page.locator("#live")).to_contain_text("Not updated since")
    shown = str(await page.locator("#live").text_content()).rpartition(" ")[2]
    assert since[:5] == shown[:5], "when they were last known to be right, not when that was found out"
    await expect(page.locator("#live")).to_have_attribute("title", re.compile("tries again by itself"))
    await expect(page.locator("#announcer")).to_contain_text("cannot read the present state")
    await page.evaluate("say('live')")
    await expect(page.locator("#live")).to_have_text("Live")
    await expect(page.locator("#live")).to_have_attribute("title", "")
    await expect(page.locator("#announcer")).to_have_text("This page is up to date again.")
