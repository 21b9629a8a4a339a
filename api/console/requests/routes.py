"""`/console/requests`: the request log. Only for keys that may read it; who opens a request is recorded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.console.key_names import KeyNamesStore
from api.console.keys.store import KeyPagesStore
from api.console.page import Page
from api.console.requests.conditions import RANGES, STATUSES, CurrentConditions
from api.console.requests.view import content_view, facts, feedback_text, row_of
from api.console.templates import page_response
from api.console.viewer import CurrentViewer
from api.http.dependencies import resource
from api.keys.principal import Scope
from api.request_log.bodies import Missing
from api.requests.service import LoggedRequests
from api.requests.store import RequestPage
from shared.domain.errors import Forbidden, InvalidRequest, NotFound
from shared.runtime.offload import INLINE_BYTES, off_loop

PAGE_REQUESTS = 30
SUGGESTED_PROJECTS = 100

Requests = Annotated[LoggedRequests, Depends(resource(LoggedRequests))]
Names = Annotated[KeyNamesStore, Depends(resource(KeyNamesStore))]
Projects = Annotated[KeyPagesStore, Depends(resource(KeyPagesStore))]

router = APIRouter()


@router.get("")
async def requests_page(
    request: Request,
    viewer: CurrentViewer,
    conditions: CurrentConditions,
    requests: Requests,
    projects: Projects,
    after: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """The list."""
    page, problem = RequestPage((), None), None
    try:
        page = await requests.page(
            viewer.principal, conditions.query(datetime.now(UTC)), limit=PAGE_REQUESTS, after=after
        )
    except (InvalidRequest, Forbidden) as error:
        problem = error.message
    return page_response(
        request.scope,
        "requests/list.html",
        400 if problem else 200,
        conditions=conditions,
        ranges=RANGES,
        statuses=STATUSES,
        problem=problem,
        rows=[row_of(one) for one in page.requests],
        page=page,
        after=after,
        all_projects=viewer.is_operator,
        project_names=await projects.project_names(SUGGESTED_PROJECTS) if viewer.is_operator else [],
    )


@router.get("/{job_id}")
async def request_page(
    request: Request, job_id: str, viewer: CurrentViewer, requests: Requests, names: Names
) -> Response:
    """One request beside its answer, or the reason why they are missing."""
    row, body = await requests.open(viewer.principal, job_id)
    key_names = await names.names([row.key_id])
    content, missing = None, None
    if isinstance(body, Missing):
        missing = body.explanation
    else:
        content = await off_loop(INLINE_BYTES + 1, content_view, body)
    return page_response(
        request.scope,
        "requests/request.html",
        row=row_of(row),
        facts=facts(row, key_names[row.key_id].key),
        feedback=[(feedback_text(one), one.tags) for one in row.feedback],
        scores=row.scores,
        content=content,
        missing=missing,
    )


@router.get("/{job_id}/raw")
async def raw(job_id: str, viewer: CurrentViewer, requests: Requests) -> Response:
    """The whole of what the page cuts, as JSON."""
    _, body = await requests.open(viewer.principal, job_id)
    if isinstance(body, Missing):
        raise NotFound(body.explanation)
    values: dict[str, Any] = {"request": body.request, "output": body.output, "metadata": body.metadata}
    text = await off_loop(INLINE_BYTES + 1, orjson.dumps, values, option=orjson.OPT_INDENT_2)
    return Response(text, media_type="text/plain; charset=utf-8")


PAGE = Page(path="requests", title="Requests", router=router, key="q", group="Insight", scope=Scope.LOGS)
