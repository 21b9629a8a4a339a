"""Budgets over HTTP: operators manage them, and requests without room are refused or held."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import DEAR_ROUTE
from tests.e2e.test_projects import bearer, create_key
from tests.support.stack import Stack

PATH = "/v1/admin/budgets"
# No worker serves this model, so that its jobs stay queued. An output token costs a thousandth of a dollar.
JOB: dict[str, Any] = {"model": "orphan", "prompt": "x", "max_tokens": 100}
LIMIT = 0.15


@pytest.fixture(scope="module")
def admin_key(sim_stack: Stack) -> str:
    return create_key(sim_stack, "treasurer", "--scope", "admin")


@pytest.fixture(scope="module")
def client_key(sim_stack: Stack) -> str:
    return create_key(sim_stack, "thrifty client", "--project", "thrifty")


@pytest.fixture
async def admin(sim_stack: Stack, admin_key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with bearer(sim_stack, admin_key) as client:
        yield client


@pytest.fixture
async def client(sim_stack: Stack, client_key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with bearer(sim_stack, client_key) as client:
        yield client


@pytest.fixture
async def budgets(admin: httpx.AsyncClient) -> AsyncIterator[Any]:
    """Creates budgets, which are deleted after the test."""
    created: list[str] = []

    async def create(**body: Any) -> dict[str, Any]:
        response = await admin.post(PATH, json={"project": "thrifty", "period": "total", "limit_usd": LIMIT, **body})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        created.append(found["id"])
        return found

    yield create
    for budget_id in created:
        await admin.delete(f"{PATH}/{budget_id}")


async def test_a_budget_is_created_shown_changed_and_deleted(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, budgets: Any
) -> None:
    created = await budgets(end_user="*", period="month", time_zone="Europe/Berlin", alert_at=[1, 0.5, 0.5])
    assert created["object"] == "budget"
    assert (created["limit_usd"], created["spend_usd"], created["reserved_usd"]) == (LIMIT, 0, 0)
    assert (created["alert_at"], created["hard"], created["on_exceed"]) == ([0.5, 1], True, "reject")
    assert created["remaining_usd"] is None, "each end user has their own"
    assert (
        datetime.fromisoformat(created["starts_at"]) <= datetime.now(UTC) < datetime.fromisoformat(created["resets_at"])
    )
    path = f"{PATH}/{created['id']}"
    submitted = await client.post("/v1/jobs", json={**JOB, "user": "ann"})
    assert submitted.status_code == 202, submitted.text
    assert (await client.post("/v1/jobs", json={**JOB, "user": "bob"})).status_code == 202, "a window of his own"
    refused = await client.post("/v1/jobs", json={**JOB, "user": "ann"})
    assert refused.status_code == 429
    assert "end user's budget" in refused.json()["error"]["message"]
    shown = (await admin.get(path, params={"end_user": "ann"})).json()
    assert (shown["reserved_usd"], shown["remaining_usd"]) == (pytest.approx(0.1), pytest.approx(0.05))
    assert (await admin.get(path)).json()["reserved_usd"] == pytest.approx(0.2)
    await client.post(f"/v1/jobs/{submitted.json()['id']}/cancel")
    assert (await admin.get(path, params={"end_user": "ann"})).json()["remaining_usd"] == pytest.approx(LIMIT)

    changed = await admin.patch(path, json={"limit_usd": 3, "on_exceed": "hold"})
    assert changed.status_code == 200, changed.text
    assert (changed.json()["limit_usd"], changed.json()["on_exceed"], changed.json()["alert_at"]) == (
        3,
        "hold",
        [0.5, 1],
    )
    listed = (await admin.get(PATH, params={"project": "thrifty"})).json()["data"]
    assert [one["id"] for one in listed] == [created["id"]]
    assert (await admin.get(PATH, params={"project": "other"})).json()["data"] == []
    assert (await admin.delete(path)).json() == {"id": created["id"], "object": "budget.deleted", "deleted": True}
    for response in (await admin.get(path), await admin.patch(path, json={"hard": False}), await admin.delete(path)):
        assert (response.status_code, response.json()["error"]["code"]) == (404, "budget_not_found")


async def test_a_request_without_room_is_refused_once(client: httpx.AsyncClient, budgets: Any) -> None:
    total = await budgets()
    assert (total["remaining_usd"], total["resets_at"]) == (LIMIT, None)
    assert (await client.post("/v1/jobs", json=JOB)).status_code == 202
    refused = await client.post("/v1/chat/completions", json={"model": "orphan", "messages": [], "max_tokens": 100})
    assert refused.status_code == 400, "a request that is not valid is not a matter of money"
    body = {"model": "orphan", "messages": [{"role": "user", "content": "x"}], "max_tokens": 100}
    refused = await client.post("/v1/chat/completions", json=body)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert "$0.10 are spent or reserved, and it could cost up to $0.10" in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers, "waiting does not help"
    too_much = await client.post("/v1/jobs", json={**JOB, "max_tokens": 151})
    assert too_much.status_code == 429
    assert "more than the whole budget" in too_much.json()["error"]["message"]
    assert (await client.post("/v1/jobs", json={**JOB, "max_tokens": 50})).status_code == 202


async def test_background_jobs_are_held_until_the_next_window(client: httpx.AsyncClient, budgets: Any) -> None:
    budget = await budgets(period="day", on_exceed="hold")
    await client.post("/v1/jobs", json=JOB)
    held = await client.post("/v1/jobs", json=JOB)
    assert held.status_code == 202, held.text
    not_before = datetime.fromisoformat(held.json()["not_before"])
    resets_at = datetime.fromisoformat(budget["resets_at"])
    assert 0 <= (not_before - resets_at).total_seconds() < 5
    later = await client.post("/v1/jobs", json=JOB)
    assert (datetime.fromisoformat(later.json()["not_before"]) - resets_at).days == 1, "the next day is used up too"
    for body, headers in ((JOB, {"Prefer": "wait=5"}), (JOB, {"Cancel-After": "60s"})):
        refused = await client.post("/v1/jobs", json=body, headers=headers)
        assert refused.status_code == 429, "a client waits, or the deadline is before that"
        assert int(refused.headers["retry-after"]) >= 1
    body = {"model": "orphan", "messages": [{"role": "user", "content": "x"}], "max_tokens": 100}
    refused = await client.post("/v1/chat/completions", json=body)
    seconds = (resets_at - datetime.now(UTC)).total_seconds()
    assert abs(int(refused.headers["retry-after"]) - seconds) < 5


async def test_a_route_gets_a_cheaper_model_when_its_budget_has_no_room(
    client: httpx.AsyncClient, budgets: Any
) -> None:
    await budgets(on_exceed="downgrade")
    body = {**JOB, "model": DEAR_ROUTE}
    whole = await client.post("/v1/jobs", json=body)
    assert whole.status_code == 202, whole.text
    assert whole.headers["x-headrace-route"] == f"{DEAR_ROUTE}; rule=budget; downgraded_from=dear"
    job = whole.json()
    assert (job["model"], job["requested_model"], job["route"]["downgraded_from"]) == ("orphan", DEAR_ROUTE, "dear")
    chosen = await client.post("/v1/jobs", json={**body, "max_tokens": 20})
    assert (chosen.json()["model"], chosen.json()["route"]["rule"]) == ("dear", "otherwise")
    rest = await client.post("/v1/jobs", json={**body, "max_tokens": 10})
    assert rest.json()["model"] == "orphan", "there is no room for the other one any more"
    refused = await client.post("/v1/jobs", json={**body, "max_tokens": 10})
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert error["code"] == "insufficient_quota"
    assert f"No cheaper model of the route `{DEAR_ROUTE}`" in error["message"]
    plain = await client.post("/v1/jobs", json=JOB)
    assert plain.status_code == 429
    assert "the request names a model" in plain.json()["error"]["message"]


async def test_a_job_with_a_cheaper_model_is_one_request(
    client: httpx.AsyncClient, budgets: Any, admin: httpx.AsyncClient
) -> None:
    """It takes what was taken from rate limits for the dearer one, and a retry receives it, whatever there is room for
    then."""
    budget = await budgets(on_exceed="downgrade")
    assert (await client.post("/v1/jobs", json=JOB)).status_code == 202
    created = await admin.post("/v1/admin/limits", json={"project": "thrifty", "requests_per_minute": 1})
    assert created.status_code == 200, created.text
    try:
        body, headers = {**JOB, "model": DEAR_ROUTE, "max_tokens": 40}, {"Idempotency-Key": "cheaper"}
        cheaper = await client.post("/v1/jobs", json=body, headers=headers)
        assert cheaper.status_code == 202, cheaper.text
        assert cheaper.json()["route"]["downgraded_from"] == "dear"
        await admin.patch(f"{PATH}/{budget['id']}", json={"limit_usd": 0.01})
        assert (await client.post("/v1/jobs", json=body)).status_code == 429
        again = await client.post("/v1/jobs", json=body, headers=headers)
        assert again.json()["id"] == cheaper.json()["id"], again.text
    finally:
        await admin.delete(f"/v1/admin/limits/{created.json()['id']}")


@pytest.mark.parametrize("body", [{"model": "sim", "prompt": "x", "max_tokens": 1}])
async def test_a_model_without_a_price_needs_a_soft_budget(
    client: httpx.AsyncClient, budgets: Any, admin: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    budget = await budgets()
    refused = await client.post("/v1/jobs", json={**body, "model": "small"})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == "model"
    assert "`small` has no price" in error["message"]
    assert "models.yaml" in error["message"]
    await admin.patch(f"{PATH}/{budget['id']}", json={"hard": False})
    assert (await client.post("/v1/jobs", json={**body, "model": "small"})).status_code == 202


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"limit_usd": 0}, "limit_usd", "greater than 0"),
        ({"limit_usd": -1}, "limit_usd", "greater than 0"),
        ({"time_zone": "Europe/Nowhere"}, "time_zone", "unknown time zone"),
        ({"time_zone": "../etc/passwd"}, "time_zone", "unknown time zone"),
        ({"time_zone": "Europe"}, "time_zone", "unknown time zone"),
        ({"alert_at": [1.5]}, "alert_at[0]", "less than or equal to 1"),
        ({"alert_at": [0]}, "alert_at[0]", "greater than 0"),
        ({"period": "year"}, "period", "'hour'"),
        ({"on_exceed": "downgrade", "hard": False}, "on_exceed", "no effect"),
        ({"on_exceed": "hold"}, "on_exceed", "no next window"),
        ({"on_exceed": "hold", "period": "day", "hard": False}, "on_exceed", "no effect"),
        ({"project": "nothing"}, "project", "there is no project"),
        ({"key": "key_1"}, "key", "the project has no key"),
        ({"key": "x"}, "key", "the project has no key"),
        ({"end_user": ""}, "end_user", "at least 1 character"),
    ],
)
async def test_a_budget_without_meaning_is_refused(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, body: dict[str, Any], param: str, message: str
) -> None:
    response = await admin.post(PATH, json={"project": "thrifty", "period": "total", "limit_usd": 1, **body})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert (await client.get(PATH)).status_code == 403
