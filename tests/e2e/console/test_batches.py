"""Batches and files in a browser: upload, watch, download, delete."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Download, Page, expect

from tests.support.console import BROWSER_TESTS, Visit, accessibility_faults, create_key
from tests.support.stack import Stack
from tests.support.xss import XSS

pytestmark = BROWSER_TESTS


def lines(count: int, model: str = "sim", max_tokens: int = 3) -> str:
    """The input of a batch."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": max_tokens}
    rows = ({"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows)


async def upload(window: Visit, name: str, content: str) -> None:
    await window.open("batches")
    await window.page.set_input_files(
        "#file", {"name": name, "mimeType": "application/jsonl", "buffer": content.encode()}
    )
    await window.page.get_by_role("button", name="Upload and run").click()


async def download(page: Page, name: str) -> list[dict[str, object]]:
    """The lines of the file behind a link."""
    async with page.expect_download() as started:
        await page.get_by_role("link", name=name).click()
    return [json.loads(line) for line in (await content(await started.value)).splitlines()]


async def content(downloaded: Download) -> str:
    return await asyncio.to_thread(Path(await downloaded.path()).read_text)


async def test_a_batch_runs_and_its_results_are_downloaded(member: Visit) -> None:
    page = member.page
    await upload(member, "questions.jsonl", lines(12))
    await page.wait_for_url("**/console/batches/batch_*")
    await expect(page.locator("#live")).to_have_attribute("data-state", "live")
    await expect(page.locator("[data-part=progress] .badge")).to_have_text("Completed", timeout=60_000)
    await expect(page.locator(".counts dd").first).to_have_text("12")
    results = await download(page, "Download output")
    assert sorted(str(line["custom_id"]) for line in results) == sorted(f"r{n}" for n in range(12))
    assert await accessibility_faults(page) == []
    await page.get_by_role("link", name="Batches", exact=True).click()
    row = page.locator("[data-part=batches] tbody tr").first
    await expect(row).to_contain_text("questions.jsonl")
    await expect(row).to_contain_text("Completed")


async def test_the_example_file_runs(member: Visit) -> None:
    page = member.page
    await member.open("batches")
    async with page.expect_download() as started:
        await page.get_by_role("link", name="Example file").click()
    await upload(member, "example.jsonl", await content(await started.value))
    await page.wait_for_url("**/console/batches/batch_*")
    await expect(page.locator("[data-part=progress] .badge")).to_have_text("Completed", timeout=60_000)


async def test_errors_are_shown_by_line(member: Visit) -> None:
    page = member.page
    await upload(member, "bad.jsonl", "nonsense\n\n" + '{"custom_id": "a"}\n')
    await page.wait_for_url("**/console/batches/batch_*")
    rows = page.locator("[data-part=results] tbody tr")
    await expect(rows).to_have_count(2, timeout=60_000)
    await expect(rows.nth(0).locator("td").first).to_have_text("1")
    await expect(rows.nth(1).locator("td").first).to_have_text("3")
    await expect(page.locator("[data-part=results]")).to_contain_text("Nothing of the file has run.")


async def test_a_batch_is_cancelled(member: Visit) -> None:
    page = member.page
    await upload(member, "slow.jsonl", lines(30, "small", 500))
    await page.wait_for_url("**/console/batches/batch_*")
    await expect(page.locator("[data-part=progress] .badge")).to_have_text("In progress", timeout=60_000)
    await page.get_by_role("button", name="Cancel the batch").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("button", name="Keep it").click()
    await expect(dialog).to_be_hidden()
    await page.locator("[data-part=progress]").get_by_role("button", name="Cancel the batch").click()
    await dialog.get_by_role("button", name="Cancel the batch").click()
    await expect(page.locator("[data-part=progress] .badge")).to_have_text("Cancelled", timeout=60_000)


@pytest.mark.parametrize(
    ("window", "message"), [("tomorrow", "must be hours or minutes"), ("9999h", "at most 30 days")]
)
async def test_errors_of_the_api_are_shown_at_their_field(member: Visit, window: str, message: str) -> None:
    member.complaints.expect_status(400)
    page = member.page
    await member.open("batches")
    await page.get_by_role("button", name="Upload and run").click()
    await expect(page.locator("#file-error")).to_have_text("Choose a file first.")
    await page.set_input_files("#file", {"name": "x.jsonl", "mimeType": "text/plain", "buffer": lines(1).encode()})
    await expect(page.locator("#file-error")).to_be_hidden()
    await page.fill("#window", window)
    await page.get_by_role("button", name="Upload and run").click()
    await expect(page.locator("#window-error")).to_contain_text(message)
    await expect(page.get_by_role("button", name="Upload and run")).to_be_enabled()


async def test_files_are_deleted_after_a_question(visitor: Visit, sim_stack: Stack) -> None:
    """And the names of files are never markup."""
    key = create_key(sim_stack, "names", "inference", project="names")
    await visitor.sign_in(key)
    async with httpx.AsyncClient(base_url=sim_stack.url, headers={"Authorization": f"Bearer {key}"}) as client:
        for name in XSS:
            file = (name.replace("/", "⁄"), lines(1).encode())
            response = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": file})
            response.raise_for_status()
    page = visitor.page
    await visitor.open("batches")
    rows = page.locator("[data-part=files] tbody tr")
    await expect(rows).to_have_count(len(XSS))
    assert await page.locator("main img, main script, main svg[onload]").count() == 0
    await rows.first.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("is deleted at once")
    await dialog.get_by_role("button", name="Keep it").click()
    await expect(rows).to_have_count(len(XSS))
    await rows.first.get_by_role("button", name="Delete").click()
    await dialog.get_by_role("button", name="Delete").click()
    await expect(rows).to_have_count(len(XSS) - 1)


async def test_an_empty_list_says_what_to_do(visitor: Visit, sim_stack: Stack) -> None:
    await visitor.sign_in(create_key(sim_stack, "newcomer", "inference", project="newcomer"))
    await visitor.open("batches")
    await expect(visitor.page.locator("[data-part=batches]")).to_contain_text("Download an example file")
    await expect(visitor.page.locator("[data-part=files]")).to_contain_text("No files yet")


async def test_lists_have_pages(visitor: Visit, sim_stack: Stack) -> None:
    key = create_key(sim_stack, "many", "inference", project="many")
    await visitor.sign_in(key)
    async with httpx.AsyncClient(base_url=sim_stack.url, headers={"Authorization": f"Bearer {key}"}) as client:
        for number in range(21):
            file = (f"file-{number}.jsonl", b"{}\n")
            response = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": file})
            response.raise_for_status()
    page = visitor.page
    await visitor.open("batches")
    files = page.locator("[data-part=files]")
    await expect(files.locator("tbody tr")).to_have_count(20)
    await files.get_by_role("link", name="Older").click()
    await expect(files.locator("tbody tr")).to_have_count(1)
    await expect(files.locator("tbody tr")).to_contain_text("file-0.jsonl")
    await files.get_by_role("link", name="Newest").click()
    await expect(files.locator("tbody tr").first).to_contain_text("file-20.jsonl")
