"""What the pages of the console use, as resources of an API process."""

from __future__ import annotations

from contextlib import AsyncExitStack

from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.service import BatchService
from api.console.batches.routes import BatchPages
from api.console.data.overview_store import OverviewStore
from api.console.fleet.routes import FleetPages
from api.console.fleet.store import RunningJobsStore
from api.console.jobs.job.routes import JobParts
from api.console.jobs.ledger_store import LedgerEntriesStore
from api.console.jobs.routes import JobsList
from api.console.jobs.service import ConsoleJobs
from api.console.key_names import KeyNamesStore
from api.console.keys.store import KeyPagesStore
from api.console.limits.routes import LimitPages
from api.console.limits.store import BudgetStatesStore
from api.console.live_streams import LiveStreams
from api.console.overview.routes import Overview
from api.console.overview.snapshot import Snapshots
from api.console.overview.store import ModelTimesStore
from api.console.routing.store import RoutingStore
from api.console.usage.store import TopUsageStore
from api.files.service import FileService
from api.http.dependencies import Resources
from api.jobs.replay import Replays
from api.jobs.search import JobSearch
from api.jobs.service import JobService
from api.keys.store import ApiKeyStore
from api.limits.limiter import RateLimiter
from api.limits.store import LimitStore
from shared.config.models.loader import Registry
from shared.postgres.job_store import JobStore
from shared.redis.event_log import EventLog


def add_pages(
    resources: Resources,
    stack: AsyncExitStack,
    *,
    database: AsyncEngine,
    registry: Registry,
    key_names: KeyNamesStore,
    keys: ApiKeyStore,
    store: JobStore,
    logs: EventLog,
    jobs: JobService,
    search: JobSearch,
    replays: Replays,
    batches: BatchService,
    files: FileService,
    limits: LimitStore,
    limiter: RateLimiter,
) -> None:
    """Add what only the pages use. `stack` closes what feeds their live parts."""
    resources.add(KeyNamesStore, key_names)
    resources.add(LiveStreams, LiveStreams())
    overview_store = OverviewStore(database, registry.queue_of)
    resources.add(OverviewStore, overview_store)
    snapshots = Snapshots(overview_store, ModelTimesStore(database), registry)
    overview = Overview(snapshots, registry)
    stack.push_async_callback(overview.broadcaster.close)
    resources.add(Overview, overview)
    batch_pages = BatchPages(batches, files)
    stack.push_async_callback(batch_pages.close)
    resources.add(BatchPages, batch_pages)
    fleet_pages = FleetPages(overview_store, RunningJobsStore(database), snapshots, registry)
    stack.push_async_callback(fleet_pages.close)
    resources.add(FleetPages, fleet_pages)
    resources.add(KeyPagesStore, KeyPagesStore(database, keys))
    resources.add(RoutingStore, RoutingStore(database))
    limit_pages = LimitPages(BudgetStatesStore(database), limits, limiter, key_names)
    stack.push_async_callback(limit_pages.broadcaster.close)
    resources.add(LimitPages, limit_pages)
    resources.add(TopUsageStore, TopUsageStore(database))
    console_jobs = ConsoleJobs(
        store=store,
        search=search,
        jobs=jobs,
        logs=logs,
        names=key_names,
        replays=replays,
        ledger=LedgerEntriesStore(database),
    )
    jobs_list, job_parts = JobsList(console_jobs), JobParts(console_jobs)
    stack.push_async_callback(jobs_list.broadcaster.close)
    stack.push_async_callback(job_parts.broadcaster.close)
    resources.add(ConsoleJobs, console_jobs)
    resources.add(JobsList, jobs_list)
    resources.add(JobParts, job_parts)
