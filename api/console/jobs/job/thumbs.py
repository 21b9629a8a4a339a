"""Thumbs on the page of a job: what the viewer thinks of its answer, and how many others do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from api.console.actions import read_form
from api.console.navigation import browser_path, root_of
from api.console.templates import render
from api.console.viewer import CurrentViewer, Viewer
from api.feedback.schemas import JobFeedbackCreate
from api.feedback.service import FeedbackService
from api.http.dependencies import resource
from api.keys.principal import Scope
from shared.domain.errors import InvalidRequest
from shared.domain.feedback import FeedbackSource, Rating

# The author of a viewer's thumbs. No end user is called so by accident.
AUTHOR = "console:{}"
NONE = "none"

CurrentFeedback = Annotated[FeedbackService, Depends(resource(FeedbackService))]
router = APIRouter()


async def thumbs(feedback: FeedbackService, viewer: Viewer, job_id: str) -> Mapping[str, Any]:
    """The numbers of thumbs up and down, and the viewer's own, if any."""
    found = await feedback.ratings_of(viewer.project_id, job_id)
    own = next((one.value for one in found if one.author == AUTHOR.format(viewer.key_name)), None)
    values = [one.value for one in found]
    return {"up": values.count(Rating.UP.value), "down": values.count(Rating.DOWN.value), "own": own}


@router.post("/{job_id}/feedback")
async def rate(request: Request, job_id: str, viewer: CurrentViewer, feedback: CurrentFeedback) -> Response:
    """Set the viewer's thumbs, or take them back; show the numbers, or without scripts, the page again."""
    viewer.principal.require(Scope.INFERENCE)
    rating, author = (await read_form(request))["rating"], AUTHOR.format(viewer.key_name)
    if rating == NONE:
        await feedback.take_back(viewer.project_id, job_id, author)
    elif rating in tuple(Rating):
        body = JobFeedbackCreate(rating=Rating(rating), user=author)
        await feedback.rate(viewer.project_id, job_id, body, source=FeedbackSource.CONSOLE)
    else:
        raise InvalidRequest("rating: must be `up`, `down` or `none`", param="rating")
    if request.headers.get("hx-request") != "true":
        return RedirectResponse(f"{root_of(browser_path(request.scope))}jobs/{job_id}", status_code=303)
    context = {"thumbs": await thumbs(feedback, viewer, job_id), "viewer": viewer, "job_id": job_id}
    return HTMLResponse(render("jobs/job/thumbs.html", context))
