"""Answers of 10 MB, as they stream into a page: the last of it costs the browser no more than the first."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.e2e.console.test_jobs import cancel, submit
from tests.e2e.console.test_playground import job_of, side, write
from tests.support.console import BROWSER_TESTS, Visit
from tests.support.stack import Stack

pytestmark = BROWSER_TESTS
PIECES, PIECE = 50, 200_000
# Two frames of 60 a second: a shorter time cannot be measured.
FLOOR_MS = 34
SENTENCE = "The stream turns the wheel, and the wheel turns the stone; "

# `push(type, data)` sends an event, in place of the server.
_EVENTS = """
class Scripted extends EventTarget { constructor() { super(); Scripted.last = this; } close() {} }
window.EventSource = Scripted;
window.push = (type, data) => Scripted.last.dispatchEvent(new MessageEvent(type, { data: JSON.stringify(data) }));
"""
_BODY = """
const original = window.fetch;
let begin;
window.streaming = new Promise((resolve) => (begin = resolve));
window.fetch = (url, options) => {
  if (!String(url).endsWith("/stream")) return original(url, options);
  const body = new ReadableStream({ start: (controller) => begin((window.controller = controller)) });
  return Promise.resolve(new Response(body, { headers: { "content-type": "text/event-stream" } }));
};
let id = 0;
window.nextId = () => ++id;
window.push = (type, data) => {
  const frame = `id: ${nextId()}\\nevent: ${type}\\ndata: ${JSON.stringify(data)}\\n\\n`;
  window.controller.enqueue(new TextEncoder().encode(frame));
};
"""
# Sends pieces, and returns for each the milliseconds until the browser has shown it.
_STREAM = """async ([pieces, text]) => {
  const frame = () => new Promise(requestAnimationFrame);
  const times = [];
  for (let index = 0; index < pieces; index++) {
    const start = performance.now();
    push("job.delta", { index: 0, text });
    await frame();
    await frame();
    times.push(performance.now() - start);
  }
  return times;
}"""


def piece(kind: str) -> str:
    """200,000 characters, with lines or without."""
    sentence = SENTENCE + "\n" if kind == "lines" else SENTENCE
    return (sentence * (PIECE // len(sentence) + 1))[:PIECE]


async def stream(page: Page, kind: str) -> list[float]:
    times: list[float] = await page.evaluate(_STREAM, [PIECES, piece(kind)])
    return times


def assert_is_steady(times: list[float]) -> None:
    """If the cost grows with the text, the last pieces, at 9 MB, take ten times as long as the first, at 0.9 MB. The
    shortest times are compared: what else the machine does makes some longer."""
    first, last = min(times[2:7]), min(times[-10:])
    assert last < 4 * max(first, FLOOR_MS), f"{first:.0f} ms a piece at first, {last:.0f} ms at the end"


async def assert_is_usable(page: Page, content: Any) -> None:
    """All of the text is there, and the page answers."""
    assert await content.evaluate("element => element.textContent.length") == PIECES * PIECE
    await page.keyboard.press("?")
    await expect(page.locator("#keys")).to_be_visible(timeout=2000)
    await page.keyboard.press("Escape")


@pytest.mark.parametrize("kind", ["lines", "one line"])
async def test_the_page_of_a_job(member: Visit, sim_stack: Stack, member_key: str, kind: str) -> None:
    job = submit(sim_stack, member_key, model="orphan")
    page = member.page
    await page.add_init_script(_EVENTS)
    await member.open(f"jobs/{job}")
    assert_is_steady(await stream(page, kind))
    await assert_is_usable(page, page.locator("#answer .prose"))
    blocks = await page.locator("#answer .prose > div").evaluate_all("blocks => blocks.map((one) => one.textContent)")
    assert max(map(len, blocks)) < PIECE
    ends = {text[-1] for text in blocks[:-1]}
    assert ends == {"\n" if kind == "lines" else " "}, "a block ends where a line may end"
    # At the end, the server sends the beginning of the answer, and a link to the whole.
    html = '<article class="answer"><div class="prose">The stream</div></article>'
    await page.evaluate("html => push('part', { name: 'answer', html })", html)
    await expect(page.locator("#answer")).to_have_text("The stream", timeout=2000)
    cancel(sim_stack, member_key, job)


@pytest.mark.parametrize("kind", ["lines", "one line"])
async def test_the_playground(member: Visit, sim_stack: Stack, member_key: str, kind: str) -> None:
    page = member.page
    await page.add_init_script(_BODY)
    await write(member, "A long story", model="orphan")
    await page.locator("#run").click()
    await page.evaluate("streaming.then(() => null)")
    assert_is_steady(await stream(page, kind))
    await assert_is_usable(page, side(page).locator(".choice > .text"))
    answer = side(page).locator(".answer")
    assert await answer.evaluate("one => one.scrollHeight - one.scrollTop - one.clientHeight") < 24, "it is followed"
    await answer.evaluate("one => (one.scrollTop = 1000)")
    await page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    await page.evaluate(_STREAM, [3, piece(kind)])
    assert await answer.evaluate("one => one.scrollTop") == 1000, "who has scrolled back is left there"
    cancel(sim_stack, member_key, await job_of(member))


# Sends many small events at once, and returns how often the browser could draw until all were shown.
_BURST = """async ([events, text]) => {
  const data = JSON.stringify({ index: 0, text });
  let frames = "";
  for (let index = 0; index < events; index++) frames += `id: ${nextId()}\nevent: job.delta\ndata: ${data}\n\n`;
  window.controller.enqueue(new TextEncoder().encode(frames));
  let drawn = 0;
  const shown = () => document.querySelector(".choice > .text")?.textContent.length ?? 0;
  while (shown() < events * text.length) {
    await new Promise(requestAnimationFrame);
    drawn += 1;
  }
  return drawn;
}"""


async def test_events_that_come_together_leave_time_to_draw(member: Visit) -> None:
    page = member.page
    await page.add_init_script(_BODY)
    await write(member, "A long story", model="orphan")
    await page.locator("#run").click()
    await page.evaluate("streaming.then(() => null)")
    assert await page.evaluate(_BURST, [60_000, "mill"]) > 5
    await page.get_by_role("button", name="Stop", exact=True).click()
