"""`/console/jobs/all`: cancel or replay all jobs of a list, step by step."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.console.actions import dialog_response, redirect
from api.console.jobs import conditions
from api.console.jobs.act import MAX_JOBS, Act, absolute
from api.console.navigation import asks_for_part
from api.console.templates import fragment_response, page_response
from api.console.viewer import CurrentViewer, Viewer
from api.http.dependencies import resource
from api.jobs.actions import Action, JobActions
from api.keys.principal import Scope
from shared.domain.errors import InvalidRequest, QuotaExceeded
from shared.runtime.outages import is_outage

logger = logging.getLogger(__name__)

# Jobs of one step.
STEP = 100
RETRY_S = 5

Actions = Annotated[JobActions, Depends(resource(JobActions))]
router = APIRouter()


@router.get("/all")
async def ask_for_all(
    request: Request, viewer: CurrentViewer, actions: Actions, action: Annotated[Action, Query()]
) -> Response:
    """Ask whether to cancel or replay all jobs of a list, with their number."""
    viewer.principal.require(Scope.INFERENCE)
    reading = conditions.read(request.query_params.multi_items())
    if reading.problems:
        raise InvalidRequest(reading.problems[0])
    now = datetime.now(UTC)
    found = absolute(reading.conditions, now)
    query = found.query(now, all_projects=viewer.project_id is None)
    act = Act.new(action, found, await actions.count(viewer.principal, action, query))
    return dialog_response(
        request,
        "jobs/act.html",
        act=act,
        action=action.value,
        words=reading.conditions.words(),
        back=reading.conditions.address(),
        fields=act.parameters(viewer) if act is not None else (),
        most=MAX_JOBS,
    )


@router.get("/all/progress")
async def progress_page(request: Request, viewer: CurrentViewer) -> Response:
    """How far an act has come. The page does the next step by itself, which the seal of its address allows."""
    act = Act.read(viewer, request.query_params.multi_items())
    return page_response(request.scope, "jobs/act_page.html", **_values(viewer, act))


@router.post("/all")
async def do_step(request: Request, viewer: CurrentViewer, actions: Actions) -> Response:
    """Do the next step of an act."""
    form = await request.form()
    act = Act.read(viewer, [(name, value) for name, value in form.multi_items() if isinstance(value, str)])
    problem = ""
    try:
        if not act.is_over:
            limit = min(STEP, MAX_JOBS - act.seen)
            act = act.with_page(
                await actions.apply(
                    viewer.principal, act.action, act.query(viewer), limit=limit, after=act.after, key=act.name
                )
            )
    except QuotaExceeded as error:
        problem = error.message
    except Exception as error:
        if not is_outage(error):
            raise
        logger.warning("act=%s %s: %s", act.name, act.action.value, error)
        problem = "The server is unavailable."
    if act.is_over:
        logger.info("act=%s %s by key_%d: %d jobs", act.name, act.action.value, viewer.principal.key_id, act.done)
    address = f"jobs/all/progress?{urlencode(act.parameters(viewer))}"
    if not asks_for_part(request.scope):
        return redirect(request, address)
    response = fragment_response("jobs/act_progress.html", **_values(viewer, act, problem), viewer=viewer)
    response.headers["HX-Replace-Url"] = address
    return response


def _values(viewer: Viewer, act: Act, problem: str = "") -> dict[str, Any]:
    return {
        "act": act,
        "fields": act.parameters(viewer),
        "problem": problem,
        "retry_s": RETRY_S,
        "most": MAX_JOBS,
        "back": act.conditions.address(),
    }
