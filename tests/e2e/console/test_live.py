"""Live pages end with their session, with what they show, and in favor of newer ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from playwright.async_api import expect
from sqlalchemy import text

from api.console.live_streams import MAX_STREAMS
from api.keys.store import digest
from shared.postgres.engine import connect
from tests.e2e.console.test_faults import LIVE
from tests.e2e.console.test_jobs import cancel, submit
from tests.e2e.console.test_protection import sign_in, token_of
from tests.support.console import BROWSER_TESTS, Visit
from tests.support.stack import Stack

WITHIN_S = 20


async def change(stack: Stack, statement: str, **values: object) -> None:
    """Change the database."""
    database = connect(stack.environment["DATABASE_URL"], pool_size=1)
    try:
        async with database.begin() as connection:
            await connection.execute(text(statement), values)
    finally:
        await database.dispose()


class Follower:
    """A stream that is read until the server ends it."""

    def __init__(self, response: httpx.Response) -> None:
        self.received = b""
        self.first = asyncio.Event()
        self.task = asyncio.create_task(self._read(response))

    async def _read(self, response: httpx.Response) -> None:
        try:
            async for chunk in response.aiter_bytes():
                self.received += chunk
                self.first.set()
        except httpx.TransportError:
            pass  # the connection was closed


@asynccontextmanager
async def following(client: httpx.AsyncClient, path: str) -> AsyncIterator[Follower]:
    """A stream of the console that has begun."""
    async with client.stream("GET", path, headers={"accept": "text/event-stream"}) as response:
        assert response.status_code == 200
        follower = Follower(response)
        await asyncio.wait_for(follower.first.wait(), WITHIN_S)
        try:
            yield follower
        finally:
            follower.task.cancel()
            await asyncio.gather(follower.task, return_exceptions=True)


@asynccontextmanager
async def session(stack: Stack, key: str) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str]]]:
    """A signed-in client, and the fields that its forms send."""
    with sign_in(stack, key) as client:
        fields = {"csrf_token": token_of(client)}
        async with httpx.AsyncClient(base_url=client.base_url, cookies=client.cookies, timeout=WITHIN_S) as browser:
            yield browser, fields


@pytest.mark.parametrize("how", ["sign-out", "expiry"])
async def test_streams_end_with_their_session(sim_stack: Stack, member_key: str, how: str) -> None:
    job = submit(sim_stack, member_key, model="orphan")
    async with (
        session(sim_stack, member_key) as (browser, fields),
        session(sim_stack, member_key) as (other, _),
        following(browser, "overview/live") as page,
        following(browser, f"jobs/{job}/live") as job_page,
        following(browser, f"v1/jobs/{job}/stream") as call,
        following(other, "overview/live") as of_another_session,
    ):
        if how == "sign-out":
            assert (await browser.post("sign-out", data=fields)).status_code == 303
        else:
            (token,) = browser.cookies.jar
            await change(
                sim_stack,
                "UPDATE console_sessions SET expires_at = now() WHERE sha256 = :sha256",
                sha256=digest(token.value or ""),
            )
        await asyncio.wait_for(asyncio.gather(page.task, job_page.task, call.task), WITHIN_S)
        assert not of_another_session.task.done()
    cancel(sim_stack, member_key, job)


async def test_a_session_has_a_limited_number_of_live_pages(sim_stack: Stack, member_key: str) -> None:
    async with session(sim_stack, member_key) as (browser, _), AsyncExitStack() as opened:
        followers = [
            await opened.enter_async_context(following(browser, f"jobs/live?user={number}"))
            for number in range(MAX_STREAMS + 1)
        ]
        await asyncio.wait_for(followers[0].task, WITHIN_S)
        assert followers[0].received.endswith(b"event: state\ndata: closed\n\n")
        assert not any(follower.task.done() for follower in followers[1:])


class TestInABrowser:
    pytestmark = BROWSER_TESTS

    async def test_a_page_says_that_its_job_was_deleted(self, member: Visit, sim_stack: Stack, member_key: str) -> None:
        job = submit(sim_stack, member_key, model="orphan")
        await member.open(f"jobs/{job}")
        await expect(member.page.locator("#live")).to_have_attribute("data-state", "live")
        await change(sim_stack, "DELETE FROM jobs WHERE id = :job", job=job)
        live = member.page.locator("#live")
        await expect(live).to_be_visible()
        await expect(live).to_have_text("No longer exists")

    async def test_a_page_does_not_ask_again_for_what_has_no_address(
        self, member: Visit, sim_stack: Stack, member_key: str
    ) -> None:
        member.complaints.expect_status(404)
        job = submit(sim_stack, member_key, model="orphan")
        await member.page.route(LIVE, lambda route: route.abort())
        await member.open(f"jobs/{job}")
        await expect(member.page.locator("#live")).to_have_text("Reconnecting")
        await change(sim_stack, "DELETE FROM jobs WHERE id = :job", job=job)
        await expect(member.page.locator("#live")).to_have_text("No longer exists", timeout=15_000)
