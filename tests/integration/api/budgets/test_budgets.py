"""What an API process knows of budgets, plans for new jobs, and reports."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.budgets import budgets as module
from api.budgets.budgets import Budgets
from api.context.window import ContextWindow
from shared.config.models.loader import Registry, load_registry
from shared.domain.budgets import OnExceed, Period
from shared.domain.errors import BudgetExceeded, InvalidRequest
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Sampling
from shared.postgres.budget_store import BudgetStore
from shared.postgres.budget_windows import BudgetWindowStore
from shared.postgres.job_store import JobStore
from shared.telemetry.metrics import Metrics
from tests.conftest import Workers
from tests.integration.shared.postgres.test_budgets import CHARGE, finish
from tests.support.budgets import add_budget, windows
from tests.support.database import make_owner
from tests.support.ledger import set_price
from tests.support.metrics import api_metrics
from tests.support.stack import write_models

# Of 10 output tokens, at the price of `set_price` without a price for input.
AMOUNT = Decimal("0.0001")


@pytest.fixture
def metrics() -> Metrics:
    return api_metrics("m")


@pytest.fixture
async def budgets(database: AsyncEngine, tmp_path: Path, metrics: Metrics) -> Budgets:
    models = [{"name": name, "engine": "simulated"} for name in ("m", "unpriced")]
    registry = load_registry(write_models(tmp_path / "models.yaml", models))
    await set_price(database, input_fresh=0)
    return new_budgets(database, registry, metrics)


def new_budgets(database: AsyncEngine, registry: Registry, metrics: Metrics) -> Budgets:
    return Budgets(BudgetStore(database), BudgetWindowStore(database), registry, ContextWindow(registry), metrics)


def new(owner: Owner, **changes: Any) -> NewJob:
    request = GenerateRequest(prompt="x", sampling=Sampling(max_tokens=10))
    return replace(NewJob(owner, "m", 3, request), **changes)


async def test_a_job_reserves_in_the_windows_that_apply_to_it(
    budgets: Budgets, database: AsyncEngine, owner: Owner
) -> None:
    assert (await budgets.plan(new(owner))).reservations == ()
    other = await make_owner(database, "other")
    of_project = await add_budget(database, owner, 1)
    of_key = await add_budget(database, owner, 1, key_id=owner.key_id)
    of_each = await add_budget(database, owner, 1, end_user="*")
    of_ann = await add_budget(database, owner, 1, end_user="ann", hard=False)
    await budgets.reload()

    async def planned(of: Owner) -> list[int]:
        job = await budgets.plan(new(of))
        assert all(one.amount == AMOUNT for one in job.reservations)
        return sorted(one.budget_id for one in job.reservations)

    assert await planned(owner) == [of_project.id, of_key.id, of_each.id]
    assert await planned(replace(owner, end_user="ann")) == [of_project.id, of_key.id, of_each.id, of_ann.id]
    assert await planned(replace(owner, key_id=999, end_user="bob")) == [of_project.id, of_each.id]
    assert await planned(other) == []
    users = [window.end_user for window in await windows(database) if window.budget_id == of_each.id]
    assert users == ["", "ann", "bob"], "each has a window, and those without a name share one"
    count = len(await windows(database))
    await planned(owner)
    assert len(await windows(database)) == count


async def test_two_processes_share_windows(budgets: Budgets, database: AsyncEngine, owner: Owner) -> None:
    await add_budget(database, owner, 1)
    await budgets.reload()
    first = await budgets.plan(new(owner))
    budgets._windows.clear()
    assert (await budgets.plan(new(owner))).reservations == first.reservations


async def test_a_window_is_that_of_the_databases_clock(budgets: Budgets, database: AsyncEngine, owner: Owner) -> None:
    await add_budget(database, owner, 1, period=Period.HOUR)
    await budgets.reload()
    await budgets.plan(new(owner))
    assert budgets._read_at is not None
    at, monotonic = budgets._read_at
    budgets._read_at = at + timedelta(hours=1), monotonic
    await budgets.plan(new(owner))
    first, second = await windows(database)
    assert first.ends_at == second.starts_at


async def test_a_new_price_is_found_at_once(budgets: Budgets, database: AsyncEngine, owner: Owner) -> None:
    await add_budget(database, owner, 1)
    await budgets.reload()
    unpriced = new(owner, model="unpriced")
    with pytest.raises(InvalidRequest, match="`unpriced` has no price") as error:
        await budgets.plan(unpriced)
    assert error.value.param == "model"
    await set_price(database, "unpriced")
    assert budgets._read_at is not None
    budgets._read_at = budgets._read_at[0], budgets._read_at[1] - 1
    assert len((await budgets.plan(unpriced)).reservations) == 1


async def test_jobs_reserve_at_the_prices_in_force(budgets: Budgets, database: AsyncEngine, owner: Owner) -> None:
    """A later list replaces all steps of the one before it. That of the future does not hold yet."""
    await add_budget(database, owner, 1)
    amounts: list[Decimal] = []
    added: list[tuple[int, dict[str, Any]]] = [
        (50, {"from_input_tokens": 1}),
        (20, {"valid_from": text("now()")}),
        (90, {"valid_from": text("now() + interval '1 day'")}),
    ]
    for rate, more in added:
        await set_price(database, input_fresh=0, output_text=rate, **more)
        await budgets.reload()
        amounts += [one.amount for one in (await budgets.plan(new(owner))).reservations]
    assert amounts == [5 * AMOUNT, 2 * AMOUNT, 2 * AMOUNT]


async def test_a_soft_budget_admits_what_has_no_price(budgets: Budgets, database: AsyncEngine, owner: Owner) -> None:
    await add_budget(database, owner, 1, hard=False)
    (planned,) = (await budgets.plan(new(owner, model="unpriced"))).reservations
    assert planned.amount == 0


async def test_a_held_job_reserves_in_the_next_windows(budgets: Budgets, database: AsyncEngine, owner: Owner) -> None:
    hour = await add_budget(database, owner, 1, period=Period.HOUR, on_exceed=OnExceed.HOLD)
    total = await add_budget(database, owner, 1, period=Period.TOTAL)
    job = await budgets.plan(new(owner))
    held = await budgets.held(job, BudgetExceeded(retry_after_s=3600, holds=True))
    assert held is not None
    assert held.delay_s == 3600
    now, later = ({one.budget_id: one.window_id for one in one.reservations} for one in (job, held))
    assert now[hour.id] != later[hour.id]
    assert now[total.id] == later[total.id]
    late = replace(job, finish_within_s=3600)
    assert await budgets.held(late, BudgetExceeded(retry_after_s=3600, holds=True)) is None


async def test_thresholds_are_logged_and_counted(
    budgets: Budgets,
    metrics: Metrics,
    database: AsyncEngine,
    owner: Owner,
    store: JobStore,
    workers: Workers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    thresholds = (Decimal("0.5"), Decimal(1))
    budget = await add_budget(database, owner, 2 * CHARGE, end_user="*", hard=False, alert_at=thresholds)
    caplog.set_level(logging.WARNING, logger="api.budgets.budgets")

    async def spend() -> list[str]:
        caplog.clear()
        job, _ = await store.insert(await budgets.plan(new(replace(owner, end_user="ann"))))
        await finish(workers("w"), job)
        await budgets.upkeep()
        return [record.getMessage() for record in caplog.records]

    (message,) = await spend()
    assert f"budget=budget_{budget.id}" in message
    assert "end_user=ann reached 50" in message
    (message,) = await spend()
    assert "$0.0001 are spent" in message
    levels = {level: metrics.budget_alerts.labels("end_user", level)._value.get() for level in ("threshold", "limit")}
    assert levels == {"threshold": 1, "limit": 1}
    other = new_budgets(database, budgets._worst_case._registry, metrics)
    await other.upkeep()
    assert metrics.budget_alerts.labels("end_user", "limit")._value.get() == 1


async def test_upkeep_releases_what_an_older_version_has_left(
    budgets: Budgets, metrics: Metrics, database: AsyncEngine, owner: Owner, store: JobStore
) -> None:
    await add_budget(database, owner, 1)
    await store.insert(await budgets.plan(new(owner)))
    async with database.begin() as connection:
        await connection.execute(text("UPDATE jobs SET status = 'completed', finished_at = now()"))
    await budgets.upkeep()
    (window,) = await windows(database)
    assert window.reserved == 0
    assert metrics.budget_reservations_released._value.get() == 1


async def test_upkeep_deletes_windows_that_ended_long_ago(
    budgets: Budgets, database: AsyncEngine, owner: Owner, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PORTION", 2)
    monkeypatch.setattr(module, "PAUSE_S", 0)
    budget = await add_budget(database, owner, 1, end_user="*")
    total = await add_budget(database, owner, 1, period=Period.TOTAL)
    await budgets.reload()
    for name in ("a", "b", "c"):
        await budgets.plan(new(replace(owner, end_user=name)))
    await store.insert(await budgets.plan(new(replace(owner, end_user="busy"))))
    async with database.begin() as connection:
        move = "UPDATE budget_windows SET ends_at = now() - interval '36 days' WHERE end_user <> 'c'"
        await connection.execute(text(move + " AND budget_id = :id"), {"id": budget.id})
        later = "UPDATE budget_windows SET ends_at = now() - interval '34 days' WHERE end_user = 'c'"
        await connection.execute(text(later))
    await budgets.upkeep()
    left = [(window.budget_id, window.end_user) for window in await windows(database)]
    assert sorted(left) == [(budget.id, "busy"), (budget.id, "c"), (total.id, "")]
