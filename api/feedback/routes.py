"""`/v1/feedback`: what people think of answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.feedback.dependencies import CurrentFeedback, PrincipalIfAny
from api.feedback.schemas import (
    FeedbackCreate,
    FeedbackDeleted,
    FeedbackList,
    FeedbackView,
    JobFeedbackCreate,
    format_id,
)
from api.http.errors import ErrorResponse
from api.http.json_body import JsonRoute
from api.http.openapi import ERRORS, NOT_FOUND, READ
from api.http.pagination import After, Limit
from api.keys.auth import CurrentPrincipal
from shared.domain.feedback import MAX_METRIC
from shared.domain.owner import MAX_END_USER

PATH = "/v1/feedback"
MAX_TEXT = 1024

router = APIRouter(tags=["feedback"], route_class=JsonRoute)
_GIVEN: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    **NOT_FOUND,
    200: READ,
    413: {"model": ErrorResponse, "description": "The body is too large."},
}


@router.post(PATH, responses=_GIVEN)
async def give_feedback(body: FeedbackCreate, principal: PrincipalIfAny, feedback: CurrentFeedback) -> FeedbackView:
    """Give feedback about an answer or a conversation, or change it: each author has one value of a metric.

    A page in a browser needs no API key: it sends the header `x-headrace-feedback-token` of the answer as `token`.
    """
    return FeedbackView.of(await feedback.give(principal, body))


@router.post("/v1/jobs/{job_id}/feedback", responses=_GIVEN)
async def rate_job(
    job_id: str, body: JobFeedbackCreate, principal: CurrentPrincipal, feedback: CurrentFeedback
) -> FeedbackView:
    """Rate the answer of a job with thumbs up or down, or change the rating."""
    return FeedbackView.of(await feedback.rate(principal.project_id, job_id, body))


@router.get(
    PATH,
    responses={**ERRORS, 403: {"model": ErrorResponse, "description": "`project` needs a key with the scope `admin`."}},
)
async def list_feedback(
    principal: CurrentPrincipal,
    feedback: CurrentFeedback,
    limit: Limit = 20,
    after: After = None,
    job_id: Annotated[str | None, Query(max_length=100)] = None,
    conversation: Annotated[str | None, Query(max_length=200)] = None,
    metric: Annotated[str | None, Query(max_length=MAX_METRIC)] = None,
    user: Annotated[str | None, Query(max_length=MAX_END_USER, description="Whose feedback it is.")] = None,
    created_after: Annotated[datetime | None, Query(description="Given at this time or later.")] = None,
    created_before: Annotated[datetime | None, Query(description="Given before this time.")] = None,
    project: Annotated[
        str | None,
        Query(max_length=MAX_TEXT, description="Another project, or `*` for all. Needs a key with the admin scope."),
    ] = None,
) -> FeedbackList:
    """List feedback, newest first."""
    page = await feedback.page(
        principal,
        project=project,
        limit=limit,
        after=after,
        job_id=job_id,
        conversation=conversation,
        metric=metric,
        author=user,
        start=created_after,
        end=created_before,
    )
    return FeedbackList.of(page, FeedbackView.of, lambda one: format_id(one.id))


@router.delete(f"{PATH}/{{feedback_id}}", responses={**ERRORS, **NOT_FOUND})
async def delete_feedback(feedback_id: str, principal: CurrentPrincipal, feedback: CurrentFeedback) -> FeedbackDeleted:
    """Delete feedback."""
    return FeedbackDeleted(id=await feedback.delete(principal, feedback_id))
