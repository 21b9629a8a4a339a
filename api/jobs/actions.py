"""Cancelling or replaying all jobs that match a search, page by page.

Each call processes one page of the search, so a call takes about as long as the search itself. The caller continues
with the cursor of the page. Repeating a page has no further effect: a cancelled job stays cancelled, and a replay is
found by its idempotency key.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from api.http.submit_headers import SubmitHeaders
from api.jobs.replay import Replays
from api.jobs.search import ALL, JobQuery, JobSearch
from api.jobs.search_store import JobPage
from api.jobs.service import JobService
from api.keys.principal import Principal, Scope
from shared.domain.errors import HeadraceError, InvalidRequest, QuotaExceeded, RateLimited
from shared.domain.job import TERMINAL, JobStatus, JobSummary

# Jobs that are counted.
MAX_COUNT = 10_000
# Jobs of a page that are changed at a time.
CONCURRENT = 8


class Action(StrEnum):
    """What can be done with jobs."""

    CANCEL = "cancel"
    REPLAY = "replay"


# The statuses of jobs that an action is for.
STATUSES: Final[Mapping[Action, Sequence[JobStatus]]] = {
    Action.CANCEL: (JobStatus.QUEUED, JobStatus.IN_PROGRESS),
    Action.REPLAY: TERMINAL,
}


@dataclass(frozen=True, slots=True)
class ActionResult:
    """What became of a job: its status, the id of its replay, or why nothing was done."""

    job_id: str
    status: JobStatus
    new_job: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ActionPage:
    """The jobs of a page, and what became of each."""

    page: JobPage
    results: Sequence[ActionResult]


@dataclass(frozen=True, slots=True)
class JobCount:
    """How many jobs an action is for.

    `is_complete`: there are no more than `count`; otherwise there are more than could be counted. `created_before`:
    with this condition, later jobs do not match; None if there is no job.
    """

    count: int
    is_complete: bool
    created_before: datetime | None


class JobActions:
    """Counts, cancels and replays the jobs that match a query."""

    def __init__(self, search: JobSearch, jobs: JobService, replays: Replays) -> None:
        self._search = search
        self._jobs = jobs
        self._replays = replays

    async def count(
        self, principal: Principal, action: Action, query: JobQuery, *, after: str | None = None
    ) -> JobCount:
        """Count the jobs that an action is for, after a cursor.

        Raises:
            InvalidRequest, Forbidden: as `apply`.
        """
        if (narrowed := _narrowed(action, query)) is None:
            return JobCount(0, True, None)
        found = await self._search.count(principal, narrowed, limit=MAX_COUNT, after=after)
        newest = None if found.newest_at is None else found.newest_at + timedelta(microseconds=1)
        return JobCount(found.count, found.is_complete, newest)

    async def apply(
        self,
        principal: Principal,
        action: Action,
        query: JobQuery,
        *,
        limit: int,
        after: str | None = None,
        key: str | None = None,
    ) -> ActionPage:
        """Cancel or replay a page of the jobs that match, newest first.

        `key`: the idempotency key of all pages of a replay, which needs one.

        Raises:
            InvalidRequest: the query has no condition that selects jobs, a replay has no key, or as `JobSearch.page`.
            Forbidden: the key has no inference scope, or as `JobSearch.page`.
            QuotaExceeded: the project's quota does not allow more replays now. The same call can be made later.
        """
        principal.require(Scope.INFERENCE)
        if action is Action.REPLAY and key is None:
            raise InvalidRequest(
                "Idempotency-Key: is required, the same for all pages, so that no job is replayed twice",
                param="Idempotency-Key",
            )
        if (narrowed := _narrowed(action, query)) is None:
            return ActionPage(JobPage((), None), ())
        page = await self._search.page(principal, narrowed, limit=limit, after=after)
        free = asyncio.Semaphore(CONCURRENT)

        async def one(job: JobSummary) -> ActionResult:
            async with free:
                return await self._one(principal, action, job, key)

        # All of them have ended before an error is raised.
        results = await asyncio.gather(*map(one, page.jobs), return_exceptions=True)
        done = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            done.append(result)
        return ActionPage(page, done)

    async def _one(self, principal: Principal, action: Action, job: JobSummary, key: str | None) -> ActionResult:
        try:
            if action is Action.CANCEL:
                job = await self._jobs.cancel(job.id, job.owner.project_id)
                return ActionResult(job.id, job.status)
            digest = hashlib.sha256((key or "").encode()).hexdigest()[:32]
            new, _ = await self._replays.replay(principal, job.id, SubmitHeaders(f"all-{digest}:{job.id}"))
            return ActionResult(job.id, job.status, new.id)
        except QuotaExceeded as error:
            if isinstance(error, RateLimited) and error.wait_s is None:  # later calls would be refused too
                return ActionResult(job.id, job.status, error=error.message)
            raise
        except HeadraceError as error:
            return ActionResult(job.id, job.status, error=error.message)


def _narrowed(action: Action, query: JobQuery) -> JobQuery | None:
    """The query for jobs that the action is for; None if it matches none of them."""
    selects = (query.statuses, query.model, query.key, query.user, query.created_after, query.metadata)
    if not any(selects) and query.project in (None, ALL):
        raise InvalidRequest(
            "Give at least one of the conditions status, model, key, user, created_after and metadata: without any, all"
            " jobs would match.",
            param="status",
        )
    allowed = STATUSES[action]
    statuses = [status for status in query.statuses or allowed if status in allowed]
    return replace(query, statuses=statuses) if statuses else None
