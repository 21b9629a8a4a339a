"""The pages of usage and of limits, and what a job's page says about its cost."""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.postgres.engine import connect
from tests.e2e.console.test_protection import sign_in
from tests.support.console import BROWSER_TESTS, COLOURS, PHONE, accessibility_faults, create_key, visit
from tests.support.database import run_sql
from tests.support.stack import Stack

# Models and users that no job of other tests has. Spreadsheets take the second user for a formula.
MODEL, OTHER_MODEL = "usage-a", "usage-b"
USER, HOSTILE = "ann of usage", "=<b>ann</b>"
# As scripts of pages ask for a part.
OF_PART = {"HX-Request": "true"}


@pytest.fixture(scope="module")
def spender_key(sim_stack: Stack) -> str:
    return create_key(sim_stack, "spender", "inference")


@pytest.fixture(scope="module")
def operator(sim_stack: Stack, operator_key: str) -> Iterator[httpx.Client]:
    with sign_in(sim_stack, operator_key) as client:
        yield client


@pytest.fixture(scope="module")
def spender(sim_stack: Stack, spender_key: str) -> Iterator[httpx.Client]:
    with sign_in(sim_stack, spender_key) as client:
        yield client


@pytest_asyncio.fixture
async def database(sim_stack: Stack) -> AsyncIterator[AsyncEngine]:
    engine = connect(sim_stack.environment["DATABASE_URL"])
    yield engine
    await engine.dispose()


async def run(database: AsyncEngine, statement: str, **values: Any) -> Any:
    async with database.begin() as connection:
        return await connection.execute(text(statement), values)


async def add_sums(database: AsyncEngine, key_name: str, model: str, user: str, **more: Any) -> None:
    values = {"requests": 1, "fresh": 0, "read": 0, "cost": "0", "charge": "0", "saved": "0", "unpriced": 0, **more}
    await run(
        database,
        "INSERT INTO usage_sums SELECT date_bin('15 minutes', now(), '2000-01-01'), project_id, id, :user, 'generate',"
        " :model, :model, 'default', false, :requests, 0, :requests, :fresh, :read, 0, 0, 100, 0,"
        " CAST(:cost AS text)::numeric, CAST(:charge AS text)::numeric, CAST(:saved AS text)::numeric, :unpriced"
        " FROM api_keys WHERE name = :key",
        key=key_name,
        user=user,
        model=model,
        **values,
    )


@pytest_asyncio.fixture
async def sums(database: AsyncEngine, sim_stack: Stack, spender_key: str) -> AsyncIterator[None]:
    """Usage of the spender's project, and of another one."""
    name = f"payer-{uuid.uuid4().hex[:8]}"
    create_key(sim_stack, name, "inference")
    of_user = {"fresh": 600, "read": 400, "cost": "1.5", "charge": "2.25", "saved": "0.5"}
    await add_sums(database, "spender", MODEL, USER, requests=3, **of_user)
    await add_sums(database, "spender", OTHER_MODEL, HOSTILE, requests=2, unpriced=2)
    await add_sums(database, name, MODEL, "", cost="9.75", charge="8")
    yield
    await run(database, "DELETE FROM usage_sums WHERE model LIKE 'usage-_'")


@pytest.mark.usefixtures("sums")
def test_operators_see_all_usage_and_members_their_own(operator: httpx.Client, spender: httpx.Client) -> None:
    seen, own = operator.get("usage?model=usage-a").text, spender.get("usage?range=24h").text
    for amount in ("$11.25", "$10.25", "$9.75", "$8.00", "$0.50"):
        assert amount in seen
    assert ">payer-" in seen
    assert "Charged" in seen
    assert "$2.25" in own
    assert "$1.50" not in own, "members see what they are charged"
    assert "$8.00" not in own
    assert "Charged" not in own
    assert "40 %" in own, "of the input tokens were in the prefix cache"
    assert "2 entries of the ledger have no price" in own
    assert "&lt;b&gt;ann" in own
    assert "<b>ann" not in own


@pytest.mark.usefixtures("sums")
def test_usage_is_narrowed(operator: httpx.Client, spender: httpx.Client) -> None:
    of_user = operator.get("usage", params={"project": "spender", "user": USER}).text
    assert OTHER_MODEL not in of_user
    assert "$9.75" not in of_user
    assert "No usage" in spender.get("usage", params={"model": "usage-none"}).text
    for params, message in (({"project": "nothing at all"}, "no project"), ({"zone": "Mars/Olympus"}, "time zone")):
        refused = operator.get("usage", params=params)
        assert (refused.status_code, message in refused.text) == (422, True)
    assert spender.get("usage", params={"project": "operator"}).status_code == 422
    assert operator.get("usage", params={"zone": "Europe/Berlin", "range": "7d"}).status_code == 200
    assert operator.get("usage", params={"range": "1y"}).status_code == 400


@pytest.mark.usefixtures("sums")
def test_usage_as_a_file(operator: httpx.Client, spender: httpx.Client) -> None:
    response = spender.get("usage/export?range=7d")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert {row["project"] for row in rows} == {"spender"}
    (ann,) = [row for row in rows if row["user"] == USER]
    assert (ann["model"], ann["requests"], ann["charge"], ann["cost"]) == (MODEL, "3", "2.25", "")
    of_operator = operator.get("usage/export", params={"range": "7d", "project": "spender", "user": USER})
    assert [row["cost"] for row in csv.DictReader(io.StringIO(of_operator.text))] == ["1.5"]
    assert f"'{HOSTILE}" in {row["user"] for row in rows}, "no formula"


@pytest.mark.usefixtures("sums")
def test_savings_are_those_of_a_project(
    sim_stack: Stack, spender: httpx.Client, operator: httpx.Client, spender_key: str
) -> None:
    headers = {"Authorization": f"Bearer {spender_key}", "Prefer": "wait=30"}
    body = {"model": "auto", "prompt": "x", "max_tokens": 3}
    job = httpx.post(f"{sim_stack.url}/v1/jobs", json=body, headers=headers, timeout=60).json()
    assert job["model"] == "sim"
    own = spender.get("usage/savings", headers=OF_PART).text
    assert "Route auto" in own
    assert "answers of other models than small" in own
    narrowed = {"project": "spender", "range": "24h"}
    assert "Route auto" in operator.get("usage/savings", params=narrowed, headers=OF_PART).text
    assert spender.get("usage/savings", params={"project": "operator"}, headers=OF_PART).status_code in (400, 403)
    assert 'hx-get="usage/savings"' in spender.get("usage").text
    assert "Choose a project" in operator.get("usage").text


@pytest.fixture(scope="module")
def saver(sim_stack: Stack) -> Iterator[httpx.Client]:
    """A member of a project with a budget, which has no jobs: those of other tests must not meet it."""
    create_key(sim_stack, "another saver", "inference")
    with sign_in(sim_stack, create_key(sim_stack, "saver", "inference")) as client:
        yield client


@pytest_asyncio.fixture
async def limits(database: AsyncEngine, saver: httpx.Client) -> AsyncIterator[None]:
    """A budget of each of two projects, which one has nearly used up, and a rate limit."""
    await run(
        database,
        "WITH budget AS (INSERT INTO budgets (project_id, period, limit_usd)"
        " SELECT id, 'day', CASE name WHEN 'saver' THEN 20 ELSE 7.77 END FROM projects"
        " WHERE name IN ('saver', 'another saver') RETURNING id, limit_usd)"
        " INSERT INTO budget_windows (budget_id, starts_at, ends_at, spent, reserved)"
        " SELECT id, now() - interval '1 hour', now() + interval '1 hour', 16.5, 0.25 FROM budget"
        " WHERE limit_usd = 20",
    )
    await run(
        database,
        "INSERT INTO limits (project_id, requests_per_minute, mode)"
        " SELECT id, 61234, 'soft' FROM projects WHERE name = 'saver'",
    )
    yield
    await run(database, "DELETE FROM limits WHERE requests_per_minute = 61234")
    await run(database, "DELETE FROM budgets WHERE limit_usd IN (20, 7.77)")


@pytest.mark.usefixtures("limits")
def test_what_is_left_of_budgets_and_limits(operator: httpx.Client, saver: httpx.Client) -> None:
    seen, own = operator.get("limits").text, saver.get("limits").text
    for page in (seen, own):
        for value in (
            "$20.00",
            "$16.50",
            "$0.25",
            "$3.25",
            "nearly used up",
            "61,234",
            "all left",
            "wait in the queue",
        ):
            assert value in page
    assert seen.count("$7.77") == 2, "nothing is spent"
    assert "$7.77" not in own


def test_a_job_shows_what_it_cost(
    sim_stack: Stack, spender: httpx.Client, operator: httpx.Client, spender_key: str
) -> None:
    headers = {"Authorization": f"Bearer {spender_key}", "Prefer": "wait=30"}
    body = {"model": "sim", "prompt": "x", "max_tokens": 3}
    job = httpx.post(f"{sim_stack.url}/v1/jobs", json=body, headers=headers, timeout=60).json()
    page = spender.get(f"jobs/{job['id']}").text
    assert 'aria-label="Cost by attempt"' in page
    assert "a price is missing" in page
    run_sql(
        sim_stack.environment["DATABASE_URL"],
        "UPDATE usage_events SET cost = 0.125, charge = 0.375, source = 'estimate'"
        " WHERE project_id = (SELECT id FROM projects WHERE name = 'spender')",
    )
    page, seen = spender.get(f"jobs/{job['id']}").text, operator.get(f"jobs/{job['id']}").text
    assert "$0.38" in page
    assert "$0.12" not in page
    assert "$0.12 spent · $0.38 charged" in seen
    assert "estimate" in page


@pytest.mark.usefixtures("sums", "limits")
class TestInABrowser:
    pytestmark = BROWSER_TESTS

    @pytest.mark.parametrize("path", ["usage", "limits"])
    async def test_pages_with_data_are_accessible_and_fit_a_phone(
        self, browser: Browser, sim_stack: Stack, operator_key: str, path: str
    ) -> None:
        async with visit(browser, sim_stack.url, viewport=PHONE) as phone:
            await phone.sign_in(operator_key)
            await phone.open(path)
            if path == "limits":
                await expect(phone.page.locator("#live")).to_contain_text("Live")
            else:
                await expect(phone.page.get_by_role("img", name="from")).to_be_visible()
            assert await accessibility_faults(phone.page) == []
            await phone.page.emulate_media(color_scheme="dark")
            assert await accessibility_faults(phone.page, COLOURS) == []
            width = await phone.page.evaluate("document.documentElement.scrollWidth")
            assert width <= PHONE["width"]
