"""What a viewer may do with jobs: those of its project, and as an operator with an inference key too, all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from redis.exceptions import RedisError

from api.console.jobs.conditions import Conditions
from api.console.jobs.ledger_store import LedgerEntriesStore, LedgerEntry
from api.console.key_names import KeyNames, KeyNamesStore
from api.console.viewer import Viewer
from api.jobs.actions import Action
from api.jobs.replay import Replays
from api.jobs.search import JobSearch
from api.jobs.search_store import JobPage
from api.jobs.service import JobService
from api.keys.principal import Principal, Scope
from shared.domain.errors import HeadraceError, NotFound
from shared.domain.events import Event
from shared.domain.job import Job, JobStatus, JobSummary, is_job_id
from shared.postgres.job_store import JobStore
from shared.redis.event_log import EventLog
from shared.redis.log_flushes import Flush, FlushReader
from shared.runtime.outages import is_outage

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Jobs of one selection that are changed at a time.
CONCURRENT = 8


@dataclass(frozen=True, slots=True)
class ActionResult:
    """What became of one job of a selection. `kind` is that of a badge; `new_job`: the id of a replay."""

    job_id: str
    text: str
    kind: str
    new_job: str | None = None


class ConsoleJobs:
    """Finds, cancels and replays jobs for viewers."""

    def __init__(
        self,
        *,
        store: JobStore,
        search: JobSearch,
        jobs: JobService,
        logs: EventLog,
        names: KeyNamesStore,
        replays: Replays,
        ledger: LedgerEntriesStore,
    ) -> None:
        self._store = store
        self._search = search
        self._jobs = jobs
        self._logs = logs
        self._names = names
        self._replays = replays
        self._ledger = ledger

    async def page(self, project_id: int | None, conditions: Conditions, *, limit: int, after: str | None) -> JobPage:
        """A page of jobs of a project, or of all (None); raises as `JobSearch.page`."""
        scopes = frozenset((Scope.ADMIN,)) if project_id is None else frozenset[Scope]()
        principal = Principal(project_id or 0, 0, scopes)
        query = conditions.query(datetime.now(UTC), all_projects=project_id is None)
        return await self._search.page(principal, query, limit=limit, after=after)

    async def job(self, project_id: int | None, job_id: str) -> Job:
        """A job of a project, or any (None).

        Raises:
            NotFound: it does not exist, or belongs to another project.
        """
        return await _found(job_id, project_id, self._store.get)

    async def summary(self, project_id: int | None, job_id: str) -> JobSummary:
        """A job without its request and its output; raises as `job`."""
        return await _found(job_id, project_id, self._store.summary)

    async def names(self, jobs: Sequence[JobSummary]) -> Mapping[int, KeyNames]:
        """The names of the keys that submitted jobs, and of their projects, by the number of the key."""
        return await self._names.names(job.owner.key_id for job in jobs)

    async def entries(self, job: JobSummary) -> Sequence[LedgerEntry]:
        """The entries of a job in the ledger, which are written when it ends."""
        return await self._ledger.entries(job.id) if job.status.terminal else ()

    async def flushes(self, job_id: str, found: FlushReader | None = None) -> Sequence[Flush]:
        """When a job's output was written, as long as that is known. `found`: see `EventLog.flushes`."""
        try:
            return await self._logs.flushes(job_id, found)
        except (RedisError, OSError):
            return ()

    async def events(self, job_id: str) -> Sequence[Event]:
        """The events of an open job so far."""
        try:
            return await self._logs.read(job_id)
        except (RedisError, OSError):
            return ()

    async def generating(self, jobs: Sequence[JobSummary]) -> set[str]:
        """The ids of those running jobs whose current attempt has generated a token."""
        running = [(job.id, job.attempt) for job in jobs if job.attempt and not job.status.terminal]
        try:
            return await self._logs.generated(running) if running else set()
        except (RedisError, OSError):
            return set()

    async def is_paused(self, job: JobSummary) -> bool:
        """Whether a job waits because its model's queue is paused."""
        return await self._jobs.queue_estimates.is_paused(job)

    async def cancel(self, viewer: Viewer, job_id: str) -> JobSummary:
        """Cancel a job.

        Raises:
            Forbidden: the viewer's key has no inference scope.
            NotFound: as `job`.
        """
        viewer.principal.require(Scope.INFERENCE)
        job = await self.summary(viewer.project_id, job_id)
        return await self._jobs.cancel(job.id, job.owner.project_id)

    async def replay(self, viewer: Viewer, job_id: str) -> Job:
        """Submit the request of a job that has ended again; raises as `Replays.replay`."""
        job, _ = await self._replays.replay(viewer.principal, job_id)
        return job

    async def apply(self, viewer: Viewer, action: Action, job_ids: Sequence[str]) -> list[ActionResult]:
        """Cancel or replay jobs; what cannot be done for one does not affect the others."""
        viewer.principal.require(Scope.INFERENCE)
        free = asyncio.Semaphore(CONCURRENT)

        async def one(job_id: str) -> ActionResult:
            async with free:
                try:
                    if action is Action.REPLAY:
                        return ActionResult(
                            job_id, "submitted again as", "info", (await self.replay(viewer, job_id)).id
                        )
                    return _cancelled(await self.cancel(viewer, job_id))
                except HeadraceError as error:
                    return ActionResult(job_id, str(error), "bad")
                except Exception as error:
                    if not is_outage(error):
                        raise
                    logger.warning("job=%s %s: %s", job_id[:64], action.value, error)
                    return ActionResult(job_id, "the server was unavailable: it is not known if this was done", "bad")

        return list(await asyncio.gather(*map(one, dict.fromkeys(job_ids))))


def _cancelled(job: JobSummary) -> ActionResult:
    if job.status is JobStatus.CANCELLED:
        return ActionResult(job.id, "cancelled", "good")
    if job.status is JobStatus.CANCELLING:
        return ActionResult(job.id, "is being cancelled by its worker", "good")
    return ActionResult(job.id, f"had already ended: {job.status.value}", "plain")


async def _found(job_id: str, project_id: int | None, get: Callable[[str, int | None], Awaitable[T | None]]) -> T:
    job = await get(job_id, project_id) if is_job_id(job_id) else None
    if job is None:
        raise NotFound(f"There is no job `{job_id[:64]}`.", code="job_not_found")
    return job
