"""`/v1/responses`: create, retrieve, resume, cancel, delete, list input."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from api.http.dependencies import CurrentStreamSettings
from api.http.errors import ErrorResponse
from api.http.json_body import CurrentBodyWork, JsonRoute
from api.http.large_json import JsonBody, json_response
from api.http.openapi import ERRORS, FAILED, STREAMED, SUBMITTED
from api.http.pagination import After, Limit
from api.http.sse import event_stream
from api.http.submit_headers import Submission
from api.jobs.dependencies import CurrentSyncCall
from api.keys.auth import CurrentPrincipal, CurrentRequest
from api.responses.dependencies import Responses
from api.responses.error_params import rename_failure
from api.responses.schemas import InputItemList, ResponseCreate, ResponseDeleted, ResponseView
from shared.domain.errors import InvalidRequest
from shared.domain.job import Job

MAX_NUMBER = 2**53

router = APIRouter(prefix="/v1/responses", tags=["responses"], route_class=JsonRoute)

NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse, "description": "Not found, or not stored."}}


@router.post(
    "",
    response_model=ResponseView,
    responses={**ERRORS, **NOT_FOUND, **FAILED, 200: {"model": ResponseView, "content": STREAMED, **SUBMITTED}},
)
async def create(
    body: ResponseCreate,
    principal: CurrentPrincipal,
    responses: Responses,
    call: CurrentSyncCall,
    submission: Submission,
    work: CurrentBodyWork,
) -> Response:
    """Create a response. Unless it runs in the background, it is cancelled if the client disconnects."""
    if body.stream:
        call.open_stream(body.model, body.end_user)
    response, job, created = await responses.create(
        body, principal.acting_for(body.end_user), submission, work, call.hold
    )

    async def response_body(jobs: Sequence[Job]) -> JsonBody:
        return await responses.body(replace(response, job=jobs[0]))

    def stream() -> AsyncIterator[bytes]:
        return responses.stream(response)

    return await call.respond(
        [job],
        created=created,
        stream=stream if body.stream else None,
        body=response_body,
        background=response.facts.background,
        rename=rename_failure,
    )


@router.get(
    "/{response_id}",
    response_model=ResponseView,
    responses={**ERRORS, **NOT_FOUND, 200: {"model": ResponseView, "content": STREAMED}},
)
async def retrieve(
    response_id: str,
    principal: CurrentPrincipal,
    open_request: CurrentRequest,
    settings: CurrentStreamSettings,
    responses: Responses,
    stream: Annotated[bool, Query(description="Stream the events, from the first or after a cursor.")] = False,
    starting_after: Annotated[
        int | None, Query(ge=0, le=MAX_NUMBER, description="With stream=true: start after this `sequence_number`.")
    ] = None,
) -> Response:
    """Get a response's current state, or its stream, as long as it is retained."""
    if starting_after is not None and not stream:
        raise InvalidRequest("starting_after: is only allowed with stream=true", param="starting_after")
    response = await responses.get(response_id, principal.project_id)
    if stream:
        open_request.open_stream(response.job.model, response.job.owner.end_user)
        return event_stream(responses.stream(response, starting_after), settings)
    return await json_response(await responses.body(response))


@router.post("/{response_id}/cancel", response_model=ResponseView, responses={**ERRORS, **NOT_FOUND})
async def cancel(response_id: str, principal: CurrentPrincipal, responses: Responses) -> Response:
    """Cancel a background response; its partial output is kept."""
    response = await responses.cancel(response_id, principal.project_id)
    return await json_response(await responses.body(response))


@router.delete(
    "/{response_id}",
    responses={**ERRORS, **NOT_FOUND, 409: {"model": ErrorResponse, "description": "The response has not ended."}},
)
async def delete(response_id: str, principal: CurrentPrincipal, responses: Responses) -> ResponseDeleted:
    """Delete an ended response's input and output, also in the request log."""
    await responses.delete(response_id, principal.project_id)
    return ResponseDeleted(id=response_id)


@router.get("/{response_id}/input_items", responses={**ERRORS, **NOT_FOUND})
async def input_items(
    response_id: str,
    principal: CurrentPrincipal,
    responses: Responses,
    limit: Limit = 20,
    order: Annotated[
        Literal["asc", "desc"], Query(description="`desc`: last item first; `asc`: first item first.")
    ] = "desc",
    after: After = None,
) -> InputItemList:
    """List a response's own input items, without those of its `previous_response_id`."""
    page = await responses.input_items(response_id, principal.project_id, limit=limit, order=order, after=after)
    return InputItemList.of(page, dict, itemgetter("id"))
