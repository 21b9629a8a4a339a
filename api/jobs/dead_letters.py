"""`python -m api.failed list|replay`: the jobs that failed because their workers died, for operators."""

from __future__ import annotations

import argparse
import asyncio
import sys

from api.settings import ApiSettings
from shared.config.settings import settings_or_exit
from shared.domain.job import JobStatus
from shared.postgres.engine import connect
from shared.postgres.job_store import JobStore, NewJob


class DatabaseSettings(ApiSettings):
    """Only the database is needed here: workers find a replayed job's row."""

    redis_url: str = "redis://unused"


async def run(arguments: argparse.Namespace) -> int:
    settings = settings_or_exit(DatabaseSettings)
    engine = connect(settings.database_url, pool_size=1)
    store = JobStore(engine, settings.region)
    try:
        if arguments.action == "list":
            for job in await store.exhausted():
                print(f"{job.id}  {job.model}  {job.created_at:%Y-%m-%d %H:%M}  {len(job.attempts)} attempts")
                for attempt in job.attempts:
                    print(f"    {attempt.number}  {attempt.outcome}  {attempt.tokens} tokens  {attempt.worker}")
            return 0
        return max([await replay(store, job_id) for job_id in arguments.job])
    finally:
        await engine.dispose()


async def replay(store: JobStore, job_id: str) -> int:
    """Submit a failed job's request again, as a new job of the same key: the old one keeps its end."""
    job = await store.get(job_id)
    if job is None or job.status is not JobStatus.FAILED:
        print(f"there is no failed job {job_id}", file=sys.stderr)
        return 1
    new, _ = await store.insert(
        NewJob(
            owner=job.owner,
            model=job.model,
            priority=job.priority,
            request=job.request,
            metadata={**job.metadata, "replay_of": job.id},
        )
    )
    print(f"{job_id} runs again as {new.id}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m api.failed", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list them, with their attempts")
    actions.add_parser("replay", help="submit their requests again").add_argument("job", nargs="+")
    return asyncio.run(run(parser.parse_args()))
