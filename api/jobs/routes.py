"""`/v1/jobs`: submit, poll, stream, cancel, delete."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from api.http.dependencies import CurrentStreamSettings
from api.http.errors import ErrorResponse
from api.http.json_body import CurrentBodyWork, JsonRoute
from api.http.openapi import ERRORS, NOT_FOUND
from api.http.pagination import After
from api.http.sse import event_stream
from api.http.submit_headers import Submission, replay_headers
from api.jobs.dependencies import Jobs
from api.jobs.native_stream import native_stream
from api.jobs.schemas import JobCreate, JobDeleted, JobList, JobView, job_view
from api.keys.auth import CurrentPrincipal, CurrentRequest
from shared.config.models.base import MAX_NAME, NAME
from shared.domain.errors import InvalidRequest
from shared.domain.job import Job, JobStatus
from shared.postgres.job_store import NewJob

MAX_WAIT_S = 60
POLL_AFTER_S = "1"
MAX_CURSOR = 2**53

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=JsonRoute)


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    responses={
        **ERRORS,
        **NOT_FOUND,
        200: {"model": JobView, "description": "The job has ended within `Prefer: wait=N`."},
        413: {"model": ErrorResponse, "description": "The body is too large."},
        422: {"model": ErrorResponse, "description": "The Idempotency-Key was used with a different request."},
    },
)
async def submit(
    body: JobCreate,
    principal: CurrentPrincipal,
    jobs: Jobs,
    submission: Submission,
    work: CurrentBodyWork,
    request: Request,
    prefer: Annotated[
        str | None, Header(description="`wait=N`: wait up to N seconds (at most 60) for the job to end.")
    ] = None,
) -> Response:
    """Submit a job. Status 202 means that it is committed and will run."""
    wait_s = _wait(prefer)
    principal = principal.acting_for(body.user)
    new = NewJob(
        owner=principal.owner,
        model=body.model,
        priority=body.priority,
        request=await work.run(body.generate_request),
        metadata=body.metadata,
        start_within_s=submission.start_within_s,
        finish_within_s=submission.finish_within_s,
    )
    idempotency = await work.run(submission.idempotency, "/v1/jobs", body)
    try:
        job, created = await jobs.submit(principal, new, idempotency)
    except InvalidRequest as error:
        raise body.rename_param(error) from None
    request.state.job_id = job.id
    headers = replay_headers(created)
    if wait_s:
        headers["Preference-Applied"] = f"wait={wait_s}"
        try:
            async with asyncio.timeout(wait_s):
                job = await jobs.wait_for_end(job.id, principal.project_id)
        except TimeoutError:
            job = await jobs.get(job.id, principal.project_id)
    just_queued = created and job.status is JobStatus.QUEUED
    position, eta_s = await (jobs.queue_estimates.submitted(job) if just_queued else jobs.queue_estimates.waiting(job))
    return _job_response(job, position, eta_s, headers)


@router.get("", responses=ERRORS)
async def list_jobs(
    principal: CurrentPrincipal,
    jobs: Jobs,
    status: JobStatus | None = None,
    model: Annotated[str | None, Query(max_length=MAX_NAME, pattern=NAME)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: After = None,
) -> JobList:
    """List jobs, newest first."""
    page = await jobs.page(principal.project_id, status=status, model=model, limit=limit, after=after)
    return JobList.of(page, job_view)


@router.get(
    "/{job_id}",
    response_model=JobView,
    responses={**ERRORS, **NOT_FOUND, 202: {"model": JobView, "description": "The job has not ended."}},
)
async def get_job(job_id: str, principal: CurrentPrincipal, jobs: Jobs) -> Response:
    """Get a job. Status 200 if it has ended, 202 before."""
    job = await jobs.get(job_id, principal.project_id)
    return _job_response(job, *await jobs.queue_estimates.waiting(job), {})


@router.get(
    "/{job_id}/stream",
    response_class=Response,
    responses={
        **ERRORS,
        **NOT_FOUND,
        200: {"content": {"text/event-stream": {}}, "description": "The job's events."},
        204: {"description": "The cursor is the job's last event; no more events follow."},
    },
)
async def stream(
    job_id: str,
    principal: CurrentPrincipal,
    open_request: CurrentRequest,
    jobs: Jobs,
    settings: CurrentStreamSettings,
    starting_after: Annotated[str | None, Query(description="Resume after this event's `id`.")] = None,
    last_event_id: Annotated[str | None, Header(description="The same, as sent by browsers.")] = None,
) -> Response:
    """Stream a job's events over SSE, from the start or after a cursor, as long as the job is retained."""
    param, cursor = ("Last-Event-ID", last_event_id) if last_event_id else ("starting_after", starting_after)
    after = _cursor(param, cursor) if cursor is not None else 0
    job = await jobs.get(job_id, principal.project_id)
    if not await jobs.check_cursor(job, after, param):
        return Response(status_code=204)  # tells an EventSource to stop reconnecting
    open_request.open_stream()
    return event_stream(await native_stream(jobs, job, after), settings)


@router.post("/{job_id}/cancel", responses={**ERRORS, **NOT_FOUND})
async def cancel(job_id: str, principal: CurrentPrincipal, jobs: Jobs) -> JobView:
    """Cancel a job. It is `cancelling` until the engine has released it, then `cancelled`, with its partial output."""
    return job_view(await jobs.cancel(job_id, principal.project_id))


@router.delete(
    "/{job_id}",
    responses={**ERRORS, **NOT_FOUND, 409: {"model": ErrorResponse, "description": "The job has not ended."}},
)
async def delete(job_id: str, principal: CurrentPrincipal, jobs: Jobs) -> JobDeleted:
    """Delete an ended job's input and output."""
    await jobs.delete(job_id, principal.project_id)
    return JobDeleted(id=job_id)


def _job_response(job: Job, position: int | None, eta_s: float | None, headers: dict[str, str]) -> Response:
    view = job_view(job, position=position, eta_s=eta_s)
    headers |= {"Location": view.status_url}
    if not job.status.terminal:
        headers |= {"Retry-After": POLL_AFTER_S}
    status = 200 if job.status.terminal else 202
    return Response(view.model_dump_json(), status, headers, media_type="application/json")


def _wait(prefer: str | None) -> int:
    """Parse the seconds of `Prefer: wait=N` (RFC 7240); 0 if absent."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.strip().partition("=")
        if name.lower() != "wait":
            continue
        if not re.fullmatch(r"[0-9]{1,9}", value):
            raise InvalidRequest(f"Prefer: wait must be a number of seconds, got {value[:64]!r}", param="Prefer")
        return min(int(value), MAX_WAIT_S)
    return 0


def _cursor(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,16}", value) or int(value) > MAX_CURSOR:
        raise InvalidRequest(f"{name}: must be an event id (a number), got {value[:64]!r}", param=name)
    return int(value)
