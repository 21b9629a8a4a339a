"""A browser on the web console: Debian's `chromium`, driven by Playwright."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import pytest
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    async_playwright,
    expect,
)

from tests.support.browser import CHROMIUM, needs_chromium
from tests.support.stack import Stack

# Tests share one browser, which belongs to one event loop.
BROWSER_TESTS = [needs_chromium, pytest.mark.asyncio(loop_scope="session")]
ARGUMENTS = (
    "--no-sandbox",  # Chromium does not start as root with a sandbox
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
_REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`CSP violation: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
});
"""
_FAILED_LOAD = "Failed to load resource"
# Five seconds by default, which a page can take on a busy machine.
expect.set_options(timeout=20_000)


class Complaints:
    """What a browser complains about: errors of scripts, violations of the CSP, and addresses of other servers."""

    def __init__(self, url: str) -> None:
        self.found: list[str] = []
        self._url = url
        self._statuses: set[int] = set()

    def expect_status(self, *statuses: int) -> None:
        """Responses with these statuses are part of the test."""
        self._statuses.update(statuses)

    def watch(self, page: Page) -> None:
        """Listen to a page."""
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.found.append(f"error in a script: {error}"))
        page.on("request", self._on_request)
        page.on("response", self._on_response)

    def _on_console(self, message: ConsoleMessage) -> None:
        # Failed loads are judged by their response.
        if message.type in ("error", "warning") and not message.text.startswith(_FAILED_LOAD):
            self.found.append(f"{message.type} in the console: {message.text}")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self._url}/", "data:", "blob:")):
            self.found.append(f"request to another server: {request.url}")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self._statuses:
            self.found.append(f"{response.status} for {response.url}")


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """A headless browser that can reach only 127.0.0.1."""
    assert CHROMIUM is not None
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


class Visit:
    """A person's browser window on a console, with cookies of its own."""

    def __init__(self, context: BrowserContext, page: Page, url: str, complaints: Complaints) -> None:
        self.context = context
        self.page = page
        self.url = url
        self.complaints = complaints

    async def sign_in(self, key: str) -> None:
        """Start a session of this window by a key, without a page: the form has tests of its own."""
        response = await self.context.request.post(f"{self.url}/console/sign-in", form={"key": key}, max_redirects=0)
        assert response.status == 303

    async def open(self, path: str) -> Response:
        """Open a page of the console."""
        response = await self.page.goto(f"{self.url}/console/{path}")
        assert response is not None
        return response

    async def go_back(self, path: str) -> None:
        """Go back to a page of the console.

        htmx replaces the entry of the history soon after a page has been loaded. Playwright's `go_back` ends early
        when that happens meanwhile, so this waits for the page's own address.
        """
        await self.page.go_back()
        await self.page.wait_for_url(f"{self.url}/console/{path}")


@asynccontextmanager
async def visit(browser: Browser, url: str, **options: Any) -> AsyncIterator[Visit]:
    """Open a window. At its end, nothing may have given the browser reason to complain."""
    options.setdefault("viewport", DESKTOP)
    context = await browser.new_context(**options)
    complaints = Complaints(url)
    await context.add_init_script(_REPORT_VIOLATIONS)
    page = await context.new_page()
    complaints.watch(page)
    try:
        yield Visit(context, page, url, complaints)
    finally:
        await context.close()
    assert not complaints.found, complaints.found


def create_key(stack: Stack, name: str, *scopes: str, project: str | None = None) -> str:
    """Create an API key; returns the key."""
    arguments = ["--project", project] if project else []
    for scope in scopes:
        arguments += ["--scope", scope]
    return stack.command("api.keys", "create", name, *arguments).stdout.strip()


# The rules of axe-core whose result depends on colours.
COLOURS = ("color-contrast", "link-in-text-block")


async def accessibility_faults(page: Page, rules: Sequence[str] = ()) -> list[str]:
    """The serious and critical faults that axe-core finds on a page; `rules`: with only these rules."""
    await page.evaluate(_axe())
    options = {"runOnly": {"type": "rule", "values": list(rules)}} if rules else {}
    # The elements that pass are not part of the result, which is large otherwise.
    result: dict[str, Any] = await page.evaluate(
        "options => axe.run({resultTypes: ['violations'], ...options})", options
    )
    return [
        f"{fault['impact']}: {fault['id']}: {node['html'][:200]}: {node['failureSummary'][:300]}"
        for fault in result["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


@functools.cache
def _axe() -> str:
    return files("axe_playwright_python").joinpath("axe.min.js").read_text()
