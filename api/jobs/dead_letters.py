"""`python -m api.failed list|replay`: lists and replays jobs that failed because their workers died.

`list` also shows the jobs that are withheld because a worker's version cannot read them.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from api.budgets.budgets import Budgets
from api.context.learned_ratios import LearnedRatios
from api.context.usage_store import UsageStore
from api.context.window import ContextWindow
from api.jobs.admission import Admission
from api.jobs.replay import replay_of
from api.keys.earlier_work import EarlierWork
from api.keys.store import ApiKeyStore
from api.settings import RegionSettings
from shared.config.models.base import RegistryError
from shared.config.models.loader import load_registry
from shared.config.settings import Settings, settings_or_exit
from shared.domain.errors import BudgetExceeded, InvalidRequest, NotFound, UnreadableRow
from shared.domain.job import JobStatus
from shared.postgres.budget_store import BudgetStore
from shared.postgres.budget_windows import BudgetWindowStore
from shared.postgres.engine import connect
from shared.postgres.job_store import JobStore

# The options of a key are read once per command.
COMMAND_S = 3600.0


class DeadLetterSettings(RegionSettings, Settings):
    """Settings of the command. Redis is not used: workers find a replayed job in the database."""

    redis_url: str = "redis://unused"


async def run(arguments: argparse.Namespace) -> int:
    settings = settings_or_exit(DeadLetterSettings)
    engine = connect(settings.database_url, pool_size=1)
    store = JobStore(engine, settings.region)
    try:
        if arguments.action == "list":
            for row in await store.unreadable():
                print(f"{row.id}  {row.model}  {row.created_at:%Y-%m-%d %H:%M}  waits for a version that can read it")
            for job in await store.exhausted():
                print(f"{job.id}  {job.model}  {job.created_at:%Y-%m-%d %H:%M}  {len(job.attempts)} attempts")
                for attempt in job.attempts:
                    print(f"    {attempt.number}  {attempt.outcome}  {attempt.tokens} tokens  {attempt.worker}")
            return 0
        try:
            registry = load_registry(settings.models)
        except RegistryError as error:
            print(error, file=sys.stderr)
            return 2
        context = ContextWindow(registry)
        await LearnedRatios(registry, UsageStore(engine), context.estimates).read()
        budgets = Budgets(BudgetStore(engine), BudgetWindowStore(engine), registry, context)
        admission = Admission(registry, context, budgets=budgets)
        earlier_work = EarlierWork(ApiKeyStore(engine), cache_s=COMMAND_S)
        return max([await replay(store, admission, earlier_work, job_id) for job_id in arguments.job])
    finally:
        await engine.dispose()


async def replay(store: JobStore, admission: Admission, earlier_work: EarlierWork, job_id: str) -> int:
    """Submit a failed job's request again as a new job of the same owner. The failed job is unchanged."""
    try:
        job = await store.get(job_id)
    except UnreadableRow as error:
        print(error, file=sys.stderr)
        return 1
    if job is None or job.status is not JobStatus.FAILED:
        print(f"there is no failed job {job_id}", file=sys.stderr)
        return 1
    new = replay_of(job, job.owner, job.model)
    try:
        new = await admission.admit(await earlier_work.principal(new.owner), new)
        await admission.remember(new)
        submitted, _ = await store.insert(new)
    except (InvalidRequest, NotFound, BudgetExceeded) as error:
        print(f"{job_id} cannot be replayed: {error}", file=sys.stderr)
        return 1
    print(f"{job_id} replayed as {submitted.id}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m api.failed", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list failed jobs and their attempts")
    actions.add_parser("replay", help="submit failed jobs again").add_argument("job", nargs="+")
    return asyncio.run(run(parser.parse_args()))
