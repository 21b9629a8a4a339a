"""What the indexes for searches cost those who submit, on a history of a million jobs.

Submits are measured in turns with and without these indexes, on the same table. The first of a pair alternates, so that
neither always has the shorter queue or the colder cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sqlalchemy import text

from benchmarks import job_history
from benchmarks.bench import Bench
from benchmarks.scenarios.submits import ORPHAN, submit
from benchmarks.systems.headrace import Headrace, headrace
from shared.postgres.engine import connect

# The indexes that searches and lists of jobs read, and that no submit and no queue needs (`jobs_by_project` also serves
# savings and estimates). The others that searches use are there for the queue, its statistics and the primary key.
INDEXES = ("jobs_by_project", "jobs_unsuccessful", "jobs_rescued")
SUBMITTERS = 16
WITH, WITHOUT = "with", "without"


def run(bench: Bench) -> None:
    with headrace(bench.folder, [ORPHAN]) as system:
        rows = bench.pick(1_000_000, 20_000)
        bench.say(f"generating {rows:,} jobs")
        asyncio.run(job_history.fill(system.database_url, rows, logged=True))
        definitions = asyncio.run(_definitions(system))
        for repeat in bench.repeats():
            _pair(bench, system, definitions, first=(WITH, WITHOUT)[repeat % 2])


async def _definitions(system: Headrace) -> list[str]:
    """The statements that create the indexes, as the migrations have."""
    engine = connect(system.database_url, pool_size=1)
    try:
        async with engine.connect() as connection:
            query = text("SELECT indexdef FROM pg_indexes WHERE indexname = ANY(:names)")
            found = list((await connection.execute(query, {"names": list(INDEXES)})).scalars())
    finally:
        await engine.dispose()
    assert len(found) == len(INDEXES)
    return found


def _pair(bench: Bench, system: Headrace, definitions: Sequence[str], *, first: str) -> None:
    """Measure submits with and without the indexes, and the difference in per cent."""
    per_second, cpu = {}, {}
    dropped = [f"DROP INDEX IF EXISTS {name}" for name in INDEXES]
    plan = submit(system, concurrency=SUBMITTERS, seconds=bench.pick(8.0, 1.5), warm_up=200)
    for state in (first, WITHOUT if first == WITH else WITH):
        system.sql(
            "DELETE FROM jobs WHERE model = 'orphan'",
            # Made in both cases, so that both begin after the same work.
            *dropped,
            *definitions,
            *(dropped if state == WITHOUT else ()),
            "VACUUM ANALYZE jobs",
            "CHECKPOINT",
        )
        summary, used = bench.measure(system.name, system.processes, plan)
        per_second[state], cpu[state] = summary.per_second, used["postgres"] / summary.requests
        bench.add(system.name, f"submits/s {state} the indexes", summary.per_second, "/s")
        bench.add_cpu(system.name, f"CPU per submit {state} the indexes", used, summary.requests)
    slowed = 100 * (1 - per_second[WITH] / per_second[WITHOUT])
    bench.add(system.name, "submits slowed by the indexes for searches", slowed, "%")
    added = 100 * (cpu[WITH] / cpu[WITHOUT] - 1)
    bench.add(system.name, "PostgreSQL's CPU per submit, added by the indexes for searches", added, "%")
