"""Thumbs on the page of a job and in the playground: what the viewer thinks of an answer, and how many others do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.console.actions import read_form, redirect
from api.console.navigation import asks_for_part
from api.console.templates import fragment_response
from api.console.viewer import CurrentViewer, Viewer
from api.feedback.schemas import JobFeedbackCreate
from api.feedback.service import FeedbackService
from api.http.dependencies import resource
from api.keys.principal import Scope
from api.keys.store import format_id
from shared.domain.errors import InvalidRequest
from shared.domain.feedback import FeedbackSource, Rating

# The author of a viewer's thumbs: the id of the key, because two keys may have the same name, and a name may change. No
# end user is called so by accident.
AUTHOR = "console:{}"
NONE = "none"

CurrentFeedback = Annotated[FeedbackService, Depends(resource(FeedbackService))]
router = APIRouter()


def author_of(viewer: Viewer) -> str:
    """The author of the feedback that a viewer gives."""
    return AUTHOR.format(format_id(viewer.principal.key_id))


async def thumbs(feedback: FeedbackService, viewer: Viewer, job_id: str) -> Mapping[str, Any]:
    """The numbers of thumbs up and down, and the viewer's own, if any."""
    found = await feedback.ratings_of(viewer.project_id, job_id)
    own = next((one.value for one in found if one.author == author_of(viewer)), None)
    values = [one.value for one in found]
    return {"up": values.count(Rating.UP.value), "down": values.count(Rating.DOWN.value), "own": own}


@router.get("/{job_id}/feedback")
async def show(request: Request, job_id: str, viewer: CurrentViewer, feedback: CurrentFeedback) -> Response:
    """The thumbs of an answer, to be put into a page."""
    if not asks_for_part(request.scope):
        return redirect(request, f"jobs/{job_id}")
    return await _part(feedback, viewer, job_id)


@router.post("/{job_id}/feedback")
async def rate(request: Request, job_id: str, viewer: CurrentViewer, feedback: CurrentFeedback) -> Response:
    """Set the viewer's thumbs, or take them back; show the numbers, or without scripts, the page again."""
    viewer.principal.require(Scope.INFERENCE)
    rating, author = (await read_form(request))["rating"], author_of(viewer)
    if rating == NONE:
        await feedback.take_back(viewer.project_id, job_id, author)
    elif rating in tuple(Rating):
        body = JobFeedbackCreate(rating=Rating(rating), user=author)
        await feedback.rate(viewer.project_id, job_id, body, source=FeedbackSource.CONSOLE)
    else:
        raise InvalidRequest("rating: must be `up`, `down` or `none`", param="rating")
    if not asks_for_part(request.scope):
        return redirect(request, f"jobs/{job_id}")
    return await _part(feedback, viewer, job_id)


async def _part(feedback: FeedbackService, viewer: Viewer, job_id: str) -> Response:
    found = await thumbs(feedback, viewer, job_id)
    return fragment_response("jobs/job/thumbs.html", thumbs=found, viewer=viewer, job_id=job_id)
