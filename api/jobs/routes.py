"""`/v1/jobs`: submit, poll, stream, cancel, delete."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.http.dependencies import CurrentStreamSettings
from api.http.errors import ErrorResponse
from api.http.header_parameters import HeaderParameter, reads_headers
from api.http.json_body import CurrentBodyWork, JsonRoute
from api.http.large_json import json_response
from api.http.money import cost_header
from api.http.openapi import ERRORS, FAILED, JOB, NOT_FOUND, SUBMITTED_JOB
from api.http.pagination import After, Limit
from api.http.sse import event_stream
from api.http.submit_headers import Submission, replay_headers
from api.jobs import action_routes
from api.jobs.dependencies import CurrentReplays, Jobs, Search
from api.jobs.native_stream import native_stream
from api.jobs.output_list import list_with_outputs
from api.jobs.schemas import JobCreate, JobDeleted, JobList, JobListWithOutput, JobView, summary_view, with_output
from api.jobs.search import JobQuery, job_query
from api.jobs.service import JobService
from api.keys.auth import CurrentPrincipal, CurrentRequest
from shared.domain.errors import InvalidRequest
from shared.domain.job import Choice, Job, JobSummary

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
        200: {
            "model": JobView,
            "description": "The job has ended: within `Prefer: wait=N`, or because the response cache had its answer.",
            **SUBMITTED_JOB,
        },
        202: SUBMITTED_JOB,
        413: FAILED[413],
        422: FAILED[422],
    },
)
@reads_headers(HeaderParameter("Prefer", "`wait=N`: wait up to N seconds (at most 60) for the job to end."))
async def submit(
    body: JobCreate,
    principal: CurrentPrincipal,
    jobs: Jobs,
    submission: Submission,
    work: CurrentBodyWork,
    request: Request,
) -> Response:
    """Submit a job. Status 202 means that it is committed and will run."""
    wait_s = _wait(request.headers.get("Prefer"))
    principal = principal.acting_for(body.end_user)
    new = body.new_job(principal.owner, await work.run(body.generate_request), submission)
    idempotency = await work.run(submission.idempotency, "/v1/jobs", body)
    try:
        job, created = await jobs.submit(principal, new, idempotency, background=not wait_s)
    except InvalidRequest as error:
        raise body.rename_param(error) from None
    request.state.job_id = job.id
    headers = replay_headers(created) | job.decisions.headers()
    if wait_s:
        headers["Preference-Applied"] = f"wait={wait_s}"
        try:
            async with asyncio.timeout(wait_s):
                if not job.status.terminal:
                    await jobs.wait_for_end(job.id)
        except TimeoutError:
            pass
        return await _job_response(jobs, *await jobs.result(job.id, principal.project_id), headers)
    return await _submitted(jobs, job, created, headers)


@router.get(
    "",
    response_model=JobListWithOutput | JobList,
    responses={**ERRORS, 403: {"model": ErrorResponse, "description": "`project` needs a key with the scope `admin`."}},
)
async def list_jobs(
    principal: CurrentPrincipal,
    jobs: Jobs,
    search: Search,
    query: Annotated[JobQuery, Depends(job_query)],
    limit: Limit = 20,
    after: After = None,
    include: Annotated[
        list[Literal["output"]] | None,
        Query(description="`output`: show the outputs too, as `GET /v1/jobs/{id}` does."),
    ] = None,
) -> Response:
    """List jobs that meet all conditions, newest first, without their outputs unless `include=output`."""
    page = await search.page(principal, query, limit=limit, after=after)
    if not include:
        listed = JobList.of_search(page, [summary_view(job) for job in page.jobs])
        return Response(listed.model_dump_json(), media_type="application/json")
    return StreamingResponse(list_with_outputs(jobs, page), media_type="application/json")


router.include_router(action_routes.router)  # here, because GET /{job_id} would match /count


@router.get(
    "/{job_id}",
    response_model=JobView,
    responses={
        **ERRORS,
        **NOT_FOUND,
        200: JOB,
        202: {"model": JobView, "description": "The job has not ended.", **JOB},
    },
)
async def get_job(job_id: str, principal: CurrentPrincipal, jobs: Jobs, request: Request) -> Response:
    """Get a job. Status 200 if it has ended, 202 before."""
    job, output = await jobs.result(job_id, principal.project_id)
    request.state.job_id = job.id
    return await _job_response(jobs, job, output, {})


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
    job = await jobs.summary(job_id, principal.project_id)
    if not await jobs.check_cursor(job, after, param):
        return Response(status_code=204)  # tells an EventSource to stop reconnecting
    open_request.open_stream(job.model, job.owner.end_user)
    return event_stream(await native_stream(jobs, job, after), settings)


@router.post("/{job_id}/cancel", response_model=JobView, responses={**ERRORS, **NOT_FOUND})
async def cancel(job_id: str, principal: CurrentPrincipal, jobs: Jobs) -> Response:
    """Cancel a job. It is `cancelling` until the engine has released it, then `cancelled`, with its partial output."""
    await jobs.cancel(job_id, principal.project_id)
    job, output = await jobs.result(job_id, principal.project_id)
    return await json_response(with_output(summary_view(job), output))


@router.post(
    "/{job_id}/replay",
    status_code=202,
    response_model=JobView,
    responses={
        **ERRORS,
        **NOT_FOUND,
        200: {"model": JobView, "description": "The new job has ended already.", **SUBMITTED_JOB},
        202: SUBMITTED_JOB,
        409: {"model": ErrorResponse, "description": "The job has not ended."},
        422: FAILED[422],
    },
)
async def replay(
    job_id: str,
    principal: CurrentPrincipal,
    jobs: Jobs,
    replays: CurrentReplays,
    submission: Submission,
    request: Request,
) -> Response:
    """Submit the request of a job that has ended again, as a new job of the same project, model and end user.

    The new job names the old one in its metadata, as `replay_of`. The limits and quotas of today apply to it. Unless
    `Cache-Control` is sent, the response cache does not answer it. A key with both scopes can replay jobs of all
    projects.
    """
    job, created = await replays.replay(principal, job_id, submission)
    request.state.job_id = job.id
    return await _submitted(jobs, job, created, replay_headers(created) | job.decisions.headers())


@router.delete(
    "/{job_id}",
    responses={**ERRORS, **NOT_FOUND, 409: {"model": ErrorResponse, "description": "The job has not ended."}},
)
async def delete(job_id: str, principal: CurrentPrincipal, jobs: Jobs) -> JobDeleted:
    """Delete an ended job's input and output, also in the request log."""
    await jobs.delete(job_id, principal.project_id)
    return JobDeleted(id=job_id)


async def _submitted(jobs: JobService, job: Job, created: bool, headers: dict[str, str]) -> Response:
    is_new = created and not job.status.terminal
    estimate = jobs.queue_estimates.submitted if is_new else jobs.queue_estimates.waiting
    return await _respond(jobs, job, job.output, await estimate(job), headers)


async def _job_response(
    jobs: JobService, job: JobSummary, output: Sequence[Choice], headers: dict[str, str]
) -> Response:
    return await _respond(jobs, job, output, await jobs.queue_estimates.waiting(job), headers)


async def _respond(
    jobs: JobService,
    job: JobSummary,
    output: Sequence[Choice],
    estimate: tuple[int | None, float | None],
    headers: dict[str, str],
) -> Response:
    position, eta_s = estimate
    paused = await jobs.queue_estimates.is_paused(job)
    view = summary_view(job, position=position, eta_s=eta_s, paused=paused)
    headers |= {"Location": view.status_url}
    if job.status.terminal:
        headers |= cost_header(job.charge)
    else:
        headers |= {"Retry-After": POLL_AFTER_S}
    return await json_response(with_output(view, output), 200 if job.status.terminal else 202, headers)


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
