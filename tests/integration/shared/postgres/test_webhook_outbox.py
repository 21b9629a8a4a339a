"""The outbox of webhooks: which events the ends of jobs write, and that each is written exactly once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.job import Job, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.request_webhook import RequestWebhook
from shared.domain.response import ResponseFacts, response_id
from shared.domain.webhook_events import EventType, event_id
from shared.postgres.budget_store import BudgetStore
from shared.postgres.budget_windows import BudgetWindowStore
from shared.postgres.engine import transaction
from shared.postgres.job_store import JobStore
from shared.postgres.webhook_outbox import insert_event
from tests.conftest import Workers
from tests.integration.api.cache.test_cached_answers import LOG, answer, completed, new_job, run
from tests.support.budgets import add_budget, reservation, windows
from tests.support.database import make_owner
from tests.support.webhooks import add_endpoint, deliveries

RESPONSE = ResponseFacts(request_params={}, input=[])
URL = "https://example.com/hook"


async def running(store: JobStore, workers: Workers, owner: Owner, **changes: Any) -> Job:
    job, _ = await store.insert(replace(NewJob(owner, "m", 3, GenerateRequest(prompt="x")), **changes))
    assert await workers("w").claim(job.id) is not None
    return job


async def ended(
    store: JobStore, workers: Workers, owner: Owner, status: JobStatus = JobStatus.COMPLETED, **changes: Any
) -> Job:
    job = await running(store, workers, owner, **changes)
    assert await workers("w").finish(job.id, 1, replace(completed(LOG), cacheable=False, status=status))
    return job


async def events(database: AsyncEngine) -> list[tuple[str | None, str, str]]:
    """The deliveries: their endpoints, types and objects, in the order of types."""
    rows = await deliveries(database)
    return sorted(((row.endpoint_id, row.type, row.object_id) for row in rows), key=lambda row: row[1])


@pytest.mark.parametrize("status", [one for one in JobStatus if one.terminal])
async def test_each_end_of_a_job_is_an_event(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, status: JobStatus
) -> None:
    endpoint = await add_endpoint(database, owner.project_id, URL, "job.*")
    job = await ended(store, workers, owner, status)
    (row,) = await deliveries(database)
    assert (row.endpoint_id, row.project_id, row.object_id) == (endpoint, owner.project_id, job.id)
    assert (row.type, row.event_id) == (f"job.{status.value}", event_id(f"job.{status.value}", job.id))
    assert (row.state, row.tries, row.url, row.data, row.target) == ("pending", 0, None, None, endpoint)


@pytest.mark.parametrize(
    ("status", "of_response"),
    [
        (JobStatus.COMPLETED, "response.completed"),
        (JobStatus.INCOMPLETE, "response.incomplete"),
        (JobStatus.FAILED, "response.failed"),
        (JobStatus.CANCELLED, "response.cancelled"),
        (JobStatus.EXPIRED, "response.failed"),
    ],
)
async def test_the_end_of_a_response_is_an_event_too(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, status: JobStatus, of_response: str
) -> None:
    endpoint = await add_endpoint(database, owner.project_id, URL, "*")
    job = await ended(store, workers, owner, status, response=RESPONSE)
    expected = [(endpoint, f"job.{status.value}", job.id), (endpoint, of_response, response_id(job.id))]
    assert await events(database) == expected


async def test_endpoints_get_what_they_subscribe_to(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    other = await make_owner(database, "other")
    wanted = {
        await add_endpoint(database, owner.project_id, URL, *patterns)
        for patterns in (["job.completed"], ["batch.*", "job.*"], ["*"])
    }
    await add_endpoint(database, owner.project_id, URL, "job.failed", "response.*")
    await add_endpoint(database, owner.project_id, URL, "*", disabled="operator")
    await add_endpoint(database, other.project_id, URL, "*")
    job = await ended(store, workers, owner)
    assert await events(database) == sorted((one, "job.completed", job.id) for one in wanted)


async def test_jobs_of_the_server_itself_and_lines_of_batches_are_no_events(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await add_endpoint(database, owner.project_id, URL, "*")
    await ended(store, workers, owner, kind="summary", webhook=RequestWebhook(URL))
    line = await running(store, workers, owner)
    async with database.begin() as connection:
        statement = text("UPDATE jobs SET batch_id = 'batch_1', batch_line = 1 WHERE id = :id")
        await connection.execute(statement, {"id": line.id})
    assert await workers("w").finish(line.id, 1, completed(LOG))
    assert await events(database) == []


@pytest.mark.parametrize(
    ("webhook", "response", "types"),
    [
        (RequestWebhook(URL), None, ["job.completed"]),
        (RequestWebhook(URL), RESPONSE, ["response.completed"]),
        (RequestWebhook(URL, ("job.*",)), RESPONSE, ["job.completed"]),
        (RequestWebhook(URL, ("*",)), RESPONSE, ["job.completed", "response.completed"]),
        (RequestWebhook(URL, ("job.completed",)), None, ["job.completed"]),
        (RequestWebhook(URL, ("job.failed", "response.*")), None, []),
    ],
)
async def test_a_request_names_its_own_webhook(
    store: JobStore,
    workers: Workers,
    owner: Owner,
    database: AsyncEngine,
    webhook: RequestWebhook,
    response: ResponseFacts | None,
    types: list[str],
) -> None:
    await ended(store, workers, owner, webhook=webhook, response=response)
    rows = await deliveries(database)
    assert [row.type for row in rows] == types
    assert all((row.endpoint_id, row.url, row.target) == (None, URL, "https://example.com") for row in rows)


async def test_an_event_goes_to_endpoints_and_to_the_requests_webhook(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    endpoint = await add_endpoint(database, owner.project_id, URL)
    await ended(store, workers, owner, webhook=RequestWebhook(URL))
    rows = await deliveries(database)
    assert {row.endpoint_id for row in rows} == {endpoint, None}
    assert len({row.event_id for row in rows}) == 1, "they have the same webhook-id"


async def test_answers_of_the_response_cache_are_ends_too(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await run(store, workers, new_job(owner))
    endpoint = await add_endpoint(database, owner.project_id, URL)
    plain = await answer(store, owner)
    response = await answer(store, owner, response=RESPONSE)
    assert plain is not None
    assert response is not None
    assert await events(database) == [
        (endpoint, "job.completed", plain.id),
        (endpoint, "job.completed", response.id),
        (endpoint, "response.completed", response_id(response.id)),
    ]


async def test_each_follower_has_its_own_events(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    endpoint = await add_endpoint(database, owner.project_id, URL)
    leader, _ = await store.coalesce(new_job(owner)) or pytest.fail("it leads")
    followers = [await store.coalesce(new_job(owner)) or pytest.fail("it follows") for _ in range(3)]
    assert await workers("w").claim(leader.id) is not None
    assert await workers("w").finish(leader.id, 1, completed(LOG))
    expected = sorted((endpoint, "job.completed", job.id) for job in (leader, *(job for job, _ in followers)))
    assert sorted(await events(database)) == expected


async def test_concurrent_ends_write_an_event_once(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await add_endpoint(database, owner.project_id, URL)
    jobs = [await running(store, workers, owner, webhook=RequestWebhook(URL)) for _ in range(10)]
    await asyncio.gather(*(workers("w").finish(job.id, 1, completed(LOG)) for job in jobs for _ in range(3)))
    rows = await deliveries(database)
    assert len(rows) == 20
    assert len({(row.event_id, row.endpoint_id) for row in rows}) == 20


async def test_an_end_does_not_wait_for_a_change_of_an_endpoint(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    endpoint = await add_endpoint(database, owner.project_id, URL)
    job = await running(store, workers, owner)
    async with transaction(database) as connection:
        await connection.execute(text("DELETE FROM webhook_endpoints WHERE id = :id"), {"id": endpoint})
        async with asyncio.timeout(10):
            assert await workers("w").finish(job.id, 1, completed(LOG))
    assert len(await deliveries(database)) == 1


async def test_an_event_that_exists_does_not_keep_a_job_from_ending(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await add_endpoint(database, owner.project_id, URL)
    job = await running(store, workers, owner)
    async with database.begin() as connection:
        await insert_event(connection, owner.project_id, EventType.JOB_COMPLETED, job.id)
    assert await workers("w").finish(job.id, 1, completed(LOG))
    assert len(await deliveries(database)) == 1


async def test_thresholds_of_budgets_are_events(database: AsyncEngine, owner: Owner) -> None:
    endpoint = await add_endpoint(database, owner.project_id, URL, "budget.*")
    budget = await add_budget(database, owner, 10)
    await reservation(database, budget, 0)
    (window,) = await windows(database)
    window_store = BudgetWindowStore(database)
    for spent in (8, 9, 10, 11):
        async with database.begin() as connection:
            await connection.execute(text("UPDATE budget_windows SET spent = :spent"), {"spent": spent})
        await window_store.take_alerts([window.id])
    rows = await deliveries(database)
    assert [(row.endpoint_id, row.type, row.object_id) for row in rows] == [
        (endpoint, "budget.threshold", f"budget_{budget.id}"),
        (endpoint, "budget.exceeded", f"budget_{budget.id}"),
    ]
    assert rows[0].data == {
        "project": "test",
        "end_user": None,
        "period": "day",
        "threshold": 0.8,
        "limit_usd": 10.0,
        "spend_usd": 8.0,
    }
    # A new limit has thresholds of its own.
    await BudgetStore(database).change(budget.id, {"limit_usd": Decimal(11)})
    await window_store.take_alerts([window.id])
    assert len(await deliveries(database)) == 4
