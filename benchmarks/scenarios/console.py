"""The web console on a history of millions of jobs: its pages over HTTP, and what a reader costs those who submit.

The queries of the overview and searches for jobs also run in this process, with the stores of an API process.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any

import httpx
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from api.console.data.overview_store import OverviewStore
from api.console.data.statistics import JobStatistics
from api.console.data.statistics_store import StatisticsStore
from api.jobs.search_store import JobFilters, JobSearchStore
from benchmarks import console_pages, job_history
from benchmarks.bench import Bench
from benchmarks.scenarios.submits import ORPHAN, submit
from benchmarks.statistics import percentile
from benchmarks.systems.headrace import Headrace, headrace
from shared.domain.job import JobStatus
from shared.postgres.engine import connect
from shared.postgres.tables import ProjectRow

PAGE = 50
# The conditions of searches that are measured apart; each comes with a range of time.
SEARCHES = ("project", "model", "status", "metadata")
STATUSES = tuple(JobStatus)
MODELS: list[dict[str, Any]] = [ORPHAN, *({"name": name, "engine": "simulated"} for name in job_history.MODELS)]
ROUTES: list[dict[str, Any]] = [{"name": "auto", "models": ["small", "large"]}]
SUBMITTERS = 16


def run(bench: Bench) -> None:
    with headrace(bench.folder, MODELS, routes=ROUTES) as system:
        for rows in bench.pick((1_000_000, 10_000_000), (20_000, 100_000)):
            bench.say(f"generating {rows:,} jobs")
            asyncio.run(job_history.fill(system.database_url, rows))
            for _ in bench.repeats():
                asyncio.run(_measure(bench, system, rows))
                with console_pages.signed_in(system) as client:
                    pages(bench, system, client, rows)
                    submits(bench, system, client, rows)


def pages(bench: Bench, system: Headrace, client: httpx.Client, rows: int) -> None:
    """The times of pages, and the CPU time that the API and PostgreSQL use for each."""
    count = bench.pick(100, 20)
    for name, page in console_pages.PAGES.items():
        console_pages.load(client, page, 5)
        before = system.processes.cpu_seconds()
        times = console_pages.load(client, page, count)
        after = system.processes.cpu_seconds()
        _add(bench, system, f"page of {name}", rows, times)
        used = {process: after[process] - before[process] for process in ("api", "postgres")}
        bench.add_cpu(system.name, f"CPU per page of {name}, {rows:,} jobs", used, count)


def submits(bench: Bench, system: Headrace, client: httpx.Client, rows: int) -> None:
    """Submits with the console closed and open, in turn: the change of throughput between neighbours, in per cent."""
    seconds, changes = bench.pick(4.0, 1.0), []
    plan = submit(system, concurrency=SUBMITTERS, seconds=seconds, warm_up=SUBMITTERS)
    for _ in range(bench.pick(5, 1)):
        closed, used = bench.measure(system.name, system.processes, plan)
        bench.add_cpu(system.name, f"CPU per submit, console closed, {rows:,} jobs", used, closed.requests)
        with console_pages.reader(client):
            opened, used = bench.measure(system.name, system.processes, plan)
        bench.add_cpu(system.name, f"CPU per submit, console open, {rows:,} jobs", used, opened.requests)
        changes.append(100 * (1 - opened.per_second / closed.per_second))
    bench.add(system.name, f"submits slowed by an open console, {rows:,} jobs", statistics.median(changes), "%")


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
