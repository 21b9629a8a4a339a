"""Quotas of a project: how many jobs may wait and run, and how large their requests may be together.

The rows are the only counter, so that nothing can leak or drift. Counting them for each submit would cost more than the
submit, so a count is used for a second, plus what this process has submitted since. A submit that would be rejected is
always counted again first. Other API processes' submits of the last second are not seen: with several processes, a
project may exceed a quota by those.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from api.jobs.quota_store import ProjectUsage, QuotaStore
from api.settings import QuotaSettings
from shared.domain.errors import QuotaExceeded
from shared.domain.priorities import BANDS, PRIORITY_STEPS
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import NewJob
from shared.telemetry.metrics import Metrics, Quota

FRESH_S = 1.0
# Counts of a project take at most about one in this many seconds of a connection's time.
MIN_COUNT_INTERVAL = 5
RETRY_S = 5
# Projects that are remembered between their submits.
MAX_PROJECTS = 10_000
_URGENT = BANDS[PRIORITY_STEPS[0]]


@dataclass(slots=True)
class _Project:
    """The last count of a project, and what this process has submitted since that count began."""

    counted: ProjectUsage | None = None
    submitted: ProjectUsage = field(default_factory=ProjectUsage)
    inserting: ProjectUsage = field(default_factory=ProjectUsage)
    fresh_until: float = 0.0
    recount_after: float = 0.0
    counting: asyncio.Task[None] | None = None

    @property
    def used(self) -> ProjectUsage:
        assert self.counted is not None
        return self.counted + self.submitted + self.inserting


class ProjectQuotas:
    """Admits jobs while their project is within its quotas."""

    def __init__(self, store: QuotaStore, settings: QuotaSettings, metrics: Metrics) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._projects: dict[int, _Project] = {}
        self._limited = any(
            (
                settings.project_queued_jobs,
                settings.project_urgent_jobs,
                settings.project_running_jobs,
                settings.project_request_bytes,
            )
        )

    @asynccontextmanager
    async def hold(self, new: NewJob) -> AsyncIterator[None]:
        """Admit a job, which is stored within the context.

        Raises:
            QuotaExceeded: its project has used up a quota.
            sqlalchemy.exc.SQLAlchemyError, OSError: the database is unavailable.
        """
        if not self._limited:
            yield
            return
        job = ProjectUsage(1, int(new.priority in _URGENT), 0, _size(new.request))
        project = await self._admit(new.owner.project_id, job)
        project.inserting += job
        try:
            yield
            project.submitted += job
        finally:
            project.inserting -= job

    async def _admit(self, project_id: int, job: ProjectUsage) -> _Project:
        project = self._projects.get(project_id)
        if project is None:
            if len(self._projects) >= MAX_PROJECTS:
                self._projects = {key: one for key, one in self._projects.items() if one.inserting.queued}
            project = self._projects[project_id] = _Project()
        if project.counted is None:
            await self._count(project_id, project)
        elif time.monotonic() >= project.fresh_until:
            self._start_count(project_id, project)
        if self._exceeded(project.used, job) is not None and time.monotonic() >= project.recount_after:
            await self._count(project_id, project)
        if (exceeded := self._exceeded(project.used, job)) is not None:
            quota, message = exceeded
            self._metrics.quota_rejections.labels(quota.value).inc()
            raise QuotaExceeded(message, retry_after_s=RETRY_S)
        return project

    def _exceeded(self, used: ProjectUsage, job: ProjectUsage) -> tuple[Quota, str] | None:
        """The quota that the job would exceed, and the message for its client."""
        settings = self._settings
        limit = settings.project_queued_jobs
        if limit and used.queued >= limit:
            return Quota.QUEUED_JOBS, (
                f"This project has {limit} queued jobs, the maximum (HEADRACE_PROJECT_QUEUED_JOBS); try again when some"
                " have started, or send the requests as a batch."
            )
        limit = settings.project_urgent_jobs
        if limit and job.urgent and used.urgent >= limit:
            return Quota.URGENT_JOBS, (
                f"This project has {limit} queued jobs of the priorities {_URGENT[0]} to {_URGENT[-1]}, the maximum"
                " (HEADRACE_PROJECT_URGENT_JOBS); use a higher priority number, or try again when some have started."
            )
        limit = settings.project_running_jobs
        if limit and used.running >= limit:
            return Quota.RUNNING_JOBS, (
                f"This project has {used.running} running jobs, the maximum is {limit} (HEADRACE_PROJECT_RUNNING_JOBS);"
                " try again when some have ended."
            )
        limit = settings.project_request_bytes
        if limit and used.request_bytes + job.request_bytes > limit:
            return Quota.REQUEST_BYTES, (
                f"The requests of this project's open jobs would have more than {limit} bytes"
                " (HEADRACE_PROJECT_REQUEST_BYTES); try again when some have ended."
            )
        return None

    def _start_count(self, project_id: int, project: _Project) -> asyncio.Task[None]:
        """Count in the background. Concurrent callers share one count."""
        if project.counting is None:
            project.counting = asyncio.create_task(self._run_count(project_id, project), name="quota-count")
            project.counting.add_done_callback(_retrieve_error)
        return project.counting

    async def _count(self, project_id: int, project: _Project) -> None:
        await asyncio.shield(self._start_count(project_id, project))

    async def _run_count(self, project_id: int, project: _Project) -> None:
        try:
            # What is being inserted now may or may not be counted; it is added until the next count.
            before, started_at = project.submitted, time.monotonic()
            project.counted = await self._store.usage(project_id)
            project.submitted -= before
            took_s = time.monotonic() - started_at
            project.fresh_until = started_at + max(FRESH_S, MIN_COUNT_INTERVAL * took_s)
            project.recount_after = started_at + MIN_COUNT_INTERVAL * took_s
        finally:
            project.counting = None


def _size(request: GenerateRequest) -> int:
    """About the size of a stored request. The count uses the size of the rows."""
    if request.messages is not None:
        return sum(len(message.content or "") + 32 for message in request.messages)
    return len(request.prompt or "")


def _retrieve_error(task: asyncio.Task[None]) -> None:
    """Mark an error as handled: in the background, the next submit counts again."""
    if not task.cancelled():
        task.exception()
