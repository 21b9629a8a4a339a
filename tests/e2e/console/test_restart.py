"""The API restarts while pages are open: live ones connect again by themselves, and show what happened meanwhile."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack

import httpx
from playwright.async_api import Browser, Page, expect

from tests.e2e.console.test_jobs import submit
from tests.e2e.console.test_playground import side, state
from tests.support.console import BROWSER_TESTS, Visit, visit
from tests.support.stack import Stack

pytestmark = BROWSER_TESTS
# The pause before a page connects again is up to 10 s.
WITHIN_MS = 30_000


async def create_batch(client: httpx.AsyncClient) -> str:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "orphan", "prompt": "x"}}
    files = {"file": ("restart.jsonl", json.dumps(line).encode())}
    file = (await client.post("/v1/files", data={"purpose": "batch"}, files=files)).raise_for_status().json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "1h"}
    batch = (await client.post("/v1/batches", json=body)).raise_for_status().json()
    return str(batch["id"])


async def opened(stack: AsyncExitStack, browser: Browser, first: Visit, path: str) -> Page:
    """A page in a window of its own: a browser opens six connections to a server, and each live page holds one."""
    session = await first.context.storage_state()
    window = await stack.enter_async_context(visit(browser, first.url, storage_state=session))
    await window.open(path)
    return window.page


async def test_pages_survive_a_restart(browser: Browser, sim_stack: Stack, operator_key: str) -> None:
    headers = {"Authorization": f"Bearer {operator_key}"}
    with sim_stack.second_api() as url:
        async with (
            httpx.AsyncClient(base_url=sim_stack.url, headers=headers, timeout=30) as other_api,
            AsyncExitStack() as stack,
            visit(browser, url) as first,
        ):
            await first.sign_in(operator_key)
            job = submit(sim_stack, operator_key, model="orphan", metadata={"case": "restart"})
            batch = await create_batch(other_api)
            # What shows the present on each page, and what it says at the end.
            expected: Mapping[str, tuple[str, str]] = {
                "": ("[data-part=models] tr", "orphan paused"),
                "jobs?meta=case%3Drestart": (f"#row-{job}", "Cancelled"),
                f"jobs/{job}": ("[data-part=status]", "Cancelled"),
                "models": ("[data-part=models] section", "Paused since"),
                "models/model?name=orphan": ("[data-part=notes]", "Resume"),
                "batches": (f'tr:has([href="batches/{batch}"])', "cancelled"),
                f"batches/{batch}": ("[data-part=progress]", "cancelled"),
            }
            pages = {path: await opened(stack, browser, first, path) for path in expected}
            playground = await opened(stack, browser, first, "playground")
            routing = await opened(stack, browser, first, "routing")
            keys = await opened(stack, browser, first, "keys")
            for page in pages.values():
                await expect(page.locator("#live")).to_have_attribute("data-state", "live")

            await playground.get_by_label("Turn 1", exact=True).fill("A story that outlives the API")
            await playground.get_by_label("Model 1", exact=True).select_option("small")
            await playground.locator("#max_tokens").fill("300")
            await playground.locator("#run").click()
            await expect(side(playground).locator(".choice > .text")).not_to_be_empty()

            name = f"api-{url.rpartition(':')[2]}"
            sim_stack.kill(name)
            for page in pages.values():
                await expect(page.locator("#live")).to_have_text("Reconnecting")
            await expect(state(playground)).to_have_text("Reconnecting")
            try:
                await other_api.post(f"/v1/jobs/{job}/cancel")
                await other_api.post(f"/v1/batches/{batch}/cancel")
                (await other_api.post("/v1/models/orphan/pause")).raise_for_status()
                sim_stack.start(name, "api", HEADRACE_PORT=url.rpartition(":")[2])

                for path, page in pages.items():
                    place, text = expected[path]
                    shown = page.locator(place).filter(has_text=re.compile(text.replace(" ", ".*"), re.DOTALL))
                    await expect(shown.first).to_be_visible(timeout=WITHIN_MS)
                    ends = "ended" if path == f"jobs/{job}" else "live"
                    await expect(page.locator("#live")).to_have_attribute("data-state", ends, timeout=WITHIN_MS)
            finally:
                (await other_api.post("/v1/models/orphan/resume")).raise_for_status()

            await expect(side(playground).locator('[data-side="output"]')).to_have_text("300 tokens", timeout=WITHIN_MS)
            answer = await side(playground).locator(".choice > .text").text_content()
            link = await side(playground).locator('[data-side="job"]').get_attribute("href")
            served = await other_api.get(f"/v1/{link}")
            assert answer == served.json()["output_text"], "nothing is missing, and nothing is there twice"

            await routing.get_by_label("Route", exact=True).select_option("auto")
            await routing.get_by_label("Prompt").fill("2 + 2?")
            await routing.get_by_role("button", name="Show the decision").click()
            await expect(routing.locator("#try-answer .try-model")).to_have_text("sim")
            await keys.get_by_role("link", name="Create a key").click()
            await expect(keys.get_by_role("heading", level=1)).to_contain_text("key")
