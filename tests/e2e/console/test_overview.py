"""The overview in a browser: it shows what happens while it happens."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from playwright.async_api import expect
from sqlalchemy import text

from shared.postgres.engine import connect, transaction
from tests.support.console import BROWSER_TESTS, Visit
from tests.support.stack import Stack

pytestmark = BROWSER_TESTS


async def forget_first_tokens(stack: Stack) -> None:
    """Let all ended jobs have had their first token at once. Those of other tests waited, for instance in paused
    queues, and slow first tokens degrade the health."""
    database = connect(stack.environment["DATABASE_URL"], pool_size=1)
    try:
        async with transaction(database) as connection:
            await connection.execute(
                text("UPDATE jobs SET first_token_at = created_at WHERE first_token_at IS NOT NULL")
            )
            await connection.execute(text("DELETE FROM job_statistics"))
    finally:
        await database.dispose()


async def cancel_waiting(operator: Visit) -> None:
    """Cancel the jobs that tests of other pages have left, because jobs without a worker degrade the health."""
    await operator.open("jobs?model=orphan&status=queued")
    if await operator.page.locator("[data-pick-all]").count():
        await operator.page.locator("[data-pick-all]").click()
        await operator.page.get_by_role("button", name="Cancel").click()
        await expect(operator.page.locator(".results h2")).to_be_visible()
    await operator.open("")


async def test_the_overview_shows_models_and_their_workers(operator: Visit, sim_stack: Stack) -> None:
    await forget_first_tokens(sim_stack)
    await cancel_waiting(operator)
    rows = operator.page.locator("[data-part=models] tbody tr")
    await expect(rows.filter(has_text="sim").first).to_contain_text("simulated")
    await expect(rows.filter(has_text="orphan")).to_contain_text("no worker")
    await expect(operator.page.locator("[data-part=health]")).to_contain_text("Healthy", timeout=30_000)


async def test_waiting_jobs_appear_without_a_reload(operator: Visit, sim_stack: Stack, member_key: str) -> None:
    await cancel_waiting(operator)
    await expect(operator.page.locator("#live")).to_have_attribute("data-state", "live")
    row = operator.page.locator("[data-part=models] tbody tr").filter(has_text="orphan")
    async with httpx.AsyncClient(base_url=sim_stack.url, headers={"Authorization": f"Bearer {member_key}"}) as client:
        body = {"model": "orphan", "prompt": "x"}
        jobs = [(await client.post("/v1/jobs", json=body)).json()["id"] for _ in range(3)]
        await expect(row.locator("td").nth(4)).to_have_text("3")
        await asyncio.gather(*(client.post(f"/v1/jobs/{job}/cancel") for job in jobs))
    await expect(row.locator("td").nth(4)).to_have_text("0")


_NEXT_CHART = """
new Promise((resolve) => {
  const chart = document.querySelector("[data-chart]");
  new MutationObserver(resolve).observe(chart, { attributes: true, attributeFilter: ["data-chart"] });
})
"""


# Shows a value at all times on the chart, and returns the labels of its y axis, with where they begin on the canvas.
_LABELS = """
async ({ value, unit }) => {
  const chart = document.querySelector("[data-chart]");
  const data = JSON.parse(chart.dataset.chart);
  const labels = [];
  const fillText = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
    if (this.textAlign === "right") labels.push([text, x - this.measureText(text).width]);
    fillText.call(this, text, x, y);
  };
  const series = data.series.map((one) => ({ ...one, values: data.x.map(() => value) }));
  chart.dataset.chart = JSON.stringify({ ...data, series, unit });
  while (!labels.length) await new Promise(requestAnimationFrame);
  CanvasRenderingContext2D.prototype.fillText = fillText;
  return labels;
}
"""


@pytest.mark.parametrize(
    ("value", "unit", "label"), [(50_000, "ms", "60 s"), (5_000, "ms", "6,000"), (10_000_000, "tokens", "10,000,000")]
)
async def test_the_values_of_the_chart_are_not_cut(operator: Visit, value: int, unit: str, label: str) -> None:
    await operator.open("")
    await expect(operator.page.locator("[data-chart] canvas")).to_have_count(1)
    labels = await operator.page.evaluate(_LABELS, {"value": value, "unit": unit})
    assert label in [text for text, _ in labels]
    assert all(left >= 0 for _, left in labels), labels


async def test_what_happened_is_shown_on_the_chart(operator: Visit) -> None:
    """A worker has started: the list says so, and pointing at it shows the moment on the chart."""
    await operator.open("")
    entry = operator.page.locator("[data-part=events] .feed li").first
    tip = operator.page.locator(".chart-tip")
    await expect(tip).to_be_hidden()
    await entry.hover()
    await expect(tip).to_be_visible()
    await expect(tip).to_contain_text("p95")
    await operator.page.locator("h1").hover()
    await expect(tip).to_be_hidden()


async def test_the_chart_shows_jobs_without_being_built_again(
    operator: Visit, sim_stack: Stack, member_key: str
) -> None:
    await operator.open("")
    canvas = operator.page.locator("[data-chart] canvas")
    await canvas.evaluate("(element) => { element.id = 'first'; }")
    changed = asyncio.create_task(operator.page.evaluate(_NEXT_CHART))
    async with httpx.AsyncClient(base_url=sim_stack.url, headers={"Authorization": f"Bearer {member_key}"}) as client:
        await client.post("/v1/jobs", json={"model": "sim", "prompt": "x"}, headers={"Prefer": "wait=10"})
    async with asyncio.timeout(30):
        await changed
    await expect(canvas).to_have_count(1)
    await expect(canvas).to_have_attribute("id", "first")
