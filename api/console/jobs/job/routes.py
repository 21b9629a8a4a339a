"""`/console/jobs/ID`: where a job's time went, what it answered, and why."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal, NamedTuple

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from api.console.jobs.job.answer import choices, request_view, title_of
from api.console.jobs.job.code import body_text, programs, request_body
from api.console.jobs.job.live import merged
from api.console.jobs.job.thumbs import CurrentFeedback, thumbs
from api.console.jobs.job.thumbs import router as thumbs_router
from api.console.jobs.job.view import JobPageView, build_view
from api.console.jobs.service import ConsoleJobs
from api.console.live import Broadcaster, part_frame
from api.console.live_streams import CurrentStreams
from api.console.navigation import browser_path, root_of
from api.console.templates import page_response, render
from api.console.viewer import CurrentViewer
from api.http.dependencies import CurrentStreamSettings, resource
from api.http.sse import event_stream
from api.jobs.actions import Action
from api.jobs.dependencies import Jobs
from api.jobs.native_stream import native_data, native_stream
from api.jobs.service import JobService
from shared.domain.errors import NotFound
from shared.domain.events import Event
from shared.domain.job import Job, JobSummary
from shared.redis.log_flushes import FlushReader
from shared.runtime.offload import off_loop

# A second: what a person expects of a running timer.
INTERVAL_S = 1.0
MAX_READERS = 64
PARTS = ("status", "stats", "timeline", "facts", "history", "cost")
Tab = Literal["answer", "request", "events"]
TABS: Mapping[Tab, str] = {"answer": "Answer", "request": "Request", "events": "Events"}
What = Literal["output", "request", "body", "events"]


class Audience(NamedTuple):
    """Those who see the same job."""

    project_id: int | None
    job_id: str


class JobParts:
    """Renders the parts of a job's page, and sends those that change."""

    def __init__(self, jobs: ConsoleJobs) -> None:
        self._jobs = jobs
        # What was read of the logs of jobs whose pages are open, by use. They may be long, and are read each second.
        self._readers: dict[Audience, FlushReader] = {}
        self.broadcaster = Broadcaster("job", self._parts, interval_s=INTERVAL_S)

    async def _parts(self, audience: Audience) -> Mapping[str, str]:
        job = await self._jobs.summary(audience.project_id, audience.job_id)
        return self.render(await self.view(job, self._reader(audience), is_operator=audience.project_id is None))

    def _reader(self, audience: Audience) -> FlushReader:
        reader = self._readers.pop(audience) if audience in self._readers else FlushReader()
        self._readers[audience] = reader
        if len(self._readers) > MAX_READERS:
            del self._readers[next(iter(self._readers))]
        return reader

    async def view(
        self, job: JobSummary, found: FlushReader | None = None, *, is_operator: bool = False
    ) -> JobPageView:
        """The view of a job now, for operators or for members of its project. `found`: what is known of its log."""
        names = await self._jobs.names([job])
        flushes, is_paused = await self._jobs.flushes(job.id, found), await self._jobs.is_paused(job)
        return build_view(
            job,
            flushes,
            names[job.owner.key_id],
            datetime.now(UTC),
            is_paused=is_paused,
            entries=await self._jobs.entries(job),
            is_operator=is_operator,
        )

    def render(self, view: JobPageView) -> Mapping[str, str]:
        """The parts of the page by name, as HTML."""
        return {name: render(f"jobs/job/{name}.html", {"view": view}) for name in PARTS}

    async def last(self, audience: Audience) -> bytes:
        """The frames of all parts of a job that has ended, with its answer."""
        job = await self._jobs.job(audience.project_id, audience.job_id)
        view = await self.view(job, is_operator=audience.project_id is None)
        parts = {**self.render(view), "answer": await answer_part(job)}
        return b"".join(part_frame(name, html) for name, html in parts.items())


async def answer_part(job: Job) -> str:
    """The answer of a job, as HTML."""
    found = await off_loop(job.output_size, choices, job.output)
    return render("jobs/job/answer.html", {"choices": found, "job": job, "is_open": not job.status.terminal})


CurrentJobs = Annotated[ConsoleJobs, Depends(resource(ConsoleJobs))]
CurrentParts = Annotated[JobParts, Depends(resource(JobParts))]
router = APIRouter()
router.include_router(thumbs_router)  # here, because POST /{job_id}/{action} would match it


@router.get("/{job_id}")
async def job_page(
    request: Request,
    job_id: str,
    viewer: CurrentViewer,
    jobs: CurrentJobs,
    parts: CurrentParts,
    feedback: CurrentFeedback,
    tab: Tab = "answer",
) -> Response:
    """The page."""
    job = await jobs.job(viewer.project_id, job_id)
    view = await parts.view(job, is_operator=viewer.is_operator)
    body = await off_loop(job.request.size, _body, job)
    return page_response(
        request.scope,
        "jobs/job/job.html",
        job=job,
        view=view,
        title=title_of(job),
        parts=parts.render(view),
        tab=tab,
        tabs=TABS,
        answer=await answer_part(job),
        thumbs=await thumbs(feedback, viewer, job.id),
        job_id=job.id,
        request_view=await off_loop(job.request.size, request_view, job) if tab == "request" else None,
        programs=programs(body),
    )


@router.get("/{job_id}/live")
async def job_events(
    job_id: str,
    viewer: CurrentViewer,
    jobs: CurrentJobs,
    parts: CurrentParts,
    service: Jobs,
    streams: CurrentStreams,
    settings: CurrentStreamSettings,
    starting_after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """The events of the job after a cursor, and the parts of its page that change, as server-sent events."""
    job = await jobs.summary(viewer.project_id, job_id)
    resumes = last_event_id is not None and re.fullmatch("[0-9]{1,15}", last_event_id) is not None
    after = int(last_event_id or 0) if resumes else starting_after
    audience = Audience(viewer.project_id, job.id)
    changing = parts.broadcaster.frames(audience, streams)
    events = await native_stream(service, job, after)
    return event_stream(merged(events, changing, lambda: parts.last(audience)), settings)


@router.get("/{job_id}/raw/{what}")
async def raw(
    job_id: str, what: What, viewer: CurrentViewer, jobs: CurrentJobs, service: Jobs, choice: int = 0
) -> Response:
    """The whole of what the page cuts, as plain text: an answer, the request, the body that sends it, or all events."""
    job = await jobs.job(viewer.project_id, job_id)
    if what == "events":
        return StreamingResponse(_event_lines(jobs, service, job), media_type="text/plain; charset=utf-8")
    if what == "output":
        text = next((one.text for one in job.output if one.index == choice), None)
        if text is None:
            raise NotFound("The job has no such answer.")
    elif what == "request":
        text = await off_loop(job.request.size, _stored_request, job)
    else:
        text = await off_loop(job.request.size, _body, job)
    headers = {"Content-Disposition": f'attachment; filename="{job.id}.json"'} if what == "body" else None
    return Response(text.encode("utf-8", "replace"), media_type="text/plain; charset=utf-8", headers=headers)


@router.post("/{job_id}/{action}")
async def change(request: Request, job_id: str, action: Action, viewer: CurrentViewer, jobs: CurrentJobs) -> Response:
    """Cancel the job, or submit its request again and open the page of the new job."""
    shown = job_id
    if action is Action.REPLAY:
        shown = (await jobs.replay(viewer, job_id)).id
    else:
        await jobs.cancel(viewer, job_id)
    address = f"{root_of(browser_path(request.scope))}jobs/{shown}"
    return RedirectResponse(address, status_code=303)


async def _event_lines(jobs: ConsoleJobs, service: JobService, job: Job) -> AsyncIterator[bytes]:
    """The events of a job so far, as lines: number, type, data."""
    if job.status.terminal:
        async for events in service.follow_submitted(job, created=False):
            yield b"".join(map(_event_line, events))
        return
    yield b"".join(_event_line(event) for event in await jobs.events(job.id) if event.type.public)


def _event_line(event: Event) -> bytes:
    return b"%d job.%b %b\n" % (event.seq, event.name, native_data(event))


def _body(job: Job) -> str:
    return body_text(request_body(job))


def _stored_request(job: Job) -> str:
    return job.request.model_dump_json(exclude_none=True, exclude_defaults=True, indent=2)
