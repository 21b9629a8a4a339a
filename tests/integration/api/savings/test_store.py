"""The usage that the savings report reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

from api.savings.service import SavingsService
from api.savings.store import Amounts, SavingsStore
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
from shared.postgres.usage_tables import PriceRow
from tests.support.database import make_owner
from tests.support.ledger import CACHED, INPUT, set_price
from tests.support.usage_entries import correction, entry, write

REGISTRY = Registry(
    {name: SimulatedModel(name=name, engine="simulated") for name in ("small", "large")},
    [Route(name="auto", models=("small", "large"))],
)

BASELINES = {"auto": "large", "fast": "small"}


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
    values["finished_at"] = created_at or datetime.now(UTC)
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
    rows = await usage.usage(owner.project_id, now - timedelta(days=1), BASELINES)
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
    days = {row.day for row in await usage.usage(owner.project_id, now - timedelta(days=7), {})}
    assert (now - timedelta(days=3)).date() in days

    start, end, report = await SavingsService(usage, REGISTRY).report(owner.project_id, 2)
    assert end - start == timedelta(days=2)
    (route,) = report.routes
    assert route.baseline == "large"
    assert route.saved is not None
    assert (route.saved.prompt_tokens, route.saved.completion_tokens) == (40, 19)
    assert report.response_cache["small"].completion_tokens == 5
    assert report.summaries["small"].prompt_tokens == 80
    # Nothing has a price, which does not mean that nothing was saved.
    assert (route.charge, route.expected_usd, report.response_cache_usd, report.prompt_cache_usd) == (None,) * 4
    assert report.coalescing_usd == 0, "no request was coalesced"


async def charge(
    database: AsyncEngine, owner: Owner, job_id: str, amount: Decimal | None, **columns: Any
) -> dict[str, Any]:
    """The final entry of a job."""
    values = entry(
        job_id=job_id, project_id=owner.project_id, key_id=owner.key_id, ended_at=datetime.now(UTC), cost=amount,
        charge=amount, **columns,
    )  # fmt: skip
    await write(database, [values])
    return values


async def price_id(database: AsyncEngine, model: str) -> int:
    async with database.connect() as connection:
        found = await connection.scalar(select(func.max(PriceRow.id)).where(PriceRow.model == model))
        assert found is not None
        return found


async def test_the_amounts_of_jobs(store: JobStore, database: AsyncEngine, owner: Owner) -> None:
    """What was charged is in the ledger, and what another model would have cost follows from its price at that time."""
    since = datetime.now(UTC) - timedelta(days=1)
    await set_price(database, "small", input_cache_write_5m=Decimal(3), input_cache_write_1h=Decimal(4))
    await set_price(database, "large", input_fresh=Decimal(20), input_cache_read=Decimal(2), output_text=Decimal(100))
    await set_price(database, "large", from_input_tokens=1000, input_fresh=Decimal(40), input_cache_read=None,
                    output_text=Decimal(100))  # fmt: skip
    small = await price_id(database, "small")
    usage = {**tokens(100, 40, 10), "cache_write_tokens": 30, "cache_write_1h_tokens": 10}
    first = await answered(store, database, owner, "small", usage, route="auto", outcome="MISS")
    lost = entry(job_id=first, project_id=owner.project_id, attempt=1, final=False, charge=Decimal(0), cost=Decimal(5))
    await write(database, [lost])
    # It had no price, and was priced again.
    charged = await charge(database, owner, first, None, attempt=2)
    await write(database, [correction(charged, charge=Decimal("0.5"), cost=Decimal("0.5"), price_id=small)])
    # A long prompt, and a job that has inherited the output, as it is charged.
    inherited = {"prompt_tokens": 1500, "completion_tokens": 4}
    second = await answered(
        store, database, owner, "small", tokens(2500, 0, 10), route="auto", outcome="MISS", inherited=inherited
    )
    await charge(database, owner, second, Decimal("0.25"), price_id=small)
    hit = await answered(store, database, owner, "small", tokens(10, 4, 5), route="auto", outcome="HIT")
    await charge(database, owner, hit, Decimal(0), attempt=0, saved=Decimal("0.125"))
    unpriced = await answered(store, database, owner, "small", tokens(10, 4, 5), outcome="COALESCED")
    await charge(database, owner, unpriced, Decimal(0), attempt=0)
    found = {row.outcome: row.amounts for row in await SavingsStore(database).usage(owner.project_id, since, BASELINES)}
    million = Decimal(1_000_000)
    assert found["MISS"] == Amounts(
        charge=Decimal("0.75"),
        prompt_cache=(40 * (INPUT - CACHED) - 20 * (3 - INPUT) - 10 * (4 - INPUT)) / million,
        baseline_input=(100 * 20 + 1000 * 40) / million,
        baseline_cached_input=None,  # of long prompts, the price of cached ones is not known
        baseline_output=(10 + 6) * 100 / million,
    )
    assert (found["HIT"].charge, found["HIT"].saved, found["HIT"].baseline_input) == (
        Decimal(0),
        Decimal("0.125"),
        None,
    )
    assert (found["COALESCED"].charge, found["COALESCED"].saved) == (Decimal(0), None)


async def test_the_report_reads_a_range_of_an_index(database: AsyncEngine, owner: Owner) -> None:
    store = SavingsStore(database)
    async with database.connect() as connection:
        await connection.execute(text("SET enable_seqscan = off"))  # the table is almost empty
        statement = store.statement(owner.project_id, datetime.now(UTC) - timedelta(days=7), BASELINES)
        dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
        compiled = statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
        lines = (await connection.execute(text(f"EXPLAIN {compiled}".replace(":", "\\:")))).scalars().all()
        await connection.execute(text("RESET enable_seqscan"))
    plan = "\n".join(lines)
    assert "Index Cond: (" in plan
    assert "(id >= 'job_" in plan
    assert "usage_events_pkey" in plan
    assert "Seq Scan" not in plan
