"""`/v1/jobs/count`, `/v1/jobs/cancel` and `/v1/jobs/replay`: all jobs that match a search."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends, Header, Query
from pydantic import BaseModel, Field

from api.http.dependencies import resource
from api.http.errors import ErrorResponse
from api.http.json_body import JsonRoute
from api.http.openapi import ERRORS
from api.http.pagination import After
from api.jobs.actions import MAX_COUNT, Action, ActionPage, ActionResult, JobActions, JobCount
from api.jobs.schemas import JobPageView
from api.jobs.search import JobQuery, job_query
from api.keys.auth import CurrentPrincipal
from shared.domain.job import JobStatus

# `api.jobs.routes` includes it, below /v1/jobs.
router = APIRouter(route_class=JsonRoute)

Actions = Annotated[JobActions, Depends(resource(JobActions))]
Conditions = Annotated[JobQuery, Depends(job_query)]
Limit = Annotated[int, Query(ge=1, le=100, description="The size of the page.")]
FORBIDDEN: dict[int | str, dict[str, Any]] = {
    403: {"model": ErrorResponse, "description": "`project` needs a key with the scope `admin`."}
}


class JobCountView(BaseModel):
    """How many jobs an action is for."""

    object: Literal["job.count"] = "job.count"
    action: Action
    count: int = Field(description=f"At most {MAX_COUNT}.")
    complete: bool = Field(description="Whether all jobs were counted. Otherwise there are more.")
    created_before: datetime | None = Field(
        description="With this condition, no job matches that is submitted later. Null if there is no job."
    )

    @classmethod
    def of(cls, action: Action, count: JobCount) -> Self:
        """The JSON form of a count."""
        return cls(action=action, count=count.count, complete=count.is_complete, created_before=count.created_before)


class JobActionView(BaseModel):
    """What became of a job."""

    id: str
    object: Literal["job.action"] = "job.action"
    status: JobStatus = Field(description="The status of the job.")
    replayed_as: str | None = Field(description="The id of the new job that has its request.")
    error: str | None = Field(description="Why nothing was done.")

    @classmethod
    def of(cls, result: ActionResult) -> Self:
        """The JSON form of a result."""
        return cls(id=result.job_id, status=result.status, replayed_as=result.new_job, error=result.error)


class JobActionList(JobPageView[JobActionView]):
    """A page of jobs, and what became of them."""


def _view(done: ActionPage) -> JobActionList:
    return JobActionList.of_search(done.page, [JobActionView.of(result) for result in done.results])


@router.get("/count", responses={**ERRORS, **FORBIDDEN})
async def count_jobs(
    principal: CurrentPrincipal,
    actions: Actions,
    query: Conditions,
    action: Annotated[Action, Query()],
    after: After = None,
) -> JobCountView:
    """Count the jobs that match and that an action is for: open jobs of `cancel`, ended ones of `replay`."""
    return JobCountView.of(action, await actions.count(principal, action, query, after=after))


@router.post("/cancel", responses={**ERRORS, **FORBIDDEN})
async def cancel_jobs(
    principal: CurrentPrincipal, actions: Actions, query: Conditions, limit: Limit = 100, after: After = None
) -> JobActionList:
    """Cancel a page of the open jobs that match, newest first. Repeat it with `after` while there are more.

    At least one condition is required. Use the `created_before` of the count, so that later jobs do not match.
    """
    return _view(await actions.apply(principal, Action.CANCEL, query, limit=limit, after=after))


@router.post("/replay", responses={**ERRORS, **FORBIDDEN})
async def replay_jobs(
    principal: CurrentPrincipal,
    actions: Actions,
    query: Conditions,
    limit: Limit = 100,
    after: After = None,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="Required, the same for all pages: no job is replayed twice."),
    ] = None,
) -> JobActionList:
    """Replay a page of the ended jobs that match, newest first. Repeat it with `after` while there are more.

    At least one condition is required. A page that was refused (429) or whose response was lost can be repeated.
    """
    return _view(await actions.apply(principal, Action.REPLAY, query, limit=limit, after=after, key=idempotency_key))
