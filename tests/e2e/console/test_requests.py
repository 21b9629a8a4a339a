"""The pages of the request log."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.postgres.engine import connect
from tests.e2e.console.test_protection import sign_in
from tests.support.console import BROWSER_TESTS, COLOURS, PHONE, accessibility_faults, create_key, visit
from tests.support.logged_requests import job_id_at
from tests.support.stack import Stack

USER, HOSTILE = "ann of requests", "=<b>ann</b>"


@pytest.fixture(scope="module")
def reader_key(sim_stack: Stack) -> str:
    return create_key(sim_stack, "log reader", "logs")


@pytest.fixture(scope="module")
def reader(sim_stack: Stack, reader_key: str) -> Iterator[httpx.Client]:
    with sign_in(sim_stack, reader_key) as client:
        yield client


@pytest.fixture(scope="module")
def operator(sim_stack: Stack, operator_key: str) -> Iterator[httpx.Client]:
    with sign_in(sim_stack, operator_key) as client:
        yield client


@pytest_asyncio.fixture
async def database(sim_stack: Stack) -> AsyncIterator[AsyncEngine]:
    engine = connect(sim_stack.environment["DATABASE_URL"])
    yield engine
    await engine.dispose()


@pytest_asyncio.fixture
async def logged(database: AsyncEngine, reader_key: str) -> AsyncIterator[list[str]]:
    """Requests of the reader's project: one with feedback that was refused, and 40 older ones of a hostile user."""
    assert reader_key
    statement = text(
        "INSERT INTO request_log (job_id, ended_at, project_id, key_id, end_user, model, requested_model, status,"
        " created_at, level, body, refused, refusal_source)"
        " SELECT :id, now() - :age * interval '1 min', project_id, id, :user, 'log-model', 'log-route', 'completed',"
        " now() - interval '2 h', :level, :body, :refused, 'classifier'"
        " FROM api_keys WHERE name = 'log reader'"
    )
    ids = []
    async with database.connect() as connection:
        for age in range(41):
            first = age == 0
            values = {
                "age": age, "user": USER if first else HOSTILE, "level": "full" if first else "metadata",
                "body": "lost" if first else "none", "refused": first,
            }  # fmt: skip
            ended_at = (await connection.execute(text("SELECT now()"))).scalar_one()
            ids.append(job_id_at(ended_at))
            await connection.execute(statement, {"id": ids[-1], **values})
        feedback = (
            "INSERT INTO feedback (project_id, job_id, metric, value, source)"
            " SELECT project_id, job_id, 'rating', 'false', 'key' FROM request_log WHERE job_id = :id"
        )
        await connection.execute(text(feedback), {"id": ids[0]})
    yield ids
    async with database.connect() as connection:
        await connection.execute(text("DELETE FROM request_log WHERE model = 'log-model'"))
        await connection.execute(text("DELETE FROM feedback WHERE job_id = :id"), {"id": ids[0]})


def test_readers_see_their_project_and_operators_all(
    logged: list[str], operator: httpx.Client, reader: httpx.Client
) -> None:
    for client in (operator, reader):
        page = client.get("requests", params={"model": "log-model"}).text
        assert logged[0] in page
        assert "refused" in page
        assert "rating: no" in page
        assert "&lt;b&gt;ann" in page
        assert "<b>ann" not in page
    assert "<th>Project" not in reader.get("requests").text.replace(' role="columnheader"', "")
    assert logged[0] not in operator.get("requests", params={"project": "operator"}).text


def rows_in(page: str) -> int:
    return len(re.findall(r"data-row\b", page))


def test_conditions_and_pages(logged: list[str], reader: httpx.Client) -> None:
    for conditions in (
        {"user": USER},
        {"feedback": "rating=false"},
        {"refused": "yes"},
        {"user": USER, "range": "all"},
    ):
        page = reader.get("requests", params=conditions).text
        assert rows_in(page) == 1, conditions
        assert logged[0] in page
    first = reader.get("requests").text
    assert rows_in(first) == 30
    after = first.split('rel="next" href="')[1].split('"')[0].replace("&amp;", "&")
    second = reader.get(after).text
    assert rows_in(second) == 11
    assert "No request matches" in reader.get("requests", params={"model": "nothing"}).text
    for params in ({"after": "x"}, {"project": "operator"}, {"feedback": "a", "after": "y"}):
        assert reader.get("requests", params=params).status_code == 400
    assert reader.get("requests", params={"range": "1y"}).status_code == 400


def test_the_page_says_why_a_body_is_missing(logged: list[str], reader: httpx.Client, operator: httpx.Client) -> None:
    lost, unkept = reader.get(f"requests/{logged[0]}").text, operator.get(f"requests/{logged[1]}").text
    assert "could not be kept" in lost
    assert "keeps no bodies" in unkept
    assert reader.get(f"requests/{logged[0]}/raw").status_code == 404
    assert reader.get(f"requests/{'job_' + 'f' * 32}").status_code == 404


def test_keys_without_the_scope_have_no_such_page(sim_stack: Stack, logged: list[str], member_key: str) -> None:
    with sign_in(sim_stack, member_key) as member:
        assert 'href="requests"' not in member.get("").text
        for path in ("requests", f"requests/{logged[0]}", f"requests/{logged[0]}/raw"):
            assert member.get(path).status_code == 403


class TestInABrowser:
    pytestmark = BROWSER_TESTS

    @pytest.mark.parametrize("one", [False, True])
    async def test_pages_with_data_are_accessible_and_fit_a_phone(
        self, browser: Browser, sim_stack: Stack, operator_key: str, logged: list[str], one: bool
    ) -> None:
        async with visit(browser, sim_stack.url, viewport=PHONE) as phone:
            await phone.sign_in(operator_key)
            await phone.open(f"requests/{logged[0]}" if one else "requests?model=log-model")
            shown = "The texts are not here" if one else HOSTILE
            await expect(phone.page.get_by_text(shown).first).to_be_visible()
            assert await accessibility_faults(phone.page) == []
            await phone.page.emulate_media(color_scheme="dark")
            assert await accessibility_faults(phone.page, COLOURS) == []
            width = await phone.page.evaluate("document.documentElement.scrollWidth")
            assert width <= PHONE["width"]

    async def test_the_keyboard_opens_a_request(
        self, browser: Browser, sim_stack: Stack, operator_key: str, logged: list[str]
    ) -> None:
        async with visit(browser, sim_stack.url) as window:
            await window.sign_in(operator_key)
            await window.open("")
            await window.page.keyboard.press("g")
            await window.page.keyboard.press("q")
            await window.page.wait_for_url(f"{sim_stack.url}/console/requests")
            await window.open(f"requests?user={USER}")
            await window.page.keyboard.press("j")
            await window.page.keyboard.press("Enter")
            await window.page.wait_for_url(f"{sim_stack.url}/console/requests/{logged[0]}")
