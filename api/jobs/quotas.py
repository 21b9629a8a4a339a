"""Quotas of a project: how many jobs may wait and run, and how large their requests may be together.

The rows are the only counter, so that nothing can leak or drift. Counting them for each submit would cost more than the
submit, so a count is used for a second, plus what this process has submitted since. A submit that would be rejected is
always counted again first. Other API processes' submits of the last second are not seen: with several processes, a
project may exceed a quota by those.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace

from api.jobs.quota_store import ProjectUsage, QuotaStore
from api.settings import QuotaSettings
from shared.domain.errors import QuotaExceeded
from shared.domain.new_job import NewJob
from shared.domain.priorities import BANDS, PRIORITY_STEPS
from shared.telemetry.definitions.labels import Quota
from shared.telemetry.metrics import Metrics

FRESH_S = 1.0
# A rejected submit is counted again if the last count is older than this many times its duration, which under load
# includes waiting for a connection: at most `MAX_RECOUNT_S`.
MIN_COUNT_INTERVAL = 5
MAX_RECOUNT_S = 0.02
RETRY_S = 5
# Projects that are remembered between their submits.
MAX_PROJECTS = 10_000
_URGENT = BANDS[PRIORITY_STEPS[0]]


@dataclass(slots=True)
class _Jobs:
    """A number of jobs, how many of them are urgent, and the size of their requests."""

    count: int = 0
    urgent: int = 0
    request_bytes: int = 0

    def add(self, other: _Jobs, sign: int = 1) -> None:
        self.count += sign * other.count
        self.urgent += sign * other.urgent
        self.request_bytes += sign * other.request_bytes


@dataclass(slots=True)
class _Project:
    """The last count of a project, what this process has submitted since that count began, and is submitting now."""

    counted: ProjectUsage | None = None
    submitted: _Jobs = field(default_factory=_Jobs)
    submitting: _Jobs = field(default_factory=_Jobs)
    fresh_until: float = 0.0
    recount_after: float = 0.0
    counting: asyncio.Task[None] | None = None


class Reservation:
    """A job's part of its project's quotas until it is stored; then the count of rows includes it."""

    __slots__ = ("_job", "_project")

    def __init__(self, project: _Project | None, job: _Jobs) -> None:
        self._project = project
        self._job = job

    def release(self) -> None:
        """The job was stored. If that failed, it is counted until the next count of rows."""
        if self._project is not None:
            self._project.submitting.add(self._job, -1)
            self._project.submitted.add(self._job)


NO_RESERVATION = Reservation(None, _Jobs())


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

    async def reserve(self, new: NewJob) -> Reservation:
        """Admit a job, which the caller stores; it releases the reservation afterwards.

        Raises:
            QuotaExceeded: its project has used up a quota.
            sqlalchemy.exc.SQLAlchemyError, OSError: the database is unavailable.
        """
        if not self._limited:
            return NO_RESERVATION
        job = _Jobs(1, int(new.priority in _URGENT), new.request.size)
        project_id = new.owner.project_id
        project = self._projects.get(project_id)
        if project is None:
            project = self._add_project(project_id)
        now = time.monotonic()
        if project.counted is None:
            await self._count(project_id, project)
        elif now >= project.fresh_until:
            self._start_count(project_id, project)
        if self._exceeded(project, job) is not None and time.monotonic() >= project.recount_after:
            await self._count(project_id, project)
        if (exceeded := self._exceeded(project, job)) is not None:
            quota, message = exceeded
            self._metrics.quota_rejections.labels(quota.value).inc()
            raise QuotaExceeded(message, retry_after_s=RETRY_S)
        project.submitting.add(job)
        return Reservation(project, job)

    def _add_project(self, project_id: int) -> _Project:
        if len(self._projects) >= MAX_PROJECTS:
            self._projects = {key: one for key, one in self._projects.items() if one.submitting.count}
        project = self._projects[project_id] = _Project()
        return project

    def _exceeded(self, project: _Project, job: _Jobs) -> tuple[Quota, str] | None:
        """The quota that the job would exceed, and the message for its client."""
        settings, counted = self._settings, project.counted
        assert counted is not None
        submitted, submitting = project.submitted, project.submitting
        limit = settings.project_queued_jobs
        if limit and counted.queued + submitted.count + submitting.count >= limit:
            return Quota.QUEUED_JOBS, (
                f"This project has {limit} queued jobs, the maximum (HEADRACE_PROJECT_QUEUED_JOBS); try again when some"
                " have started, or send the requests as a batch."
            )
        limit = settings.project_urgent_jobs
        if limit and job.urgent and counted.urgent + submitted.urgent + submitting.urgent >= limit:
            return Quota.URGENT_JOBS, (
                f"This project has {limit} queued jobs of the priorities {_URGENT[0]} to {_URGENT[-1]}, the maximum"
                " (HEADRACE_PROJECT_URGENT_JOBS); use a higher priority number, or try again when some have started."
            )
        limit = settings.project_running_jobs
        if limit and counted.running >= limit:
            return Quota.RUNNING_JOBS, (
                f"This project has {counted.running} running jobs, the maximum is {limit}"
                " (HEADRACE_PROJECT_RUNNING_JOBS); try again when some have ended."
            )
        limit = settings.project_request_bytes
        used = counted.request_bytes + submitted.request_bytes + submitting.request_bytes
        if limit and used + job.request_bytes > limit:
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
            # What is stored during the count may or may not be counted; it is added until the next count.
            before, started_at = replace(project.submitted), time.monotonic()
            project.counted = await self._store.usage(project_id)
            project.submitted.add(before, -1)
            took_s = time.monotonic() - started_at
            project.fresh_until = started_at + max(FRESH_S, MIN_COUNT_INTERVAL * took_s)
            project.recount_after = started_at + min(MAX_RECOUNT_S, MIN_COUNT_INTERVAL * took_s)
        finally:
            project.counting = None


def _retrieve_error(task: asyncio.Task[None]) -> None:
    """Mark an error as handled: in the background, the next submit counts again."""
    if not task.cancelled():
        task.exception()
