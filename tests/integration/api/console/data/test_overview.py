"""The numbers of the overview, from the rows of jobs and workers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.admin.fleet.store import FleetStore
from api.console.data.overview import Charts
from api.console.data.overview_store import COUNTED, OverviewStore
from api.console.data.statistics import JobStatistics
from api.console.data.statistics_store import StatisticsStore
from api.console.overview.store import ModelTimesStore
from shared.domain.job import OpenBreaker, WorkerReport, WorkerState
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.postgres.tables import JobStatisticsRow
from tests.conftest import Workers
from tests.support.job_rows import add_job

HOUR = timedelta(hours=1)


@pytest.fixture
def overview(database: AsyncEngine) -> OverviewStore:
    return OverviewStore(database)


@pytest.fixture
def statistics(database: AsyncEngine) -> JobStatistics:
    return JobStatistics(StatisticsStore(database))


async def add_hour(database: AsyncEngine, owner: Owner, now: datetime) -> None:
    """Jobs that ended 30 minutes ago and in the last seconds, and others that charts must not count."""
    for ended_s_ago in (1800, 1):
        for first_token_s in (0.1, 0.2, 0.3):
            await add_job(
                database, owner, "m", now=now, ended_s_ago=ended_s_ago, first_token_s=first_token_s, wait_s=0.01,
                usage={"completion_tokens": 60},
            )  # fmt: skip
        await add_job(
            database, owner, "m", now=now, ended_s_ago=ended_s_ago, status="failed", error_code="engine_error"
        )
        # A batch's jobs wait by intention.
        await add_job(
            database, owner, "other", now=now, ended_s_ago=ended_s_ago, first_token_s=600, took_s=900, priority=9,
            usage={"completion_tokens": 30},
        )  # fmt: skip
        # Answered by the response cache: no worker ran it, and nothing was generated.
        await add_job(
            database, owner, "m", now=now, ended_s_ago=ended_s_ago, first_token_s=0, attempt=0,
            usage={"completion_tokens": 60},
        )  # fmt: skip
    await add_job(database, owner, "m", now=now, ended_s_ago=7300, first_token_s=30)
    await add_job(database, owner, "m", now=now, status="queued", attempt=0)


def check(charts: Charts) -> None:
    total = charts.total
    assert total.ended == {"completed": 10, "failed": 2}
    assert total.errors == {"engine_error": 2}
    assert total.tokens == 6 * 60 + 2 * 30
    assert total.first_token is not None
    assert total.first_token.count == 6
    assert total.first_token.p50 == pytest.approx(200, rel=0.05)
    assert total.first_token.p99 == pytest.approx(300, rel=0.05)
    assert total.wait is not None
    assert total.wait.p95 == pytest.approx(10, rel=0.05)
    assert sum(bucket.jobs for bucket in charts.buckets) == 12
    busy = [bucket for bucket in charts.buckets if bucket.jobs]
    assert [bucket.jobs for bucket in busy] == [6, 6]
    assert busy[0].tokens_per_s == 210 / 60


async def test_charts_are_the_same_before_and_after_minutes_were_counted(
    overview: OverviewStore, statistics: JobStatistics, database: AsyncEngine, owner: Owner
) -> None:
    now = datetime.now(UTC).replace(second=30)
    await add_hour(database, owner, now)
    before = await overview.charts(now - HOUR, now)
    check(before)
    assert 60 <= len(before.buckets) <= 61
    await statistics.update(now)
    async with database.connect() as connection:
        assert await connection.scalar(select(func.count()).where(JobStatisticsRow.model == "m")) == 2
    assert await overview.charts(now - HOUR, now) == before


async def test_first_tokens_by_model_are_those_of_the_charts(
    overview: OverviewStore, statistics: JobStatistics, database: AsyncEngine, owner: Owner
) -> None:
    now = datetime.now(UTC).replace(second=30)
    await add_hour(database, owner, now)
    for _ in range(2):  # before and after minutes were counted
        found = await ModelTimesStore(database).first_tokens(now - HOUR, now)
        assert found == {"m": (await overview.charts(now - HOUR, now)).total.first_token}
        await statistics.update(now)


async def test_charts_of_one_model(
    overview: OverviewStore, statistics: JobStatistics, database: AsyncEngine, owner: Owner
) -> None:
    now = datetime.now(UTC).replace(second=30)
    await add_hour(database, owner, now)
    for _ in range(2):
        found = await overview.charts(now - HOUR, now, model="other")
        assert (found.total.ended, found.total.tokens) == ({"completed": 2}, 60)
        assert found.total.first_token is None
        await statistics.update(now)


async def test_jobs_that_waited_in_a_paused_queue_have_no_waiting_times(
    overview: OverviewStore, statistics: JobStatistics, database: AsyncEngine, owner: Owner
) -> None:
    now = datetime.now(UTC)
    # Submitted and started 100 s and 10 s before they ended, 120 s ago.
    for model in ("paused", "other"):
        await add_job(database, owner, model, now=now, ended_s_ago=120, took_s=100, wait_s=90, first_token_s=91)
    fleet = FleetStore(database)
    await fleet.pause(["paused"], owner.key_id)
    async with database.connect() as connection:
        await connection.execute(text("UPDATE model_pauses SET paused_at = paused_at - interval '200 s'"))
    await fleet.resume(["paused"])
    assert await fleet.pauses() == {}
    async with database.connect() as connection:
        await connection.execute(text("UPDATE past_pauses SET resumed_at = resumed_at - interval '150 s'"))
    for _ in range(2):  # before and after the minute is counted
        found = await overview.charts(now - timedelta(hours=1), now, model="paused")
        assert (found.total.first_token, found.total.wait, found.total.ended) == (None, None, {"completed": 1})
        other = await overview.charts(now - timedelta(hours=1), now, model="other")
        assert other.total.first_token is not None
        await statistics.update(now)
    await StatisticsStore(database).delete(now)
    async with database.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM past_pauses")) == 0


async def test_a_result_that_was_committed_late_is_counted(
    overview: OverviewStore, statistics: JobStatistics, database: AsyncEngine, owner: Owner
) -> None:
    now = datetime.now(UTC).replace(second=30)
    await statistics.update(now)
    await add_job(database, owner, now=now, ended_s_ago=120, first_token_s=1)
    assert (await overview.charts(now - HOUR, now)).total.jobs == 0
    later = now + timedelta(minutes=1)
    await statistics.update(later)
    assert (await overview.charts(later - HOUR, later)).total.jobs == 1


async def test_the_statistics_continue_where_they_ended(
    statistics: JobStatistics, database: AsyncEngine, owner: Owner
) -> None:
    now = datetime.now(UTC).replace(second=30)
    store = StatisticsStore(database)
    await statistics.update(now)
    assert await store.counted_until() == now.replace(second=0, microsecond=0)
    later = now + timedelta(hours=3)
    await add_job(database, owner, now=later, ended_s_ago=7200)
    await asyncio.gather(*(JobStatistics(StatisticsStore(database)).update(later) for _ in range(3)))
    assert await store.counted_until() == later.replace(second=0, microsecond=0)
    async with database.connect() as connection:
        minutes = select(func.count(), func.count().filter(JobStatisticsRow.model == "m")).where(
            JobStatisticsRow.minute >= now.replace(second=0, microsecond=0)
        )
        assert tuple((await connection.execute(minutes)).one()) == (121, 1)  # from the first job on
    await statistics.update(later + timedelta(days=40))
    async with database.connect() as connection:
        assert await connection.scalar(select(func.count()).where(JobStatisticsRow.model == "m")) == 0


async def test_a_long_time_without_jobs_is_not_counted(statistics: JobStatistics, database: AsyncEngine) -> None:
    now = datetime.now(UTC).replace(second=30)
    for moment in (now, now + timedelta(days=3)):
        await statistics.update(moment)
        assert await StatisticsStore(database).counted_until() == moment.replace(second=0, microsecond=0)
    async with database.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(JobStatisticsRow)) == 2


async def test_queues_by_model(
    overview: OverviewStore, database: AsyncEngine, store: JobStore, owner: Owner, workers: Workers
) -> None:
    for priority, count in ((0, 1), (3, 2), (9, 4)):
        for _ in range(count):
            await add_job(
                database, owner, "m", created_s_ago=priority * 10 + 5, status="queued", attempt=0, priority=priority
            )
    await add_job(database, owner, "m", created_s_ago=900, status="queued", follows="job_x", priority=3)
    job, _ = await store.insert(NewJob(owner, "other", 3, GenerateRequest(prompt="x")))
    assert await workers("w").claim(job.id) is not None
    live = await overview.live(["idle", "m"], datetime.now(UTC) - HOUR)
    found = {(one.model, one.interactive): (one.waiting, one.running) for one in live.queues}
    assert found == {
        ("idle", True): (0, 0),
        ("idle", False): (0, 0),
        ("m", True): (3, 0),
        ("m", False): (4, 0),
        ("other", True): (0, 1),
        ("other", False): (0, 0),
    }
    ages = {(one.model, one.interactive): one.oldest_s for one in live.queues}
    assert ages["idle", True] is None
    assert ages["m", True] == pytest.approx(35, abs=3)
    assert ages["m", False] == pytest.approx(95, abs=3)
    assert not any(one.capped for one in live.queues)


async def test_a_long_queue_is_counted_up_to_a_limit(
    overview: OverviewStore, database: AsyncEngine, owner: Owner
) -> None:
    rows = """
        INSERT INTO jobs (id, project_id, key_id, model, status, priority, request, metadata)
        SELECT 'job_' || lpad(n::text, 6, '0'), :project, :key, 'm', 'queued', 3, '{}', '{}'
        FROM generate_series(1, :rows) AS n
    """
    async with database.connect() as connection:
        parameters = {"project": owner.project_id, "key": owner.key_id, "rows": COUNTED + 5}
        await connection.execute(text(rows), parameters)
    live = await overview.live([], datetime.now(UTC))
    assert [(one.waiting, one.capped) for one in live.queues] == [(COUNTED, True), (0, False)]


async def test_workers_report_themselves(overview: OverviewStore, workers: Workers) -> None:
    report = WorkerReport("1.2", {"engine": "vllm"}, 3, 0.25, 120.5, "The engine has died.")
    await workers("w1").heartbeat("m", slots=8, running=5, lease_s=60, report=report)
    await workers("w2").heartbeat("n", slots=4, running=0, lease_s=-1, state=WorkerState.LOADING)
    live = await overview.live(["m"], datetime.now(UTC) - HOUR)
    one, two = live.workers
    assert (one.id, one.state, one.alive, one.slots, one.running, one.waiting) == ("w1", "ready", True, 8, 5, 3)
    assert (one.version, one.options, one.kv_cache_usage) == ("1.2", {"engine": "vllm"}, 0.25)
    assert (one.last_error, one.breaker_since, one.drain_requested_at) == ("The engine has died.", None, None)
    assert (two.id, two.state, two.alive) == ("w2", "loading", False)
    assert live.tokens_per_s == 120.5


async def test_the_time_of_a_workers_state_is_that_of_its_last_change(database: AsyncEngine, workers: Workers) -> None:
    since = []
    for state in (WorkerState.LOADING, WorkerState.READY, WorkerState.READY, WorkerState.DRAINING):
        breaker = OpenBreaker(datetime.now(UTC), "503") if state is WorkerState.DRAINING else None
        await workers("w").heartbeat("m", slots=1, running=0, lease_s=60, state=state, breaker=breaker)
        (worker,) = await FleetStore(database).workers()
        assert worker.state == state.value
        since.append(worker.state_since)
    assert since[0] < since[1] == since[2] < since[3]  # type: ignore[operator]
    assert worker.breaker_reason == "503"


async def test_rescues_name_the_attempt_that_continued(
    overview: OverviewStore, store: JobStore, recovery_store: RecoveryStore, owner: Owner, workers: Workers
) -> None:
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    await workers("dead").heartbeat("m", slots=1, running=1, lease_s=-1)
    assert await workers("dead").claim(job.id) is not None
    start = datetime.now(UTC) - HOUR
    assert await overview.rescues(start) == []
    assert len(await recovery_store.requeue_stalled(3)) == 1
    (rescue,) = await overview.rescues(start)
    assert (rescue.job_id, rescue.model, rescue.attempt, rescue.worker) == (job.id, "m", 1, "dead")
    assert (rescue.outcome, rescue.status, rescue.continued_by) == ("worker_lost", "queued", None)
    assert await workers("next").claim(job.id) is not None
    (rescue,) = (await overview.live([], start)).rescues
    assert (rescue.continued_by, rescue.status) == ("next", "in_progress")
    assert rescue.continued_at is not None
    assert rescue.continued_at > rescue.lost_at
    assert await overview.rescues(datetime.now(UTC) + HOUR) == []
