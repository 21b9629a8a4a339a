"""The queries of the web console on a history of millions of jobs: the overview, and searches for jobs.

They run in this process, with the stores of an API process.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from api.console.data.overview_store import OverviewStore
from api.console.data.statistics import JobStatistics
from api.console.data.statistics_store import StatisticsStore
from api.jobs.search_store import JobFilters, JobSearchStore
from benchmarks import job_history
from benchmarks.bench import Bench
from benchmarks.scenarios.submits import ORPHAN
from benchmarks.statistics import percentile
from benchmarks.systems.headrace import Headrace, headrace
from shared.domain.job import JobStatus
from shared.postgres.engine import connect
from shared.postgres.tables import ProjectRow

PAGE = 50
# The conditions of searches that are measured apart; each comes with a range of time.
SEARCHES = ("project", "model", "status", "metadata")
STATUSES = tuple(JobStatus)


def run(bench: Bench) -> None:
    with headrace(bench.folder, [ORPHAN]) as system:
        for rows in bench.pick((1_000_000, 10_000_000), (20_000, 100_000)):
            bench.say(f"generating {rows:,} jobs")
            asyncio.run(job_history.fill(system.database_url, rows))
            for _ in bench.repeats():
                asyncio.run(_measure(bench, system, rows))


async def _measure(bench: Bench, system: Headrace, rows: int) -> None:
    engine = connect(system.database_url)
    try:
        await JobStatistics(StatisticsStore(engine)).update()
        await _overview(bench, system, engine, rows)
        await _searches(bench, system, engine, rows)
    finally:
        await engine.dispose()


async def _overview(bench: Bench, system: Headrace, engine: AsyncEngine, rows: int) -> None:
    store = OverviewStore(engine)
    for length in (timedelta(hours=1), timedelta(days=1)):

        async def read(length: timedelta = length) -> None:
            now = datetime.now(UTC)
            await store.charts(now - length, now)
            await store.live(job_history.MODELS, now - length)

        _add(bench, system, f"overview of {length.total_seconds() / 3600:.0f} h", rows, await _timed(bench, read))


async def _searches(bench: Bench, system: Headrace, engine: AsyncEngine, rows: int) -> None:
    store, draw = JobSearchStore(engine), random.Random(1)
    async with engine.connect() as connection:
        projects = list((await connection.execute(select(ProjectRow.id).order_by(ProjectRow.id))).scalars())
    partial: defaultdict[str, int] = defaultdict(int)
    for kind in SEARCHES:

        async def search(kind: str = kind) -> None:
            page = await store.search(_filters(kind, draw, projects), limit=PAGE)
            partial[kind] += page.partial

        _add(bench, system, f"list by {kind} and time", rows, await _timed(bench, search))
        bench.add(system.name, f"list by {kind} and time, stopped, {rows:,} jobs", partial[kind], "")


def _filters(kind: str, draw: random.Random, projects: list[int]) -> JobFilters:
    """Conditions that an operator may have: all values are equally likely, however many jobs have them."""
    length = timedelta(hours=draw.choice((1, 24, 7 * 24)))
    start = datetime.now(UTC) - timedelta(days=draw.uniform(0, job_history.DAYS - 7)) - length
    values: dict[str, Any] = {
        "project": {"project_id": draw.choice(projects)},
        "model": {"model": draw.choice(job_history.MODELS)},
        "status": {"statuses": (draw.choice(STATUSES),)},
        "metadata": {"metadata": {"team": f"team {draw.randrange(20)}"}},
    }
    return JobFilters(start=start, end=start + length, **values[kind])


async def _timed(bench: Bench, call: Callable[[], Awaitable[None]]) -> list[float]:
    """Sorted times of a call, in milliseconds, without the first few."""
    times = []
    for number in range(bench.pick(110, 25)):
        began = perf_counter()
        await call()
        if number >= 10:
            times.append(1000 * (perf_counter() - began))
    return sorted(times)


def _add(bench: Bench, system: Headrace, what: str, rows: int, times: list[float]) -> None:
    for share in (50, 95):
        bench.add(system.name, f"{what} p{share}, {rows:,} jobs", percentile(times, share / 100), "ms")
