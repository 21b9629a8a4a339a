"""Jobs reserve in the windows of budgets as they are inserted, and what they have reserved is settled as they end."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.budgets import OnExceed, Period
from shared.domain.errors import BudgetExceeded
from shared.domain.job import Failure, Job, JobStatus
from shared.domain.ledger import Counts, Entry, Source
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.result import JobResult
from shared.postgres import budget_store, engine
from shared.postgres.budget_store import Budget, BudgetStore
from shared.postgres.budget_windows import BudgetWindowStore
from shared.postgres.claim_store import ClaimStore
from shared.postgres.engine import connect, transaction
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from tests.conftest import Workers
from tests.integration.api.cache.test_cached_answers import LOG, answer, completed, new_job
from tests.integration.api.cache.test_cached_answers import run as run_cached
from tests.support.budgets import add_budget, check_books, reservation, reservations, windows
from tests.support.ledger import set_price
from tests.support.waiting import eventually

# A job of 5 output tokens is charged this, at the price of `set_price`.
CHARGE = Decimal("0.00005")
IDEMPOTENCY = Idempotency("k", "0" * 64)


def result(status: JobStatus = JobStatus.COMPLETED, output_tokens: int = 5, **changes: Any) -> JobResult:
    """The result of a first attempt, which is charged for its output."""
    counts = Counts(output_text=output_tokens)
    entry = Entry(1, datetime.now(UTC), "m", status.value, counts, Source.ENGINE, final=True)
    return replace(completed(LOG), status=status, **{"cacheable": False, "entries": (entry,), **changes})


def new(owner: Owner, **changes: Any) -> NewJob:
    return replace(NewJob(owner, "m", 3, GenerateRequest(prompt="x")), **changes)


async def submit(
    store: JobStore, database: AsyncEngine, owner: Owner, budget: Budget, amount: Any, **changes: Any
) -> Job:
    """Insert a job that reserves an amount."""
    wanted = await reservation(database, budget, amount)
    job, _ = await store.insert(new(owner, reservations=(wanted,), **changes))
    return job


async def finish(worker: ClaimStore, job: Job, **changes: Any) -> None:
    assert await worker.claim(job.id) is not None
    assert await worker.finish(job.id, 1, result(**changes))


async def refused(submitting: Any) -> BudgetExceeded:
    with pytest.raises(BudgetExceeded) as found:
        await submitting
    return found.value


async def test_a_job_reserves_and_its_end_counts_its_charge(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await set_price(database)
    budget = await add_budget(database, owner, 1)
    job = await submit(store, database, owner, budget, "0.25")
    (window,) = await windows(database)
    assert (window.reserved, window.spent) == (Decimal("0.25"), 0)
    assert await reservations(database) == [(job.id, window.id, Decimal("0.25"))]
    await finish(workers("w"), job)
    (window,) = await windows(database)
    assert (window.reserved, window.spent) == (0, CHARGE)
    assert await reservations(database) == []


async def test_a_job_without_room_is_not_inserted(store: JobStore, owner: Owner, database: AsyncEngine) -> None:
    budget = await add_budget(database, owner, 1)
    await submit(store, database, owner, budget, "0.75")
    error = await refused(submit(store, database, owner, budget, "0.26"))
    assert str(error) == (
        f"This project's budget of $1.00 per day (budget_{budget.id}) has no room for this request: $0.75 are spent or"
        " reserved, and it could cost up to $0.26."
    )
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    assert error.retry_after_s is not None
    assert abs(error.retry_after_s - (midnight - now).total_seconds()) < 60
    assert not error.holds
    await submit(store, database, owner, budget, "0.25")  # all of it
    assert len(await reservations(database)) == 2
    async with database.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM jobs")) == 2


async def test_a_total_budget_names_no_time_to_retry(store: JobStore, owner: Owner, database: AsyncEngine) -> None:
    budget = await add_budget(database, owner, 1, period=Period.TOTAL)
    error = await refused(submit(store, database, owner, budget, 2))
    assert error.retry_after_s is None
    assert "in total" in str(error)


async def test_a_soft_budget_admits_everything(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await set_price(database)
    budget = await add_budget(database, owner, "0.00001", hard=False)
    await finish(workers("w"), await submit(store, database, owner, budget, 5))
    await submit(store, database, owner, budget, 5)
    (window,) = await windows(database)
    assert (window.reserved, window.spent) == (5, CHARGE)


async def test_every_window_must_have_room(store: JobStore, owner: Owner, database: AsyncEngine) -> None:
    """The time to retry is that of the one that ends last, and a job is held only if all of them hold."""
    day = await add_budget(database, owner, 1, on_exceed=OnExceed.HOLD)
    month = await add_budget(database, owner, 10, period=Period.MONTH)
    wanted = [await reservation(database, budget, 1) for budget in (day, month)]
    await store.insert(new(owner, reservations=tuple(wanted)))
    error = await refused(store.insert(new(owner, reservations=tuple(wanted))))
    assert error.holds
    assert [window.reserved for window in await windows(database)] == [1, 1], "of the month, nothing was reserved"
    for _ in range(9):
        await submit(store, database, owner, month, 1)
    both = await refused(store.insert(new(owner, reservations=tuple(wanted))))
    assert not both.holds
    assert both.retry_after_s is not None
    assert error.retry_after_s is not None
    assert both.retry_after_s >= error.retry_after_s - 60  # on the last day of a month, both end at the same time


@pytest.mark.parametrize("status", [JobStatus.CANCELLED, JobStatus.EXPIRED])
async def test_a_job_that_ends_while_it_waits_costs_nothing(
    store: JobStore, recovery_store: RecoveryStore, owner: Owner, database: AsyncEngine, status: JobStatus
) -> None:
    budget = await add_budget(database, owner, 1)
    job = await submit(store, database, owner, budget, 1)
    ending = result(status, entries=(), attempts=(), error=Failure("cancelled", "x"))
    assert await recovery_store.end_queued(job.id, 0, ending)
    (window,) = await windows(database)
    assert (window.reserved, window.spent) == (0, 0)
    assert await reservations(database) == []


async def test_an_unknown_charge_counts_as_what_was_reserved(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    budget = await add_budget(database, owner, 1)  # the model has no price
    await finish(workers("w"), await submit(store, database, owner, budget, "0.5"))
    (window,) = await windows(database)
    assert (window.reserved, window.spent) == (0, Decimal("0.5"))


async def test_an_idempotent_submit_reserves_once(store: JobStore, owner: Owner, database: AsyncEngine) -> None:
    budget = await add_budget(database, owner, 1)
    wanted = new(owner, reservations=(await reservation(database, budget, 1),))
    job, created = await store.insert(wanted, IDEMPOTENCY)
    assert created
    assert await store.insert(wanted, IDEMPOTENCY) == (job, False), "the budget is used up, by this job"
    other = Idempotency("other", "0" * 64)
    await refused(store.insert(wanted, other))
    (window,) = await windows(database)
    assert window.reserved == 1
    async with database.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM idempotency_keys")) == 1, "a refused one is not used"


async def test_answers_of_the_response_cache_cost_nothing(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    budget = await add_budget(database, owner, 1)
    await run_cached(store, workers, new_job(owner))
    await submit(store, database, owner, budget, 1)
    wanted = (await reservation(database, budget, 1),)
    assert await answer(store, owner, reservations=wanted) is not None
    (window,) = await windows(database)
    assert (window.reserved, window.spent) == (1, 0)


@pytest.mark.parametrize("end", ["answered", "cancelled"])
async def test_a_follower_reserves_until_it_ends(
    store: JobStore, workers: Workers, recovery_store: RecoveryStore, owner: Owner, database: AsyncEngine, end: str
) -> None:
    await set_price(database)
    budget = await add_budget(database, owner, 1)
    wanted = (await reservation(database, budget, "0.4"),)
    (leader, _), (follower, _) = [await coalesce(store, new_job(owner, reservations=wanted)) for _ in range(2)]
    assert follower.follows == leader.id
    await refused(coalesce(store, new_job(owner, reservations=wanted)))
    if end == "answered":
        assert await workers("w").claim(leader.id) is not None
        ended = await workers("w").finish(leader.id, 1, result(cacheable=True, leads=True))
        assert ended is not None
        assert [change.job_id for change in ended.followers] == [follower.id]
        (window,) = await windows(database)
        assert (window.reserved, window.spent) == (0, CHARGE)
        assert await reservations(database) == []
    else:  # the follower takes the lead, and keeps its reservation
        ending = result(JobStatus.CANCELLED, entries=(), attempts=(), leads=True, error=Failure("cancelled", "x"))
        assert await recovery_store.end_queued(leader.id, 0, ending)
        assert [row.job_id for row in await reservations(database)] == [follower.id]
        await finish(workers("w"), follower)
    await check_books(database)


async def coalesce(store: JobStore, wanted: NewJob) -> tuple[Job, bool]:
    coalesced = await store.coalesce(wanted)
    assert coalesced is not None
    return coalesced


async def test_a_group_admits_what_there_is_room_for(store: JobStore, owner: Owner, database: AsyncEngine) -> None:
    """Those that fit only because an earlier one was refused are admitted too, by another statement."""
    budget = await add_budget(database, owner, 1)
    amounts = ["0.4", "0.9", "0.3", "0.5", "0.3"]
    jobs = [new(owner, reservations=(await reservation(database, budget, amount),)) for amount in amounts]
    outcomes = await together(store, jobs)
    assert [isinstance(one, BudgetExceeded) for one in outcomes] == [False, True, False, True, False]
    (window,) = await windows(database)
    assert window.reserved == 1


async def test_jobs_without_budgets_are_in_the_same_group(store: JobStore, owner: Owner, database: AsyncEngine) -> None:
    budget = await add_budget(database, owner, 1)
    limited = new(owner, reservations=(await reservation(database, budget, 2),))
    first, second, third = await together(store, [new(owner), limited, new(owner)])
    assert isinstance(second, BudgetExceeded)
    assert isinstance(first, Job)
    assert isinstance(third, Job)


async def together(store: JobStore, jobs: Sequence[NewJob]) -> list[Job | BudgetExceeded]:
    """Insert jobs in one group, while the writers of the group commit are busy."""
    busy = [asyncio.ensure_future(store.insert(replace(jobs[0], reservations=()))) for _ in range(2)]
    outcomes = await asyncio.gather(*(store.insert(job) for job in jobs), return_exceptions=True)
    await asyncio.gather(*busy)
    found: list[Job | BudgetExceeded] = []
    for outcome in outcomes:
        if isinstance(outcome, tuple):
            found.append(outcome[0])
        else:
            assert isinstance(outcome, BudgetExceeded), outcome
            found.append(outcome)
    return found


async def test_a_budget_that_was_deleted_limits_nothing(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    """Whether a job has reserved in it, or is about to."""
    budget = await add_budget(database, owner, 1)
    wanted = (await reservation(database, budget, 1),)
    job, _ = await store.insert(new(owner, reservations=wanted))
    assert await BudgetStore(database).delete(budget.id)
    await store.insert(new(owner, reservations=wanted))
    await finish(workers("w"), job)
    assert await reservations(database) == []
    assert await windows(database) == []


@pytest.mark.parametrize("action", ["change", "delete"])
async def test_an_operators_process_that_hangs_holds_up_jobs_only_for_a_while(
    store: JobStore, owner: Owner, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr(engine, "MAX_IDLE_MS", 100)
    budget = await add_budget(database, owner, 1)
    wanted = new(owner, reservations=(await reservation(database, budget, "0.1"),))

    async def hang(*_arguments: Any, **_options: Any) -> None:
        await store.insert(wanted)

    monkeypatch.setattr(budget_store, "record", hang)
    budgets = BudgetStore(database)
    with contextlib.suppress(DBAPIError):  # the server closes the connection
        await (budgets.delete(budget.id) if action == "delete" else budgets.change(budget.id, {"limit_usd": 2}))
    assert len(await reservations(database)) == 1
    found = await budgets.get(budget.id)
    assert found is not None
    assert found.limit_usd == 1, "it was rolled back"


async def test_the_change_and_the_deletion_of_a_budget_do_not_deadlock(
    store: JobStore, owner: Owner, database: AsyncEngine
) -> None:
    """A change locks the budget, then its windows. So the deletion waits for the budget, with no window locked."""
    budget = await add_budget(database, owner, 1)
    await submit(store, database, owner, budget, 1)

    async def waits() -> bool:
        query = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        async with database.connect() as connection:
            return bool(await connection.scalar(text(query)))

    async with transaction(database) as changing:
        await changing.execute(text("SELECT 1 FROM budgets FOR NO KEY UPDATE"))
        deletion = asyncio.create_task(BudgetStore(database).delete(budget.id))
        await eventually(waits, "the deletion waits")
        await changing.execute(text("SELECT 1 FROM budget_windows FOR NO KEY UPDATE NOWAIT"))
    assert await deletion


@asynccontextmanager
async def ended_by_an_older_version(database: AsyncEngine) -> AsyncIterator[None]:
    """Jobs that end within the block keep their reservations."""
    async with database.begin() as connection:
        kept = (await connection.execute(text("DELETE FROM budget_reservations RETURNING *"))).mappings().all()
    yield
    async with database.begin() as connection:
        statement = text("INSERT INTO budget_reservations VALUES (:job_id, :window_id, :amount)")
        await connection.execute(statement, [dict(row) for row in kept])


async def test_reservations_that_an_older_version_has_left_are_released(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await set_price(database)
    budget = await add_budget(database, owner, 1)
    ended, removed, waiting = [await submit(store, database, owner, budget, "0.3") for _ in range(3)]
    async with ended_by_an_older_version(database):
        await finish(workers("w"), ended)
    async with database.begin() as connection:
        await connection.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": removed.id})
    store_of_windows = BudgetWindowStore(database)
    assert await store_of_windows.release_ended() == 2
    assert await store_of_windows.release_ended() == 0
    (window,) = await windows(database)
    assert (window.reserved, window.spent) == (Decimal("0.3"), CHARGE)
    assert [row.job_id for row in await reservations(database)] == [waiting.id]


@pytest.mark.parametrize(
    ("ending", "spent"),
    [
        ({}, "0.3"),  # the model has no price
        ({"entries": ()}, "0.3"),
        ({"entries": (), "status": JobStatus.FAILED}, "0"),
        ({"entries": (), "status": JobStatus.CANCELLED, "attempts": ()}, "0"),  # it was only deferred
    ],
)
async def test_a_charge_that_an_older_version_has_not_recorded(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, ending: dict[str, Any], spent: str
) -> None:
    """What was reserved counts as spent, unless the job is charged nothing whatever it has used."""
    budget = await add_budget(database, owner, 1)
    job = await submit(store, database, owner, budget, "0.3")
    async with ended_by_an_older_version(database):
        await finish(workers("w"), job, **ending)
    assert await BudgetWindowStore(database).release_ended() == 1
    (window,) = await windows(database)
    assert (window.reserved, window.spent) == (0, Decimal(spent))


async def test_each_threshold_is_reported_once_in_a_window(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await set_price(database)
    thresholds = (Decimal("0.5"), Decimal("0.8"), Decimal(1))
    budget = await add_budget(database, owner, 4 * CHARGE, alert_at=thresholds)
    budgets, store_of_windows = BudgetStore(database), BudgetWindowStore(database)

    async def spend() -> list[tuple[Decimal, ...]]:
        job = await submit(store, database, owner, budget, CHARGE)
        (window,) = await windows(database)
        assert await store_of_windows.busy([window.id]) == {window.id}
        await finish(workers("w"), job)
        assert await store_of_windows.busy([window.id]) == set()
        both = await asyncio.gather(*(store_of_windows.take_alerts([window.id]) for _ in range(2)))
        return [alert.thresholds for alerts in both for alert in alerts]

    assert await spend() == []
    assert await spend() == [thresholds[:1]]
    assert await spend() == []
    assert await spend() == [thresholds[1:]]
    await budgets.change(budget.id, {"limit_usd": 10 * CHARGE})
    assert await spend() == [thresholds[:1]], "the thresholds of the new limit are reported"


async def test_a_change_leaves_ended_windows_alone(store: JobStore, owner: Owner, database: AsyncEngine) -> None:
    for period in (Period.DAY, Period.TOTAL):
        budget = await add_budget(database, owner, 1, period=period)
        await submit(store, database, owner, budget, "0.1")
    async with database.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO budget_windows (budget_id, end_user, starts_at, ends_at)"
                " SELECT budget_id, 'earlier', starts_at - interval '1 day', starts_at FROM budget_windows"
                " WHERE ends_at IS NOT NULL"
            )
        )
        await connection.execute(text("UPDATE budget_windows SET alerted = 0.8"))
    for budget in await BudgetStore(database).page(limit=9):
        assert await BudgetStore(database).change(budget.id, {"limit_usd": Decimal(2)})
    alerted = {(window.end_user, window.ends_at is None): window.alerted for window in await windows(database)}
    assert alerted == {("", False): 0, ("", True): 0, ("earlier", False): Decimal("0.8")}


async def test_a_lower_limit_holds_for_the_current_window(store: JobStore, owner: Owner, database: AsyncEngine) -> None:
    budget = await add_budget(database, owner, 1)
    await submit(store, database, owner, budget, "0.5")
    assert await BudgetStore(database).change(budget.id, {"limit_usd": Decimal("0.25")})
    assert "$0.25 per day" in str(await refused(submit(store, database, owner, budget, "0.1")))


# Concurrency: several processes, of which each has an engine and stores of its own


@asynccontextmanager
async def processes(url: str, count: int) -> AsyncIterator[list[AsyncEngine]]:
    async with AsyncExitStack() as stack:
        engines = [connect(url, pool_size=6) for _ in range(count)]
        for engine in engines:
            stack.push_async_callback(engine.dispose)
        yield engines


async def test_64_submitters_of_4_processes_share_a_dollar(
    database_url: str, database: AsyncEngine, owner: Owner
) -> None:
    """Nothing is spent above the limit, and nobody is refused while there is room. Redis has no part in this."""
    await set_price(database, output_text=1000, input_fresh=0)
    budget = await add_budget(database, owner, 1)
    # Each reserves 20 tokens and is charged 5.
    reserved, charge = Decimal("0.02"), Decimal("0.005")
    wanted = new(owner, reservations=(await reservation(database, budget, reserved),))

    async def client(engine: AsyncEngine, store: JobStore, worker: ClaimStore) -> int:
        jobs = 0
        while True:
            try:
                job, _ = await store.insert(wanted)
            except BudgetExceeded as error:
                found = re.search(r"\$([0-9.]+) are spent or reserved", str(error))
                assert found is not None
                assert Decimal(found[1]) + reserved > 1, "it was refused although there was room"
                (window,) = await windows(engine)
                if window.spent + reserved > 1:  # there will never be room again
                    return jobs
                continue
            jobs += 1
            await finish(worker, job)

    async with processes(database_url, 4) as engines:
        stores = [(engine, JobStore(engine), ClaimStore(engine, f"w{number}")) for number, engine in enumerate(engines)]
        done = await asyncio.gather(*(client(*stores[number % 4]) for number in range(64)))
    (window,) = await windows(database)
    assert window.reserved == 0
    assert window.spent == sum(done) * charge
    assert Decimal("0.95") <= window.spent <= 1
    await check_books(database)


async def test_submits_and_ends_of_the_same_keys_do_not_deadlock(
    database_url: str, database: AsyncEngine, owner: Owner
) -> None:
    """Leaders of the response cache wait for each other's ends with windows locked, in either order."""
    await set_price(database)
    budgets = [await add_budget(database, owner, 1000) for _ in range(2)]
    both = [await reservation(database, budget, "0.01") for budget in budgets]
    keys = [bytes([number]) * 32 for number in range(3)]

    async def client(number: int, store: JobStore, worker: ClaimStore) -> None:
        order = tuple(both if number % 2 else reversed(both))
        for turn in range(6):
            wanted = new_job(owner, cache_key=keys[(number + turn) % len(keys)], reservations=order)
            job, _ = await store.coalesce(wanted) or await store.insert(wanted)
            if job.follows is None and await worker.claim(job.id) is not None:
                assert await worker.finish(job.id, 1, result(leads=True, cacheable=True))

    async with processes(database_url, 3) as engines:
        stores = [(JobStore(engine), ClaimStore(engine, f"w{number}")) for number, engine in enumerate(engines)]
        await asyncio.gather(*(client(number, *stores[number % 3]) for number in range(12)))
        # The followers that were inserted as their leaders ended.
        orphans = await RecoveryStore(engines[0]).orphans()
        for _ in range(20):
            if not orphans:
                break
            for change in await RecoveryStore(engines[0]).settle(orphans):
                if not change.status.terminal:
                    assert await stores[0][1].claim(change.job_id) is not None
                    assert await stores[0][1].finish(change.job_id, 1, result(leads=True, cacheable=True))
            orphans = await RecoveryStore(engines[0]).orphans()
    async with database.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM jobs WHERE finished_at IS NULL")) == 0
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert await connection.scalar(text(query)) == 0
    assert await reservations(database) == []
    await check_books(database)
