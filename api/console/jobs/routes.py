"""`/console/jobs`: find jobs, cancel or replay them, export the list. The pages of single jobs are below it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import Response, StreamingResponse

from api.console.actions import redirect
from api.console.jobs import act_routes, conditions, view
from api.console.jobs.conditions import Conditions, Reading
from api.console.jobs.export import TYPES, ExportFormat, export
from api.console.jobs.job import routes as job
from api.console.jobs.lines import Lines
from api.console.jobs.service import ConsoleJobs
from api.console.live import Broadcaster
from api.console.live_streams import CurrentStreams
from api.console.navigation import asks_for_part
from api.console.page import Page
from api.console.templates import fragment_response, page_response, render
from api.console.viewer import CurrentViewer, Viewer
from api.http.dependencies import CurrentStreamSettings, resource
from api.http.sse import event_stream
from api.jobs.actions import Action
from api.jobs.search_store import JobPage
from shared.config.models.loader import Registry
from shared.domain.errors import InvalidRequest
from shared.domain.job import is_job_id

PAGE_JOBS = 30
MAX_SELECTED = 100


class Audience(NamedTuple):
    """Those who see the same list."""

    project_id: int | None
    can_select: bool
    conditions: Conditions


class JobsList:
    """Renders the lines of the list, and sends those that change."""

    def __init__(self, jobs: ConsoleJobs) -> None:
        self._jobs = jobs
        self._lines = Lines()
        self.broadcaster = Broadcaster("jobs", self._parts)

    async def _parts(self, audience: Audience) -> Mapping[str, str]:
        page = await self._jobs.page(audience.project_id, audience.conditions, limit=PAGE_JOBS, after=None)
        return {"rows": await self.rows(audience, page)}

    async def rows(self, audience: Audience, page: JobPage, after: str | None = None) -> str:
        """The lines of a page, and the links to the next one."""
        names, generating = await self._jobs.names(page.jobs), await self._jobs.generating(page.jobs)
        now = datetime.now(UTC)
        rows = view.rows(page.jobs, names, generating, now)
        all_projects, can_select = audience.project_id is None, audience.can_select
        values: dict[str, Any] = {
            "rows": rows,
            "lines": self._lines.render(rows, all_projects=all_projects, can_select=can_select),
            "all_projects": all_projects,
            "can_select": can_select,
            "has_conditions": audience.conditions.any,
            "widest": audience.conditions.changed(range=None, start=None, end=None, statuses=()),
            "conditions": audience.conditions,
            "after": after,
            "page": page,
            "searched_back": view.searched_back(page.cursor, now) if page.partial and page.cursor else None,
        }
        return render("jobs/rows.html", values)


CurrentJobs = Annotated[ConsoleJobs, Depends(resource(ConsoleJobs))]
CurrentList = Annotated[JobsList, Depends(resource(JobsList))]
router = APIRouter()


async def _reading(request: Request) -> Reading:  # FastAPI runs a plain function in a thread
    return conditions.read(request.query_params.multi_items())


CurrentReading = Annotated[Reading, Depends(_reading)]


@router.get("")
async def jobs_page(
    request: Request,
    viewer: CurrentViewer,
    reading: CurrentReading,
    jobs: CurrentJobs,
    listing: CurrentList,
    registry: Annotated[Registry, Depends(resource(Registry))],
    after: str | None = None,
    q: str | None = None,
) -> Response:
    """The page. `q`: words of the search box, which lead to a job or to the address of a list."""
    if q is not None:
        words = q.strip()
        if is_job_id(words):
            return redirect(request, f"jobs/{words}")
        found = conditions.parse(words)
        if not found.problems:
            return redirect(request, found.conditions.address())
        reading = Reading(found.conditions, found.problems)
    audience = _audience(viewer, reading.conditions)
    problems, page = list(reading.problems), JobPage((), None)
    if not problems:
        try:
            page = await jobs.page(audience.project_id, audience.conditions, limit=PAGE_JOBS, after=after)
        except InvalidRequest as error:
            problems.append(error.message)
    return page_response(
        request.scope,
        "jobs/list.html",
        400 if problems else 200,
        rows=await listing.rows(audience, page, after),
        conditions=audience.conditions,
        words=q if q is not None else audience.conditions.words(),
        problems=problems,
        statuses=view.statuses(audience.conditions),
        ranges=view.ranges(audience.conditions),
        chips=view.chips(audience.conditions),
        models=sorted({*registry.models, *filter(None, [audience.conditions.model])}),
        max_selected=MAX_SELECTED,
        is_live=after is None and not page.partial and not problems,
    )


@router.get("/live")
async def jobs_events(
    viewer: CurrentViewer,
    reading: CurrentReading,
    listing: CurrentList,
    streams: CurrentStreams,
    settings: CurrentStreamSettings,
) -> Response:
    """The first page of the list as it changes, as server-sent events."""
    if reading.problems:
        raise InvalidRequest(reading.problems[0])
    return event_stream(listing.broadcaster.frames(_audience(viewer, reading.conditions), streams), settings)


@router.get("/export")
async def export_jobs(
    viewer: CurrentViewer, reading: CurrentReading, jobs: CurrentJobs, file_format: ExportFormat = "csv"
) -> Response:
    """The list as a file."""
    if reading.problems:
        raise InvalidRequest(reading.problems[0])
    parts = await export(jobs, viewer.project_id, reading.conditions, file_format)
    name = f"jobs-{datetime.now(UTC):%Y%m%d-%H%M%S}.{file_format}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(parts, headers=headers, media_type=TYPES[file_format])


@router.post("/selected")
async def change_selected(
    request: Request,
    viewer: CurrentViewer,
    jobs: CurrentJobs,
    action: Annotated[Action, Form()],
    job: Annotated[list[str] | None, Form()] = None,
    back: Annotated[str, Form()] = "jobs",
) -> Response:
    """Cancel or replay the selected jobs: a result for each."""
    selected = job or []
    if len(selected) > MAX_SELECTED:
        raise InvalidRequest(f"At most {MAX_SELECTED} jobs can be changed at once.")
    results = await jobs.apply(viewer, action, selected)
    if asks_for_part(request.scope):
        return fragment_response("jobs/results.html", results=results, action=action.value)
    # The form has the address of the list; any other is ignored.
    address = back if back.partition("?")[0] == "jobs" else "jobs"
    return page_response(request.scope, "jobs/selected.html", results=results, action=action.value, back=address)


def _audience(viewer: Viewer, found: Conditions) -> Audience:
    return Audience(viewer.project_id, viewer.can_submit, found)


router.include_router(act_routes.router)  # before the paths with the id of a job
router.include_router(job.router)
PAGE = Page(path="jobs", title="Jobs", router=router, key="j", group="")
