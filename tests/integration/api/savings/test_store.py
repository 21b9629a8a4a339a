"""The usage that the savings report reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

from api.savings.service import SavingsService
from api.savings.store import SavingsStore
from shared.config.models.loader import Registry
from shared.config.models.routes import Route
from shared.config.models.simulated import SimulatedModel
from shared.domain.decisions import CacheDecision, Decisions, RouteDecision
from shared.domain.ids import first_id
from shared.domain.job import JOB_ID_PREFIX, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import JobStore
from shared.postgres.tables import JobRow
from tests.support.database import make_owner

REGISTRY = Registry(
    {name: SimulatedModel(name=name, engine="simulated") for name in ("small", "large")},
    [Route(name="auto", models=("small", "large"))],
)


async def answered(
    store: JobStore,
    database: AsyncEngine,
    owner: Owner,
    model: str,
    usage: dict[str, int] | None,
    *,
    route: str | None = None,
    outcome: str | None = None,
    inherited: dict[str, int] | None = None,
    created_at: datetime | None = None,
    status: JobStatus = JobStatus.COMPLETED,
    kind: str | None = None,
) -> str:
    """A job whose row has this usage."""
    job, _ = await store.insert(NewJob(owner, model, 3, GenerateRequest(prompt="x"), kind=kind))
    decisions = Decisions(
        route=RouteDecision(route=route, rule="complexity") if route else None,
        cache=CacheDecision(outcome=outcome, inherited=inherited) if outcome else None,
    )
    values: dict[str, Any] = {"usage": usage, "decisions": decisions.stored(), "status": status.value}
    if created_at is not None:
        values |= {"created_at": created_at, "id": first_id(JOB_ID_PREFIX, created_at) + "0" * 20}
    async with database.connect() as connection:
        await connection.execute(update(JobRow).where(JobRow.id == job.id).values(**values))
    return job.id


def tokens(prompt: int, cached: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "cached_tokens": cached, "completion_tokens": completion}


async def test_the_usage_of_a_project_in_a_time(store: JobStore, database: AsyncEngine, owner: Owner) -> None:
    now = datetime.now(UTC)
    other = await make_owner(database, "other")
    await answered(store, database, owner, "small", tokens(10, 4, 5), route="auto", outcome="MISS")
    await answered(store, database, owner, "small", tokens(20, 6, 5), route="auto", outcome="MISS")
    # It has continued what was generated for a job that was cancelled, of which it inherited tokens.
    used, inherited = tokens(10, 4, 9), tokens(10, 4, 5)
    await answered(store, database, owner, "small", inherited, route="auto", outcome="MISS", status=JobStatus.CANCELLED)
    await answered(store, database, owner, "small", used, route="auto", outcome="MISS", inherited=inherited)
    await answered(store, database, owner, "small", tokens(10, 4, 5), route="auto", outcome="HIT")
    await answered(store, database, owner, "large", {"prompt_tokens": 7, "completion_tokens": 3})
    await answered(store, database, owner, "large", tokens(2, 0, 1), status=JobStatus.INCOMPLETE)
    await answered(store, database, owner, "large", None)
    for status in (JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.IN_PROGRESS):
        await answered(store, database, owner, "large", tokens(900, 0, 900), status=status)
    await answered(store, database, owner, "small", tokens(80, 0, 20), kind="summary")
    await answered(store, database, other, "large", tokens(1000, 0, 1000))
    await answered(store, database, owner, "large", tokens(500, 0, 500), created_at=now - timedelta(days=3))
    usage = SavingsStore(database)
    rows = await usage.usage(owner.project_id, now - timedelta(days=1))
    found = {
        (row.model, row.route, row.outcome, row.kind): (
            row.requests,
            row.prompt_tokens,
            row.cached_tokens,
            row.completion_tokens,
        )
        for row in rows
    }
    assert found == {
        ("small", "auto", "MISS", None): (3, 40, 14, 19),
        ("small", "auto", "HIT", None): (1, 10, 4, 5),
        ("large", None, None, None): (2, 9, 0, 4),
        ("small", None, None, "summary"): (1, 80, 0, 20),
    }
    assert {row.day for row in rows} <= {now.date(), datetime.now(UTC).date()}
    days = {row.day for row in await usage.usage(owner.project_id, now - timedelta(days=7))}
    assert (now - timedelta(days=3)).date() in days

    start, end, report = await SavingsService(usage, REGISTRY).report(owner.project_id, 2)
    assert end - start == timedelta(days=2)
    (route,) = report.routes
    assert route.baseline == "large"
    assert route.saved is not None
    assert (route.saved.prompt_tokens, route.saved.completion_tokens) == (40, 19)
    assert report.response_cache["small"].completion_tokens == 5
    assert report.summaries["small"].prompt_tokens == 80


async def test_the_report_reads_a_range_of_an_index(database: AsyncEngine, owner: Owner) -> None:
    store = SavingsStore(database)
    async with database.connect() as connection:
        await connection.execute(text("SET enable_seqscan = off"))  # the table is almost empty
        statement = store.statement(owner.project_id, datetime.now(UTC) - timedelta(days=7))
        dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
        compiled = statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
        lines = (await connection.execute(text(f"EXPLAIN {compiled}".replace(":", "\\:")))).scalars().all()
        await connection.execute(text("RESET enable_seqscan"))
    plan = "\n".join(lines)
    assert "Index Cond: (" in plan
    assert "(id >= 'job_" in plan
    assert "Seq Scan" not in plan
